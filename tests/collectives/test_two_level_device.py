"""Reductions in two levels on a device: its streams, its groups, its errors and what they ask of it.

Runs in the build with emulated CUDA kernels, most of it over a stand-in for NCCL: `make test-emulated`.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.support import emulated_cuda
from tests.support.checks import ON_DEVICE, draw, raw
from tests.support.ddp import CAP_MB, batch_of, loss_of, mlp
from tests.support.errors import error_of, expect

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not ON_DEVICE, reason="needs the build with emulated CUDA kernels"),
]

Runner = Callable[..., list[Any]]
NODE_GPU = ("node", "gpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SIZES = (1, 5000, 40_003)
MEMORY = moo.Smoothed("pcgrad", 0.5)


def mesh_on(device: str) -> DeviceMesh:
    return init_device_mesh(device, (2, 2), mesh_dim_names=NODE_GPU)


def results_of(rank: int, world: int, seed: int, device: str, method: Any) -> list[bytes]:
    """Some steps of buckets of all kinds, and of one pass and of two."""
    state = moo.BucketMOO(method, mesh=mesh_on(device), objectives="node", weight=1.0 + rank)
    results = []
    for step in range(3):
        for dtype in DTYPES:
            for n in SIZES:
                row = draw(seed, (step, rank, n), n, dtype).to(device)
                moo.all_reduce(row, state)
                results.append(raw(row.cpu()))
                results.append(raw(state.report().buckets[0].weights))
        with state.accumulate():
            moo.all_reduce(draw(seed, (step, rank), 40_003, torch.float32).to(device), state, bucket="passes")
        row = draw(seed, (step, rank, 1), 40_003, torch.float32).to(device)
        moo.all_reduce(row, state, bucket="passes")
        results.append(raw(row.cpu()))
        full = draw(seed, (step, rank), 3001 * world, torch.float32).to(device)
        shard = torch.empty(3001, device=device)
        moo.reduce_scatter(shard, full, state)
        parts = [torch.empty_like(shard) for _ in range(world)]
        dist.all_gather(parts, shard)
        results += [raw(part.cpu()) for part in parts]
    return results


def rank_on_both(rank: int, world: int, seed: int, method: Any) -> tuple[list[bytes], list[bytes]]:
    with emulated_cuda.stream():
        on_stream = results_of(rank, world, seed, "cuda", method)
    return on_stream, results_of(rank, world, seed, "cpu", method)


@pytest.mark.parametrize("method", ["mgda", MEMORY], ids=str)
def test_streams_change_no_bit(run_ranks: Runner, random_seed: int, method: Any) -> None:
    """The same kernels without any stream are what other tests compare with their references."""
    ranks = run_ranks(4, rank_on_both, random_seed, method, backend=emulated_cuda.nccl)
    for on_stream, in_order in ranks:
        assert on_stream == in_order == ranks[0][0]


def rank_host_never_waits(rank: int, world: int, seed: int, layout: Any) -> None:
    with emulated_cuda.stream():
        state = moo.BucketMOO("mgda", mesh=mesh_on("cuda"), objectives="node", layout=layout, objective="first")
        rows = [draw(seed, (rank, n), n, torch.float32).to("cuda") for n in (40_003, 64)]
        given = draw(seed, (rank,), 4 * 5001, torch.float32).to("cuda")
        for step in range(6):
            with emulated_cuda.counting() as counted:
                for number in range(2):
                    state.objective = f"{number if layout == 'passes' else rank // 2 + number}"
                    state._set_accumulating(number == 0, [])
                    for row in rows:
                        moo.all_reduce(row, state)
                    moo.reduce_scatter(torch.empty(5001, device="cuda"), given, state)
            assert "on_legacy_stream" not in counted
            assert ("synchronisations" in counted) == (step == 0)
            if step > 2:
                assert "allocations" not in counted


@pytest.mark.parametrize("layout", ["ranks", "passes"])
def test_the_host_waits_in_the_first_step_alone(run_ranks: Runner, random_seed: int, layout: str) -> None:
    run_ranks(4, rank_host_never_waits, random_seed, layout, backend=emulated_cuda.nccl)


def rank_ddp(rank: int, world: int, seed: int, scope: str) -> list[bytes]:
    """As plain reductions of the nodes' means would have it, in a step of one pass and in one of two."""

    def batch(other: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch_of(seed, other, step, torch.float32)
        return x.to("cuda"), y.to("cuda")

    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32).to("cuda"), bucket_cap_mb=CAP_MB)
        state = moo.register(ddp, "mgda", mesh=mesh_on("cuda"), objectives="node", scope=scope)
        for step in range(4):
            passes = 1 + step % 2
            means = []
            for node in range(2):
                alone = copy.deepcopy(ddp.module)
                alone.zero_grad()
                for number in range(passes):
                    for other in (2 * node, 2 * node + 1):
                        (loss_of(alone, batch(other, 10 * step + number)) / (2 * passes)).backward()
                means.append({name: p.grad.cpu().double() for name, p in alone.named_parameters()})
            ddp.zero_grad()
            for number in range(passes):
                state._set_accumulating(number < passes - 1, [])
                loss_of(ddp, batch(rank, 10 * step + number)).backward()
            for bucket in state.report().buckets:
                names = list(means[0]) if scope == "model" else bucket.parameters
                rows = torch.stack([torch.cat([mean[name].flatten() for name in names]) for mean in means])
                weights = moo.weights(rows @ rows.T, "mgda")
                torch.testing.assert_close(bucket.weights, weights, atol=1e-5, rtol=1e-5)
                for name in bucket.parameters:
                    expected = sum(w * mean[name] for w, mean in zip(weights, means, strict=True))
                    got = ddp.module.get_parameter(name).grad.cpu().double()
                    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
        return [raw(p.grad.cpu()) for p in ddp.module.parameters()]


