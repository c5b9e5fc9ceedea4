"""A plain module in one process: several objectives as passes."""

import copy
import enum
import functools
import gc
import re
import warnings
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn

from tests.support import reference as ref
from tests.support.ddp import assert_close, assert_mgda, batch_of, flat, gradients, loss_of, mlp, rows_of
from tests.support.errors import error_of, expect

LANGUAGES = ("de", "sw", "tr")
METHODS = ["mean", "mgda", "cagrad"]


TWO_BUCKETS = 16_000 / 2**20
"""MiB that make two buckets of a small model instead of one."""


def _loss_on(batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[nn.Module], torch.Tensor]:
    return lambda model: loss_of(model, batch)


def _check(model: nn.Module, state: moo.BucketMOO, local: list[dict[str, np.ndarray]], method: str) -> None:
    of_name = dict(model.named_parameters())
    report = state.report()
    assert sorted(name for bucket in report.buckets for name in bucket.parameters) == sorted(of_name)
    assert report.objectives == LANGUAGES[: len(local)]
    problems = [bucket.parameters for bucket in report.buckets]
    if state.scope == "model":
        problems = [tuple(of_name)]
    for names in problems:
        rows = rows_of(local, names, None)
        got = np.concatenate([flat(of_name[name].grad, of_name[name]) for name in names])
        if method == "mgda":
            assert_mgda(rows, got, 1e-8)
        else:
            assert_close(got, ref.combine(rows, ref.weights(rows, method)), 1e-6)


class _Language(str, enum.Enum):
    DE = "de"
    SW = "sw"


@pytest.mark.parametrize("gramian", ["exact", moo.Sketch(64, lag=1)], ids=str)
def test_objectives_of_losses_are_those_of_the_state(gramian: Any) -> None:
    """Enumerations are their values; a number and its digits are one objective."""
    model = nn.Linear(100, 3)
    state = moo.register(model, "mean", gramian=gramian)
    for losses, rows in ((_Language, {"de": 1, "sw": 1}), ((1, "1", "2"), {"1": 2, "2": 1})):
        model.zero_grad()
        inputs = torch.arange(100.0 * len(losses)).reshape(len(losses), 100)
        of_name: dict[Any, torch.Tensor] = {name: model(row).sum() for name, row in zip(losses, inputs, strict=True)}
        state.backward(of_name)
        (bucket,) = state.report().buckets
        assert dict(zip(bucket.objectives, bucket.rows, strict=True)) == rows
        first, last = inputs[:-1].mean(0), inputs[-1]
        torch.testing.assert_close(model.weight.grad, ((first + last) / 2).expand(3, -1))


