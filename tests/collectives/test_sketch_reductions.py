"""Reductions whose weights come from sketches, on 1 to 4 ranks, against the map in NumPy and float64 references."""

from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import Outcome, outcome, raw, unraw
from tests.support.sketches import digest, row_of, rows_of, slim, solvers, verify

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]
# Emulated kernels are slow; what two ranks do on a device, one, three or four do as well.
WORLDS = [1, pytest.param(2, marks=pytest.mark.host), 3, 4]


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


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
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


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
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


# ------------------------------------------------------------------------------------------ memory


def rank_memory(rank: int, world: int, width: int, lag: int) -> list[int]:
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(width, lag=lag))  # type: ignore[arg-type]
    held = []
    for n in (1 << 18, 1 << 20, 1 << 22, 1 << 23):
        for _ in range(2):
            moo.all_reduce(torch.ones(n) * (rank + 1), state)
        held.append(state.memory())
    return held


@pytest.mark.slow
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