@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_ddp_on_streams(run_ranks: Runner, random_seed: int, scope: str) -> None:
    results = run_ranks(4, rank_ddp, random_seed, scope, backend=emulated_cuda.nccl)
    assert all(result == results[0] for result in results)


def rank_captures(rank: int, world: int, seed: int) -> None:
    """A graph of two reductions repeats them, on what their memory holds at the time."""
    with emulated_cuda.stream():
        state, alone = (moo.BucketMOO("mgda", mesh=mesh_on("cuda"), objectives="node") for _ in range(2))
        rows = [torch.zeros(n).to("cuda") for n in (40_003, 64)]
        draws = [
            [draw(seed, (rank, step, row.numel()), row.numel(), torch.float32) for row in rows] for step in range(4)
        ]
        for _ in range(2):
            for row in rows:
                moo.all_reduce(row, state)
        with emulated_cuda.counting() as counted, emulated_cuda.Graph() as graph:
            for row in rows:
                moo.all_reduce(row, state)
        assert "synchronisations" not in counted
        for values in draws:
            for row, value in zip(rows, values, strict=True):
                row.copy_(value)
            graph.replay()
            for row, value in zip(rows, values, strict=True):
                expected = value.to("cuda")
                moo.all_reduce(expected, alone)
                assert raw(row.cpu()) == raw(expected.cpu())


