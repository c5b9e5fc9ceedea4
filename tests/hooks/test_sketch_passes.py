"""Sketches in steps of several passes and with one problem for the model: DDP, and a plain module in one process."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support import reference as ref
from tests.support.checks import ON_DEVICE
from tests.support.sketches import Given, row_of

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]
SIZES = (5003, 120, 3001, 20_011)  # sketched, exact, sketched
CAP_MB = 0.01
STEPS = 4
WIDTH = 256


def objective_of(number: int, rank: int) -> str:
    """Half of the ranks' rows are of one objective."""
    return f"{number} {rank % 2}"


def row(seed: int, step: int, number: int, rank: int) -> list[torch.Tensor]:
    # All rows have something in common, so that sketched Gramians are well-conditioned.
    common = [row_of(seed, (step, place), 9, n) for place, n in enumerate(SIZES)]
    return [
        c + row_of(seed, (step, number, place), rank, n) for place, (n, c) in enumerate(zip(SIZES, common, strict=True))
    ]


def means(seed: int, step: int, passes: int, world: int, places: Sequence[int]) -> tuple[list[str], ref.Array]:
    rows, names = [], []
    for number, rank in itertools.product(range(passes), range(world)):
        names.append(objective_of(number, rank))
        parts = row(seed, step, number, rank)
        rows.append(np.concatenate([ref.float64(parts[place]) for place in places]))
    found, result = ref.objective_means(rows, names, [1.0] * len(rows))
    return [str(name) for name in found], result


def train(
    rank: int, world: int, seed: int, passes: int, scope: str, lag: Any, is_told: bool, is_ddp: bool
) -> tuple[list[list[Any]], int]:
    """Each step's gradients, and the report's solved steps, objectives, Gramians, weights, and places of parameters."""
    module = Given(SIZES, torch.float32)
    model = DDP(module, bucket_cap_mb=CAP_MB) if is_ddp else module
    options: dict[str, Any] = {} if is_ddp else {"bucket_cap_mb": CAP_MB}
    state = moo.register(model, "mgda", scope=scope, gramian=moo.Sketch(WIDTH, lag=lag), **options)
    if is_ddp:  # whose buckets are rebuilt after the first pass
        model(row(seed, 0, 0, rank)).backward()
        state.load_state_dict(state.state_dict())
    totals: dict[str, float] = {}
    for number, r in itertools.product(range(passes), range(world)):
        totals[objective_of(number, r)] = totals.get(objective_of(number, r), 0.0) + 1.0
    results: list[list[Any]] = []
    held = 0
    for step in range(1, STEPS + 1):
        model.zero_grad()
        for number in range(passes):
            state.objective = objective_of(number, rank)
            last = number == passes - 1
            with contextlib.nullcontext() if last else state.accumulate(totals if is_told else None):
                model(row(seed, step, number, rank)).backward()
            held = max(held, state.memory()) if step > 1 else 0
        report = state.report()
        assert (report.passes, report.scope) == (passes, scope)
        results.append([])
        for bucket in report.buckets:
            places = [int(name.split(".")[-1]) for name in bucket.parameters]
            gradient = torch.cat([module.layers[place].grad for place in places])
            results[-1].append(
                (gradient.numpy(), bucket.solved_step, bucket.objectives, bucket.gramian.numpy(),
                 bucket.weights.numpy(), bucket.width, places)
            )  # fmt: skip
    return results, held


def check(
    results: list[list[Any]], first: int, seed: int, passes: int, world: int, scope: str, lag: Any, is_told: bool
) -> None:
    """``first``: the step that the report calls 1."""
    for step, buckets in enumerate(results, start=1):
        assert len(buckets) >= 2
        model_gramian = sum(gramian for _, _, _, gramian, _, _, _ in buckets)
        for gradient, solved, objectives, gramian, weights, width, places in buckets:
            label = f"step {step}, parameters {places}"
            keeps = lag and (width or scope == "model")
            served = max(1, step - 1) if keeps else step
            assert solved - first + 1 == served, label
            names, rows = means(seed, step, passes, world, places)
            assert objectives == tuple(names), label
            expected = weights @ rows
            assert np.abs(gradient - expected).max() <= 1e-5 * np.abs(rows).max(), label
            solved_for = model_gramian if scope == "model" else gramian
            is_mean = keeps and is_told and passes > 1 and step == 1
            of_gramian = moo.weights(torch.from_numpy(solved_for), "mean" if is_mean else "mgda").numpy()
            np.testing.assert_allclose(weights, of_gramian, rtol=0, atol=1e-6, err_msg=label)
            _, then = means(seed, served, passes, world, places)
            sizes = np.linalg.norm(then, axis=1)
            relative = np.abs(gramian - then @ then.T) / np.outer(sizes, sizes)
            assert relative.max() <= (0.5 if width else 1e-5), label  # 8 standard errors


