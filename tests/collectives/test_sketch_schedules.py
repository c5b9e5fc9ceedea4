"""Which step's weights serve: sketches that are kept for several steps, or solved a step late."""

import copy
import functools
import pickle
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import ON_DEVICE, Outcome, outcome, unraw
from tests.support.errors import error_of
from tests.support.reference import Array
from tests.support.sketches import digest, row_of, rows_of, verify, width_of

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]


# ------------------------------------------------------------------------------------------ weights that are kept

SCHEDULES = [moo.Sketch(64, seed=1, refresh_every=m, lag=lag) for m in (1, 2, 3, 5) for lag in (0, 1)]


@dataclass(frozen=True)
class Call:
    """One step of a plan."""

    scatter: bool = False
    shard: int = 1001  # elements a rank; of an all_reduce, too
    names: str = "abc"  # objective of each rank
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    broken: int | None = None  # the rank with a NaN

    def elements(self, world: int) -> int:
        return self.shard * world

    def row(self, seed: int, step: int, rank: int, world: int) -> torch.Tensor:
        row = row_of(seed, (step,), rank, self.elements(world))
        if self.broken == rank:
            row[7] = torch.nan
        return row

    def rows(self, seed: int, step: int, world: int) -> list[torch.Tensor]:
        return [self.row(seed, step, rank, world) for rank in range(world)]


def solved_steps(plan: Sequence[Call], sketch: moo.Sketch, world: int) -> list[int]:
    """Which step's weights serve in each step, as documented."""
    kept: dict[Hashable, tuple[int, int, list[str]]] = {}  # whose weights, when that is counted from, for whom
    used = []
    for step, call in enumerate(plan, start=1):
        bucket, names = (call.scatter, call.shard), list(dict.fromkeys(call.names[:world]))
        solves = own = True
        if bucket in kept and kept[bucket][2] == names:
            solves = (step - 1) // sketch.refresh_every != (kept[bucket][1] - 1) // sketch.refresh_every
            own = solves and not sketch.lag
        if width_of(sketch, call.elements(world)) == 0:
            solves, own = False, True
        used.append(step if own else kept[bucket][0])
        left_out = call.broken is not None and call.weights[call.broken] == 0
        if solves and (call.broken is None or left_out):
            kept[bucket] = (step, step, names)
        elif solves and ON_DEVICE:  # the host does not know of it
            kept[bucket] = (kept[bucket][0], step, names)
    return used


def run_plan(
    state: moo.BucketMOO, plan: Sequence[Call], rank: int, world: int, seed: int, first: int = 1
) -> list[Outcome]:
    results = []
    for step, call in enumerate(plan, start=first):
        state.objective, state.weight = call.names[rank], call.weights[rank]
        row = call.row(seed, step, rank, world)
        out = torch.empty(call.shard) if call.scatter else row
        if call.scatter:
            moo.reduce_scatter(out, row, state)
        else:
            moo.all_reduce(row, state)
        results.append(outcome(out, state))
    return results


def check_plan(
    label: str, ranks: list[list[Outcome]], plan: Sequence[Call], sketch: moo.Sketch, seed: int, used: Sequence[int]
) -> None:
    """Finite steps, with no memory."""
    world = len(ranks)
    for step, (call, served) in enumerate(zip(plan, used, strict=True), start=1):
        rows, solved = call.rows(seed, step, world), plan[served - 1].rows(seed, served, world)
        for row, weight in zip(rows, call.weights, strict=False):
            if weight == 0:
                row.fill_(123.0)
        for rank in range(world):
            got = ranks[rank][step - 1]
            what = f"{label}, step {step} {call}, rank {rank}"
            assert (got.step, got.solved_step) == (step, served), f"{what}: {got.step}, {got.solved_step}"
            own = slice(rank * call.shard, (rank + 1) * call.shard) if call.scatter else slice(None)
            verify(
                what, rows, got, sketch, solved=solved, objective=call.names[:world], weight=call.weights[:world],
                solved_weight=plan[served - 1].weights[:world], shard=own,
            )  # fmt: skip
            assert np.array_equal(got.weights, ranks[0][step - 1].weights), f"{what}: ranks differ"
            assert call.scatter or got.result == ranks[0][step - 1].result, f"{what}: ranks differ"


