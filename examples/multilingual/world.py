"""The process group of a run, and the few collectives the demo itself needs."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among its equals."""

    rank: int
    size: int
    device: torch.device

    @property
    def shows(self) -> bool:
        """Whether this rank prints and draws progress bars."""
        return self.rank == 0

    def say(self, text: str = "") -> None:
        """Prints on rank 0."""
        if self.shows:
            print(text, flush=True)

    def sum(self, tensor: Tensor) -> None:
        """Sum over the ranks, in place."""
        dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Waits for all ranks, and for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            dist.barrier(device_ids=[self.device.index])
        else:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def start(*, gpu: bool = True) -> World:
    """Joins the process group that torchrun prepared, or makes one of this process alone.

    NCCL where every rank has a GPU, and `gpu`; else Gloo.
    Ctrl-C ends the process at once: a rank inside a collective would not notice the exception.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    local, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpu and torch.cuda.is_available() and torch.cuda.device_count() >= local_size:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, timeout=timedelta(minutes=10), **alone)
    return World(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
