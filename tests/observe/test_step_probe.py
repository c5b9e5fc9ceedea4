"""moo.StepProbe against gradients and steps computed apart, and against what losses really do."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.reference import Array

Runner = Callable[..., list[Any]]
LANGUAGES = ("de", "sw", "tr")


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def loss_of(model: nn.Module, seed: int, language: str, row: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng([seed, LANGUAGES.index(language), row]).standard_normal((8, 9))
    values = torch.from_numpy(drawn)
    return nn.functional.mse_loss(model(values[:, :6]), values[:, 6:])


def gradient_of(seed: int, language: str, row: int = 0) -> Array:
    model = model_of(seed)
    loss_of(model, seed, language, row).backward()
    return flat([p.grad for p in model.parameters()])


def flat(tensors: Any) -> Array:
    values: Array = torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy().copy()
    return values


def adamw(model: nn.Module, rate: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.3)


def numbers(taken: moo.observe.TakenStep) -> dict[str, Any]:
    """Without tensors."""
    return {name: np.asarray(value) for name, value in vars(taken).items()}


def assert_taken(taken: dict[str, Any], rows: dict[str, Array], update: Array, step: Array) -> None:
    assert tuple(taken["objectives"]) == tuple(rows)
    for place, row in enumerate(rows.values()):
        np.testing.assert_allclose(taken["gradient"][place], -row @ update, rtol=1e-9)
        np.testing.assert_allclose(taken["taken"][place], row @ step, rtol=1e-9)
        lengths = np.linalg.norm(row) * np.array([np.linalg.norm(update), np.linalg.norm(step)])
        np.testing.assert_allclose(taken["gradient_cosines"][place], -row @ update / lengths[0], rtol=1e-9)
        np.testing.assert_allclose(taken["taken_cosines"][place], row @ step / lengths[1], rtol=1e-9)
    np.testing.assert_allclose(taken["gradient_norm"], np.linalg.norm(update), rtol=1e-12)
    np.testing.assert_allclose(taken["taken_norm"], np.linalg.norm(step), rtol=1e-9)


def _ranks(rank: int, world: int, seed: int) -> Any:
    """Two passes, one objective a rank and a pass, with weights: four rows of three languages."""
    model = model_of(seed)
    ddp = DistributedDataParallel(model)
    state = moo.register(ddp, "mgda")
    optimizer = adamw(model)
    before = flat(model.parameters())
    with moo.StepProbe(state, ddp) as probe:
        for number, (language, weight) in enumerate([("de", 1.0), ("sw" if rank else "tr", 2.0 + rank)]):
            state.objective, state.weight = language, weight
            with contextlib.nullcontext() if number == 1 else state.accumulate():
                loss_of(ddp, seed, language, rank).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return numbers(probe.result), flat(p.grad for p in model.parameters()), flat(model.parameters()) - before


def test_ranks_and_passes(run_ranks: Runner, random_seed: int) -> None:
    results = run_ranks(2, _ranks, random_seed)
    rows = {
        "de": (gradient_of(random_seed, "de", 0) + gradient_of(random_seed, "de", 1)) / 2,
        "tr": gradient_of(random_seed, "tr", 0),
        "sw": gradient_of(random_seed, "sw", 1),
    }
    for taken, update, step in results:
        assert_taken(taken, rows, update, step)


def one_process(
    seed: int, optimizer_of: Callable[..., torch.optim.Optimizer], scale: float = 1.0
) -> tuple[moo.observe.TakenStep, nn.Module, Array, Array]:
    model = model_of(seed)
    state = moo.register(model, "mgda")
    optimizer = optimizer_of(model)
    before = flat(model.parameters())
    with moo.StepProbe(state, model, loss_scale=scale) as probe:
        state.backward({language: scale * loss_of(model, seed, language) for language in LANGUAGES})
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= scale
        optimizer.step()
    return probe.result, model, flat(p.grad for p in model.parameters()), flat(model.parameters()) - before


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_one_process(random_seed: int, scale: float) -> None:
    taken, _, update, step = one_process(random_seed, adamw, scale)
    rows = {language: gradient_of(random_seed, language) for language in LANGUAGES}
    assert_taken(numbers(taken), rows, update, step)


def test_losses_change_by_what_it_says(random_seed: int) -> None:
    taken, model, _, _ = one_process(random_seed, lambda model: adamw(model, 1e-6))
    for place, language in enumerate(LANGUAGES):
        change = float(loss_of(model, random_seed, language).detach()) - float(
            loss_of(model_of(random_seed), random_seed, language).detach()
        )
        assert change == pytest.approx(float(taken.taken[place]), rel=1e-3, abs=1e-9)


def test_a_plain_step_along_the_gradient_is_the_same_direction(random_seed: int) -> None:
    taken, *_ = one_process(random_seed, lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    np.testing.assert_allclose(taken.taken_cosines, taken.gradient_cosines, rtol=1e-9)
    assert taken.worsened == ()
    assert (taken.gradient <= 0).all()  # as MGDA promises


def test_what_the_optimizer_makes_worse_is_named() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0]]))
    state = moo.register(model, "mean")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=10.0)
    with moo.StepProbe(state, model) as probe:
        down, up = (model(torch.tensor(x, dtype=torch.float64)).sum() for x in ([1.0, 0.0], [0.0, -0.5]))
        state.backward({"down": down, "up": up})
        optimizer.step()
    taken = probe.result  # gradients (1, 0) and (0, -1/2), update (1/2, -1/4), step -(10.5, 9.75)
    np.testing.assert_allclose(taken.gradient, [-0.5, -0.125])
    np.testing.assert_allclose(taken.taken, [-10.5, 4.875])
    assert taken.worsened == ("up",)
    lines = str(taken).splitlines()
    assert lines[3].endswith("rises")
    assert not lines[2].endswith("rises")
    assert json.loads(json.dumps(taken.to_dict(), allow_nan=False))["worsened"] == ["up"]


def test_gradients_that_are_gone(random_seed: int) -> None:
    model = model_of(random_seed)
    state = moo.register(model, "mgda")
    optimizer = adamw(model)
    with moo.StepProbe(state, model) as probe:
        state.backward({language: loss_of(model, random_seed, language) for language in LANGUAGES})
        optimizer.step()
        optimizer.zero_grad()
    assert probe.result.gradient.isnan().all()
    assert probe.result.taken.isfinite().all()
    assert probe.result.worsened == ()


def test_a_step_outside_and_a_step_that_fails_leave_no_trace(random_seed: int) -> None:
    model = model_of(random_seed)
    state = moo.register(model, "mgda")
    probe = moo.StepProbe(state, model)
    with pytest.raises(RuntimeError, match="there is no result yet"):
        probe.result  # noqa: B018
    with pytest.raises(ValueError, match="mine"), probe:
        raise ValueError("mine")
    losses = {language: loss_of(model, random_seed, language) for language in LANGUAGES}
    state.backward(losses)
    with pytest.raises(RuntimeError, match="no backward pass of this module inside"), probe:
        pass
    assert all(not p._backward_hooks for p in model.parameters())
    with pytest.raises(RuntimeError, match="at work already"), probe, probe:
        raise AssertionError


class Sharded(nn.Module):
    """Looks as FSDP1's."""

    def __init__(self) -> None:
        super().__init__()
        self._fsdp_wrapped_module = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda state, model: moo.StepProbe(model, model), TypeError, "state must be a BucketMOO"),
        (lambda state, model: moo.StepProbe(state, model.parameters()), TypeError, "module must be a torch.nn.Module"),
        (lambda state, model: moo.StepProbe(state, model, loss_scale=0), ValueError, "loss_scale must be a finite"),
        (lambda state, model: moo.StepProbe(state, nn.Tanh()), ValueError, "no parameter"),
        (lambda state, model: moo.StepProbe(state, Sharded()), NotImplementedError, "sharded parameters"),
    ],
    ids=["state", "module", "loss_scale", "nothing trained", "sharded"],
)
def test_bad_arguments(make: Callable[..., object], kind: type[Exception], words: str) -> None:
    model = model_of(0)
    with pytest.raises(kind, match=words):
        make(moo.register(model, "mgda"), model)


def _no_sync(rank: int, world: int) -> str:
    ddp = DistributedDataParallel(model_of(0))
    state = moo.register(ddp, "mgda")
    with pytest.raises(RuntimeError) as caught, moo.StepProbe(state, ddp), ddp.no_sync():
        loss_of(ddp, 0, "de").backward()
    return str(caught.value)


def test_no_sync(run_ranks: Runner) -> None:
    assert all("does not support no_sync()" in text for text in run_ranks(2, _no_sync))