PLANS = {
    "one bucket": [Call()] * 11,
    # Each bucket has weights of its own, and steps are counted over all of them.
    "several buckets": [Call(), Call(scatter=True), Call(shard=555), Call(), Call(), Call(shard=20)] * 2
    + [Call(scatter=True), Call(shard=555), Call(shard=20)],
    "other objectives": [
        Call(names=names) for names in ("abc", "abc", "aba", "aba", "abc", "cba", "cba", "abc", "abc")
    ],
    # Shares are the step's own; a rank of weight 0 is not read, and comes back.
    "other weights": [
        Call(names="aab"),
        Call(names="aab", weights=(1.0, 3.0, 1.0)),
        Call(names="aab", weights=(1.0, 0.0, 1.0), broken=1),
        Call(names="aab", weights=(1.0, 1.0, 0.0), broken=2),
        Call(names="aab"),
        Call(names="aab"),
    ],
}

if ON_DEVICE:  # objectives are known there alone, and kept weights are for those of the first step
    del PLANS["other objectives"]


def rank_plans(rank: int, world: int, seed: int) -> dict[tuple[str, int], list[Outcome]]:
    return {
        (name, index): run_plan(moo.BucketMOO("mgda", gramian=sketch), PLANS[name], rank, world, seed)
        for name in PLANS
        for index, sketch in enumerate(SCHEDULES)
    }


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3])
def test_which_steps_weights_serve(run_ranks: Runner, random_seed: int, world: int) -> None:
    ranks = run_ranks(world, rank_plans, random_seed)
    for name, plan in PLANS.items():
        for index, sketch in enumerate(SCHEDULES):
            used = solved_steps(plan, sketch, world)
            check_plan(f"{name}, {sketch}", [r[name, index] for r in ranks], plan, sketch, random_seed, used)
    # The rule itself, by hand: the documentation's words for 3 and 1.
    one = [Call()] * 7
    assert solved_steps(one, moo.Sketch(64, refresh_every=3), 3) == [1, 1, 1, 4, 4, 4, 7]
    assert solved_steps(one, moo.Sketch(64, lag=1), 3) == [1, 1, 2, 3, 4, 5, 6]
    assert solved_steps(one, moo.Sketch(64, refresh_every=3, lag=1), 3) == [1, 1, 1, 1, 4, 4, 4]


BREAKS = {
    # An objective that MGDA gives no weight is broken: rank 1's row is rank 0's, only longer.
    moo.Sketch(64, refresh_every=2): [None, 1, None, 0, None, 2, None],
    moo.Sketch(64, refresh_every=3): [None, 1, 2, 0, None, None, None]
    if ON_DEVICE
    else [1, None, 2, None, 0, None, None],
    moo.Sketch(64, lag=1): [None, 1, None, None, 0, 2, None],
    moo.Sketch(64, refresh_every=2, lag=1): [None, None, 1, None, 0, None, None],
}


def dominated_row(seed: int, step: int, rank: int, n: int, broken: int | None) -> torch.Tensor:
    row = row_of(seed, (step,), rank, n) if rank != 1 else 3.0 * row_of(seed, (step,), 0, n)
    if broken == rank:
        row[5], row[n - 1] = torch.nan, torch.inf
    return row


def rank_breaks(rank: int, world: int, seed: int, n: int) -> list[list[Outcome]]:
    results: list[list[Outcome]] = []
    for sketch, plan in BREAKS.items():
        state = moo.BucketMOO("mgda", gramian=sketch)
        results.append([])
        for step, broken in enumerate(plan, start=1):
            row = dominated_row(seed, step, rank, n, broken)
            moo.all_reduce(row, state)
            results[-1].append(outcome(row, state))
    return results


