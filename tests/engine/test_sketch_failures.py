"""Ranks that die and states that go while sketches are on their way."""

import gc
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.checks import raw
from tests.support.errors import Raised, error_of
from tests.support.sketches import MANY, Given, Training, row_of

Runner = Callable[..., list[Any]]

GROUP_TIMEOUT = timedelta(seconds=5)


def rank_dies(rank: int, world: int, seed: int, sketch: moo.Sketch, when: str) -> Raised:
    training = Training(sketch, sizes=MANY)
    ddp = DDP(Given(training.sizes, torch.float32), bucket_cap_mb=0.016)
    state = moo.register(ddp, "mgda", gramian=sketch)
    for step in range(1, 4):
        ddp(training.coefficients(seed, step, rank)).backward()
    if rank == world - 1:
        if when == "between gradients":
            # Some buckets are reduced, of others the sketch is on its way.
            left = [len(MANY) // 2]

            def die(_: torch.Tensor) -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            for p in ddp.module.parameters():
                p.register_hook(die)
            ddp(training.coefficients(seed, 4, rank)).backward()
        os._exit(3)

    def go_on() -> None:
        for step in range(4, 100):  # a late solve's failure shows in the next step
            ddp(training.coefficients(seed, step, rank)).backward()

    error = error_of(go_on)
    began = time.monotonic()
    for _ in range(3):
        assert error_of(lambda: moo.all_reduce(torch.ones(5000), state)) == error, "for good"
    assert time.monotonic() - began < GROUP_TIMEOUT.total_seconds(), "and at once"
    error_of(state.state_dict)  # does not wait for ever
    return error


@pytest.mark.slow
@pytest.mark.host
@pytest.mark.parametrize(
    ("world", "sketch", "when"),
    [
        (2, moo.Sketch(256), "between gradients"),
        (3, moo.Sketch(256), "between gradients"),
        (3, moo.Sketch(256, lag=1), "between gradients"),
        (3, moo.Sketch(256, lag=1), "after a step"),
        (3, moo.Sketch(256, refresh_every=10), "between gradients"),
    ],
)
def test_a_rank_that_dies(run_ranks: Runner, random_seed: int, world: int, sketch: moo.Sketch, when: str) -> None:
    errors = run_ranks(
        world, rank_dies, random_seed, sketch, when, timeout=60.0, group_timeout=GROUP_TIMEOUT, may_die=(world - 1,)
    )
    assert errors[-1] is None
    for rank, (kind, text) in enumerate(errors[:-1]):
        assert kind is dist.DistBackendError
        assert "bucket_moo_ext" in text
        assert f"on rank {rank} of {world}" in text


def rank_drops(rank: int, world: int, seed: int) -> list[bytes]:
    """States that go while a late solve is under way, at other times on other ranks."""
    results = []
    for round_ in range(8):
        state = moo.BucketMOO("mgda", gramian=moo.Sketch(8192, lag=1))
        for step in range(2):
            row = row_of(seed, (round_, step), rank, 100_003)
            moo.all_reduce(row, state)
        results.append(raw(row))
        if round_ % 2 == rank:
            time.sleep(0.01)
        del state
        gc.collect()
    return results


@pytest.mark.slow
@pytest.mark.host
def test_a_state_that_is_dropped_while_it_solves(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_drops, random_seed, timeout=60.0)
    assert ranks[0] == ranks[1] == ranks[2]