CASES = [
    (scope, lag, is_told, passes)
    for scope, lag, is_told, passes in itertools.product(("bucket", "model"), (0, 1), (False, True), (1, 3))
    if (passes > 1 or (scope == "model" and not is_told)) and (lag or not is_told)
]


def rank_trains(rank: int, world: int, seed: int) -> list[tuple[list[list[Any]], int]]:
    return [train(rank, world, seed, passes, scope, lag, is_told, True) for scope, lag, is_told, passes in CASES]


def test_ddp(run_ranks: Runner, random_seed: int) -> None:
    world = 2
    ranks = run_ranks(world, rank_trains, random_seed)
    held = {}
    for index, (scope, lag, is_told, passes) in enumerate(CASES):
        results, held[scope, lag, is_told, passes] = ranks[0][index]
        check(results, 2, random_seed, passes, world, scope, lag, is_told)
        for mine, others in zip(results, ranks[1][index][0], strict=True):
            for bucket, other in zip(mine, others, strict=True):
                assert np.array_equal(bucket[0], other[0]), "ranks differ"
    gradient = 4 * sum(SIZES)
    for scope in ("bucket", "model"):  # a rank has three objectives
        assert held[scope, 1, False, 3] - held[scope, 1, True, 3] >= 1.9 * gradient
    # Nothing is kept of a step of one pass but sketches and the bucket without one.
    assert held["model", 0, False, 1] < 2 * gradient


@pytest.mark.parametrize(("scope", "lag", "is_told", "passes"), CASES)
def test_a_plain_module(random_seed: int, scope: str, lag: Any, is_told: bool, passes: int) -> None:
    results, _ = train(0, 1, random_seed, passes, scope, lag, is_told, False)
    check(results, 1, random_seed, passes, 1, scope, lag, is_told)


def test_backward_knows_the_totals() -> None:
    """The losses of one call are a step, so its rows go into one sum."""
    module = Given((30_000,), torch.float32)
    state = moo.register(module, "mgda", gramian=moo.Sketch(64, lag=1))
    held = 0
    module.layers[0].register_post_accumulate_grad_hook(lambda _: peaks.append(state.memory()))
    peaks: list[int] = []
    for step in range(3):
        module.zero_grad()
        rows = [row_of(1, (step, k), k, 30_000) for k in range(8)]
        state.backward({str(k): module([c]) for k, c in enumerate(rows)})
        weights = state.report().buckets[0].weights
        assert (weights == 1 / 8).all() == (step == 0)
        torch.testing.assert_close(
            module.layers[0].grad, sum(w * c for w, c in zip(weights.float(), rows, strict=True))
        )
        held = max(peaks)
    assert 120_000 <= held < (200_000 if ON_DEVICE else 130_000)


@pytest.mark.parametrize("passes", [1, 2])
def test_nan_while_the_models_kept_weights_serve(random_seed: int, passes: int) -> None:
    """It reaches the result whatever its weight, and its step's solve is not kept."""
    sizes = (5003, 120, 3001)
    module = Given(sizes, torch.float32)
    state = moo.register(module, "mgda", scope="model", gramian=moo.Sketch(64, lag=1), bucket_cap_mb=CAP_MB)
    for step in range(1, 6):
        module.zero_grad()
        for number in range(passes):  # the second is three times the first, so that MGDA gives it no weight
            rows = [(1.0 + 2 * number) * row_of(random_seed, (step, n), 0, n) for n in sizes]
            if step == 3 and number == passes - 1:
                rows[0][7] = torch.nan
            state.objective = str(number)
            with contextlib.nullcontext() if number == passes - 1 else state.accumulate():
                module(rows).backward()
        gradients = [layer.grad for layer in module.layers]
        broken = [torch.nonzero(gradient.isnan()).flatten().tolist() for gradient in gradients]
        assert broken == ([[7], [], []] if step == 3 else [[], [], []])
        report = state.report()
        assert {bucket.solved_step for bucket in report.buckets} == {[1, 1, 2, 2, 4][step - 1]}
        for bucket in report.buckets:
            assert bucket.weights.tolist() == [1.0, 0.0][:passes]
            is_lost = ON_DEVICE and step == 4 and "layers.0" not in bucket.parameters
            assert bool(bucket.gramian.any()) != is_lost
