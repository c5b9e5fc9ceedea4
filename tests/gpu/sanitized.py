"""Every kernel, at small sizes: what compute-sanitizer looks at. Wrong results are for the tests to find.

In a dry run, launches are counted, and a kernel of cuda/ that was compiled and not launched is an error.
"""

import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.gpu.device import DEVICE
from tests.gpu.networks import CAP_MB, backward, by_layer, network

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OBJECTIVES = "aab"  # of the ranks: one that is of two rows, and two for three
TIMEOUT = 60  # seconds, of the ranks


def functions() -> None:
    """The functions: every K that has a kernel of its own, and some that have none; every method."""
    for dtype in DTYPES:
        for k in (*range(1, 18), 64):
            for n in (1, 1000, 5001) if k in (2, 8, 17) else (1001,):
                rows = torch.randn(k, n, device=DEVICE.name).to(dtype)
                if k == 8:
                    rows[3] = 0
                    rows[4] *= 1e-30
                moo.gramian(rows)
                moo.combine(rows, torch.rand(k, dtype=torch.float64, device=DEVICE.name))
        unaligned = torch.randn(3, 2001, device=DEVICE.name).to(dtype)[:, 1:]
        moo.aggregate(list(unaligned), "mgda")
        for n in (1, 5001):
            for width in (64, 1024):
                moo.sketch(torch.randn(2, n, device=DEVICE.name).to(dtype), width)
    for k in (2, 8, 40):
        gramian = moo.gramian(torch.randn(k, 100, device=DEVICE.name))
        for method in moo.available_methods():
            moo.weights(gramian, method)
    moo.weights(moo.gramian(torch.randn(3, 100, device=DEVICE.name)), moo.UPGrad([1.0, 2.0, 3.0]))


