"""Times a backward pass under plain DDP, under our hook and under an all-gather hook, side by side in one run.

    python bench/step_overhead.py                      # 4 processes, 100 MB of float32 gradients, 25 MB buckets
    python bench/step_overhead.py --method cagrad --world 2
    python bench/step_overhead.py --gramian sketch --lag 1 --variants ddp bucket_moo

The backward pass itself costs next to nothing, so that every pass over memory of the reduction shows. The variants take
turns within each round; the slowest rank counts. Bytes are what the kernel's counters of the network interfaces say was
sent, with all headers, by all ranks together, over their number. Memory is the peak of a process that runs this variant
alone, less that of one that runs the first.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from workloads import all_gather_hook


class Cheap(torch.autograd.Function):
    """Passes a gradient of ones (times a scalar) to a parameter: one write, no arithmetic."""

    @staticmethod
    def forward(ctx, parameter: torch.Tensor, value: float) -> torch.Tensor:  # noqa: D102
        ctx.shape, ctx.value = parameter.shape, value
        return parameter.view(-1)[0] * 0

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: D102
        return torch.full(ctx.shape, ctx.value), None


class Gradients(torch.nn.Module):
    """A model that is nothing but `count` parameters of `size` elements each.

    The gradients of up to four ranks are orthogonal in every four parameters: all rows of the combination are read.
    """

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.parameters_ = torch.nn.ParameterList(torch.zeros(size) for _ in range(count))

    def forward(self, rank: int) -> torch.Tensor:
        """A scalar whose gradient in parameter i is 1 or -1: the sign of row `rank`, column i of a Hadamard matrix."""
        signs = [(-1.0) ** (rank & i).bit_count() for i in range(len(self.parameters_))]
        return torch.stack([Cheap.apply(p, s) for p, s in zip(self.parameters_, signs, strict=True)]).sum()


def all_gather_variant(ddp: DistributedDataParallel, method: str) -> None:
    """Registers `all_gather_hook`."""
    ddp.register_comm_hook({"method": method, "memory": torch.empty(0)}, all_gather_hook)


VARIANTS = ("ddp", "bucket_moo", "all_gather")

REGISTERED: dict[str, moo.BucketMOO] = {}


def bucket_moo_variant(options: argparse.Namespace, gramian: str) -> Callable[[DistributedDataParallel, str], None]:
    """Registers our native hook with one of the ways to the Gramian."""
    sketch = moo.Sketch(width=options.width, refresh_every=options.refresh_every, lag=options.lag)

    def register(ddp: DistributedDataParallel, method: str) -> None:
        REGISTERED[gramian] = moo.register(ddp, method, gramian=sketch if gramian == "sketch" else gramian)

    return register


def variants(options: argparse.Namespace) -> dict[str, Callable[[DistributedDataParallel, str], object]]:
    """What is to be measured, by name; the first is what the others are compared with."""
    chosen: dict[str, Callable[[DistributedDataParallel, str], object]] = {}
    for variant in options.variants:
        if variant == "bucket_moo":
            chosen |= {gramian: bucket_moo_variant(options, gramian) for gramian in options.gramian}
        else:
            chosen[variant] = all_gather_variant if variant == "all_gather" else lambda ddp, method: None
    return chosen


def bytes_sent() -> int:
    """Bytes that this machine has sent over all its network interfaces, the loopback among them."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_ddp(options: argparse.Namespace, variant: str, method: str) -> DistributedDataParallel:
    """A DDP module whose gradients fill options.gradients MB in options.bucket MB buckets."""
    parameters = max(1, options.gradients // options.bucket * 4)
    model = Gradients(parameters, options.gradients * 2**20 // 4 // parameters)
    ddp = DistributedDataParallel(
        model,
        bucket_cap_mb=options.bucket,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
    )
    variants(options)[variant](ddp, method)
    return ddp


def backward_seconds(ddp: DistributedDataParallel, rank: int) -> float:
    """Seconds of one backward pass on the slowest rank."""
    ddp.zero_grad(set_to_none=not ddp.gradient_as_bucket_view)
    loss = ddp(rank)
    dist.barrier()
    start = time.perf_counter()
    loss.backward()
    slowest = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest)


def time_variants(options: argparse.Namespace, rank: int) -> dict[str, dict[str, Any]]:
    """Seconds of each variant's backward passes, taken in turns, and megabytes that a rank sends in one."""
    modules = {variant: make_ddp(options, variant, options.method) for variant in variants(options)}
    for _ in range(options.warmup):
        for ddp in modules.values():
            backward_seconds(ddp, rank)
    if options.world <= 4 and options.method != "pcgrad":
        for state in REGISTERED.values():
            weights = torch.stack([bucket.weights for bucket in state.report().buckets])
            assert (weights > 0).all(), f"a row of weight 0 is not read, which would flatter the hook: {weights}"
    seconds: dict[str, list[float]] = {variant: [] for variant in modules}
    for _ in range(options.repeat):
        for variant, ddp in modules.items():
            seconds[variant].append(backward_seconds(ddp, rank))
    return {"seconds": seconds, "megabytes": {v: megabytes_sent(ddp, rank) for v, ddp in modules.items()}}


def megabytes_sent(ddp: DistributedDataParallel, rank: int, passes: int = 4) -> float:
    """Megabytes (2^20 bytes) that a rank sends in a backward pass, the mean over ranks and passes."""
    backward_seconds(ddp, rank)
    dist.barrier()
    before = bytes_sent()
    dist.barrier()
    for _ in range(passes):
        backward_seconds(ddp, rank)
    dist.barrier()
    return (bytes_sent() - before) / 2**20 / passes / dist.get_world_size()


def peak_of(options: argparse.Namespace, variant: str, rank: int) -> float:
    """Peak resident MB of a process that runs backward passes under one variant and nothing else."""
    ddp = make_ddp(options, variant, options.method)
    for _ in range(5):
        backward_seconds(ddp, rank)
    return peak_memory() / 2**20


def worker(rank: int, options: argparse.Namespace, store: str, variant: str | None, out: str) -> None:
    """One rank: times all variants, or takes the memory of one."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=options.world,
        timeout=timedelta(seconds=120),
    )
    if variant is None:
        result: object = time_variants(options, rank)
    else:
        result = peak_of(options, variant, rank)
    if rank == 0:
        Path(out).write_text(json.dumps(result))
    dist.destroy_process_group()


def run_ranks(options: argparse.Namespace, variant: str | None = None) -> Any:
    """Runs `worker` on every rank of a fresh group and returns what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        store, out = f"{folder}/store", f"{folder}/out.json"
        mp.spawn(worker, (options, store, variant, out), nprocs=options.world)
        return json.loads(Path(out).read_text())


def main() -> None:
    """Measures, prints a table, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--world", type=int, default=4, help="processes (default 4)")
    parser.add_argument("--gradients", type=int, default=100, help="MB of float32 gradients (default 100)")
    parser.add_argument("--bucket", type=int, default=25, help="MB of a bucket (default 25)")
    parser.add_argument("--method", default="mgda", choices=sorted(moo.available_methods()))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--gramian", nargs="+", default=["exact", "sketch"], choices=["exact", "sketch"])
    parser.add_argument("--width", type=int, default=moo.Sketch.width, help="columns of the sketch (default 16384)")
    parser.add_argument("--refresh-every", type=int, default=1, help="Sketch(refresh_every=...) (default 1)")
    parser.add_argument("--lag", type=int, default=0, choices=[0, 1], help="Sketch(lag=...) (default 0)")
    parser.add_argument("--repeat", type=int, default=15, help="timed passes of each variant (default 15)")
    parser.add_argument("--warmup", type=int, default=4, help="passes before (default 4)")
    parser.add_argument("--gradient-as-bucket-view", action="store_true")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()

    measured = run_ranks(options)
    seconds, megabytes = measured["seconds"], measured["megabytes"]
    peaks = {} if options.no_memory else {v: run_ranks(options, v) for v in seconds}
    first = next(iter(seconds))
    rows = {}
    for variant, times in seconds.items():
        ratios = [t / b for t, b in zip(times, seconds[first], strict=True)]
        extra = peaks[variant] - peaks[first] if peaks else None
        rows[variant] = {
            "median_ms": 1e3 * statistics.median(times),
            "min_ms": 1e3 * min(times),
            "max_ms": 1e3 * max(times),
            "ratio_of_medians": statistics.median(times) / statistics.median(seconds[first]),
            "median_of_ratios": statistics.median(ratios),
            "megabytes_sent": megabytes[variant],
            "bytes_ratio": megabytes[variant] / megabytes[first],
            "extra_peak_mb": extra,
        }
    print(
        f"backward pass, {options.world} processes, {options.gradients} MB of float32 gradients in {options.bucket} MB "
        f"buckets, method {options.method}, median of {options.repeat} (torch {torch.__version__}, "
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores)"
    )
    print(
        f"{'variant':<12} {'median ms':>10} {'min':>8} {'max':>8} {'x ' + first:>8} "
        f"{'paired':>8} {'MB sent':>9} {'x ' + first:>8} {'extra MB':>9}"
    )
    for variant, row in rows.items():
        extra = "-" if row["extra_peak_mb"] is None else f"{row['extra_peak_mb']:.1f}"
        print(
            f"{variant:<12} {row['median_ms']:>10.1f} {row['min_ms']:>8.1f} {row['max_ms']:>8.1f} "
            f"{row['ratio_of_medians']:>8.3f} {row['median_of_ratios']:>8.3f} "
            f"{row['megabytes_sent']:>9.2f} {row['bytes_ratio']:>8.4f} {extra:>9}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
