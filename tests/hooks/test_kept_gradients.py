"""Gradients that are reduced a second time because nobody zeroed them: said once. All else that is like it: silence."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import CAP_MB, WAYS, assert_mgda, batch_of, hook, loss_of, mlp

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]

# The gradients of two ranks in two passes.
FIRST = ((4.0, 0.0), (-1.0, 1.0))
SECOND = ((0.0, 1.0), (0.0, -3.0))


@contextmanager
def said() -> Iterator[list[str]]:
    """What is said inside: it grows."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        messages: list[str] = []
        yield messages
    messages += [str(warning.message) for warning in caught]


def _hooked(model: nn.Module, way: str, method: Any = "mgda", **options: Any) -> tuple[DDP, moo.BucketMOO]:
    ddp = DDP(model, **options)
    return ddp, hook(ddp, way, method)


def _linear(n: int = 2) -> nn.Linear:
    model = nn.Linear(n, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def _backward(ddp: nn.Module, gradient: tuple[float, ...]) -> None:
    ddp(torch.tensor([gradient])).sum().backward()


def _twice(rank: int, world: int, way: str, view: bool) -> dict[str, Any]:
    results: dict[str, Any] = {}
    ddp, _ = _hooked(_linear(), way, gradient_as_bucket_view=view)
    with said() as messages:
        _backward(ddp, FIRST[rank])
    results["first pass"] = messages
    with said() as messages:
        _backward(ddp, SECOND[rank])
    results["second pass"] = messages
    with said() as messages:
        _backward(ddp, SECOND[rank])
    results["third pass"] = messages

    # As the message says.
    ddp, _ = _hooked(_linear(), way, gradient_as_bucket_view=view)
    with said() as messages:
        with ddp.no_sync():
            _backward(ddp, FIRST[rank])
        _backward(ddp, SECOND[rank])
    results["no_sync"] = messages
    rows = np.add(FIRST, SECOND)
    assert_mgda(rows, ddp.module.weight.grad[0].double().numpy(), 1e-6)
    return results


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_two_passes_without_zeroing(run_ranks: RunRanks, way: str, view: bool) -> None:
    for results in run_ranks(2, _twice, way, view):
        assert results["first pass"] == []
        assert len(results["second pass"]) == 1
        for words in ("bucket_moo_ext", "'weight'", "zero_grad()", "no_sync()"):
            assert words in results["second pass"][0]
        assert results["third pass"] == [], "once"
        assert results["no_sync"] == []


def _late(rank: int, world: int, way: str) -> list[int]:
    """A gradient of a few rows, kept after many passes; one network, zeroed by one of its two optimizers."""
    counts = []
    model = nn.Embedding(4000, 8)
    ddp, _ = _hooked(model, way)
    for step in range(12):
        if step != 5:
            ddp.zero_grad(set_to_none=False)
        with said() as messages:
            ddp(torch.tensor([3000 + rank + step])).sum().backward()
        counts.append(len(messages))

    ddp, _ = _hooked(mlp(0, torch.float32), way, bucket_cap_mb=CAP_MB)
    parameters = list(ddp.parameters())
    optimizers = [torch.optim.SGD(some, lr=0.0) for some in (parameters[:2], parameters[2:])]
    for step in range(3):
        for optimizer in optimizers if step < 2 else optimizers[:1]:
            optimizer.zero_grad()
        with said() as messages:
            loss_of(ddp, batch_of(0, rank, step, torch.float32)).backward()
        counts.append(len(messages))
    return counts


def _warnings_are_errors(rank: int, world: int, way: str, forgetful: int) -> list[str]:
    """The pass ends as it would without a warning, on every rank, and so do the next ones."""
    ddp, state = _hooked(mlp(0, torch.float32), way, bucket_cap_mb=CAP_MB)
    raised = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6):
            if step != 3 or rank > forgetful:
                ddp.zero_grad()
            try:
                loss_of(ddp, batch_of(0, rank, step, torch.float32)).backward()
            except UserWarning as warning:
                raised.append(f"{step}: {warning}")
    assert state.step == 6
    assert len(state.report().buckets) > 1
    return raised


@pytest.mark.parametrize("forgetful", [0, 1], ids=["on one rank", "on both"])
@pytest.mark.parametrize("way", WAYS)
def test_warnings_as_errors(run_ranks: RunRanks, way: str, forgetful: int) -> None:
    for rank, raised in enumerate(run_ranks(2, _warnings_are_errors, way, forgetful, timeout=60.0)):
        assert [text[:18] for text in raised] == ["3: bucket_moo_ext:"] * (rank <= forgetful)


@pytest.mark.host
@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_are_kept_in_part(run_ranks: RunRanks, way: str) -> None:
    for counts in run_ranks(2, _late, way):
        assert counts == [int(step == 5) for step in range(12)] + [0, 0, 1]


def _in_between(rank: int, world: int, way: str, view: bool) -> list[int]:
    """A pass under no_sync() does not make old gradients new."""
    ddp, _ = _hooked(_linear(), way, gradient_as_bucket_view=view)
    with said() as messages:
        _backward(ddp, FIRST[rank])
        with ddp.no_sync():
            _backward(ddp, SECOND[rank])
    counts = [len(messages)]
    with said() as messages:
        _backward(ddp, SECOND[rank])
    return [*counts, len(messages)]


@pytest.mark.parametrize("view", [False, True])
def test_a_pass_under_no_sync_in_between(run_ranks: RunRanks, view: bool) -> None:
    assert run_ranks(2, _in_between, "register", view) == [[0, 1]] * 2


# --- silence ---

