"""Reductions whose weights come from sketches, on 1 to 4 ranks, against the map in NumPy and float64 references."""

import copy
import functools
import gc
import hashlib
import json
import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from bucket_moo_ext import gramian_source, process_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import ON_DEVICE, Outcome, draw, outcome, outcome_of, raw, unraw
from tests.support.ddp import error_of
from tests.support.reference import Array

Runner = Callable[..., list[Any]]


def width_of(sketch: moo.Sketch, n: int) -> int:
    """Columns for a bucket of n elements, as documented; 0: its Gramian is exact."""
    width = sketch.width
    if isinstance(width, float):
        wanted, width = width * n, 64
        while width < min(wanted, 2**28):
            width *= 2
    return 0 if n <= 2 * width else width


@dataclass(frozen=True)
class Solver:
    """A method, as the state and as the reference take it."""

    method: str | moo.Method
    name: str
    options: dict[str, Any]


def solvers(world: int) -> dict[str, Solver]:
    orders = [[(2 * i + j) % world for j in range(world)] for i in range(world)]
    return {
        "mean": Solver("mean", "mean", {}),
        "mgda": Solver("mgda", "mgda", {}),
        "mgda l2": Solver(moo.MGDA(normalize="l2"), "mgda", {"normalize": "l2"}),
        "cagrad": Solver(moo.CAGrad(c=0.5), "cagrad", {"c": 0.5}),
        "pcgrad": Solver(moo.PCGrad(permutation=orders), "pcgrad", {"orders": orders}),
    }


MGDA = Solver("mgda", "mgda", {})


def verify(
    label: str,
    rows: Sequence[torch.Tensor],
    got: Outcome,
    sketch: moo.Sketch,
    solver: Solver = MGDA,
    *,
    solved: Sequence[torch.Tensor] | None = None,
    bucket: int = 0,
    objective: Sequence[Hashable] | None = None,
    weight: Sequence[float] | None = None,
    solved_weight: Sequence[float] | None = None,
    shard: slice = slice(None),
) -> None:
    """Gramian and weights are those of the sketches of `solved`'s gradients, the result is `rows` combined by them.

    `solved`, `solved_weight`: rows and weights of the step whose weights served; None: this step's.
    """
    width = width_of(sketch, rows[0].numel())
    assert got.width == width, label
    if width == 0:
        assert got.solved_step == got.step, f"{label}: nothing is kept of exact buckets"
        checks.verify(label, rows, got, solver.name, solver.options, objective=objective, weight=weight, shard=shard)
        return
    now = checks.gradients(rows, objective, weight)
    then = checks.gradients(
        rows if solved is None else solved, objective, weight if solved_weight is None else solved_weight
    )
    seen = then.through(lambda row: ref.sketch(row, width, sketch.seed, got.solved_step, bucket))
    # A column's own rounding beside that of a product of two rows.
    error = 2 * seen.gramian_error()
    checks.verify_solution(label, seen, got, solver.name, solver.options, error, generic=True)
    checks.verify_combination(label, now, got, shard)
    again = moo.weights(torch.from_numpy(got.gramian), solver.method, step=got.solved_step).numpy()
    # On a device several lanes add up what one thread does here.
    np.testing.assert_allclose(got.weights, again, rtol=0, atol=1e-9 if ON_DEVICE else 0, err_msg=label)
    if seen.means.any():
        reference = ref.weights(seen.means, solver.name, **solver.options)
        np.testing.assert_allclose(got.weights, reference, rtol=0, atol=2e-3, err_msg=label)


