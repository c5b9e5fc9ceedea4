"""DDP's options that not every supported torch has: how buckets are filled, cut, allocated, and when a pass ends."""

import inspect
import itertools
import time
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import (
    CAP_MB,
    SIZES,
    WAYS,
    batch_of,
    check_buckets,
    gradient_digest,
    hook,
    local_gradients,
    loss_of,
    mlp,
    same_on_all_ranks,
)

RunRanks = Callable[..., list[Any]]
STEPS = 4
TOLERANCE = 1e-9


def _needs_option(name: str) -> pytest.MarkDecorator:
    has = name in inspect.signature(DDP).parameters
    return pytest.mark.skipif(not has, reason=f"torch {torch.__version__}: DDP has no {name}")


needs_manual_finalization = pytest.mark.skipif(
    not hasattr(DDP, "finalize_backward"), reason=f"torch {torch.__version__}: DDP has no manual finalization"
)


class _WithInput(nn.Module):
    """Has a gradient for its input, which is ready when those of all layers are."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.input: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.input = x.clone().requires_grad_()
        out: torch.Tensor = self.layers(self.input * 1.0)
        return out


# What mypy's torch does not have yet.
_LAZY: dict[str, Any] = {"lazy_bucket_allocation": True}


def _train(
    rank: int,
    world: int,
    seed: int,
    way: str,
    options: dict[str, Any],
    finalize: Callable[[Any, torch.Tensor], None] | None = None,
) -> tuple[list[str], list[list[int]]]:
    """Steps against the reference; the bits of the gradients, and the bytes of the buckets, of each.

    ``finalize``: runs a backward pass and ends it by hand.
    """
    ddp = DDP(_WithInput(mlp(seed)), **{"bucket_cap_mb": CAP_MB, **options})
    state = hook(ddp, way)
    if finalize is not None:
        setattr(ddp, "require_manual_backward_finalization", True)  # noqa: B010 (mypy's torch has no such attribute)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    digests, sizes = [], []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        local = local_gradients(ddp.module, world, seed, step)
        loss = loss_of(ddp, batch_of(seed, rank, step))
        if finalize is None:
            loss.backward()
        else:
            finalize(ddp, loss)
        check_buckets(ddp, state, local, TOLERANCE)
        digests.append(gradient_digest(ddp))
        sizes.append([8 * bucket.numel for bucket in state.report().buckets])
        optimizer.step()
    return digests, sizes


def _same_bits_with(rank: int, world: int, seed: int, way: str, option: str) -> list[list[str]]:
    every_setting: tuple[dict[str, bool], ...] = (
        {},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    )
    by_setting = []
    for settings in every_setting:
        with_option, sizes = _train(rank, world, seed, way, {option: True, **settings})
        assert (with_option, sizes) == _train(rank, world, seed, way, settings), settings
        by_setting.append(with_option)
    return by_setting


@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified")
@pytest.mark.parametrize(
    "option", [pytest.param(o, marks=_needs_option(o)) for o in ("batched_grad_copy", "lazy_bucket_allocation")]
)
@pytest.mark.parametrize("way", WAYS)
def test_options_that_change_no_bit(run_ranks: RunRanks, way: str, option: str, seed: int) -> None:
    """They change how a bucket is filled and where it lies, not what is in it."""
    same_on_all_ranks(run_ranks(2, _same_bits_with, seed, way, option))


def _cap_list(rank: int, world: int, seed: int, way: str) -> list[str]:
    # The layers, last one first, are of 2.4, 58 and 39 KB; DDP closes a bucket once it has reached its cap.
    few_large, sizes = _train(rank, world, seed, way, {"bucket_cap_mb": None, "bucket_cap_mb_list": [0.05, 0.03]})
    layers = [8 * (m + 1) * n for m, n in itertools.pairwise(SIZES)]
    first, second, last = layers
    assert sizes[1:] == [[last + second, first]] * (STEPS - 1)
    each_its_own, sizes = _train(
        rank, world, seed, way, {"bucket_cap_mb": None, "bucket_cap_mb_list": [0.002, 0.05, 0.03]}
    )
    assert sizes[1:] == [[last, second, first]] * (STEPS - 1)
    return few_large + each_its_own


@_needs_option("bucket_cap_mb_list")
@pytest.mark.parametrize("way", WAYS)
def test_a_cap_for_each_bucket(run_ranks: RunRanks, way: str, seed: int) -> None:
    same_on_all_ranks(run_ranks(2, _cap_list, seed, way))


# --- buckets that move ---


def _moving(rank: int, world: int, seed: int, way: str, method: Any, gramian: Any) -> list[str]:
    """Steps with lazily allocated buckets, each kept so that the next cannot lie there, beside DDP's ordinary ones."""
    ddps = [DDP(mlp(seed), bucket_cap_mb=CAP_MB, gradient_as_bucket_view=True, **lazy) for lazy in (_LAZY, {})]
    states = [hook(ddp, way, method, gramian) for ddp in ddps]
    optimizers = [torch.optim.SGD(ddp.parameters(), lr=0.05) for ddp in ddps]
    digests, kept = [], []
    addresses: set[int] = set()
    for step in range(STEPS):
        for ddp, optimizer in zip(ddps, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(ddp, batch_of(seed, rank, step)).backward()
        lazy, ordinary = map(gradient_digest, ddps)
        assert lazy == ordinary, f"step {step}"
        digests.append(lazy)
        storages = {p.grad.untyped_storage().data_ptr() for p in ddps[0].parameters() if p.grad is not None}
        assert not storages & addresses
        addresses |= storages
        kept.append([p.grad for p in ddps[0].parameters()])
        for optimizer in optimizers:
            optimizer.step()
    assert states[0].state_dict() == states[1].state_dict()
    return digests


@_needs_option("lazy_bucket_allocation")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("method", "gramian"),
    [
        (moo.GradVac(), "exact"),
        (moo.Smoothed(moo.MGDA(), 0.5), "exact"),
        (moo.MGDA(), moo.Sketch(64, refresh_every=2)),
        (moo.MGDA(), moo.Sketch(64, lag=1)),
    ],
    ids=["GradVac", "Smoothed", "refresh_every", "lag"],
)
def test_what_is_remembered_of_a_bucket_is_found_when_it_has_moved(
    run_ranks: RunRanks, way: str, method: Any, gramian: Any, seed: int
) -> None:
    same_on_all_ranks(run_ranks(2, _moving, seed, way, method, gramian))


