"""What a rank of the tests of two hosts runs: a training of the campaign of faults, for each layout named."""

import argparse
import json
import os
import sys
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from fault_campaign.jobs import LAYOUTS


def say(line: dict[str, Any]) -> None:
    """As one piece: the other ranks write there too."""
    os.write(1, f"{json.dumps(line)}\n".encode())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("layouts", nargs="+")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_module("torch._dynamo")  # as optimizers do: it takes a while, and ranks with a short timeout wait for nobody
    meet: dict[str, Any] = {}
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # no launcher that waits for all ranks
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, world, is_master=rank == 0, timeout=timedelta(seconds=200))
        meet = {"store": store, "rank": rank, "world_size": world}
    dist.init_process_group("gloo", timeout=timedelta(seconds=arguments.timeout), **meet)
    rank, world = dist.get_rank(), dist.get_world_size()
    for layout in arguments.layouts:
        training = LAYOUTS[layout](rank, world)
        for step in range(arguments.steps):
            if step == 3:
                say({"rank": rank, "layout": layout, "trains": True})
            try:
                training.step(step)
            except Exception as error:
                failed = {"rank": rank, "raised": type(error).__name__, "message": str(error)}
                say(failed | {"time": time.monotonic()})  # the machine's, as the test's
                return 1
        say({"rank": rank, "layout": layout, "digest": training.digest()})
    automatic = moo.BucketMOO("mean", gramian="auto")
    moo.all_reduce(torch.ones(5), automatic)
    gramians = next(line for line in str(automatic.report()).splitlines() if line.startswith("Gramians"))
    say({"rank": rank, "gramians": gramians})
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