@pytest.mark.parametrize("by_name", [False, True])
def test_the_pass_that_closes_a_step_may_be_in_the_closure_of_the_optimizer(by_name: bool) -> None:
    losses: list[float] = []

    def train(closes_inside: bool) -> nn.Module:
        model = mlp(1)
        state = moo.register(model, "mgda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with state.accumulate():
            state.objective = "de"
            loss_of(model, batch_of(5, 0, 0)).backward()

        def closing() -> float:
            state.objective = "sw"
            loss = loss_of(model, batch_of(5, 1, 0))
            loss.backward()
            losses.append(loss.item())
            return losses[-1]

        def not_closing() -> float:
            with state.accumulate():
                return closing()

        for closure in (None, not_closing):
            refused = error_of(functools.partial(optimizer.step, closure))
            expect(refused, RuntimeError, r"optimizer.step\(\): the step is open")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), mlp(1).parameters(), strict=True))
        if not closes_inside:
            closing()
            optimizer.step()
        else:
            assert (optimizer.step(closure=closing) if by_name else optimizer.step(closing)) == losses[-1]
        return model

    pairs = zip(train(True).parameters(), train(False).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("scope", ["bucket", "model"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_of_one_forward_pass_or_several(method: str, scope: str) -> None:
    model = mlp(1)
    state = moo.register(model, method, scope=scope, bucket_cap_mb=TWO_BUCKETS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        rows = [batch_of(5, number, step) for number in range(3)]
        local = [gradients(model, _loss_on(row)) for row in rows]
        optimizer.zero_grad()
        state.backward({name: loss_of(model, row) for name, row in zip(LANGUAGES, rows, strict=True)})
        _check(model, state, local, method)

        optimizer.zero_grad(set_to_none=False)
        output = model(torch.cat([x for x, _ in rows])).split(6)
        losses = [(part - y).square().mean() for part, (_, y) in zip(output, rows, strict=True)]
        state.backward(dict(zip(LANGUAGES, losses, strict=True)))
        _check(model, state, local, method)
        assert state.report().passes == 3
        optimizer.step()
    assert len(state.report().buckets) == 2
    assert state.objective is None


@pytest.mark.device
def test_passes_one_by_one_with_weights_and_several_rows_an_objective() -> None:
    model = mlp(1)
    state = moo.register(model, "mgda", bucket_cap_mb=TWO_BUCKETS)
    schedule = [("de", 1.0), ("sw", 2.0), ("de", 3.0), ("sw", 2.0)]
    for step in range(2):
        model.zero_grad()
        local = []
        for number, (name, weight) in enumerate(schedule):
            row = batch_of(5, number, step)
            local.append(gradients(model, _loss_on(row)))
            state.objective, state.weight = name, weight
            if number < 3:
                with state.accumulate():
                    loss_of(model, row).backward()
                assert all(p.grad is None for p in model.parameters())
            else:
                loss_of(model, row).backward()
        means = [
            {name: 0.25 * local[0][name] + 0.75 * local[2][name] for name in local[0]},
            {name: 0.5 * local[1][name] + 0.5 * local[3][name] for name in local[0]},
        ]
        _check(model, state, means, "mgda")
        assert state.report().buckets[0].rows == (2, 2)


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(1, sizes=(40, 60, 60))
        self.heads = nn.ModuleDict({name: mlp(2, sizes=(60, 5)) for name in LANGUAGES})
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor], name: str) -> torch.Tensor:
        result: torch.Tensor = self.heads[name](self.trunk(batch[0]))
        return result


def test_what_a_pass_does_not_reach_counts_as_zero() -> None:
    model = _Heads().double()
    state = moo.register(model, "mean", bucket_cap_mb=TWO_BUCKETS)
    for step in range(2):
        model.zero_grad()
        rows = {name: batch_of(5, number, step) for number, name in enumerate(LANGUAGES)}
        losses = {name: (model(row, name) - row[1]).square().mean() for name, row in rows.items()}
        local = [
            gradients(model, lambda m, name=name, row=row: (m(row, name) - row[1]).square().mean())  # type: ignore[misc]
            for name, row in rows.items()
        ]
        state.backward(losses)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                expected = np.mean([of_language[name] for of_language in local], axis=0)
                assert_close(flat(parameter.grad, parameter), expected, 1e-12, name)
            else:
                assert parameter.grad is None


def test_sparse_gradients_are_averaged() -> None:
    model = nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Linear(6, 2)).double()
    twin = copy.deepcopy(model)
    state = moo.register(model, "mean")
    indices = [torch.tensor([1, 2]), torch.tensor([2, 3])]
    state.backward({name: model(i).square().sum() for name, i in zip("ab", indices, strict=True)})
    sum(twin(i).square().sum() for i in indices).backward()
    for got, total in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(got.grad.to_dense(), total.grad.to_dense() / 2, rtol=1e-12)  # type: ignore[union-attr]


def test_a_discarded_pass_does_not_count_for_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Linear(6, 2)).double()
    twin = copy.deepcopy(model)
    state = moo.register(model, "mean")
    with state.accumulate():
        model(torch.tensor([4, 5])).square().sum().backward()
    state.discard()
    model.zero_grad()
    for net in (model, twin):
        net(torch.tensor([1, 2])).square().sum().backward()
    for got, alone in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(got.grad.to_dense(), alone.grad.to_dense(), rtol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_in_one_model(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20).to(dtype))
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))

    def loss(m: Any, row: int) -> torch.Tensor:
        result: torch.Tensor = m[1](m[0](x[row : row + 1]).to(dtype)).float().square().mean()
        return result

    local = [gradients(model, lambda m, row=row: loss(m, row)) for row in range(3)]  # type: ignore[misc]
    state = moo.register(model, "mean")
    state.backward({str(row): loss(model, row) for row in range(3)})
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
        expected = np.mean([of_row[name] for of_row in local], axis=0)
        assert_close(flat(parameter.grad, parameter), expected, 2 * torch.finfo(parameter.dtype).eps, name)