def collectives() -> None:
    """Reductions of the default group: with and without tails, memory, sketch and weights that are kept."""
    rank = dist.get_rank()

    def state(method: str | moo.Method, gramian: str | moo.Sketch = "exact", support: bool = False) -> moo.BucketMOO:
        return moo.BucketMOO(method, objective=OBJECTIVES[rank], gramian=gramian, support=support)

    for dtype in DTYPES:
        for gramian in ("exact", moo.Sketch(64)):
            reducing = state("mgda", gramian)
            for n in (1, 5000, 50_001):
                moo.all_reduce(torch.randn(n, device=DEVICE.name).to(dtype), reducing)
                given = torch.randn(n * dist.get_world_size(), device=DEVICE.name).to(dtype)
                moo.reduce_scatter(torch.empty(n, dtype=dtype, device=DEVICE.name), given, reducing)
            reducing.report()
    for method in ("gradvac", moo.Smoothed("mean", 0.5), moo.UPGrad([1.0, 2.0])):
        remembering = state(method)
        for _ in range(2):
            moo.all_reduce(torch.randn(5001, device=DEVICE.name), remembering)
        remembering.load_state_dict(remembering.state_dict())
    for sketch in (moo.Sketch(64, refresh_every=2), moo.Sketch(64, lag=1)):
        keeping = state("mgda", sketch)
        for _ in range(3):
            moo.all_reduce(torch.randn(5001, device=DEVICE.name), keeping)
        keeping.report()
    for layout in ("ranks", "passes"):
        for dtype in DTYPES:
            several = moo.BucketMOO("gradvac", layout=layout)
            for n in (1, 5001, 50_001):
                for number in range(2):
                    several.objective = f"{number}" if layout == "passes" else OBJECTIVES[rank - number]
                    row = torch.randn(n, device=DEVICE.name).to(dtype)
                    given = torch.randn(n * dist.get_world_size(), device=DEVICE.name).to(dtype)
                    with contextlib.nullcontext() if number == 1 else several.accumulate():
                        moo.all_reduce(row, several)
                        moo.reduce_scatter(torch.empty_like(row), given, several)
            several.report()
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("node", "gpu"))
    in_levels = moo.BucketMOO("mgda", mesh=mesh, objectives="node")
    for dtype in DTYPES:
        for n in (1, 50_001):
            for number in range(2):
                row = torch.randn(n, device=DEVICE.name).to(dtype)
                given = torch.randn(n * dist.get_world_size(), device=DEVICE.name).to(dtype)
                with contextlib.nullcontext() if number == 1 else in_levels.accumulate():
                    moo.all_reduce(row, in_levels)
                moo.reduce_scatter(torch.empty_like(row), given, in_levels)
    in_levels.report()
    for sketch in (moo.Sketch(64), moo.Sketch(8192, lag=1)):
        for dtype in DTYPES:
            kept_apart = moo.BucketMOO("mgda", gramian=sketch)
            for step in range(3):
                for number in range(2):
                    kept_apart.objective = f"{number}"
                    row = torch.randn(50_001, device=DEVICE.name).to(dtype)
                    totals = {"0": dist.get_world_size(), "1": dist.get_world_size()} if step > 0 else None
                    with contextlib.nullcontext() if number == 1 else kept_apart.accumulate(totals):
                        moo.all_reduce(row, kept_apart)
            kept_apart.report()
    for dtype in DTYPES:
        parted = state("mgda", support=True)
        for n in (1, 50_001):
            moo.all_reduce(torch.randn(n, device=DEVICE.name).to(dtype), parted)
        parted.report()
    for scope in ("bucket", "parameter", by_layer):
        ddp = DistributedDataParallel(network(DEVICE.name, torch.float32), bucket_cap_mb=CAP_MB)
        grouped = moo.register(ddp, "mgda", scope=scope, support=True, objective=OBJECTIVES[rank])
        for step in range(3):
            backward(ddp, 0, rank, step, DEVICE.name, torch.float32)
        grouped.report()
    alone = [dist.new_group([r]) for r in range(dist.get_world_size())][rank]
    in_pieces = moo.BucketMOO("mgda", process_group=alone, model_parallel_group=dist.group.WORLD)
    for number in range(3):
        in_pieces.objective = f"{number}"
        with contextlib.nullcontext() if number == 2 else in_pieces.accumulate():
            moo.all_reduce(torch.randn(5001, device=DEVICE.name), in_pieces)
    in_pieces.report()
    one_objective = moo.BucketMOO("mean", objective="a")
    moo.all_reduce(torch.randn(5001, device=DEVICE.name), one_objective)
    one_objective.objective = f"o{rank}"  # another K than that of the first step
    moo.all_reduce(torch.randn(5001, device=DEVICE.name), one_objective)
    one_objective.report()
    for gramian in ("exact", moo.Sketch(64, lag=1)):
        ddp = DistributedDataParallel(network(DEVICE.name, torch.float32), bucket_cap_mb=CAP_MB)
        whole = moo.register(ddp, "mgda", scope="model", objective=OBJECTIVES[rank], gramian=gramian)
        for step in range(3):
            backward(ddp, 0, rank, step, DEVICE.name, torch.float32)
        whole.report()


def rank_main(rank: int, world: int, store: str, results: "multiprocessing.SimpleQueue[dict[str, int]]") -> None:
    """One rank. Over Gloo: what NCCL's own kernels do is not looked at."""
    torch.manual_seed(rank)
    DEVICE.enter_rank()
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout)
    collectives()
    DEVICE.synchronize()
    dist.destroy_process_group()
    results.put(DEVICE.kernel_launches())


def ranks(world: int) -> Counter[str]:
    """Launches of the collectives on `world` ranks.

    Raises:
        RuntimeError: A rank failed, or they did not finish in time.
    """
    context = multiprocessing.get_context("spawn")  # the parent has CUDA already: no fork of it can use it
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=rank_main, args=(rank, world, str(Path(folder) / "store"), results), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + TIMEOUT
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        if any(process.exitcode != 0 for process in processes):
            raise RuntimeError(f"exit codes of the ranks: {[process.exitcode for process in processes]}")
    return sum((Counter(results.get()) for _ in processes), Counter())


def main() -> int:
    """Runs all of it; 0 if, as far as launches are counted, every kernel was launched."""
    torch.manual_seed(0)
    functions()
    launched = Counter(DEVICE.kernel_launches()) + ranks(len(OBJECTIVES))
    DEVICE.synchronize()
    missing = sorted(name for name in DEVICE.kernel_launches() if launched[name] == 0)
    print(f"kernels that were not launched: {', '.join(missing)}" if missing else "all kernels ran")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
