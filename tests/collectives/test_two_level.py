"""Reductions in two levels: ranks along some dimensions of a mesh share an objective."""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.collectives.test_passes import Case, run_step, state_of
from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import Outcome, outcome
from tests.support.ddp import CAP_MB, batch_of, gradient_digest, loss_of, mlp, same_on_all_ranks
from tests.support.errors import Raised, error_of, expect

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]
METHODS: list[tuple[str, dict[str, Any]]] = [("mean", {}), ("mgda", {}), ("cagrad", {"c": 0.3})]
SIZES = (7, 4099, 20_011)  # all tail; sharded; sharded with a tail, on both levels


@dataclass(frozen=True)
class Grid:
    """A mesh: the global ranks by place across objectives, then inside; and which of its dimensions objectives have."""

    mesh: list[Any]
    names: tuple[str, ...]
    objectives: str | tuple[str, ...]
    groups: list[list[int]]  # that share an objective

    @property
    def world(self) -> int:
        return sum(map(len, self.groups))


NODE_GPU = ("node", "gpu")
GRIDS = {
    "a node each": Grid([[0, 1], [2, 3]], NODE_GPU, "node", [[0, 1], [2, 3]]),
    "a place in the node each": Grid([[0, 1], [2, 3]], NODE_GPU, "gpu", [[0, 2], [1, 3]]),
    "ranks in another order": Grid([[0, 3], [1, 2]], NODE_GPU, "node", [[0, 3], [1, 2]]),
    "one objective": Grid([[0, 1, 2, 3]], NODE_GPU, "node", [[0, 1, 2, 3]]),
    "a rank each": Grid([[0], [1], [2], [3]], NODE_GPU, "node", [[0], [1], [2], [3]]),
    "both dimensions": Grid([[0, 1], [2, 3]], NODE_GPU, NODE_GPU, [[0], [1], [2], [3]]),
    "three inside": Grid([[0, 1, 2], [3, 4, 5]], NODE_GPU, "node", [[0, 1, 2], [3, 4, 5]]),
    "two of three dimensions": Grid(  # for which the mesh has no group
        [[[0, 1], [2, 3]], [[4, 5], [6, 7]]],
        ("rack", "node", "gpu"),
        ("rack", "gpu"),
        [[0, 2], [1, 3], [4, 6], [5, 7]],
    ),
}
DESCENDS = "ranks in another order"  # refused on a device


def cases_of(seed: int, grid: Grid, count: int) -> list[Case]:
    rng = Random(f"{seed} {grid}")
    cases = []
    for index in range(count):
        names = [f"objective {i}" for i in range(rng.randint(1, 4))]
        size = SIZES[index % 3]
        objective, weight = [], []
        for _ in range(rng.choice([1, 1, 2, 3])):
            of_group = rng.choices(names, k=len(grid.groups))
            objective.append(
                [next(n for n, g in zip(of_group, grid.groups, strict=True) if r in g) for r in range(grid.world)]
            )
            kinds = [1.0, rng.uniform(0.1, 10.0), 2.0 ** rng.randint(-60, 60), 0.0 if size > 7 else 1.0]
            weight.append([rng.choice(kinds) for _ in range(grid.world)])
        method, options = METHODS[rng.randrange(3)]
        cases.append(Case(method, options, ref.DTYPES[index % 4], size, index % 2 == 1, objective, weight))
    return cases


