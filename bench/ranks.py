"""Processes that stay, so that what they run can be timed in turns."""

import contextlib
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

Ways = dict[str, Callable[[], float | None]]
"""By name what a rank can run; it returns its seconds, or None: then the whole call is timed."""


def _serve(rank: int, world: int, store: str, pipe: Connection, build: Callable[..., Ways], arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    ways = build(rank, world, *arguments)
    pipe.send(None)
    while (way := pipe.recv()) is not None:
        dist.barrier()
        start = time.perf_counter()
        told = ways[way]()
        seconds = torch.tensor(time.perf_counter() - start if told is None else told, dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        pipe.send(float(seconds))
    pipe.close()
    dist.destroy_process_group()


@contextlib.contextmanager
def ranks(world: int, build: Callable[..., Ways], *arguments: object) -> Iterator[Callable[[str], float]]:
    """A function that runs a way of ``build(rank, world, *arguments)`` and returns the seconds of the slowest rank.

    ``build`` is a function of a module; each rank calls it once, in a process of its own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["workloads"])  # so that a rank starts in no time
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        pipes, processes = [], []
        for rank in range(world):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, store, theirs, build, arguments), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            pipes.append(mine)
            processes.append(process)

        def run(way: str | None) -> list[Any]:
            for pipe in pipes:
                pipe.send(way)
            return [pipe.recv() for pipe in pipes]

        try:
            for pipe in pipes:
                pipe.recv()  # it is ready
            yield lambda way: max(run(way))
            for pipe in pipes:
                pipe.send(None)
            for process in processes:
                process.join(30)
        finally:
            for process in processes:
                process.kill()


def in_turns(
    stack: contextlib.ExitStack, world: int, build: Callable[..., Ways], *arguments: object
) -> Callable[[], tuple[Any, Any]]:
    """For ``paired``: each block has ranks of its own, whose ways are "ours" and "reference"."""

    def make() -> tuple[Callable[[], float], Callable[[], float]]:
        stack.close()  # the ranks of the block before
        run = stack.enter_context(ranks(world, build, *arguments))
        return functools.partial(run, "ours"), functools.partial(run, "reference")

    return make
