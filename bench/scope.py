"""Times a backward pass under DDP by what gets weights of its own: the bucket, and smaller parts.

    python bench/scope.py    # 4 ranks, 100 MB of gradients, 300 parameters
    python bench/scope.py --parameters 4 --ranks 2 --rounds 31

All ways reduce the same buckets of 25 MB conflict-aware; every objective touches every parameter. "bucket" is the
default, and what the others are compared with; the ways take turns within each round, in rotating order. The backward
pass does nothing but hand over gradients, so that what is seen is the reduction. A round's time is that of its slowest
rank, and the ratio is the median over rounds.
"""

import argparse
import os
import platform
import statistics
from typing import Any

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from workloads import Gradient
from wrapped_backward import compare, join, start, step_of

WAYS: dict[str, dict[str, Any]] = {
    "bucket": {},
    "bucket, support": {"support": True},
    "parameter": {"scope": "parameter"},
    "function, 10 groups": {"scope": lambda name: int(name.split(".")[0]) % 10},
    "model": {"scope": "model"},
    "model, support": {"scope": "model", "support": True},
}


def main_of_rank(rank: int, store: str, arguments: argparse.Namespace) -> None:
    """Prints on rank 0."""
    join(rank, store, arguments.ranks)
    size = round(arguments.megabytes * 1e6 / 4 / arguments.parameters)
    steps = {}
    for way, options in WAYS.items():
        generator = torch.Generator().manual_seed(rank)
        model = nn.Sequential(*(Gradient(size, generator) for _ in range(arguments.parameters)))
        ddp = DistributedDataParallel(model, bucket_cap_mb=25, gradient_as_bucket_view=True)
        steps[way] = step_of(ddp, moo.register(ddp, "mgda", **options), 1)
    times: dict[str, list[float]] = {way: [] for way in steps}
    for round_ in range(arguments.rounds + 2):
        first = round_ % len(steps)
        for way in [*steps][first:] + [*steps][:first]:
            seconds = steps[way]()
            if round_ >= 2:  # the first ones allocate, and have one bucket
                times[way].append(seconds)
    if rank == 0:
        for way, seconds in times.items():
            ratio = compare(seconds, times["bucket"], digits=3)
            print(f"{way}: {1e3 * statistics.median(seconds):.0f} ms, ratio {ratio}")
    dist.destroy_process_group()


def main() -> None:
    """Starts the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--megabytes", type=float, default=100.0, help="of float32 gradients")
    parser.add_argument("--parameters", type=int, default=300, help="of one size")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(
        f"{arguments.ranks} ranks on {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, "
        f"{arguments.megabytes:g} MB in {arguments.parameters} parameters, median of {arguments.rounds} rounds"
    )
    start(main_of_rank, arguments)


if __name__ == "__main__":
    main()