def test_a_captured_all_reduce(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(4, rank_captures, random_seed, backend=emulated_cuda.nccl)


# --- groups ---


def rank_groups(rank: int, world: int, seed: int) -> None:
    """The mesh's own, and new ones for a copy, which has no mesh: the same bits."""
    mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=NODE_GPU)
    state = moo.BucketMOO("cagrad", mesh=mesh, objectives="node")
    count = len(dist.distributed_c10d._world.pg_map)
    results = []
    for used in (state, pickle.loads(pickle.dumps(state))):
        row = draw(seed, (rank,), 20_003, torch.float32)
        moo.all_reduce(row, used)
        results.append(raw(row))
        assert (len(dist.distributed_c10d._world.pg_map) > count) == (used is not state)
    assert results[0] == results[1]
    half = dist.new_subgroups_by_enumeration([[0, 1, 2, 3], [4, 5, 6, 7]])[0]
    part = init_device_mesh("cpu", (2, 1, 2, 2), mesh_dim_names=("half", "a", "b", "c"))["a", "b", "c"]
    for objectives, error in (("b", None), ("a", "dimensions b, c together have no group")):
        sub = moo.BucketMOO("cagrad", mesh=part, objectives=objectives, process_group=half)
        row = draw(seed, (rank,), 20_003, torch.float32)
        if error is None:
            moo.all_reduce(row, sub)
            assert sub.report().objectives == ("0", "1")
        else:
            expect(error_of(lambda row=row, sub=sub: moo.all_reduce(row, sub)), NotImplementedError, error)  # type: ignore[misc]
    descends = DeviceMesh("cpu", [[0, 3], [1, 2], [4, 5], [6, 7]], mesh_dim_names=NODE_GPU)
    refused = moo.BucketMOO(mesh=descends, objectives="node")
    expect(
        error_of(lambda: moo.all_reduce(torch.ones(5), refused)),
        NotImplementedError,
        "ranks must ascend along objectives and along the other dimensions",
        "got 3, 2, 5, 7 along objectives",
    )


def test_groups_are_those_of_the_mesh_or_new_ones(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(8, rank_groups, random_seed)


# --- what goes wrong ---


def rank_disagrees(rank: int, world: int) -> None:
    mesh = mesh_on("cpu")
    row = torch.ones(5000)
    state = moo.BucketMOO(mesh=mesh, objectives="node", objective=f"o{rank}")
    expect(  # the first step, on the host
        error_of(lambda: moo.all_reduce(row, state)),
        ValueError,
        "must have the same objective",
        "step 1, pass 1 rank 0 has 'o0', rank 1 'o1'",
    )
    assert row.tolist() == [1.0] * 5000
    state.objective = "same"
    moo.all_reduce(row, state)
    state.objective = "other" if rank == 3 else "same"
    for _ in range(2):  # enqueued before every rank could know
        moo.all_reduce(row, state)
        assert row.isnan().all()
    expect(
        error_of(lambda: moo.all_reduce(row, state)),
        ValueError,
        "that `objectives` does not name must have the same objective",
        "step 3 rank 3 had another",
    )
    passes = moo.BucketMOO(mesh=mesh, objectives="node", layout="passes", objective=rank // 2)
    expect(
        error_of(lambda: moo.all_reduce(row, passes)), ValueError, "with layout='passes' all ranks must have the same"
    )
    passes.objective = "one"
    row = torch.ones(5000)
    moo.all_reduce(row, passes)
    passes.objective = rank // 2
    for _ in range(2):
        moo.all_reduce(row, passes)
        assert row.isnan().all()
    expect(error_of(lambda: moo.all_reduce(row, passes)), ValueError, "with layout='passes'", "rank 2 had another")
    other = moo.BucketMOO(mesh=mesh, objectives="node" if rank else "gpu")
    expect(error_of(lambda: moo.all_reduce(row, other)), ValueError, "configuration must be the same", "mesh: ")


def test_ranks_of_a_group_with_different_objectives(run_ranks: Runner) -> None:
    run_ranks(4, rank_disagrees)


def rank_nonfinite(rank: int, world: int, seed: int) -> np.ndarray[Any, Any]:
    state = moo.BucketMOO("mgda", mesh=mesh_on("cpu"), objectives="node")
    row = draw(seed, (rank,), 40_003, torch.float32)
    if rank == 2:
        row[7] = torch.nan  # in the part of one rank of each node
    moo.all_reduce(row, state)
    bucket = state.report().buckets[0]
    assert bucket.status == "nonfinite"
    assert bucket.weights.tolist() == [0.5, 0.5]
    return row.numpy()


def test_a_nan_in_one_part_makes_all_parts_the_mean(run_ranks: Runner, random_seed: int) -> None:
    results = run_ranks(4, rank_nonfinite, random_seed)
    mean = np.mean([draw(random_seed, (rank,), 40_003, torch.float32).double().numpy() for rank in range(4)], axis=0)
    for got in results:
        assert np.isnan(got[7])
        np.testing.assert_allclose(np.delete(got, 7), np.delete(mean, 7), rtol=1e-5, atol=1e-6)