def _released(rank: int, world: int, seed: int, way: str) -> None:
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB, gradient_as_bucket_view=True, **_LAZY)
    state = hook(ddp, way)
    for step in range(STEPS):
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        buckets = [StorageWeakRef(p.grad.untyped_storage()) for p in ddp.parameters() if p.grad is not None]
        ddp.zero_grad()
        # The worker puts a bucket down right after it has completed its Future.
        deadline = time.monotonic() + 20.0
        while not all(bucket.expired() for bucket in buckets):
            assert time.monotonic() < deadline, f"step {step}"
            time.sleep(0.001)
    assert state.step == STEPS


@_needs_option("lazy_bucket_allocation")
@pytest.mark.parametrize("way", WAYS)
def test_the_memory_of_a_bucket_is_free_after_its_step(run_ranks: RunRanks, way: str, seed: int) -> None:
    """The state holds on to no bucket."""
    run_ranks(2, _released, seed, way)


# --- passes that the caller ends ---


def _finalize_after_backward(ddp: Any, loss: torch.Tensor) -> None:
    loss.backward()
    ddp.finalize_backward()


def _finalize_in_backward(ddp: Any, loss: torch.Tensor) -> None:
    """As soon as DDP allows it: when all buckets are ready."""
    late = ddp.should_finalize_after_backward
    ddp.module.input.register_hook(lambda _: None if late else ddp.finalize_backward())
    loss.backward()
    if late:
        ddp.finalize_backward()


_FINALIZE = {"after": _finalize_after_backward, "during": _finalize_in_backward}


def _finalized(rank: int, world: int, seed: int, way: str, when: str) -> list[list[str]]:
    by_options = []
    for options in ({}, {"gradient_as_bucket_view": True}, {"lazy_bucket_allocation": True}):
        by_hand = _train(rank, world, seed, way, options, _FINALIZE[when])
        assert by_hand == _train(rank, world, seed, way, options), options
        by_options.append(by_hand[0])
    return by_options


@needs_manual_finalization
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", _FINALIZE)
def test_a_pass_that_the_caller_finalizes(run_ranks: RunRanks, way: str, when: str, seed: int) -> None:
    same_on_all_ranks(run_ranks(2, _finalized, seed, way, when))