def test_complex_parameters() -> None:
    model = nn.Linear(3, 2, dtype=torch.complex128)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    state = moo.register(model, "mean")
    state.backward({str(row): model(x[row]).abs().square().sum() for row in range(2)})
    twin(x).abs().square().sum().backward()
    for got, total in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(got.grad, total.grad / 2, rtol=1e-12)  # type: ignore[arg-type,operator]


def test_a_single_pass_is_the_gradient_itself() -> None:
    model = mlp(1)
    moo.register(model, "mgda")
    row = batch_of(5, 0, 0)
    expected = gradients(model, lambda m: loss_of(m, row))
    loss_of(model, row).backward()
    for name, parameter in model.named_parameters():
        assert_close(flat(parameter.grad, parameter), expected[name], 1e-15)


def test_there_is_one_copy_of_each_gradient() -> None:
    """It moves into its bucket as it becomes ready, also in the very first pass, and the result stays there."""
    model = mlp(1)
    moo.register(model, "mgda", bucket_cap_mb=TWO_BUCKETS)
    left = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: left.append(p.grad))
    for step in range(2):
        model.zero_grad()
        loss_of(model, batch_of(5, 0, step)).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(model.parameters()))
        assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == 2
    assert len(left) == 2 * len(gradients)
    # Of the last of a bucket the result is there.
    assert sum(gradient is not None for gradient in left) == 2 * 2


def test_gradients_have_the_layout_of_their_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 2, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin = copy.deepcopy(model)
    state = moo.register(model, "mean")
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        model.zero_grad()
        state.backward({str(row): model(x[row : row + 1]).square().sum() for row in range(2)})
    twin(x).square().sum().backward()
    for got, total in zip(model.parameters(), twin.parameters(), strict=True):
        assert got.grad is not None
        assert total.grad is not None
        assert got.grad.stride() == got.stride()
        torch.testing.assert_close(got.grad, total.grad / 2)


