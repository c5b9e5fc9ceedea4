"""Steps of several passes with a Sketch: which weights serve, and what becomes of the rows."""

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import Outcome, draw, outcome, unraw
from tests.support.errors import error_of, expect
from tests.support.sketches import width_of

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]
METHODS = ("mgda", "pcgrad", "alignedmtl")  # the last one has negative weights, too
STEPS = 4
SKETCHES = [
    moo.Sketch(64, seed=3),
    moo.Sketch(64, seed=3, lag=1),
    moo.Sketch(64, seed=3, refresh_every=2),
    moo.Sketch(8192, seed=3, lag=1),  # whose shards are exchanged
]


def _flat(lists: Iterable[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


@dataclass(frozen=True)
class Case:
    """Some steps of one bucket, with the same objectives in every step, however they are spread."""

    method: str
    sketch: moo.Sketch
    dtype: torch.dtype
    n: int
    scatter: bool
    is_told: bool  # whether totals are given
    objective: list[list[list[str]]]  # by step, pass, rank
    weight: list[list[list[float]]]

    def rows(self, seed: int, step: int) -> list[list[torch.Tensor]]:
        """By pass, then rank; in a row that is left out are NaNs."""
        rows = [
            [draw(seed, (step, p, r, self.n), self.n, self.dtype, 1.0 + 0.5 * r + p) for r in range(len(names))]
            for p, names in enumerate(self.objective[step])
        ]
        for row, weight in zip(_flat(rows), _flat(self.weight[step]), strict=True):
            if weight == 0:
                row[3] = torch.nan
        return rows

    def totals(self, step: int) -> dict[str, float] | None:
        if not self.is_told:
            return None
        totals: dict[str, float] = {}
        for name, weight in zip(_flat(self.objective[step]), _flat(self.weight[step]), strict=True):
            totals[name] = totals.get(name, 0.0) + weight
        return totals

    def served(self) -> list[int]:
        """The step whose gradients each step's weights are from, as documented; counted from 1."""
        if width_of(self.sketch, self.n) == 0 or self.sketch == SKETCHES[0]:
            return [1, 2, 3, 4]
        return [1, 1, 3, 3] if self.sketch.refresh_every == 2 else [1, 1, 2, 3]


def cases_of(seed: int, world: int, layout: str) -> list[Case]:
    rng = Random(f"{seed} {world} {layout}")
    cases = []
    for index in range(12):
        passes = rng.randint(2, 5)
        k = rng.randint(1, passes if layout == "passes" else min(6, passes * world))
        objective, weight = [], []
        for _ in range(STEPS):
            slots = passes if layout == "passes" else passes * world
            names = [f"o{i}" for i in range(k)] + rng.choices([f"o{i}" for i in range(k)], k=slots - k)
            rng.shuffle(names)
            by_pass = [[name] * world for name in names] if layout == "passes" else [
                names[p * world : (p + 1) * world] for p in range(passes)
            ]  # fmt: skip
            kinds = [1.0, rng.uniform(0.1, 10.0), 2.0 ** rng.randint(-30, 60), 0.0]
            objective.append(by_pass)
            weight.append([[rng.choice(kinds) for _ in range(world)] for _ in range(passes)])
        sketch = SKETCHES[index % 4]
        n = rng.choice((7, 4099, 20_011) if sketch.width == 64 else (20_011,))
        scatter = rng.random() < 0.4
        n = -(-n // world) * world if scatter else n
        dtype = ref.DTYPES[rng.randrange(4)]
        cases.append(Case(METHODS[index // 4], sketch, dtype, n, scatter, rng.random() < 0.6, objective, weight))
    return cases


def run_step(
    state: moo.BucketMOO, rows: list[list[torch.Tensor]], case: Case, step: int, rank: int, world: int
) -> torch.Tensor:
    for p, of_ranks in enumerate(rows):
        state.objective, state.weight = case.objective[step][p][rank], case.weight[step][p][rank]
        row = of_ranks[rank].clone()
        answer = torch.full((case.n // world,), 7.0, dtype=case.dtype) if case.scatter else row

        def one_pass(row: torch.Tensor = row, answer: torch.Tensor = answer) -> None:
            if case.scatter:
                moo.reduce_scatter(answer, row, state, bucket="b")
            else:
                moo.all_reduce(row, state, bucket="b")

        if p < len(rows) - 1:
            with state.accumulate(case.totals(step)):
                one_pass()
            assert not answer.any()
        else:
            one_pass()
    return answer


def rank_schedules(rank: int, world: int, seed: int, layout: str) -> list[list[Outcome]]:
    results: list[list[Outcome]] = []
    for case in cases_of(seed, world, layout):
        state = moo.BucketMOO(case.method, gramian=case.sketch, layout=layout)
        results.append([])
        for step in range(STEPS):
            answer = run_step(state, case.rows(seed, step), case, step, rank, world)
            results[-1].append(outcome(answer, state))
    return results


def of_step(case: Case, seed: int, step: int) -> checks.Gradients:
    rows = [
        torch.where(torch.isnan(row), 0.0, row) if weight == 0 else row
        for row, weight in zip(_flat(case.rows(seed, step)), _flat(case.weight[step]), strict=True)
    ]
    return checks.gradients(rows, _flat(case.objective[step]), _flat(case.weight[step]))


def in_order(got: Outcome, names: list[Hashable]) -> Outcome:
    """With its objectives in this order: where weights are kept, a GPU numbers them as in the first step."""
    place = [got.objectives.index(str(name)) for name in names]
    return replace(got, weights=got.weights[place], gramian=got.gramian[np.ix_(place, place)])


def verify(
    label: str, case: Case, seed: int, step: int, got: Outcome, shard: slice, world: int, is_averaged: bool
) -> None:
    served = case.served()[step]
    assert (got.step, got.solved_step) == (step + 1, served), f"{label}: {got.solved_step}, not {served}"
    now, then = of_step(case, seed, step), of_step(case, seed, served - 1)
    got = in_order(got, now.names)
    order = [then.names.index(name) for name in now.names]
    width = width_of(case.sketch, case.n)
    assert got.width == width
    if is_averaged and not width:  # rows of a pass, in their dtype
        now, then = replace(now, is_summed=True), replace(then, is_summed=True)
    seen = then.through(lambda row: ref.sketch(row, width, 3, served)) if width else then
    error = (2 * seen.gramian_error())[np.ix_(order, order)]
    expected = ref.gramian(seen.means[order])
    assert (np.abs(got.gramian - expected) <= error).all(), f"{label}: {got.gramian} is not {expected}"
    is_mean = step == 0 and case.is_told and case.sketch.lag and width
    solved = moo.weights(torch.from_numpy(got.gramian), "mean" if is_mean else case.method).numpy()
    if case.method != "pcgrad":  # whose order of objectives is that of the step that solved
        np.testing.assert_allclose(got.weights, solved, rtol=1e-9, atol=1e-9, err_msg=label)
    now = replace(now, is_summed=now.is_summed or (width > 0 and world > 1))
    checks.verify_combination(label, now, got, shard)


@pytest.mark.parametrize("layout", ["ranks", "passes"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_of_all_passes_are_combined_by_the_weights_of_their_sketches(
    run_ranks: Runner, random_seed: int, world: int, layout: str
) -> None:
    ranks = run_ranks(world, rank_schedules, random_seed, layout)
    is_averaged = checks.ON_DEVICE and layout == "passes" and world > 1
    for index, case in enumerate(cases_of(random_seed, world, layout)):
        for step in range(STEPS):
            got = [results[index][step] for results in ranks]
            for rank, of_rank in enumerate(got):
                label = f"case {index}, step {step + 1}, rank {rank}: {case}"
                assert (of_rank.weights == got[0].weights).all(), f"{label}: ranks differ"
                assert case.scatter or of_rank.result == got[0].result, f"{label}: ranks differ"
                size = case.n // world
                shard = slice(rank * size, (rank + 1) * size) if case.scatter else slice(None)
                verify(label, case, random_seed, step, of_rank, shard, world, is_averaged)


# --- what is held ---


def rank_memory(rank: int, world: int) -> dict[str, int]:
    n = 100_000
    held = {}
    for name, options in {
        "told, lag": (moo.Sketch(64, lag=1), True),
        "lag": (moo.Sketch(64, lag=1), False),
        "told": (moo.Sketch(64), True),
    }.items():
        sketch, is_told = options
        state = moo.BucketMOO(gramian=sketch)
        totals = {str(i): float(world) for i in range(4)} if is_told else None
        peak = {"other": 0, "b": 0}
        for bucket in ("other", "b"):  # in the first one is scratch memory of sums
            for _ in range(3):
                for k in range(4):
                    state.objective = str(k)
                    with state.accumulate(totals) if k < 3 else contextlib.nullcontext():
                        moo.all_reduce(torch.ones(n), state, bucket=bucket)
                    peak[bucket] = max(peak[bucket], state.memory())
            if bucket == "other":
                before = state.memory()
        held[name] = round((peak["b"] - before) / (4 * n))
    return held


def test_four_objectives_take_the_memory_of_one_where_totals_are_told_and_weights_kept(run_ranks: Runner) -> None:
    for held in run_ranks(2, rank_memory):
        assert held == {"told, lag": 1, "lag": 4, "told": 4}


# --- NaN, zeros, steps that are given up ---


def rank_broken(rank: int, world: int, seed: int) -> list[Outcome]:
    """Objective b is three times a, so that MGDA gives it no weight; in step 3 it has a NaN."""
    state = moo.BucketMOO(gramian=moo.Sketch(64, lag=1))
    results = []
    for step in range(1, 5):
        a = draw(seed, (step,), 5000, torch.float32)
        b = 3.0 * a
        if step == 3:
            b[5] = torch.nan
        state.objective = "a"
        with state.accumulate({"a": world, "b": world}):
            moo.all_reduce(a.clone(), state, bucket="b")
        state.objective = "b"
        moo.all_reduce(b, state, bucket="b")
        results.append(outcome(b, state))
    return results


def test_nan_reaches_the_one_sum_whatever_its_weight(run_ranks: Runner, random_seed: int) -> None:
    for mean, kept, broken, after in run_ranks(2, rank_broken, random_seed):
        assert mean.weights.tolist() == [0.5, 0.5]
        assert kept.weights.tolist() == broken.weights.tolist() == [1.0, 0.0]
        assert np.flatnonzero(np.isnan(unraw(broken.result, torch.float32))).tolist() == [5]
        assert np.isfinite(unraw(after.result, torch.float32)).all()
        assert [got.solved_step for got in (mean, kept, broken, after)] == [1, 1, 2, 2]  # that of step 3 is not kept


# --- other objectives, other totals ---


def rank_other_objectives(rank: int, world: int, seed: int) -> list[Outcome]:
    """The second of a pair is three times the first, so that MGDA gives it no weight."""
    state = moo.BucketMOO(gramian=moo.Sketch(64, lag=1))
    results = []
    for step, (one, two) in enumerate([("a", "b"), ("a", "c"), ("c", "a")]):
        row = draw(seed, (step,), 5000, torch.float32)
        state.objective = one
        with state.accumulate({one: world, two: world}):
            moo.all_reduce(row.clone(), state, bucket="b")
        state.objective = two
        row *= 3.0
        moo.all_reduce(row, state, bucket="b")
        results.append(outcome(row, state))
    return results


@pytest.mark.host
def test_a_step_of_other_objectives_uses_weights_of_its_own(run_ranks: Runner, random_seed: int) -> None:
    for mean, other, kept in run_ranks(2, rank_other_objectives, random_seed):
        assert (mean.weights.tolist(), mean.solved_step) == ([0.5, 0.5], 1)
        assert (other.weights.tolist(), other.solved_step) == ([1.0, 0.0], 2)
        assert (kept.weights.tolist(), kept.solved_step) == ([0.0, 1.0], 2)


def rank_passes_that_change(rank: int, world: int, seed: int, scope: Any) -> list[Outcome]:
    """Each rank has one objective; every other step has one pass, as at the end of an epoch."""
    state = moo.BucketMOO(gramian=moo.Sketch(64, lag=1), objective="ab"[rank], scope=scope)
    results = []
    for step in range(5):
        passes = 1 + step % 2
        for p in range(passes):
            row = draw(seed, (step, p, rank), 5000, torch.float32, 1.0 + rank)
            told = state.accumulate({"a": 2, "b": 2}) if p < passes - 1 else contextlib.nullcontext()
            with told:
                moo.all_reduce(row, state, bucket="b")
        results.append(outcome(row, state))
    return results


@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_kept_weights_serve_steps_of_one_pass_and_of_several(run_ranks: Runner, random_seed: int, scope: str) -> None:
    for results in run_ranks(2, rank_passes_that_change, random_seed, scope):
        for step, got in enumerate(results):
            rows = [
                draw(random_seed, (step, p, r), 5000, torch.float32, 1.0 + r)
                for p in range(1 + step % 2)
                for r in (0, 1)
            ]
            now = replace(checks.gradients(rows, [*"ab"] * (1 + step % 2)), is_summed=True)
            checks.verify_combination(f"step {step + 1}", now, got)
            assert got.solved_step == max(1, step)
            np.testing.assert_allclose(got.weights, moo.weights(torch.from_numpy(got.gramian)).numpy(), rtol=1e-9)


def rank_given_up(rank: int, world: int, seed: int) -> list[Outcome]:
    state = moo.BucketMOO(gramian=moo.Sketch(64, lag=1))
    results = []
    for step in range(3):
        state.objective = "a"
        if step == 1:
            with state.accumulate({"a": 99}):
                moo.all_reduce(torch.full((5000,), torch.nan), state, bucket="b")
            state.discard()
            continue
        with state.accumulate({"a": world, "b": world}):
            moo.all_reduce(draw(seed, (rank, step, 0), 5000, torch.float32), state, bucket="b")
        state.objective = "b"
        row = draw(seed, (rank, step, 1), 5000, torch.float32)
        moo.all_reduce(row, state, bucket="b")
        results.append(outcome(row, state))
    return results


def test_a_step_that_is_given_up_leaves_nothing_behind(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(2, rank_given_up, random_seed)
    for first, after in ranks:
        assert (first.step, after.step, after.solved_step) == (1, 3, 1)
        rows = [draw(random_seed, (rank, 2, p), 5000, torch.float32) for p in (0, 1) for rank in (0, 1)]
        now = replace(checks.gradients(rows, list("aabb")), is_summed=True)
        checks.verify_combination("after", now, after)


def step_of_totals(state: moo.BucketMOO, totals: Any, names: str = "ab") -> torch.Tensor:
    for name in names:
        state.objective = name
        row = torch.ones(5000)
        with state.accumulate(totals) if name != names[-1] else contextlib.nullcontext():
            moo.all_reduce(row, state)
    return row


def rank_kept_objectives(rank: int, world: int) -> None:
    """On a device, in any order; others are an error of the step."""
    states = []
    for others in ("ac", "abc", "a"):
        state = moo.BucketMOO(gramian=moo.Sketch(64, lag=1))
        states.append(state)  # nothing has waited for what its kernels tell
        for names in ("ab", "ab"[::-1], "ab"):
            assert step_of_totals(state, {"a": world, "b": world}, names).isfinite().all()
            assert state.report().objectives == ("a", "b")
        assert step_of_totals(state, dict.fromkeys(others, world), others).isnan().all()
        expect(error_of(state.report), ValueError, "objectives of the first step in every step.*step 4 has others")


@pytest.mark.skipif(not checks.ON_DEVICE, reason="the CPU solves anew")
def test_kept_weights_are_for_the_objectives_of_the_first_step_in_any_order(run_ranks: Runner) -> None:
    run_ranks(2, rank_kept_objectives)


def rank_wrong_totals(rank: int, world: int) -> list[Any]:
    errors = []
    states = []
    cases: list[tuple[Any, list[Any]]] = [
        ("exact", [{"a": 2, "b": 2}] * 2),
        (moo.Sketch(64, lag=1), [{"b": 2, "a": 2}, {"a": 2, "b": 2}]),
        (moo.Sketch(64, lag=1), [{"a": 2, "b": 3}] * 2),
        ("exact", [{"a": 2, "b": 3}] * 2),
        (moo.Sketch(64, lag=1), [{"a": 2}] * 2),
        (moo.Sketch(64, lag=1), [{"a": 2, "b": 2, "c": 1}] * 2),
        ("exact", [{"a": 2, "b": 2}, None]),
    ]
    for gramian, totals in cases:
        state = moo.BucketMOO(gramian=gramian)
        states.append(state)  # on a device, nothing has waited for what its kernels tell

        def run(state: moo.BucketMOO = state, told: Any = totals[rank]) -> None:
            row = step_of_totals(state, told)
            if checks.ON_DEVICE:  # where the host hears of it later
                error = error_of(state.report)
                assert row.isnan().all() == (error[0] is not type(None))
                state.report()

        errors.append(error_of(run))
    return errors


def test_totals_that_are_not_what_comes_are_an_error_on_all_ranks(run_ranks: Runner) -> None:
    other = "objective number 2", "add up to something else"
    lacks = "lacks the objective of rank 0", ""
    no_rows = "has 1 more objectives than the step has had rows of", ""
    if not checks.ON_DEVICE:
        other = "objective 'b' add up to 3 ", "they add up to 2"
        lacks = "has no objective 'b'", "it has 'a'"
        no_rows = "objective 'c', of which the step has no row", ""
    for right, other_order, sum_, exact, missing, no_row, disagree in run_ranks(2, rank_wrong_totals):
        assert right[0] is other_order[0] is type(None)
        expect(sum_, ValueError, *other)
        expect(exact, ValueError, *other)
        expect(missing, ValueError, *lacks)
        expect(no_row, ValueError, *no_rows)
        expect(disagree, ValueError, "make the same calls", r"the totals that accumulate\(\) was given")


def rank_totals_in_levels(rank: int, world: int) -> list[Any]:
    """Where ranks of a mesh share objectives, totals are over all of them, too."""
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("node", "rank"))
    state = moo.BucketMOO(mesh=mesh, objectives="node")
    errors = []
    for b in (world, 1):
        row = torch.ones(5000)
        state.objective = "a"
        with state.accumulate({"a": world, "b": b}):
            moo.all_reduce(row, state)
        state.objective = "b"
        errors.append(error_of(lambda row=row: moo.all_reduce(row, state)))  # type: ignore[misc]
    return errors


@pytest.mark.host
def test_totals_in_levels(run_ranks: Runner) -> None:
    for right, wrong in run_ranks(2, rank_totals_in_levels):
        assert right[0] is type(None)
        expect(wrong, ValueError, "objective 'b' add up to 1 ", "they add up to 2")


@pytest.mark.host
def test_arguments_of_totals() -> None:
    state = moo.BucketMOO()
    for totals, kind, text in [
        ([("a", 1)], TypeError, "totals must be a mapping"),
        ({"a": "1"}, TypeError, "'a': '1'"),
        ({None: 1}, TypeError, "None: 1"),
        ({"a": -1}, ValueError, "finite and >= 0"),
        ({1: 1, "1": 2}, ValueError, "'1' twice"),
        ({3.5: 1}, TypeError, "totals: objective must be"),
        ({}, ValueError, "totals must name an objective"),
    ]:
        expect(error_of(state.accumulate(totals).__enter__), kind, text)  # type: ignore[arg-type]