def test_nan_reaches_the_result_while_kept_weights_serve(run_ranks: Runner, random_seed: int) -> None:
    world, n = 3, 20_011
    ranks = run_ranks(world, rank_breaks, random_seed, n)
    seen = set()
    for index, (sketch, plan) in enumerate(BREAKS.items()):
        used = solved_steps([Call(shard=n, broken=broken) for broken in plan], sketch, world)
        for step, (broken, served) in enumerate(zip(plan, used, strict=True), start=1):
            rows = [dominated_row(random_seed, step, rank, n, broken) for rank in range(world)]
            for results in ranks:
                got = results[index][step - 1]
                label = f"{sketch} step {step}"
                assert got.solved_step == served, f"{label}: {got.solved_step}"
                result = unraw(got.result, torch.float32)
                places = [] if broken is None else [5, n - 1]
                assert np.flatnonzero(~np.isfinite(result)).tolist() == places, label
                fresh = served == step
                assert got.status == ("nonfinite" if fresh and broken is not None else "ok"), label
                if broken is None:
                    solved = [dominated_row(random_seed, served, rank, n, None) for rank in range(world)]
                    verify(label, rows, got, sketch, solved=solved)
                    assert got.weights[1] <= 1e-6, label
                else:
                    seen.add((fresh, got.weights[broken] == 0))
    assert (False, True) in seen, "a kept weight of 0 does not hide a NaN"
    assert {(True, False), (False, False)} <= seen


def rank_inactive(rank: int, world: int, seed: int) -> list[Outcome]:
    results = []
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(64, refresh_every=2))
    for step in range(1, 5):
        row = row_of(seed, (step,), rank, 5000)
        if rank == 1 and step > 1:
            row.zero_()
        moo.all_reduce(row, state)
        results.append(outcome(row, state))
    return results


def test_an_objective_that_becomes_inactive_keeps_its_weight_until_the_next_solve(
    run_ranks: Runner, random_seed: int
) -> None:
    first, kept, fresh, _ = run_ranks(2, rank_inactive, random_seed)[0]
    assert np.array_equal(kept.weights, first.weights)
    assert kept.weights[1] > 0
    assert fresh.weights.tolist() == [1.0, 0.0]
    assert fresh.solved_step == 3


# ------------------------------------------------------------------------------------------ what outlives a step


def rank_memory_of_methods(rank: int, world: int, seed: int) -> list[tuple[Outcome, list[float]]]:
    results = []
    for sketch in SCHEDULES:
        state = moo.BucketMOO(moo.Smoothed("mgda", 0.75), gramian=sketch)
        for step in range(1, 9):
            row = row_of(seed, (step,), rank, 3001)
            moo.all_reduce(row, state)
            # At once: what a late solve leaves behind is in the state dict, too, on every rank.
            (bucket,) = state.state_dict()["buckets"]
            results.append((outcome(row, state), bucket["values"]))
    return results


def test_a_methods_memory_goes_from_solve_to_solve(run_ranks: Runner, random_seed: int) -> None:
    world = 3
    ranks = run_ranks(world, rank_memory_of_methods, random_seed)
    results = iter(zip(*ranks, strict=True))
    for sketch in SCHEDULES:
        used = solved_steps([Call(shard=1000)] * 8, sketch, world)
        solves = [step for step in range(1, 9) if (step - 1) % sketch.refresh_every == 0]
        past: Array | None = None
        weights_of = {}
        for step in solves:
            rows = checks.gradients(rows_of(random_seed, (step,), world, 3001))
            new = ref.weights(rows.through(functools.partial(ref.sketch, width=64, seed=1, step=step)).means, "mgda")
            past = new if past is None else 0.75 * past + 0.25 * new
            weights_of[step] = past
        for step, served in enumerate(used, start=1):
            (got, saved), *others = next(results)
            label = f"{sketch} step {step}"
            assert got.solved_step == served, label
            np.testing.assert_allclose(got.weights, weights_of[served], rtol=0, atol=1e-3, err_msg=label)
            assert all(digest(other) == digest(got) for other, _ in others), f"{label}: ranks differ"
            assert all(values == saved for _, values in others), f"{label}: ranks save other things"
            newest = max(s for s in solves if s <= step)
            np.testing.assert_allclose(saved[:world], weights_of[newest], rtol=0, atol=1e-3, err_msg=label)