@pytest.mark.parametrize("has_run", [True, False])
def test_a_backward_pass_that_fails_is_given_up(has_run: bool) -> None:
    model = mlp(1)
    state = moo.register(model, "mean", bucket_cap_mb=TWO_BUCKETS)
    rows = [batch_of(5, number, 0) for number in range(2)]

    def losses() -> dict[str, torch.Tensor]:
        return {name: loss_of(model, row) for name, row in zip("ab", rows, strict=True)}

    if has_run:
        state.backward(losses())
        model.zero_grad()

    def fail(gradient: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("planted")

    with state.accumulate():
        if has_run:
            loss_of(model, rows[0]).backward()
        handle = next(model.parameters()).register_hook(fail)
        expect(error_of(loss_of(model, rows[1]).backward), ArithmeticError, "planted")
        handle.remove()
    state.discard()
    model.zero_grad()
    local = [gradients(model, _loss_on(row)) for row in rows]
    state.backward(losses())
    assert len(state.report().buckets) == 2
    for name, parameter in model.named_parameters():
        expected = np.mean([of_row[name] for of_row in local], axis=0)
        assert_close(flat(parameter.grad, parameter), expected, 1e-12, name)


def test_the_module_keeps_reducing_when_the_state_is_dropped() -> None:
    model = mlp(1)
    moo.register(model, moo.Mean(), weight=2.0)
    gc.collect()
    loss_of(model, batch_of(5, 0, 0)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    twin = copy.deepcopy(model)  # reduces nothing
    loss_of(twin, batch_of(5, 0, 0)).backward()


BAD: list[tuple[Callable[[moo.BucketMOO, nn.Module], Any], type[Exception], str]] = [
    (lambda state, model: state.backward({}), ValueError, "losses must have an objective"),
    (lambda state, model: state.backward([1.0]), TypeError, "losses must be a mapping"),  # type: ignore[arg-type]
    (lambda state, model: state.backward({"de": torch.ones(2)}), ValueError, r"losses\['de'\] .* shape \(2,\)"),
    (lambda state, model: state.backward({"de": torch.tensor(1.0)}), ValueError, "requires a gradient"),
    (lambda state, model: state.backward({"de": 1.0}), ValueError, "got float"),  # type: ignore[arg-type]
    (
        lambda state, model: moo.register(nn.Linear(2, 2), scope="layer"),
        ValueError,
        "scope must be 'bucket' or 'model'",
    ),
    (lambda state, model: moo.register(nn.Linear(2, 2), bucket_cap_mb=-1), ValueError, "bucket_cap_mb must be finite"),
    (lambda state, model: moo.register(nn.Linear(2, 2), layout=1), TypeError, "layout must be"),  # type: ignore[arg-type]
    (lambda state, model: moo.register(nn.Linear(2, 2).requires_grad_(False)), ValueError, "no parameter"),
    (lambda state, model: moo.register(nn.Linear(2, 2).to(torch.float8_e4m3fn)), TypeError, "float8"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_wrong_use(call: Callable[[moo.BucketMOO, nn.Module], Any], kind: type[Exception], message: str) -> None:
    model = mlp(1)
    state = moo.register(model)
    expect(error_of(lambda: call(state, model)), kind, message)
    assert state.step == 0


class _Nested(torch.autograd.Function):
    """Gives a parameter its gradient in a backward pass of its own, as losses that cache gradients do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        with torch.enable_grad():
            ctx.weight.square().sum().backward()
        return gradients[0] * 2, None


def test_a_backward_pass_inside_another_one_is_refused() -> None:
    model = nn.Linear(3, 2, bias=False)
    state = moo.register(model, "mgda")
    x = torch.ones(3, requires_grad=True)
    expect(error_of(lambda: _Nested.apply(x, model.weight).sum().backward()), RuntimeError, "inside another one")
    for _ in range(2):
        model.zero_grad()
        with state.accumulate():
            state.objective = "a"
            model(x).sum().backward()
        state.objective = "b"
        model(x).square().sum().backward()
    assert state.report().objectives == ("a", "b")


@pytest.mark.parametrize("cap", [0.0, 25.0])
def test_gradients_that_are_not_zeroed_are_told_of_once(cap: float) -> None:
    """As in a loop over objectives that takes every pass for a step."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = moo.register(model, "mgda", bucket_cap_mb=cap)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            model(torch.ones(3)).sum().backward()
    (warning,) = told
    assert re.search(r"was not zeroed .* state\.accumulate\(\)", str(warning.message))
    assert state.step == 3


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("cap", [0.0, 25.0])
def test_zeroed_gradients_are_no_reason_to_warn(set_to_none: bool, cap: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = moo.register(model, "mgda", bucket_cap_mb=cap)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad(set_to_none)
        state.backward({name: model(torch.ones(3)).sum() for name in ("a", "b")})
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def test_the_mean_may_be_accumulated() -> None:
    model = nn.Linear(3, 2)
    moo.register(model, "mean")
    for _ in range(3):
        model(torch.ones(3)).sum().backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.full((2, 3), 3.0))
