"""Steps of several passes with methods that remember, and with as many objectives as there may be."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import torch

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import Outcome, draw, outcome
from tests.support.reference import Array

Runner = Callable[..., list[Any]]
N = 300

# --- methods that remember ---

# By step, then pass, then rank: three names of four, in other orders.
STEPS = [
    [["a", "b"], ["c", "a"]],
    [["c", "c"], ["b", "d"], ["b", "b"]],
    [["b", "a"], ["d", "b"]],
    [["a", "c"], ["d", "d"]],
    [["c", "b"], ["b", "a"]],
]
BETA, ALPHA = 0.3, 0.7
# Of GradVac: row i is in which order objective i meets the others, by number in the step.
ORDERS = ((0, 2, 1), (2, 1, 0), (1, 0, 2))


def _row(seed: int, *key: int) -> torch.Tensor:
    return draw(seed, key, N, torch.float64)


def _run_step(state: moo.BucketMOO, seed: int, step: int, rank: int) -> Array:
    for p, names in enumerate(STEPS[step]):
        row = _row(seed, step, p, rank)
        state.objective = names[rank]
        if p < len(STEPS[step]) - 1:
            with state.accumulate():
                moo.all_reduce(row, state, bucket="b")
        else:
            moo.all_reduce(row, state, bucket="b")
    return ref.float64(row)


def rank_memory(rank: int, world: int, seed: int) -> list[list[Array]]:
    states = [moo.BucketMOO(moo.GradVac(BETA, permutation=ORDERS)), moo.BucketMOO(moo.Smoothed("mgda", ALPHA))]
    return [[_run_step(state, seed, step, rank) for step in range(len(STEPS))] for state in states]


def _gradvac(rows: Mapping[str, Array], targets: dict[tuple[str, str], float]) -> Array:
    """The update by algorithm 1 on the rows; changes the targets, which are by names."""
    names = list(rows)
    changed = []
    for name, order in zip(names, ORDERS, strict=True):
        g = rows[name].copy()
        for other in (names[j] for j in order if names[j] != name):
            size, length = np.linalg.norm(g), np.linalg.norm(rows[other])
            rho = float(g @ rows[other] / (size * length))
            target = targets.get((name, other), 0.0)
            if rho < target:
                sine = math.sqrt(1 - target**2)
                g = g + size * (target * math.sqrt(1 - rho**2) - rho * sine) / (length * sine) * rows[other]
            targets[name, other] = (1 - BETA) * target + BETA * rho
        changed.append(g)
    return np.asarray(np.mean(changed, axis=0))


def _smoothed(rows: Mapping[str, Array], before: dict[str, float]) -> Array:
    """The update by MGDA's weights, averaged by names; changes the last ones."""
    weights = dict(zip(rows, ref.mgda(np.stack(list(rows.values()))), strict=True))
    for name, w in weights.items():
        before[name] = ALPHA * before[name] + (1 - ALPHA) * w if name in before else float(w)
    return np.asarray(sum(before[name] * row for name, row in rows.items()))


def test_methods_that_remember(run_ranks: Runner, random_seed: int) -> None:
    results = run_ranks(2, rank_memory, random_seed)
    targets: dict[tuple[str, str], float] = {}
    before: dict[str, float] = {}
    for step, passes in enumerate(STEPS):
        objective = [name for names in passes for name in names]
        all_rows = [ref.float64(_row(random_seed, step, p, r)) for p in range(len(passes)) for r in range(2)]
        names, means = ref.objective_means(all_rows, objective, [1.0] * len(all_rows))
        rows = {str(name): mean for name, mean in zip(names, means, strict=True)}
        for number, expected in enumerate((_gradvac(rows, targets), _smoothed(rows, before))):
            for result in results:
                error = np.linalg.norm(result[number][step] - expected) / np.linalg.norm(expected)
                assert error <= 1e-7, f"{('GradVac', 'Smoothed')[number]}, step {step + 1}: {error}"


# --- 64 objectives ---

PASSES = 32


def rank_many(rank: int, world: int, seed: int) -> list[Outcome]:
    results = []
    for method, dtype in itertools.product(("mgda", "mean"), (torch.float32, torch.bfloat16)):
        state = moo.BucketMOO(method)
        for p in range(PASSES):
            state.objective = f"{p} {rank}"
            row = draw(seed, (p, rank), N, dtype)
            if p < PASSES - 1:
                with state.accumulate():
                    moo.all_reduce(row, state)
            else:
                moo.all_reduce(row, state)
        results.append(outcome(row, state))
    return results


def test_as_many_objectives_as_there_may_be(run_ranks: Runner, random_seed: int) -> None:
    results = run_ranks(2, rank_many, random_seed)
    cases = itertools.product(("mgda", "mean"), (torch.float32, torch.bfloat16))
    for index, (method, dtype) in enumerate(cases):
        rows = [draw(random_seed, (p, r), N, dtype) for p in range(PASSES) for r in range(2)]
        objective = [f"{p} {r}" for p in range(PASSES) for r in range(2)]
        assert results[0][index].result == results[1][index].result
        assert len(results[0][index].objectives) == 64
        checks.verify(f"{method} {dtype}", rows, results[0][index], method, objective=objective)
