"""Thousands of steps of a small model: ranks must stay equal to the bit, and memory, files and threads must not grow.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 4 tools/endurance.py --steps 10000

Every 1/50 of the steps each rank notes its resident memory, open files and threads, and all compare the bits of their
parameters. Over the second half of the run files and threads must be constant, and the memory's slope (Theil and Sen's,
the median of all pairs' slopes) times the whole run must stay below --growth-mb. Ends with status 1 if not.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from fault_campaign.jobs import LAYOUTS


@dataclass(frozen=True)
class Sample:
    """Of a rank at a step: resident memory in bytes, open files, threads."""

    step: int
    resident: int
    files: int
    threads: int


def sample(step: int) -> Sample:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    return Sample(step, pages * os.sysconf("SC_PAGE_SIZE"), files, threads)


def slope(samples: list[Sample]) -> float:
    """Of the resident memory, in bytes a step."""
    pairs = itertools.combinations(samples, 2)
    return statistics.median((b.resident - a.resident) / (b.step - a.step) for a, b in pairs)


def wrong(samples: list[Sample], steps: int, growth: float) -> list[str]:
    """What grows in the second half; ``growth``: the bytes that a run may take more at its end."""
    later = [found for found in samples if found.step > steps / 2]
    found = []
    for name in ("files", "threads"):
        seen = sorted({getattr(one, name) for one in later})
        if len(seen) > 1:
            found.append(f"{name} are not constant: {', '.join(map(str, seen))}")
    grown = slope(later) * steps
    if grown > growth:
        found.append(f"resident memory grows by {grown / 2**20:.2f} MB in {steps} steps")
    return found


def main() -> int:
    """One rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--layout", choices=LAYOUTS, default="DDP")
    parser.add_argument("--growth-mb", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write all samples there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    training = LAYOUTS[arguments.layout](rank, world)
    every = max(arguments.steps // 50, 1)
    samples, found, began = [], [], time.monotonic()
    for step in range(1, arguments.steps + 1):
        training.step(step)
        if step % every == 0:
            digests: list[str] = [""] * world
            dist.all_gather_object(digests, training.digest())
            if len(set(digests)) > 1:
                found.append(f"ranks have different parameters after step {step}")
                break
            samples.append(sample(step))
            if rank == 0:
                now = samples[-1]
                print(
                    f"step {step}: {now.resident / 2**20:.1f} MB, {now.files} files, {now.threads} threads", flush=True
                )
    seconds = time.monotonic() - began
    found += wrong(samples, arguments.steps, arguments.growth_mb * 2**20)
    of_ranks: list[tuple[list[Sample], list[str]]] = [([], [])] * world
    dist.all_gather_object(of_ranks, (samples, found))
    if rank == 0:
        for r, (taken, said) in enumerate(of_ranks):
            later = [one for one in taken if one.step > arguments.steps / 2]
            grown = slope(later) * arguments.steps / 2**20
            first, last = later[0].resident / 2**20, later[-1].resident / 2**20
            files, threads = later[-1].files, later[-1].threads
            held = f"{first:.1f} to {last:.1f} MB in the second half ({grown:+.2f} MB in {arguments.steps} steps)"
            print(f"rank {r}: {held}, {files} files, {threads} threads: {'; '.join(said) or 'ok'}")
        print(f"{arguments.layout}, W={world}: {arguments.steps} steps in {seconds:.0f} s")
        if arguments.json:
            lines = [[asdict(one) for one in taken] for taken, _ in of_ranks]
            arguments.json.write_text(json.dumps({"layout": arguments.layout, "ranks": lines}) + "\n", encoding="utf-8")
    dist.destroy_process_group()
    return 1 if any(said for _, said in of_ranks) else 0


if __name__ == "__main__":
    sys.exit(main())