def rank_schedules(rank: int, world: int, seed: int, names: list[str], count: int) -> list[list[Outcome]]:
    results = []
    for grid in (GRIDS[name] for name in names):
        outcomes = []
        mesh = DeviceMesh("cpu", grid.mesh, mesh_dim_names=grid.names)
        for case in cases_of(seed, grid, count):
            state = state_of(case, mesh=mesh, objectives=grid.objectives)
            for _ in range(2):  # memory is used again
                answer = run_step(case, rank, world, seed, state)
            report = state.report()
            counted = [name for of_ranks in case.objective for name in of_ranks]
            assert report.buckets[0].rows == tuple(counted.count(name) for name in report.objectives)
            assert "objectives along" in str(report)
            outcomes.append(outcome(answer, state))
        results.append(outcomes)
    return results


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([name for name in GRIDS if GRIDS[name].world == 4 and not (checks.ON_DEVICE and name == DESCENDS)], 8),
        (["three inside"], 6),
        (["two of three dimensions"], 3),
    ],
    ids=["4", "6", "8"],
)
def test_any_schedule_is_one_step_of_all_its_rows(
    run_ranks: Runner, random_seed: int, names: list[str], count: int
) -> None:
    world = GRIDS[names[0]].world
    results = run_ranks(world, rank_schedules, random_seed, names, count)
    for place, name in enumerate(names):
        for index, case in enumerate(cases_of(random_seed, GRIDS[name], count)):
            got = [result[place][index] for result in results]
            label = f"{name}, case {index}: {case}"
            rows = [
                row if w else torch.zeros_like(row)
                for p, of_ranks in enumerate(case.rows(random_seed, world))
                for row, w in zip(of_ranks, case.weight[p], strict=True)
            ]
            given: dict[str, Any] = {
                "objective": [of for names in case.objective for of in names],
                "weight": [w for weights in case.weight for w in weights],
                "is_summed": True,  # inside, in the bucket's dtype
            }
            assert all((o.weights == got[0].weights).all() and (o.gramian == got[0].gramian).all() for o in got), label
            if not case.scatter:
                assert all(o.result == got[0].result for o in got), label
            size = rows[0].numel() // world if case.scatter else rows[0].numel()
            for rank, of_rank in enumerate(got if case.scatter else got[:1]):
                shard = slice(rank * size, (rank + 1) * size)
                checks.verify(label, rows, of_rank, case.method, case.options, shard=shard, **given)


# --- what it costs ---