def row_of(seed: int, key: Sequence[int], rank: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Gradients of several sizes, so that no method gives them equal weights."""
    return draw(seed, (*key, rank), n, dtype, 1.0 + 0.5 * rank)


def rows_of(
    seed: int, key: Sequence[int], world: int, n: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    return [row_of(seed, key, rank, n, dtype) for rank in range(world)]


def digest(got: Outcome) -> bytes:
    parts = (got.result, got.gramian.tobytes(), got.weights.tobytes(), str((got.solved_step, got.status)).encode())
    return hashlib.sha256(b"".join(parts)).digest()


def slim(got: Outcome, keep: bool) -> Outcome | bytes:
    """The outcome, or of ranks that are only compared, its hash."""
    return got if keep else digest(got)


# ------------------------------------------------------------------------------------------ the collectives

SKETCHES = {
    "64": moo.Sketch(64),
    "4096": moo.Sketch(4096, seed=2**64 - 1),  # float32: a sketch that travels whole; float64: one in shards
    "8192": moo.Sketch(8192, seed=3),
    "1 %": moo.Sketch(0.01),
    "default": moo.Sketch(),
}
Case = tuple[str, str, torch.dtype, int]  # sketch, method, dtype, elements


def cases() -> list[Case]:
    sizes = {
        "64": [1, 17, 127, 128, 129, 130, 191, 193, 1025, 4099, 16_411],
        "4096": [8192, 8193, 12_289, 20_011],
        "8192": [16_384, 16_385, 20_003],
        "1 %": [128, 129, 6400, 6401, 13_001, 50_021],
    }
    todo = [(name, "mgda", dtype, n) for name in sizes for dtype in ref.DTYPES for n in sizes[name]]
    todo += [("default", "mgda", dtype, n) for dtype in (torch.float32, torch.bfloat16) for n in (32_768, 32_769)]
    todo += [("default", "mgda", torch.float32, 300_007)]  # more than two tiles of a weighted sum, with a tail
    todo += [("64", name, dtype, 4099) for name in solvers(1) if name != "mgda" for dtype in ref.DTYPES]
    todo += [("8192", name, torch.float32, 20_003) for name in solvers(1) if name != "mgda"]
    return todo


def states_of(todo: Sequence[Case], world: int) -> dict[tuple[str, str], moo.BucketMOO]:
    used = dict.fromkeys((sketch, name) for sketch, name, _, _ in todo)
    return {(s, name): moo.BucketMOO(solvers(world)[name].method, gramian=SKETCHES[s]) for s, name in used}


def rank_all_reduce(rank: int, world: int, seed: int, todo: list[Case]) -> list[Outcome | bytes]:
    states = states_of(todo, world)
    results = []
    for index, (sketch, name, dtype, n) in enumerate(todo):
        row = row_of(seed, (index,), rank, n, dtype)
        assert moo.all_reduce(row, states[sketch, name]) is None
        results.append(slim(outcome(row, states[sketch, name]), rank == 0))
    # Once more, all at once: the same bits, whatever is under way at a time.
    states = states_of(todo, world)
    rows = [row_of(seed, (index,), rank, n, dtype) for index, (_, _, dtype, n) in enumerate(todo)]
    calls = [
        moo.all_reduce(row, states[sketch, name], async_op=True)
        for row, (sketch, name, _, _) in zip(rows, todo, strict=True)
    ]
    torch.futures.wait_all(calls)
    if rank == 0:
        assert all(isinstance(got, Outcome) and raw(row) == got.result for row, got in zip(rows, results, strict=True))
    return results


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_all_reduce(run_ranks: Runner, random_seed: int, world: int) -> None:
    todo = cases()
    ranks = run_ranks(world, rank_all_reduce, random_seed, todo)
    steps: dict[tuple[str, str], int] = {}
    for index, (sketch, name, dtype, n) in enumerate(todo):
        label = f"{sketch} {name} {dtype} n={n} world={world}"
        steps[sketch, name] = steps.get((sketch, name), 0) + 1
        got = ranks[0][index]
        assert got.step == got.solved_step == steps[sketch, name], label
        assert all(results[index] == digest(got) for results in ranks[1:]), f"{label}: ranks differ"
        verify(label, rows_of(random_seed, (index,), world, n, dtype), got, SKETCHES[sketch], solvers(world)[name])


def scatter_cases() -> list[Case]:
    todo = [("64", "mgda", dtype, shard) for dtype in ref.DTYPES for shard in (0, 3, 32, 64, 129, 1025, 4099)]
    todo += [("4096", "mgda", dtype, shard) for dtype in (torch.float32, torch.float64) for shard in (4096, 8209)]
    todo += [("default", "mgda", torch.float32, 100_003)]
    todo += [("64", "pcgrad", torch.bfloat16, 1025), ("1 %", "cagrad", torch.float16, 20_011)]
    return todo


def rank_reduce_scatter(rank: int, world: int, seed: int, todo: list[Case]) -> list[tuple[Outcome, dict[str, bool]]]:
    states, in_place, whole = (states_of(todo, world) for _ in range(3))
    results = []
    for index, (sketch, name, dtype, shard) in enumerate(todo):
        row = row_of(seed, (index,), rank, shard * world, dtype)
        before = raw(row)
        out = torch.full((shard,), torch.nan, dtype=dtype)
        future = moo.reduce_scatter(out, row, states[sketch, name], async_op=True)
        assert future.wait().data_ptr() == out.data_ptr()
        got = outcome(out, states[sketch, name])
        facts = {"input not written": raw(row) == before}
        own = slice(rank * shard, (rank + 1) * shard)
        again = row.clone()
        assert moo.reduce_scatter(again[own], again, in_place[sketch, name]) is None
        facts["in place: same bits"] = raw(again[own]) == got.result
        again[own] = row[own]
        facts["in place: other shards not written"] = raw(again) == before
        moo.all_reduce(row, whole[sketch, name])
        reduced = outcome(row, whole[sketch, name])
        if got.width or world == 1:  # exact Gramians are cut up otherwise
            facts["all_reduce solves for the same"] = np.array_equal(got.weights, reduced.weights)
        results.append((got, facts))
    return results


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_reduce_scatter(run_ranks: Runner, random_seed: int, world: int) -> None:
    todo = scatter_cases()
    ranks = run_ranks(world, rank_reduce_scatter, random_seed, todo)
    for index, (sketch, name, dtype, shard) in enumerate(todo):
        rows = rows_of(random_seed, (index,), world, shard * world, dtype)
        for rank in range(world):
            label = f"{sketch} {name} {dtype} shard={shard} rank {rank} of {world}"
            got, facts = ranks[rank][index]
            assert all(facts.values()), f"{label}: {facts}"
            assert np.array_equal(got.gramian, ranks[0][index][0].gramian), f"{label}: ranks differ"
            assert np.array_equal(got.weights, ranks[0][index][0].weights), f"{label}: ranks differ"
            own = slice(rank * shard, (rank + 1) * shard)
            verify(label, rows, got, SKETCHES[sketch], solvers(world)[name], shard=own)


# ------------------------------------------------------------------------------------------ who stands for what

NARROW = moo.Sketch(64, seed=5)
Step = tuple[list[str | None], list[float]]  # objective and weight of each of four ranks
STEPS: list[Step] = [
    ([None, None, None, None], [1.0, 1.0, 1.0, 1.0]),
    (["sw", "de", "sw", "de"], [3.0, 1.0, 1.0, 7.0]),
    (["a", "b", "b", "b"], [1.0, 0.125, 0.25, 2.0]),
    (["x", "x", "x", "x"], [512.0, 31.0, 2048.0, 7.0]),
    (["sw", "de", "sw", "de"], [1.0, 0.0, 3.0, 2.0]),  # weight 0: rank 1 is not read
    (["sw", "de", "fr", "de"], [0.0, 1.0, 1.0, 1.0]),  # all of sw is left out
    (["sw", "de", "sw", "fr"], [0.0, 0.0, 0.0, 2.0]),
    (["a", "a", "b", "b"], [0.0, 0.0, 0.0, 0.0]),
]
OBJECTIVE_SIZES = [100, 129, 4099, 40_011]


def objective_row(seed: int, index: int, rank: int, n: int, weight: float) -> torch.Tensor:
    return checks.break_if_left_out(row_of(seed, (index, n), rank, n), weight)


def rank_objectives(rank: int, world: int, seed: int) -> list[Outcome]:
    results = []
    for name in ("mgda", "mean"):
        state = moo.BucketMOO(name, gramian=NARROW)
        for index, (objectives, weights) in enumerate(STEPS):
            state.objective, state.weight = objectives[rank], weights[rank]
            for n in OBJECTIVE_SIZES:
                row = objective_row(seed, index, rank, n, weights[rank])
                moo.all_reduce(row, state)
                results.append(outcome(row, state))
    return results


def test_objectives_are_shared_weighted_and_left_out(run_ranks: Runner, random_seed: int) -> None:
    results = iter(zip(*run_ranks(4, rank_objectives, random_seed), strict=True))
    for name in ("mgda", "mean"):
        for index, (objectives, weights) in enumerate(STEPS):
            names = [str(rank) if given is None else given for rank, given in enumerate(objectives)]
            for n in OBJECTIVE_SIZES:
                got, *others = next(results)
                label = f"{name} {names} {weights} n={n}"
                assert all(digest(other) == digest(got) for other in others), f"{label}: ranks differ"
                rows = [objective_row(random_seed, index, rank, n, w) for rank, w in enumerate(weights)]
                for row, weight in zip(rows, weights, strict=True):
                    if weight == 0:
                        row.fill_(123.0)  # whatever it holds
                verify(label, rows, got, NARROW, solvers(4)[name], objective=names, weight=weights)


def zero_row(seed: int, rank: int, n: int, zeros: tuple[int, ...]) -> torch.Tensor:
    row = row_of(seed, (n,), rank, n)
    return -torch.zeros_like(row) if rank in zeros else row  # -0 is zero, too


ZEROS = [(n, zeros) for n in (129, 20_011) for zeros in ((1,), (0, 2), (0, 1, 2))]


def rank_zeros(rank: int, world: int, seed: int) -> list[Outcome]:
    results = []
    for name, solver in solvers(world).items():
        state = moo.BucketMOO(solver.method, gramian=NARROW)
        # Beside it, the others alone.
        rest = moo.BucketMOO(solver.method, gramian=NARROW) if name != "pcgrad" else None
        for n, zeros in ZEROS:
            row = zero_row(seed, rank, n, zeros)
            moo.all_reduce(row, state)
            results.append(outcome(row, state))
            if rest is None:
                continue
            rest.weight = float(rank not in zeros)
            row = zero_row(seed, rank, n, zeros)
            moo.all_reduce(row, rest)
            got = outcome(row, rest)
            assert np.array_equal(got.weights, results[-1].weights)
            assert np.array_equal(got.gramian, results[-1].gramian)
    return results


def test_a_zero_gradient_weighs_nothing_and_disturbs_nobody(run_ranks: Runner, random_seed: int) -> None:
    results = iter(zip(*run_ranks(3, rank_zeros, random_seed), strict=True))
    for name, solver in solvers(3).items():
        for n, zeros in ZEROS:
            got, *others = next(results)
            label = f"{name} n={n} zeros={zeros}"
            assert all(digest(other) == digest(got) for other in others), f"{label}: ranks differ"
            verify(label, [zero_row(random_seed, rank, n, zeros) for rank in range(3)], got, NARROW, solver)
            if name != "mean":
                assert (got.weights[list(zeros)] == 0).all(), label
            if len(zeros) == 3:
                assert not unraw(got.result, torch.float32).any(), label


# ------------------------------------------------------------------------------------------ NaN and Inf


def broken_row(seed: int, rank: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """NaN on rank 0, +Inf on rank 1, and where rank 0 has -Inf, rank 1 has +Inf: NaN in the mean."""
    row = row_of(seed, (n,), rank, n, dtype)
    if rank == 0:
        row[n // 2] = torch.nan
        row[[1, n - 1]] = -torch.inf
    if rank == 1:
        row[[0, 1]] = torch.inf
    return row


BROKEN = [(name, n, dtype) for name in ("mean", "mgda", "pcgrad") for n in (129, 20_011) for dtype in ref.DTYPES]


def rank_broken(rank: int, world: int, seed: int) -> list[Outcome]:
    states = {name: moo.BucketMOO(name, gramian=NARROW) for name in ("mean", "mgda", "pcgrad")}
    results = []
    for name, n, dtype in BROKEN:
        row = broken_row(seed, rank, n, dtype)
        moo.all_reduce(row, states[name])
        results.append(outcome(row, states[name]))
        whole = row_of(seed, (n,), rank, n, dtype)
        moo.all_reduce(whole, states[name])
        assert states[name].report().buckets[0].status == "ok"
        assert bool(whole.isfinite().all())
    return results


def test_nonfinite_gradients_give_the_mean(run_ranks: Runner, random_seed: int) -> None:
    world = 3
    fallbacks = dict.fromkeys(("mean", "mgda", "pcgrad"), 0)
    ranks = run_ranks(world, rank_broken, random_seed)
    for (name, n, dtype), *outcomes in zip(BROKEN, *ranks, strict=True):
        fallbacks[name] += 1
        rows = np.stack([ref.float64(broken_row(random_seed, rank, n, dtype)) for rank in range(world)])
        share = np.full(world, 1 / world)
        expected = ref.combine(rows, share)
        finite = np.isfinite(expected)
        error = checks.combination_error(rows[:, finite], share, dtype, width=64)
        for got in outcomes:
            label = f"{name} {dtype} n={n}"
            result = unraw(got.result, dtype)
            assert np.array_equal(np.isnan(result), np.isnan(expected)), label
            assert np.array_equal(result[np.isinf(expected)], expected[np.isinf(expected)]), label
            assert (np.abs(result[finite] - expected[finite]) <= error).all(), label
            assert (got.status, got.fallbacks, got.width) == ("nonfinite", fallbacks[name], 64), label
            assert np.array_equal(got.weights, share), label
            assert np.array_equal(result[finite], unraw(outcomes[0].result, dtype)[finite]), f"{label}: ranks differ"


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
    results = []
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


# ------------------------------------------------------------------------------------------ inside DDP


class Given(nn.Module):
    """A loss of Σ <c_p, p>: the gradient of parameter p is c_p, whatever the parameters are; None: it is not used."""

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(n, dtype=dtype)) for n in sizes])

    def forward(self, coefficients: list[torch.Tensor | None]) -> torch.Tensor:
        terms = [(p * c).sum() for p, c in zip(self.layers, coefficients, strict=True) if c is not None]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class Training:
    """Some steps of a DDP module."""

    sketch: moo.Sketch
    name: str = "mgda"  # of the solver
    dtype: torch.dtype = torch.float32
    way: str = "native"
    sizes: tuple[int, ...] = (5003, 120, 3001, 60, 91, 4100, 20_011)
    steps: int = 3
    accumulate: int = 1  # micro-batches
    unused: bool = False  # parameter i is not used by rank i
    sleepy: bool = False  # random pauses between a rank's gradients

    def coefficients(self, seed: int, step: int, rank: int, micro: int = 0) -> list[torch.Tensor | None]:
        return [
            None if self.unused and place == rank else row_of(seed, (step, micro, place), rank, n, self.dtype)
            for place, n in enumerate(self.sizes)
        ]

    def gradients(self, seed: int, step: int, rank: int) -> list[torch.Tensor]:
        """As autograd adds them up."""
        total = [torch.zeros(n, dtype=self.dtype) for n in self.sizes]
        for micro in range(self.accumulate):
            for sum_, c in zip(total, self.coefficients(seed, step, rank, micro), strict=True):
                if c is not None:
                    sum_ += c
        return total


Bucket = tuple[int, tuple[str, ...], Outcome | bytes]  # index, parameters, what became of it


def train(training: Training, rank: int, world: int, seed: int) -> list[list[Bucket]]:
    model = Given(training.sizes, training.dtype)
    ddp = DDP(model, bucket_cap_mb=0.016, find_unused_parameters=training.unused)
    method = solvers(world)[training.name].method
    if training.way == "native":
        state = moo.register(ddp, method, gramian=training.sketch)
    else:
        state = moo.BucketMOO(method, gramian=training.sketch, bucket_cap_mb=0.016)
        ddp.register_comm_hook(state, moo.bucket_moo_hook)
        state.name_parameters(model.named_parameters())
    if training.sleepy:
        pauses = random.Random(f"{seed} {rank}")
        for p in model.parameters():
            p.register_hook(lambda _: time.sleep(pauses.choice((0.0, 0.0, 0.002, 0.005))))
    by_name = dict(model.named_parameters())
    results = []
    for step in range(1, training.steps + 1):
        ddp.zero_grad()
        with ddp.no_sync():
            for micro in range(training.accumulate - 1):
                ddp(training.coefficients(seed, step, rank, micro)).backward()
        ddp(training.coefficients(seed, step, rank, training.accumulate - 1)).backward()
        report = state.report()
        assert report.step == step
        results.append([])
        for bucket in report.buckets:
            gradients = [by_name[name].grad for name in bucket.parameters]
            whole = torch.cat([g.reshape(-1) for g in gradients if g is not None])
            results[-1].append((bucket.index, bucket.parameters, slim(outcome_of(whole, report, bucket), rank == 0)))
    return results


def rank_trains(rank: int, world: int, seed: int, trainings: list[Training]) -> list[list[list[Bucket]]]:
    return [train(training, rank, world, seed) for training in trainings]


def check_training(label: str, training: Training, ranks: list[list[list[Bucket]]], seed: int) -> set[int]:
    """Every bucket of every step; returns the numbers of steps between solving and use."""
    world = len(ranks)
    sketch = training.sketch
    kept: dict[tuple[str, ...], int] = {}
    ages = set()

    def rows(step: int, parameters: tuple[str, ...]) -> list[torch.Tensor]:
        places = [int(name.split(".")[1]) for name in parameters]
        local = [training.gradients(seed, step, rank) for rank in range(world)]
        return [torch.cat([gradients[place] for place in places]) for gradients in local]

    for step, buckets in enumerate(ranks[0], start=1):
        assert (len(buckets) > 1) == (step > 1 or training.unused), label  # DDP rebuilds them once
        assert [index for index, _, _ in buckets] == list(range(len(buckets))), label
        held = sorted(name for _, parameters, _ in buckets for name in parameters)
        assert held == sorted(f"layers.{i}" for i in range(len(training.sizes))), label
        for place, (index, parameters, got) in enumerate(buckets):
            what = f"{label}, step {step}, bucket {index} {parameters}"
            assert isinstance(got, Outcome)
            for other in ranks[1:]:
                assert other[step - 1][place] == (index, parameters, digest(got)), f"{what}: ranks differ"
            served = step
            if width_of(sketch, got.numel) and parameters in kept:
                due = (step - 1) // sketch.refresh_every != (kept[parameters] - 1) // sketch.refresh_every
                served = kept[parameters] if sketch.lag or not due else step
                if due:
                    kept[parameters] = step
            else:
                kept[parameters] = step
            assert (got.step, got.solved_step) == (step, served), f"{what}: {got.solved_step}, not {served}"
            if got.width:
                ages.add(step - served)
            verify(
                what, rows(step, parameters), got, sketch, solvers(world)[training.name],
                solved=rows(served, parameters), bucket=index,
            )  # fmt: skip
    return ages


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ddp(run_ranks: Runner, random_seed: int, world: int) -> None:
    kinds = [
        Training(moo.Sketch(64, seed=9)),
        Training(moo.Sketch(0.01), name="cagrad", dtype=torch.float64),
        Training(moo.Sketch(2048), name="pcgrad", dtype=torch.bfloat16),
        Training(moo.Sketch(64), name="mean", dtype=torch.float16),
    ]
    trainings = [Training(**{**vars(kind), "way": way}) for kind in kinds for way in ("native", "hook")]
    ranks = run_ranks(world, rank_trains, random_seed, trainings)
    for index, training in enumerate(trainings):
        check_training(f"{training} world={world}", training, [results[index] for results in ranks], random_seed)
    for index in range(0, len(trainings), 2):
        native, hook = ranks[0][index : index + 2]
        same = [[digest(got) for _, _, got in buckets] for buckets in native]  # type: ignore[arg-type]
        assert same == [[digest(got) for _, _, got in buckets] for buckets in hook], trainings[index]  # type: ignore[arg-type]


def test_ddp_that_keeps_weights_accumulates_or_has_unused_parameters(run_ranks: Runner, random_seed: int) -> None:
    trainings = [
        Training(moo.Sketch(64, refresh_every=3), steps=8),
        Training(moo.Sketch(64, lag=1), steps=5, way="hook"),
        Training(moo.Sketch(64, refresh_every=2, lag=1), steps=6, dtype=torch.bfloat16),
        Training(moo.Sketch(64), accumulate=3),
        Training(moo.Sketch(64), unused=True),
        Training(moo.Sketch(64), unused=True, way="hook", name="cagrad"),
    ]
    ranks = run_ranks(3, rank_trains, random_seed, trainings)
    for index, training in enumerate(trainings):
        ages = check_training(f"{training}", training, [results[index] for results in ranks], random_seed)
        if training.sketch.refresh_every > 1 or training.sketch.lag:
            assert max(ages) == training.sketch.refresh_every - 1 + training.sketch.lag
        if training.unused:
            for _, parameters, got in ranks[0][index][-1]:
                assert isinstance(got, Outcome)
                for rank in range(3):
                    alone = parameters == (f"layers.{rank}",)  # a bucket that this rank does not touch
                    assert not alone or got.weights[rank] == 0


MANY = tuple(300 + 450 * (i * 7 % 11) for i in range(40))


@pytest.mark.parametrize("sketch", [moo.Sketch(256), moo.Sketch(256, refresh_every=2, lag=1)], ids=["fresh", "kept"])
def test_sketches_sent_ahead_by_ranks_out_of_step(run_ranks: Runner, random_seed: int, sketch: moo.Sketch) -> None:
    """Which bucket's sketch goes out when depends on when gradients are ready, on every rank apart; bits do not."""
    sleepy, brisk = (Training(sketch, sizes=MANY, steps=4, sleepy=sleepy) for sleepy in (True, False))
    ranks = run_ranks(4, rank_trains, random_seed, [sleepy, brisk, sleepy])
    for index, training in enumerate((sleepy, brisk, sleepy)):
        results = [r[index] for r in ranks]
        if index == 0:
            check_training(f"{training}", training, results, random_seed)
            assert len(results[0][1]) > 15
        same = [[digest(got) for _, _, got in step] for step in results[0]]  # type: ignore[arg-type]
        assert same == [[digest(got) for _, _, got in step] for step in ranks[0][0]]  # type: ignore[arg-type]
        assert all(other == ranks[1][0] for other in results[1:])


class Mixed(nn.Module):
    """A sparse bucket among sketched ones."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(50, 8, generator=generator, dtype=torch.float64)
        self.first = Given([3001, 4003], torch.float64)
        self.table = nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
        self.last = Given([5003], torch.float64)

    def forward(self, tokens: torch.Tensor, coefficients: list[torch.Tensor | None]) -> torch.Tensor:
        return self.first(coefficients[:2]) + self.table(tokens).square().mean() + self.last(coefficients[2:])


def rank_sparse(rank: int, world: int, seed: int) -> list[list[Bucket]]:
    sketch = moo.Sketch(64, refresh_every=2)
    model = Mixed(seed)
    ddp = DDP(model, bucket_cap_mb=0.016)
    state = moo.register(ddp, "mgda", gramian=sketch)
    results: list[list[Bucket]] = []
    for step in range(1, 4):
        tables = []
        for r in range(world):
            tokens = torch.randint(50, (4 + 3 * r,), generator=torch.Generator().manual_seed(seed + 10 * r + step))
            tables.append(torch.autograd.grad(model.table(tokens).square().mean(), model.table.weight)[0].to_dense())
            if r == rank:
                own = tokens
        ddp.zero_grad()
        ddp(own, [row_of(seed, (step, i), rank, n, torch.float64) for i, n in enumerate((3001, 4003, 5003))]).backward()
        assert model.table.weight.grad is not None
        torch.testing.assert_close(model.table.weight.grad.to_dense(), torch.stack(tables).mean(0))
        report = state.report()
        assert report.sparse == step
        by_name = dict(model.named_parameters())
        results.append([])
        for bucket in report.buckets:
            whole = torch.cat([by_name[name].grad.reshape(-1) for name in bucket.parameters])  # type: ignore[union-attr]
            results[-1].append((bucket.index, bucket.parameters, outcome_of(whole, report, bucket)))
    return results


def test_sparse_buckets_are_averaged_beside_sketched_ones(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(2, rank_sparse, random_seed % 2**31)
    places = {"first.layers.0": (0, 3001), "first.layers.1": (1, 4003), "last.layers.0": (2, 5003)}
    for step in range(1, 4):
        for (index, parameters, got), (_, _, other) in zip(ranks[0][step - 1], ranks[1][step - 1], strict=True):
            assert digest(got) == digest(other)

            def rows(at: int, parameters: tuple[str, ...] = parameters) -> list[torch.Tensor]:
                parts = [places[name] for name in parameters]
                return [
                    torch.cat([row_of(random_seed % 2**31, (at, i), r, n, torch.float64) for i, n in parts])
                    for r in range(2)
                ]

            assert got.width == 64
            verify(
                f"step {step} {parameters}", rows(step), got, moo.Sketch(64, refresh_every=2),
                solved=rows(got.solved_step), bucket=index,
            )  # fmt: skip


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: moo.Sketch(100), ValueError, ["width", "power of two from 64 to 268435456", "100", "64 and 128"]),
        (lambda: moo.Sketch(32), ValueError, ["width", "64 to 268435456", "32"]),
        (lambda: moo.Sketch(2**29), ValueError, ["width", "64 to 268435456", str(2**29)]),
        (lambda: moo.Sketch(-64), ValueError, ["width", "-64"]),
        (lambda: moo.Sketch(0.0), ValueError, ["width", "above 0 and up to 1", "0.0"]),
        (lambda: moo.Sketch(1.5), ValueError, ["width", "above 0 and up to 1", "1.5"]),
        (lambda: moo.Sketch(float("nan")), ValueError, ["width", "above 0 and up to 1", "nan"]),
        (lambda: moo.Sketch("64"), TypeError, ["width", "integer", "str '64'"]),
        (lambda: moo.Sketch(True), TypeError, ["width", "integer", "bool True"]),
        (lambda: moo.Sketch(None), TypeError, ["width", "integer", "None"]),
        (lambda: moo.Sketch(seed=-1), ValueError, ["seed", f"0 to {2**64 - 1}", "-1"]),
        (lambda: moo.Sketch(seed=2**64), ValueError, ["seed", f"0 to {2**64 - 1}", str(2**64)]),
        (lambda: moo.Sketch(seed=1.0), TypeError, ["seed", "integer", "float 1.0"]),
        (lambda: moo.Sketch(refresh_every=0), ValueError, ["refresh_every", "from 1", "0"]),
        (lambda: moo.Sketch(refresh_every=2**31), ValueError, ["refresh_every", str(2**31)]),
        (lambda: moo.Sketch(refresh_every=2.0), TypeError, ["refresh_every", "integer", "float"]),
        (lambda: moo.Sketch(lag=2), ValueError, ["lag", "0 to 1", "2"]),
        (lambda: moo.Sketch(lag=True), TypeError, ["lag", "integer", "bool"]),
        (lambda: moo.Sketch(64).width_for(-1), ValueError, ["numel", "-1"]),
        (lambda: moo.BucketMOO(gramian="sketchy"), ValueError, ["gramian", "'exact', 'auto' or a Sketch", "'sketchy'"]),
        (lambda: moo.BucketMOO(gramian=64), TypeError, ["gramian", "'exact', 'auto' or a Sketch", "int 64"]),
        (lambda: moo.BucketMOO(gramian=moo.Sketch), TypeError, ["gramian", "a Sketch", "Sketch'>"]),
        (lambda: moo.BucketMOO(gramian=None), TypeError, ["gramian", "None"]),
    ],
)
def test_bad_arguments(make: Callable[[], Any], kind: type[BaseException], words: list[str]) -> None:
    given, text = error_of(make)
    assert given is kind
    assert not [word for word in words if word not in text], text


def test_a_sketch_is_a_value() -> None:
    sketch = moo.Sketch(np.int64(128), seed=np.uint64(2**63), refresh_every=np.int32(2), lag=1)
    assert sketch == moo.Sketch(128, 2**63, 2, 1) == pickle.loads(pickle.dumps(sketch)) == copy.deepcopy(sketch)
    assert eval(repr(sketch), {"Sketch": moo.Sketch}) == sketch
    assert sketch != moo.Sketch(128)
    assert len({sketch, copy.copy(sketch), moo.Sketch(128)}) == 2
    with pytest.raises(AttributeError):
        sketch.width = 64  # type: ignore[misc]
    for width in (64, 16384, 2**28, 1e-12, 0.003, 0.5, 1.0):
        for n in (0, 1, 127, 128, 129, 32_768, 32_769, 10**6, 10**9):
            assert moo.Sketch(width).width_for(n) == width_of(moo.Sketch(width), n), (width, n)


MISMATCHES: list[list[str | moo.Sketch]] = [
    [moo.Sketch(64), moo.Sketch(128)],
    [moo.Sketch(64), moo.Sketch(64, seed=1)],
    [moo.Sketch(64), moo.Sketch(64, refresh_every=2)],
    [moo.Sketch(64), moo.Sketch(64, lag=1)],
    [moo.Sketch(0.5), moo.Sketch(0.25)],
    ["exact", moo.Sketch(64)],
    ["exact", "auto"],
    ["auto", moo.Sketch()],
]


def rank_mismatch(rank: int, world: int) -> list[tuple[type[BaseException], str]]:
    errors = []
    for first, last in MISMATCHES:
        state = moo.BucketMOO(gramian=last if rank == world - 1 else first)
        x = torch.ones(100_000)
        errors.append(error_of(lambda state=state, x=x: moo.all_reduce(x, state)))
        assert error_of(lambda state=state: moo.all_reduce(torch.ones(300), state)) == errors[-1]
        assert bool((x == 1).all())
    return errors


def test_sketches_that_differ_raise_on_every_rank(run_ranks: Runner) -> None:
    for errors in run_ranks(3, rank_mismatch):
        for (kind, text), (first, last) in zip(errors, MISMATCHES, strict=True):
            assert kind is ValueError
            for word in ("same on every rank", "gramian:", f"{first} on rank 0 1;", f"{last} on rank 2;"):
                assert word in text, (word, text)


def rank_refused(rank: int, world: int, seed: int) -> list[Any]:
    sketch = moo.Sketch(64, refresh_every=2)
    state = moo.BucketMOO("mgda", gramian=sketch)
    results: list[Any] = []
    for step in range(1, 4):
        bad = torch.ones(400, 400).t()[:, ::2] if rank == step % world else torch.ones(80_000)
        results.append(error_of(lambda bad=bad: moo.all_reduce(bad, state)))
        row = row_of(seed, (step,), rank, 5000)
        moo.all_reduce(row, state)
        results.append(outcome(row, state))
    return results


@pytest.mark.host
def test_a_tensor_refused_on_one_rank_raises_on_all(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_refused, random_seed)
    for step in range(1, 4):
        for rank in range(3):
            kind, text = ranks[rank][2 * step - 2]
            assert kind is ValueError
            assert ("contiguous" if rank == step % 3 else f"rank {step % 3} refused") in text
        got = ranks[0][2 * step - 1]
        assert got.step == 2 * step
        assert got.solved_step == got.step, "every second step is a new period here"
        assert digest(ranks[1][2 * step - 1]) == digest(got)
        verify(f"step {step}", rows_of(random_seed, (step,), 3, 5000), got, moo.Sketch(64, refresh_every=2))


# ------------------------------------------------------------------------------------------ ranks that die

GROUP_TIMEOUT = timedelta(seconds=5)


def rank_dies(rank: int, world: int, seed: int, sketch: moo.Sketch, when: str) -> tuple[type[BaseException], str]:
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


@pytest.mark.host
def test_a_state_that_is_dropped_while_it_solves(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_drops, random_seed, timeout=60.0)
    assert ranks[0] == ranks[1] == ranks[2]


# ------------------------------------------------------------------------------------------ auto


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


# ------------------------------------------------------------------------------------------ the report


def rank_report(rank: int, world: int, seed: int) -> dict[str, Any]:
    sketch = moo.Sketch(64, seed=3, refresh_every=3)
    model = Given((5003, 100, 3001), torch.float32)
    ddp = DDP(model, bucket_cap_mb=400 / 2**20)
    state = moo.register(ddp, "mgda", gramian=sketch, objective=f"task {rank}")
    for step in range(1, 6):
        ddp.zero_grad()
        rows: list[torch.Tensor | None] = [row_of(seed, (step, i), rank, n) for i, n in enumerate((5003, 100, 3001))]
        if rank == 2:
            rows[0] = torch.zeros(5003)
        ddp(rows).backward()
    report = state.report()
    errors, cosines = [], []
    for bucket in report.buckets:
        errors.append(bucket.cosine_errors.numpy())
        cosines.append(bucket.cosines.numpy())
    return {
        "estimator": report.estimator,
        "text": str(report),
        "json": json.dumps(report.to_dict(), allow_nan=False),
        "numel": [bucket.numel for bucket in report.buckets],
        "width": [bucket.width for bucket in report.buckets],
        "solved_step": [bucket.solved_step for bucket in report.buckets],
        "parameters": [bucket.parameters for bucket in report.buckets],
        "errors": errors,
        "cosines": cosines,
    }


def test_report(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_report, random_seed)
    assert len({got["json"] for got in ranks}) == 1, "ranks report the same"
    got = ranks[0]
    assert got["estimator"] == "Sketch(width=64, seed=3, refresh_every=3, lag=0)"
    assert sorted(got["numel"]) == [100, 3001, 5003]
    worst = 0.0
    for numel, width, solved, errors, cosines in zip(
        got["numel"], got["width"], got["solved_step"], got["errors"], got["cosines"], strict=True
    ):
        assert width == (0 if numel == 100 else 64)
        assert solved == (5 if numel == 100 else 4)
        unknown = np.isnan(cosines)
        assert unknown.any() == (numel == 5003)
        expected = (1 - cosines**2) / 8 if width else np.zeros((3, 3))
        assert np.array_equal(np.isnan(errors), unknown & bool(width))
        np.testing.assert_allclose(errors[~unknown], expected[~unknown], rtol=1e-12, atol=1e-15)
        if width:
            assert (np.diagonal(errors)[~np.isnan(np.diagonal(errors))] < 1e-15).all(), "a norm is no cosine"
            worst = max(worst, float(np.nanmax(errors)))
    assert 0.05 < worst <= 0.125
    (line,) = (line for line in got["text"].splitlines() if line.startswith("Gramians:"))
    assert line == (
        f"Gramians: {got['estimator']}; standard error of cosines up to {worst:.4f}; 1 small bucket exact; "
        "oldest weights of step 4"
    )
    plain = json.loads(got["json"])
    assert plain["estimator"] == got["estimator"]
    for bucket, errors in zip(plain["buckets"], got["errors"], strict=True):
        assert [[x is None for x in row] for row in bucket["cosine_errors"]] == np.isnan(errors).tolist()
    assert [bucket["width"] for bucket in plain["buckets"]] == got["width"]
    assert [bucket["solved_step"] for bucket in plain["buckets"]] == got["solved_step"]


# ------------------------------------------------------------------------------------------ memory


def rank_memory(rank: int, world: int, width: int, lag: int) -> list[int]:
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(width, lag=lag))
    held = []
    for n in (1 << 18, 1 << 20, 1 << 22, 1 << 23):
        for _ in range(2):
            moo.all_reduce(torch.ones(n) * (rank + 1), state)
        held.append(state.memory())
    return held


@pytest.mark.host
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("world", [1, 3])
def test_memory_does_not_grow_with_the_bucket(run_ranks: Runner, world: int, lag: int) -> None:
    width = 16384
    sketch = 2 * width * 4  # its columns, and other ranks' parts of our share of them
    two_tiles = 2 * (2 << 20)
    for held in run_ranks(world, rank_memory, width, lag):
        assert held[0] > 0
        assert held == sorted(held)
        assert held[-1] - held[-2] < 256, "32 MB take no more than 16 MB (a tail may be a little longer)"
        assert held[-1] <= 2 * sketch + (two_tiles if world > 1 else 0) + 65536
