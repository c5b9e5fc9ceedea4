"""Steps of several passes: random schedules of objectives and weights over ranks and passes."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import Outcome, break_if_left_out, draw, outcome
from tests.support.errors import error_of, expect

Runner = Callable[..., list[Any]]
METHODS: list[tuple[str, dict[str, Any]]] = [("mean", {}), ("mgda", {}), ("cagrad", {"c": 0.3})]
SCHEDULES = 8 if checks.ON_DEVICE else 24
SIZES = (7, 4099, 20_011)  # all tail; sharded; sharded with a tail


@dataclass(frozen=True)
class Case:
    """One bucket's step: what each rank stands for in each pass."""

    method: str
    options: dict[str, Any]
    dtype: torch.dtype
    n: int
    scatter: bool
    objective: list[list[str]]  # by pass, then rank
    weight: list[list[float]]

    def rows(self, seed: int, world: int) -> list[list[torch.Tensor]]:
        """By pass, then rank."""
        n = -(-self.n // world) * world if self.scatter else self.n
        return [
            [
                break_if_left_out(draw(seed, (p, n, r), n, self.dtype), self.weight[p][r])
                if n > 7
                else draw(seed, (p, n, r), n, self.dtype)
                for r in range(world)
            ]
            for p in range(len(self.objective))
        ]


def cases_of(seed: int, world: int, layout: str = "ranks", count: int = SCHEDULES) -> list[Case]:
    rng = Random(f"{seed} {world} {layout}")
    cases = []
    for index in range(count):
        passes, k = rng.randint(1, 6), rng.randint(1, 12)
        names = [f"objective {i}" for i in range(k)]
        objective, weight = [], []
        size = rng.choice(SIZES)
        for _ in range(passes):
            chosen = rng.choices(names, k=world)
            objective.append([chosen[0]] * world if layout == "passes" else chosen)
            # A weight of 0 leaves a row out; rows of 7 elements are too short to be broken there.
            kinds = [1.0, rng.uniform(0.1, 10.0), 2.0 ** rng.randint(-60, 60), 0.0 if size > 7 else 1.0]
            weight.append([rng.choice(kinds) for _ in range(world)])
        method, options = METHODS[index % len(METHODS)]
        cases.append(Case(method, options, ref.DTYPES[index % 4], size, rng.random() < 0.4, objective, weight))
    return cases


def state_of(case: Case, **options: Any) -> moo.BucketMOO:
    return moo.BucketMOO(moo.CAGrad(**case.options) if case.method == "cagrad" else case.method, **options)


def run_pass(case: Case, row: torch.Tensor, rank: int, world: int, state: moo.BucketMOO) -> torch.Tensor:
    if not case.scatter:
        moo.all_reduce(row, state, bucket="b")
        return row
    shard = torch.full((row.numel() // world,), 7.0, dtype=row.dtype)
    before = row.clone()
    moo.reduce_scatter(shard, row, state, bucket="b")
    assert torch.equal(row.view(torch.uint8), before.view(torch.uint8))  # only read
    return shard


def run_step(case: Case, rank: int, world: int, seed: int, state: moo.BucketMOO) -> torch.Tensor:
    """All passes of a step; what the last one gives."""
    *others, last = [of_ranks[rank].clone() for of_ranks in case.rows(seed, world)]
    for p, row in enumerate(others):
        state.objective, state.weight = case.objective[p][rank], case.weight[p][rank]
        with state.accumulate():
            assert not run_pass(case, row, rank, world, state).any()
    state.objective, state.weight = case.objective[-1][rank], case.weight[-1][rank]
    return run_pass(case, last, rank, world, state)


def rank_schedules(rank: int, world: int, seed: int, layout: str) -> list[Outcome]:
    results = []
    for case in cases_of(seed, world, layout):
        state = state_of(case, layout=layout)
        for _ in range(2):  # memory is used again
            answer = run_step(case, rank, world, seed, state)
        report = state.report()
        assert (report.passes, report.layout, report.step) == (len(case.objective), layout, 2)
        counted = [name for names in case.objective for name in names]
        assert report.buckets[0].rows == tuple(counted.count(name) for name in dict.fromkeys(counted))
        results.append(outcome(answer, state))
    return results


@pytest.mark.device
@pytest.mark.parametrize("layout", ["ranks", "passes"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_any_schedule_is_one_step_of_all_its_rows(run_ranks: Runner, random_seed: int, world: int, layout: str) -> None:
    results = run_ranks(world, rank_schedules, random_seed, layout)
    is_summed = checks.ON_DEVICE and layout == "passes" and world > 1
    for index, case in enumerate(cases_of(random_seed, world, layout)):
        got = [result[index] for result in results]
        label = f"case {index}: {case}"
        rows = [
            row if w else torch.zeros_like(row)
            for p, of_ranks in enumerate(case.rows(random_seed, world))
            for row, w in zip(of_ranks, case.weight[p], strict=True)
        ]
        objective = [name for names in case.objective for name in names]
        weight = [w for weights in case.weight for w in weights]
        assert all((o.weights == got[0].weights).all() and (o.gramian == got[0].gramian).all() for o in got), label
        if case.scatter:
            size = rows[0].numel() // world
            for rank, of_rank in enumerate(got):
                shard = slice(rank * size, (rank + 1) * size)
                checks.verify(
                    label,
                    rows,
                    of_rank,
                    case.method,
                    case.options,
                    objective=objective,
                    weight=weight,
                    shard=shard,
                    is_summed=is_summed,
                )
        else:
            assert all(o.result == got[0].result for o in got), label
            checks.verify(
                label,
                rows,
                got[0],
                case.method,
                case.options,
                objective=objective,
                weight=weight,
                is_summed=is_summed,
            )


# --- wrong use ---


def rank_disagree(rank: int, world: int) -> list[Any]:
    state = moo.BucketMOO()
    errors = []
    row = torch.ones(100)
    if rank == 0:
        with state.accumulate():
            errors.append(error_of(lambda: moo.all_reduce(row, state)))
    else:
        errors.append(error_of(lambda: moo.all_reduce(row, state)))
    state.discard()
    one = moo.BucketMOO(layout="passes")
    one.objective = "de" if rank == 1 else "sw"
    errors.append(error_of(lambda: moo.all_reduce(row, one)))
    one.objective = "de"
    moo.all_reduce(row, one)  # the next step is right again
    other_size = moo.BucketMOO()
    with other_size.accumulate():
        moo.all_reduce(row, other_size, bucket="b")
    errors.append(error_of(lambda: moo.all_reduce(torch.ones(5000), other_size, bucket="b")))
    moo.all_reduce(torch.ones(5000), other_size, bucket="b")  # a step of its own
    many = moo.BucketMOO()
    for i in range(33):
        many.objective = f"{i} {rank}"
        with many.accumulate():
            errors.append(error_of(lambda: moo.all_reduce(row, many)))
    return errors[:3] + errors[34:]


@pytest.mark.device
def test_ranks_that_disagree_all_raise(run_ranks: Runner) -> None:
    for errors in run_ranks(2, rank_disagree):
        disagree, other, size, most, too_many = errors
        expect(disagree, ValueError, "leaves it open")
        expect(other, ValueError, "layout='passes'", "rank 0 has 'sw', rank 1 'de'")
        expect(size, ValueError, "bucket 'bucket:b' is of another size, dtype or operation")
        assert most[0] is type(None)
        expect(too_many, ValueError, "at most 64 objectives", "passes")


def rank_goes_on_after_a_refusal(rank: int, world: int) -> None:
    state = moo.BucketMOO("pcgrad")
    row = torch.ones(100)
    moo.all_reduce(row, state)
    with state.accumulate():
        error = error_of(lambda: moo.all_reduce(torch.ones(100 + rank), state, bucket="b"))
    expect(error, ValueError, "the same calls in the same order")
    if checks.ON_DEVICE:  # whose sums are of no step by now
        with state.accumulate():
            again = error_of(lambda: moo.all_reduce(torch.ones(100), state, bucket="b"))
        expect(again, ValueError, "the first pass of this step was refused", r"discard\(\)")
    state.discard()
    moo.all_reduce(row, state)
    report = state.report()
    assert report.step == report.buckets[0].solved_step == 3


@pytest.mark.device
def test_a_step_that_is_refused_is_counted(run_ranks: Runner) -> None:
    """By whoever counts: on a GPU, both the host and the device."""
    run_ranks(2, rank_goes_on_after_a_refusal)


def rank_more_objectives(rank: int, world: int) -> list[Any]:
    state = moo.BucketMOO()
    found = []
    for names in ("ab", "ac", "abc"):  # as many as in the first step; and one more
        for name in names:
            state.objective = name if rank == 0 else "a"
            row = torch.ones(40)
            if name != names[-1]:
                with state.accumulate():
                    moo.all_reduce(row, state)
            else:
                moo.all_reduce(row, state)
        found.append(set(row.tolist()))
    return [*found, error_of(lambda: [moo.all_reduce(row, state) for _ in range(2)])]


@pytest.mark.device
@pytest.mark.skipif(not checks.ON_DEVICE, reason="the CPU makes room for any number")
def test_more_objectives_than_a_gpu_made_room_for(run_ranks: Runner) -> None:
    for first, second, third, error in run_ranks(2, rank_more_objectives):
        assert first == second == {1.0}
        assert all(math.isnan(value) for value in third)
        expect(error, ValueError, "step 3 has 3 objectives in all its passes", "layout='passes'")


def rank_breaks_the_rule(rank: int, world: int) -> Any:
    state = moo.BucketMOO(layout="passes")
    for number in range(4):
        state.objective = number if rank == 0 else 0
        row = torch.ones(5000)
        with state.accumulate() if number < 3 else contextlib.nullcontext():
            moo.all_reduce(row, state)
    assert row.isnan().all()
    return error_of(lambda: [moo.all_reduce(row, state) for _ in range(2)])


@pytest.mark.device
@pytest.mark.skipif(not checks.ON_DEVICE, reason="on the CPU the pass itself raises")
def test_ranks_whose_objectives_differ_in_a_later_pass_send_alike(run_ranks: Runner) -> None:
    """What a rank knows of the objectives would make its messages longer than the others'."""
    for error in run_ranks(2, rank_breaks_the_rule):
        expect(error, ValueError, "must have the same objective", "in step 1 rank 1 had another")


def rank_open(rank: int, world: int) -> None:
    state = moo.BucketMOO(moo.GradVac())
    row = torch.ones(100)
    with state.accumulate():
        moo.all_reduce(row, state)
    for use in (state.report, state.state_dict):
        expect(error_of(use), RuntimeError, "the step is open, 1 pass put aside", r"discard\(\)")
    state.discard()
    row = torch.full((100,), float(rank + 1))
    moo.all_reduce(row, state)
    report = state.report()
    assert report.passes == 1
    assert report.buckets[0].gramian.tolist() == [[100.0, 200.0], [200.0, 400.0]]  # of what was put aside nothing


def test_an_open_step_is_neither_reported_nor_saved_and_can_be_given_up(run_ranks: Runner) -> None:
    run_ranks(2, rank_open)


@pytest.mark.device
@pytest.mark.parametrize("order", ["ht", "th"])
def test_a_bucket_of_the_model_that_was_not_in_every_pass(random_seed: int, order: str) -> None:
    """As FSDP's groups may be. Twice, for what a step leaves behind."""
    sizes = {"h": 300, "t": 5000}
    state = moo.BucketMOO("mgda", scope="model")
    state._is_alone = True
    engine = state._bound(torch.device("cpu"))
    for step in range(2):
        rows = {
            k: {n: draw(random_seed, (step, k, size), size, torch.float64) for n, size in sizes.items()} for k in (0, 1)
        }
        rows[0]["h"].zero_()
        given = {k: {n: row.clone() for n, row in of_pass.items()} for k, of_pass in rows.items()}
        state.objective = 0
        state._set_accumulating(True, [])
        engine.begin_pass()
        engine.reduce(given[0]["t"], [("t", sizes["t"])]).wait()
        engine.end_pass()
        state.objective = 1
        state._set_accumulating(False, [])
        engine.begin_pass()
        done = [engine.reduce(given[1][n], [(n, sizes[n])]) for n in order]
        engine.end_pass()
        for future in done:
            future.wait()
        whole = np.stack([np.concatenate([ref.float64(rows[k][n]) for n in "ht"]) for k in (0, 1)])
        weights = ref.weights(whole, "mgda")
        for n in "ht":
            expected = sum(w * ref.float64(rows[k][n]) for k, w in enumerate(weights))
            np.testing.assert_allclose(ref.float64(given[1][n]), expected, rtol=0, atol=1e-9 * np.abs(whole).max())
