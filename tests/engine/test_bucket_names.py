"""Buckets of direct calls by the names that their callers give them."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch

from tests.support.checks import draw, raw

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]

N = 6000
STEPS = 4


def reduce(operation: str, state: moo.BucketMOO, row: torch.Tensor, bucket: str | None, world: int) -> bytes:
    if operation == "all_reduce":
        moo.all_reduce(row, state, bucket=bucket)
        return raw(row)
    out = torch.empty(row.numel() // world)
    moo.reduce_scatter(out, row, state, bucket=bucket)
    return raw(out)


def rank_two_buckets(rank: int, world: int, seed: int, operation: str) -> None:
    """Two buckets of one size in one state, in turns, beside two states with a bucket each."""
    together, shared = (moo.BucketMOO(moo.Smoothed("mgda", 0.5)) for _ in range(2))
    apart = {name: moo.BucketMOO(moo.Smoothed("mgda", 0.5)) for name in ("x", "y")}
    differs = False
    for step in range(STEPS):
        for place, name in enumerate(apart):
            row = draw(seed, (step, place, rank), N, torch.float32, 1.0 + 3 * place * rank)
            expected = reduce(operation, apart[name], row.clone(), None, world)
            assert reduce(operation, together, row.clone(), name, world) == expected
            assert together.report().buckets[0].parameters == (name,)
            differs |= reduce(operation, shared, row.clone(), None, world) != expected
    assert differs, "without names both have one memory"
    saved = together.state_dict()["buckets"]
    assert [bucket["parameters"] for bucket in saved] == [["bucket:x"], ["bucket:y"]]
    assert [bucket["values"] for bucket in saved] == [
        apart[name].state_dict()["buckets"][0]["values"] for name in ("x", "y")
    ]
    resumed = moo.BucketMOO(moo.Smoothed("mgda", 0.5))
    resumed.load_state_dict(together.state_dict())
    row = draw(seed, (STEPS, 1, rank), N, torch.float32)
    assert reduce(operation, resumed, row.clone(), "y", world) == reduce(operation, together, row, "y", world)


@pytest.mark.parametrize("operation", ["all_reduce", "reduce_scatter"])
def test_a_name_tells_buckets_of_one_size_apart(run_ranks: Runner, random_seed: int, operation: str) -> None:
    run_ranks(2, rank_two_buckets, random_seed, operation)


def rank_kept_weights(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(width=256, refresh_every=1000))
    first: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        for place, name in enumerate(("x", "y")):
            row = draw(seed, (step, place, rank), N, torch.float32, 1.0 + 3 * place * rank)
            moo.all_reduce(row, state, bucket=name)
            (bucket,) = state.report().buckets
            assert bucket.solved_step == 1 + place
            torch.testing.assert_close(bucket.weights, first.setdefault(name, bucket.weights), rtol=0, atol=0)
    assert (first["x"] != first["y"]).any()


def test_each_bucket_keeps_its_own_weights(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_kept_weights, random_seed)


def rank_other_names(rank: int, world: int) -> None:
    state = moo.BucketMOO("mgda")
    row = torch.ones(20)
    with pytest.raises(ValueError, match="the names of their buckets differ"):
        moo.all_reduce(row, state, bucket=f"layer {rank}")
    assert row.tolist() == [1.0] * 20
    moo.all_reduce(row, state, bucket="layer")  # ranks are still in step


def test_ranks_that_name_a_bucket_differently_all_hear_of_it(run_ranks: Runner) -> None:
    run_ranks(2, rank_other_names)


@pytest.mark.host
@pytest.mark.parametrize(
    ("bucket", "error"),
    [("", ValueError), ("\ud800", ValueError), ("a\nb", ValueError), (3, TypeError), (b"x", TypeError)],
)
def test_what_a_name_may_be(bucket: Any, error: type[Exception]) -> None:
    state = moo.BucketMOO("mgda")
    row = torch.ones(4)
    with pytest.raises(error, match=r"bucket must be a (string|name).* or None; got"):
        moo.all_reduce(row, state, bucket=bucket)
    with pytest.raises(error, match=r"bucket must be a (string|name).* or None; got"):
        moo.reduce_scatter(torch.ones(4), row, state, bucket=bucket)
