"""gramian="auto": where it is exact and where it is a sketch."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from bucket_moo_ext import gramian_source, process_group

Runner = Callable[..., list[Any]]


def rank_auto(rank: int, world: int, per_node: int, exact_ranks: int) -> tuple[str, int, int, str]:
    process_group._node = lambda: f"node {rank // per_node}"
    gramian_source.AUTO_EXACT_RANKS = exact_ranks
    state = moo.BucketMOO("mgda", gramian="auto")
    for _ in range(2):
        moo.all_reduce(torch.randn(40_000), state)
    wide = state.report()
    moo.all_reduce(torch.randn(1000), state)
    small = state.report()
    assert wide.estimator == small.estimator
    assert wide.to_dict()["estimator"] == wide.estimator
    assert f"Gramians: {wide.estimator}" in str(wide)
    assert state.gramian == "auto"
    return wide.estimator, wide.buckets[0].width, small.buckets[0].width, repr(state)


DEFAULT = "Sketch(width=16384, seed=0, refresh_every=1, lag=0)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "per_node", "exact_ranks", "estimator"),
    [
        (1, 1, 16, "exact (auto: 1 rank on 1 node)"),
        (3, 3, 16, "exact (auto: 3 ranks on 1 node)"),
        (3, 2, 16, f"{DEFAULT} (auto: 3 ranks on 2 nodes)"),
        (3, 1, 16, f"{DEFAULT} (auto: 3 ranks on 3 nodes)"),
        # As many ranks as there may be, and one more.
        (3, 3, 3, "exact (auto: 3 ranks on 1 node)"),
        (3, 3, 2, f"{DEFAULT} (auto: 3 ranks on 1 node)"),
    ],
)
def test_auto(run_ranks: Runner, world: int, per_node: int, exact_ranks: int, estimator: str) -> None:
    for text, wide, small, shown in run_ranks(world, rank_auto, per_node, exact_ranks):
        assert text == estimator
        assert (wide, small) == (0 if estimator.startswith("exact") else 16384, 0)
        assert "gramian='auto'" in shown


def test_auto_is_exact_up_to_16_ranks() -> None:
    assert gramian_source.AUTO_EXACT_RANKS == 16
    assert "at most 16" in (moo.BucketMOO.__doc__ or "")


def rank_explicit(rank: int, world: int) -> list[str]:
    """What is given is taken, wherever the ranks are."""
    process_group._node = lambda: f"node {rank}"
    texts = []
    for gramian in ("exact", moo.Sketch(64)):
        state = moo.BucketMOO(gramian=gramian)
        moo.all_reduce(torch.randn(1000), state)
        texts.append(state.report().estimator)
    return texts


def test_what_is_given_overrides_auto(run_ranks: Runner) -> None:
    assert run_ranks(2, rank_explicit) == [["exact", repr(moo.Sketch(64))]] * 2
