"""Training with MGDA ends on the Pareto set, and no objective gets worse on the way.

The objectives are h_k/2 |x - a_k|²: whatever the h_k, their Pareto set is the convex hull of the a_k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support import reference as ref
from tests.support.reference import Array

Runner = Callable[..., list[Any]]


class Point(nn.Module):
    """Blocks of coordinates; a rank's loss is the sum of h/2 |x_b - a_b|²."""

    def __init__(self, blocks: Sequence[Array]) -> None:
        super().__init__()
        self.blocks = nn.ParameterList([nn.Parameter(torch.from_numpy(block.copy())) for block in blocks])

    def forward(self, curvature: float, target: list[torch.Tensor]) -> torch.Tensor:
        squares = [((x - a) ** 2).sum() for x, a in zip(self.blocks, target, strict=True)]
        return 0.5 * curvature * torch.stack(squares).sum()


@dataclass(frozen=True)
class Path:
    """What a rank saw: its own loss before every step, the points, and the residuals."""

    losses: list[float]
    points: list[Array]
    residuals: list[float]
    block_residuals: list[list[float]]


@dataclass(frozen=True)
class Problem:
    """Blocks of coordinates to start from, and each objective's h and its blocks of a."""

    start: list[Array]
    curvature: list[float]
    targets: list[list[Array]]
    method: str | moo.Method = "mgda"
    rate: float = 0.25
    steps: int = 160


def rank_descend(rank: int, world: int, problems: list[Problem]) -> list[Path]:
    return [descend(rank, problem) for problem in problems]


def descend(rank: int, problem: Problem) -> Path:
    model = Point(problem.start)
    ddp = DistributedDataParallel(model, bucket_cap_mb=1 / 2**20)  # a bucket a block, from the second step on
    state = moo.register(ddp, problem.method, objective=f"objective {rank}")
    optimizer = torch.optim.SGD(ddp.parameters(), lr=problem.rate)
    target = [torch.from_numpy(a) for a in problem.targets[rank]]
    path = Path([], [], [], [])
    for step in range(problem.steps):
        optimizer.zero_grad()
        loss = ddp(problem.curvature[rank], target)
        path.losses.append(loss.item())
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == problem.steps - 1:
            report = state.report()
            path.residuals.append(report.residual)
            path.block_residuals.append([bucket.residual for bucket in report.buckets])
        path.points.append(np.concatenate([ref.float64(x) for x in model.blocks]))
    return path


def distance_to_hull(point: Array, vertices: Array) -> float:
    moved = vertices - point
    return float(np.linalg.norm(ref.min_norm_point(moved) @ moved))


def check_monotone(paths: list[Path], largest: float) -> None:
    for path in paths:
        losses = np.array(path.losses)
        assert (np.diff(losses) <= 1e-12 * largest).all(), "an objective got worse"
        assert np.array_equal(path.points[-1], paths[0].points[-1]), "replicas"


def paths_of(ranks: list[list[Path]], problem: int = 0) -> list[Path]:
    """Every rank's path in one problem."""
    return [paths[problem] for paths in ranks]


@pytest.mark.parametrize("world", [2, 3])
def test_mgda_converges_to_the_pareto_set(run_ranks: Runner, rng: np.random.Generator, world: int) -> None:
    problems = []
    for dimensions in (1, 2, 7):
        targets = rng.standard_normal((world, dimensions))
        start = targets.mean(0) + 5 * rng.standard_normal(dimensions)
        problems.append(Problem([start], rng.uniform(0.5, 2.0, world).tolist(), [[a] for a in targets]))
    ranks = run_ranks(world, rank_descend, problems)
    for index, problem in enumerate(problems):
        paths = paths_of(ranks, index)
        targets = np.stack([blocks[0] for blocks in problem.targets])
        # d = Σ w_k h_k (x - a_k) = r (x - p) with p in the hull and r >= min h, so that a step takes the share rate r
        # of the distance away: by step 160 a factor (1 - 0.125)^160 = 5e-10 at least. The end is where |d| is rounding.
        far = distance_to_hull(problem.start[0], targets)
        for step, point in enumerate(paths[0].points, start=1):
            allowed = far * (1 - problem.rate * min(problem.curvature)) ** step * (1 + 1e-9) + 1e-6
            assert distance_to_hull(point, targets) <= allowed, step
        assert distance_to_hull(paths[0].points[-1], targets) <= 1e-5
        assert paths[0].residuals[-1] <= 1e-5
        # Steps are at most 1/h_k: f_k falls by rate |d|² (1 - rate h_k / 2) or more.
        check_monotone(paths, max(path.losses[0] for path in paths))


def test_the_mean_does_trade_objectives_away(run_ranks: Runner) -> None:
    """What is tested above is no property of the problem: with the mean an objective gets worse."""
    targets, start = [[np.array([0.0, 0.0])], [np.array([10.0, 0.0])]], [np.array([0.0, 1.0])]
    problems = [Problem(start, [1.0, 1.0], targets, method, steps=20) for method in ("mean", "mgda")]
    ranks = run_ranks(2, rank_descend, problems)
    mean, mgda = paths_of(ranks, 0), paths_of(ranks, 1)
    assert mean[0].losses[-1] > 10 * mean[0].losses[0]
    check_monotone(mgda, mgda[1].losses[0])


def test_blocks_become_stationary_each(run_ranks: Runner, rng: np.random.Generator) -> None:
    """Two buckets: refined Pareto stationarity. Each block ends on the hull of its own targets, and still no objective
    gets worse, because inner products add up over buckets."""
    world = 3
    blocks = [2, 4]
    targets = [[rng.standard_normal(n) for n in blocks] for _ in range(world)]
    start = [5 * rng.standard_normal(n) for n in blocks]
    paths = paths_of(run_ranks(world, rank_descend, [Problem(start, [1.0] * world, targets, steps=100)]))
    end = np.split(paths[0].points[-1], [blocks[0]])
    for block in range(len(blocks)):
        vertices = np.stack([targets[rank][block] for rank in range(world)])
        assert distance_to_hull(end[block], vertices) <= 1e-5
    assert len(paths[0].block_residuals[-1]) == len(blocks)
    assert max(paths[0].block_residuals[-1]) <= 1e-5
    check_monotone(paths, max(path.losses[0] for path in paths))


def test_cagrad_converges_to_the_minimum_of_the_mean(run_ranks: Runner, rng: np.random.Generator) -> None:
    """For c < 1, theorem 3.2 of Liu et al.: |d - g_0| <= c |g_0| leaves only the zeros of g_0."""
    targets = rng.standard_normal((3, 2))
    curvature = np.array([0.5, 1.0, 2.0])
    start = [5 * rng.standard_normal(2)]
    problem = Problem(start, curvature.tolist(), [[a] for a in targets], moo.CAGrad(c=0.4))
    paths = paths_of(run_ranks(3, rank_descend, [problem]))
    best = curvature @ targets / curvature.sum()
    assert np.linalg.norm(paths[0].points[-1] - best) <= 1e-5
