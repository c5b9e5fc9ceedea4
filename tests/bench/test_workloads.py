"""The workloads of the benchmarks are what they say: so many buckets, of one size."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import workloads

NAMES = ("ddp,W=4", "ddp,W=4,scope=model", "ddp,W=2,500 buckets of 4 kB", "ddp,W=2,4 passes", "fsdp2,W=4")


def buckets_of(rank: int, world: int, name: str) -> tuple[int, int]:
    """Found, and said."""
    case = workloads.CASES[name]._replace(world=world)
    model, state = workloads.wrapped(rank, case, is_ours=True)
    step = workloads.step_of(model, state, case.passes)
    step()  # in DDP's first iteration there is one
    step()
    assert state is not None
    return len(state.report().buckets), case.buckets


@pytest.mark.parametrize("name", NAMES)
def test_there_are_as_many_buckets_as_is_said(run_ranks: Callable[..., list[Any]], name: str) -> None:
    ((found, said), *_) = run_ranks(2, buckets_of, name)
    assert found == said