def rank_bytes(rank: int, world: int, n: int) -> list[tuple[int, int]]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=NODE_GPU)
    sent = []
    for scatter in (False, True):
        state = moo.BucketMOO(mesh=mesh, objectives="node")
        row = torch.full((n,), rank + 1.0)
        if scatter:
            moo.reduce_scatter(torch.empty(n // world), row, state)
        else:
            moo.all_reduce(row, state)
        assert state._engine is not None
        counters = state._engine.counters()
        sent.append((counters["sent_inside"], counters["sent_across"]))
    return sent


@pytest.mark.host
def test_bytes_are_those_of_a_hierarchical_reduction(run_ranks: Runner) -> None:
    n, small = 64_000, 200  # a few Gramians
    for all_reduce, reduce_scatter in run_ranks(4, rank_bytes, n):
        half, quarter = 4 * n // 2, 4 * n // 4
        for (inside, across), gathers in ((all_reduce, 2), (reduce_scatter, 1)):
            assert 0 <= inside - gathers * half <= small, inside
            assert 0 <= across - gathers * quarter <= small, across


# --- DDP ---


def rank_ddp(rank: int, world: int, seed: int, scope: str) -> str:
    """The same gradients as without a mesh, also in a first step of several passes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=NODE_GPU)
    given: dict[str, Any] = {"objective": rank // 2, "weight": 1.0 + rank, "scope": scope}
    ddps = [DDP(mlp(seed % 2**31), bucket_cap_mb=CAP_MB) for _ in range(2)]
    states = [moo.register(ddps[0], **given), moo.register(ddps[1], mesh=mesh, objectives="node", **given)]
    for step in range(3):
        for ddp, state in zip(ddps, states, strict=True):
            ddp.zero_grad()
            if step != 1:
                with state.accumulate():
                    loss_of(ddp, batch_of(seed, 10 + rank, step)).backward()
            loss_of(ddp, batch_of(seed, rank, step)).backward()
        flat, two = ([p.grad for p in ddp.parameters()] for ddp in ddps)
        for a, b in zip(flat, two, strict=True):
            assert a is not None
            assert b is not None
            assert (a - b).norm() <= 1e-9 * a.norm()
    reports = [state.report() for state in states]
    assert [b.parameters for b in reports[0].buckets] == [b.parameters for b in reports[1].buckets]
    assert reports[1].mesh == "(node, gpu) with objectives along node"
    return gradient_digest(ddps[1])


@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_ddp(run_ranks: Runner, random_seed: int, scope: str) -> None:
    same_on_all_ranks(run_ranks(4, rank_ddp, random_seed, scope))


# --- wrong use ---


def rank_disagree(rank: int, world: int) -> list[Raised]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=NODE_GPU)
    state = moo.BucketMOO(mesh=mesh, objectives="node")
    row = torch.ones(5000)
    moo.all_reduce(row, state)  # by default a node is an objective
    assert state.report().objectives == ("0", "1")
    state.objective = rank if rank else 2
    errors = [error_of(lambda: moo.all_reduce(row, state))]
    state.objective = "sw"
    moo.all_reduce(row, state)  # the next step is right again
    with state.accumulate():
        moo.all_reduce(torch.ones(1000), state, bucket="b")
    errors.append(error_of(lambda: moo.all_reduce(torch.ones(1001), state, bucket="b")))  # both all tail
    other = moo.BucketMOO(mesh=mesh, objectives="node" if rank else "gpu")
    errors.append(error_of(lambda: moo.all_reduce(row, other)))
    passes = moo.BucketMOO(mesh=mesh, objectives="node", layout="passes", objective=rank // 2)
    errors.append(error_of(lambda: moo.all_reduce(row, passes)))
    copied = pickle.loads(pickle.dumps(state))
    assert copied._levels == state._levels
    moo.all_reduce(row, copied)
    errors.append(error_of(lambda: moo.all_reduce(row, moo.BucketMOO(mesh=mesh["gpu"], objectives="gpu"))))
    unnamed = init_device_mesh("cpu", (2, 2))
    for arguments, kind, pattern in [
        ({"objectives": "node"}, ValueError, "without a mesh"),
        ({"mesh": mesh}, ValueError, "objectives must name the dimension of mesh .*: 'node', 'gpu'"),
        ({"mesh": mesh, "objectives": "rack"}, ValueError, "dimensions 'node', 'gpu' of mesh; got 'rack'"),
        ({"mesh": mesh, "objectives": ("node", "node")}, ValueError, "must be of the dimensions"),
        ({"mesh": mesh, "objectives": 0}, TypeError, "a dimension of mesh or a tuple"),
        ({"mesh": (2, 2), "objectives": "node"}, TypeError, "mesh must be a DeviceMesh or None; got tuple"),
        ({"mesh": unnamed, "objectives": "node"}, ValueError, "mesh must have names"),
        ({"mesh": mesh, "objectives": "node", "gramian": moo.Sketch()}, NotImplementedError, "with a Sketch"),
    ]:
        expect(error_of(lambda arguments=arguments: moo.BucketMOO(**arguments)), kind, pattern)  # type: ignore[misc]
    return errors


@pytest.mark.host
def test_wrong_use_raises_on_all_ranks(run_ranks: Runner) -> None:
    for inside, size, other, passes, part in run_ranks(4, rank_disagree):
        expect(inside, ValueError, "must have the same objective", "step 2, pass 1 rank 0 has '2', rank 1 '1'")
        expect(size, ValueError, "bucket 'bucket:b' is of another size")
        expect(other, ValueError, "configuration must be the same", "mesh: .* along gpu.* on rank 0")
        expect(passes, ValueError, "layout='passes'")
        expect(part, ValueError, r"a mesh of ranks ., . and a group of ranks 0, 1, 2, 3")


def rank_dies(rank: int, world: int) -> Raised:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=NODE_GPU)
    state = moo.BucketMOO(mesh=mesh, objectives="node")
    moo.all_reduce(torch.ones(50_000), state)
    if rank == 3:
        os._exit(3)
    return error_of(lambda: [moo.all_reduce(torch.ones(50_000), state) for _ in range(100)])


@pytest.mark.host
def test_a_rank_that_dies_ends_the_others(run_ranks: Runner) -> None:
    results = run_ranks(4, rank_dies, timeout=60.0, group_timeout=timedelta(seconds=5), may_die=(3,))
    for kind, text in results[:3]:
        assert kind is torch.distributed.DistBackendError, kind
        assert "bucket_moo_ext" in text