ZEROING: dict[str, Callable[[nn.Module], Any]] = {
    "to None": lambda model: model.zero_grad(),
    "in place": lambda model: model.zero_grad(set_to_none=False),
    "times 0": lambda model: [p.grad.mul_(-0.0) for p in model.parameters() if p.grad is not None],  # leaves -0.0
    "a new tensor": lambda model: [setattr(p, "grad", torch.zeros_like(p)) for p in model.parameters()],  # type: ignore[func-returns-value]
    "deleted": lambda model: [setattr(p, "grad", None) for p in model.parameters()],  # type: ignore[func-returns-value]
}


def _zeroed(rank: int, world: int, way: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in (False, True):
            for zero in ZEROING.values():
                model = mlp(0, dtype)
                ddp, state = _hooked(model, way, gradient_as_bucket_view=view, bucket_cap_mb=CAP_MB)
                for step in range(10):
                    zero(ddp)
                    if step % 3 == 1:
                        with ddp.no_sync():
                            loss_of(ddp, batch_of(0, rank, step, dtype)).backward()
                    loss = loss_of(ddp, batch_of(0, rank, step, dtype))
                    loss.backward()
                    nn.utils.clip_grad_norm_(ddp.parameters(), 1e-3)
                    # Gradients that are asked for and not added to .grad.
                    torch.autograd.grad(loss_of(model, batch_of(0, rank, step, dtype)), list(model.parameters()))
                assert state.step == 10


@pytest.mark.parametrize(("way", "dtype"), [("register", torch.float32), ("hook", torch.bfloat16)])
def test_gradients_that_are_zeroed(run_ranks: RunRanks, way: str, dtype: torch.dtype) -> None:
    run_ranks(2, _zeroed, way, dtype)


def _complex(rank: int, world: int) -> None:
    ddp, _ = _hooked(nn.Linear(3, 3, dtype=torch.complex64), "register")

    def step() -> int:
        with said() as messages:
            ddp(torch.full((2, 3), 1.0 + rank, dtype=torch.complex64)).abs().sum().backward()
        return len(messages)

    for _ in range(3):
        ddp.zero_grad(set_to_none=False)
        assert step() == 0
    assert step() == 1


def test_complex_gradients(run_ranks: RunRanks) -> None:
    run_ranks(2, _complex)


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(4))

    def forward(self, x: torch.Tensor, head: int) -> torch.Tensor:
        out: torch.Tensor = self.heads[head](self.trunk(x))
        return out


def _unused(rank: int, world: int, way: str) -> list[int]:
    """Heads that a pass does not use keep nothing as long as they are zeroed."""
    counts = []
    for view in (False, True):
        ddp, _ = _hooked(_Heads(), way, find_unused_parameters=True, gradient_as_bucket_view=view)
        with said() as messages:
            for step in range(12):
                ddp.zero_grad(set_to_none=step % 2 == 0)
                ddp(torch.ones(1, 4), (step + rank) % 4).sum().backward()
        counts.append(len(messages))
        with said() as messages:  # one that this pass does not use, and that is not zeroed
            ddp.module.trunk.zero_grad()
            ddp(torch.ones(1, 4), (20 - rank) % 4).sum().backward()
        counts.append(len(messages))
    return counts


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_a_pass_does_not_use(run_ranks: RunRanks, way: str) -> None:
    assert run_ranks(2, _unused, way) == [[0, 1, 0, 1]] * 2


def _joined(rank: int, world: int, way: str) -> int:
    """A rank that has run out of data keeps its last gradients, and sends zeros."""
    ddp, _ = _hooked(mlp(0, torch.float32), way, bucket_cap_mb=CAP_MB)
    with said() as messages, ddp.join():
        for step in range(2 + 2 * rank):
            ddp.zero_grad()
            loss_of(ddp, batch_of(0, rank, step, torch.float32)).backward()
    return len(messages)


@pytest.mark.parametrize("way", WAYS)
def test_ranks_that_have_run_out_of_data(run_ranks: RunRanks, way: str) -> None:
    assert run_ranks(2, _joined, way) == [0, 0]


def _harmless(rank: int, world: int) -> None:
    """The mean of (reduced before + new) is (reduced before + mean of the new)."""
    for method in ("mean", moo.Mean(weights=[1.0, 3.0])):
        ddp, _ = _hooked(_linear(), "register", method)
        with said() as messages:
            _backward(ddp, FIRST[rank])
            _backward(ddp, SECOND[rank])
        assert messages == []
        share = np.array([0.5, 0.5] if method == "mean" else [0.25, 0.75])
        np.testing.assert_allclose(ddp.module.weight.grad[0].numpy(), share @ np.add(FIRST, SECOND), rtol=1e-6)

    # Gradients from before the module was wrapped were not reduced: they are accumulated, as under no_sync().
    model = _linear()
    _backward(model, FIRST[rank])
    ddp, _ = _hooked(model, "register")
    with said() as messages:
        _backward(ddp, SECOND[rank])
    assert messages == []
    assert_mgda(np.add(FIRST, SECOND), model.weight.grad[0].double().numpy(), 1e-6)  # type: ignore[index]

    # One state for the same parameters in one module after another.
    state = moo.BucketMOO()
    for _ in range(3):
        ddp = DDP(model)
        ddp.register_comm_hook(state, moo.bucket_moo_hook)
        with said() as messages:
            for _ in range(2):
                ddp.zero_grad()
                _backward(ddp, FIRST[rank])
        assert messages == []
        del ddp
        gc.collect()


def test_what_is_like_it_and_right(run_ranks: RunRanks) -> None:
    run_ranks(2, _harmless)
