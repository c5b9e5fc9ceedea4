"""Who stands for what: shared objectives, weights, names."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import Outcome, break_if_left_out, draw, outcome, unraw

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]
Step = tuple[list[str | int | None], list[float]]  # objective and weight of each rank
WORLD = 4

STEPS: list[Step] = [
    (["sw", "de", "sw", "de"], [1.0, 1.0, 1.0, 1.0]),
    (["sw", "de", "sw", "de"], [3.0, 1.0, 1.0, 7.0]),
    (["a", "b", "b", "b"], [1.0, 0.125, 0.25, 2.0]),
    (["x", "x", "x", "x"], [512.0, 31.0, 2048.0, 7.0]),  # K = 1
    ([None, None, None, None], [1.0, 1.0, 1.0, 1.0]),
    ([None, None, None, None], [5.0, 1e-3, 1e6, 1.0]),  # alone in its objective, a weight changes nothing
    ([5, "5", 7, "five"], [1.0, 3.0, 1.0, 1.0]),
    ([-5, "-5", 10**20, str(10**20)], [1.0, 3.0, 2.0, 1.0]),
    (["1", None, 2, None], [1.0, 1.0, 1.0, 1.0]),  # None is the rank's number
    (["kiswahili", "Deutsch", "日本語", "كيسواحيلي"], [1.0, 2.0, 3.0, 4.0]),
    (["ü" * 31 + "a", "ü" * 31 + "b", "x" * 63, "ü" * 31 + "a"], [1.0, 1.0, 1.0, 1.0]),  # 63 bytes
    (["a", "a ", "A", "a"], [1.0, 1.0, 1.0, 3.0]),
    (["sw", "de", "sw", "de"], [1.0, 0.0, 3.0, 2.0]),  # weight 0: rank 1 is not read
    (["sw", "de", "sw", "de"], [0.0, 0.0, 1.0, 1.0]),
    (["sw", "de", "fr", "de"], [0.0, 1.0, 1.0, 1.0]),  # all of sw is left out
    (["sw", "de", "sw", "fr"], [0.0, 0.0, 0.0, 2.0]),
    (["sw", "sw", "sw", "de"], [1e-300, 1e-300, 2e-300, 1.0]),
]
SIZES = [7, 4099, 20_011]
METHODS: list[tuple[str, dict[str, Any]]] = [("mean", {}), ("mgda", {}), ("cagrad", {"c": 0.3})]


def rank_row(seed: int, index: int, rank: int, n: int, weight: float) -> torch.Tensor:
    return break_if_left_out(draw(seed, (index, n, rank), n, torch.float32), weight)


def rank_steps(rank: int, world: int, seed: int) -> list[Outcome]:
    results = []
    for method, options in METHODS:
        state = moo.BucketMOO(moo.CAGrad(**options) if method == "cagrad" else method)
        for index, (objectives, weights) in enumerate(STEPS):
            state.objective = objectives[rank]
            state.weight = weights[rank]
            for n in SIZES:
                row = rank_row(seed, index, rank, n, weights[rank])
                moo.all_reduce(row, state)
                results.append(outcome(row, state))
    return results


@pytest.mark.slow
def test_objectives_and_weights_may_change_every_step(run_ranks: Runner, random_seed: int) -> None:
    results = iter(zip(*run_ranks(WORLD, rank_steps, random_seed), strict=True))
    for method, options in METHODS:
        for index, (objectives, weights) in enumerate(STEPS):
            names = [str(rank) if name is None else str(name) for rank, name in enumerate(objectives)]
            for n in SIZES:
                got, *others = next(results)
                label = f"{method} {names} {weights} n={n}"
                assert all(other.result == got.result for other in others), label
                assert got.objectives == tuple(dict.fromkeys(names)), label
                rows = [rank_row(random_seed, index, r, n, weights[r]) for r in range(WORLD)]
                for row, weight in zip(rows, weights, strict=True):
                    if weight == 0:
                        row.fill_(123.0)  # whatever it holds
                checks.verify(label, rows, got, method, options, objective=names, weight=weights, generic=n > 1000)
                for k, name in enumerate(got.objectives):
                    left_out = all(w == 0 for w, other in zip(weights, names, strict=True) if other == name)
                    assert (got.gramian[k, k] == 0) == left_out, label
                    if left_out and method != "mean":
                        assert got.weights[k] == 0, label


def rank_mean(rank: int, world: int, seed: int) -> bytes:
    state = moo.BucketMOO("mean", objective=["a", "a", "b", "a"][rank], weight=[1.0, 2.0, 5.0, 3.0][rank])
    row = draw(seed, (rank,), 4099, torch.float64)
    moo.all_reduce(row, state)
    return checks.raw(row)


def test_mean_is_over_objectives_not_ranks(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(WORLD, rank_mean, random_seed)
    assert len(set(ranks)) == 1
    rows = [ref.float64(draw(random_seed, (rank,), 4099, torch.float64)) for rank in range(WORLD)]
    expected = 0.5 * ((rows[0] + 2 * rows[1] + 3 * rows[3]) / 6) + 0.5 * rows[2]
    np.testing.assert_allclose(unraw(ranks[0], torch.float64), expected, rtol=1e-14, atol=1e-14)


def rank_all_left_out(rank: int, world: int) -> list[tuple[str, bool]]:
    results = []
    for method in ("mean", "mgda", "cagrad", "pcgrad"):
        state = moo.BucketMOO(method, objective="ab"[rank % 2], weight=0.0)
        for n in (3, 20_011):
            row = torch.full((n,), torch.nan)
            moo.all_reduce(row, state)
            results.append((state.report().buckets[0].status, not row.any()))
    return results


def test_everybody_left_out_gives_zero(run_ranks: Runner) -> None:
    for results in run_ranks(3, rank_all_left_out):
        assert results == [("ok", True)] * 2 + [("inactive", True)] * 6


# ----------------------------------------------------------------------------- bad objectives, weights


@pytest.mark.host
@pytest.mark.parametrize(
    ("objective", "error", "words"),
    [
        ("", ValueError, ["objective", "63", "0 bytes"]),
        ("x" * 64, ValueError, ["objective", "63", "64 bytes"]),
        ("ü" * 32, ValueError, ["objective", "63", "64 bytes"]),
        (10**63, ValueError, ["objective", "63", "64 bytes"]),
        ("a\0b", ValueError, ["objective", "zero byte"]),
        (True, TypeError, ["objective", "bool"]),
        (1.5, TypeError, ["objective", "float", "1.5"]),
        (b"sw", TypeError, ["objective", "bytes"]),
        (["sw"], TypeError, ["objective", "list"]),
        ("\ud800", ValueError, ["objective"]),
    ],
)
def test_bad_objective(objective: Any, error: type[Exception], words: list[str]) -> None:
    state = moo.BucketMOO(objective="sw")
    for call in (
        lambda: moo.BucketMOO(objective=objective),
        lambda: setattr(state, "objective", objective),
    ):
        with pytest.raises(error) as caught:
            call()
        missing = [word for word in words if word not in str(caught.value)]
        assert not missing, f"{missing} not in {str(caught.value)!r}"
    assert state.objective == "sw"


@pytest.mark.host
@pytest.mark.parametrize("objective", ["x" * 63, "ü" * 31 + "x", 10**62, 0, -1, None, "a b\tc", "0"])
def test_good_objective(objective: str | int | None) -> None:
    state = moo.BucketMOO()
    state.objective = objective
    assert state.objective == moo.BucketMOO(objective=objective).objective == objective


@pytest.mark.host
@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (-1.0, ValueError),
        (-1e-300, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("3", TypeError),
        ("heavy", TypeError),
        (None, TypeError),
        ([1.0], TypeError),
        (1j, TypeError),
    ],
)
def test_bad_weight(weight: Any, error: type[Exception]) -> None:
    state = moo.BucketMOO(weight=2.0)
    for call in (
        lambda: moo.BucketMOO(weight=weight),
        lambda: setattr(state, "weight", weight),
    ):
        with pytest.raises(error, match="weight"):
            call()
    assert state.weight == 2.0


@pytest.mark.host
@pytest.mark.parametrize("weight", [0, 1, 0.0, 1e-300, 1e300, np.float32(3), np.int64(4), torch.tensor(5.0)])
def test_good_weight(weight: Any) -> None:
    state = moo.BucketMOO()
    state.weight = weight
    assert state.weight == moo.BucketMOO(weight=weight).weight == float(weight)