def rank_resume(rank: int, world: int, seed: int, method: moo.Method) -> dict[str, list[Any]]:
    """Steps 1 to 4, then 5 to 8 in several ways; the sketches are as wide as makes a late solve take its time."""
    sketch = moo.Sketch(8192, refresh_every=3, lag=1)
    plan = [Call(shard=20_001)] * 4

    def make() -> moo.BucketMOO:
        return moo.BucketMOO(method, gramian=sketch)

    state = make()
    start = run_plan(state, plan, rank, world, seed)
    saved = state.state_dict()
    ways = {"pickle": pickle.loads(pickle.dumps(state)), "copy": copy.deepcopy(state), "fresh": make(), "used": make()}
    run_plan(ways["used"], [Call(shard=20_001), Call()], rank, world, seed, first=77)
    results: dict[str, list[Any]] = {"saved": [saved], "start": [digest(got) for got in start]}
    for name, other in ways.items():
        assert other.gramian == sketch
        if name in ("fresh", "used"):
            other.load_state_dict(saved)
        assert other.state_dict() == saved, name
        resumed = run_plan(other, plan, rank, world, seed, first=5)
        assert [got.solved_step for got in resumed] == [5, 5, 5, 7], "solves anew, then when it is due"
        results[name] = [digest(got) for got in resumed]
    went_on = run_plan(state, plan, rank, world, seed, first=5)
    assert [got.solved_step for got in went_on] == [4, 4, 4, 7]
    # In use: what was kept is forgotten, whether or not a late solve is still under way.
    for round_ in range(6):
        if rank == round_ % world:
            time.sleep(0.004)
        state.load_state_dict(state.state_dict())
        (got, _) = run_plan(state, plan[:2], rank, world, seed, first=state.step + 1)
        assert got.solved_step == got.step, round_
        results[f"in use {round_}"] = [digest(got)]
    return results


@pytest.mark.parametrize("method", [moo.MGDA(), moo.Smoothed("mgda", 0.5)], ids=["mgda", "smoothed"])
def test_a_state_that_is_loaded_or_copied_solves_anew(run_ranks: Runner, random_seed: int, method: moo.Method) -> None:
    ranks = run_ranks(3, rank_resume, random_seed, method)
    assert all(results == ranks[0] for results in ranks), "ranks differ"
    results = ranks[0]
    assert "kept" not in str(results["saved"])
    for way in ("pickle", "copy", "used"):
        assert results[way] == results["fresh"], way


def rank_callback(rank: int, world: int, seed: int) -> list[Any]:
    """A callback of a Future runs before the late solve, on the thread that is to do it."""
    state = moo.BucketMOO(moo.Smoothed("mgda", 0.5), gramian=moo.Sketch(64, lag=1))
    moo.all_reduce(row_of(seed, (1,), rank, 5000), state)
    future = moo.all_reduce(row_of(seed, (2,), rank, 5000), state, async_op=True)
    called = future.then(lambda _: error_of(state.state_dict))
    row = row_of(seed, (3,), rank, 5000)
    moo.all_reduce(row, state)
    return [*called.wait(), outcome(row, state).solved_step]


@pytest.mark.host
def test_a_callback_cannot_wait_for_the_late_solve(run_ranks: Runner, random_seed: int) -> None:
    for kind, text, solved in run_ranks(2, rank_callback, random_seed):
        # A callback that is added when the Future is done runs at once, on the thread that adds it, which may wait.
        assert kind is type(None) or "wait for itself" in text
        assert solved == 2
