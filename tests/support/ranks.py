"""Processes that are the ranks of a test."""

import faulthandler
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

# Ranks are forked from a server that has imported all that they need and runs no threads: starting one takes
# milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")

GROUP_TIMEOUT = timedelta(seconds=60)


def preload(modules: Iterable[str]) -> None:
    """Has ranks find these modules imported, if none was started before.

    No module that ranks on a GPU need may ask CUDA for anything as it is imported: what was forked could not use it.
    """
    _CONTEXT.set_forkserver_preload([*modules, "tests.support.preloaded"])


class RankFailed(AssertionError):
    """A rank raised, died or did not finish in time."""


def gloo(rank: int) -> str:
    """The backend of ranks that reduce on the CPU."""
    return "gloo"


def _rank_main(
    connection: Connection,
    function: Callable[..., Any],
    rank: int,
    world: int,
    store: str,
    group_timeout: timedelta,
    deadline: float,
    backend: Callable[[int], str],
    arguments: tuple[Any, ...],
) -> None:
    faulthandler.dump_traceback_later(deadline, exit=True)
    torch.set_num_threads(1)
    # A rank that left at once would close its connections while others still make theirs, and these would fail.
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"
    try:
        dist.init_process_group(
            backend(rank),
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=group_timeout,
        )
        result = function(rank, world, *arguments)
        dist.destroy_process_group()
        connection.send(("ok", result))
    except BaseException:
        connection.send(("error", traceback.format_exc()))
    finally:
        connection.close()
        faulthandler.cancel_dump_traceback_later()


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout: float = 120.0,
    group_timeout: timedelta = GROUP_TIMEOUT,
    may_die: tuple[int, ...] = (),
    backend: Callable[[int], str] = gloo,
) -> list[Any]:
    """Runs ``function(rank, world, *arguments)`` on `world` ranks and returns what each returned.

    ``function`` must be importable (a module-level function) and return something that pickles. The default process
    group is initialised over a file store; each rank calls ``backend(rank)`` first, for the name of its backend. A rank
    that raises makes this raise with its traceback; one that does not finish within `timeout` seconds, too, after
    printing where it stood. Ranks in `may_die` may end without a result (None is returned for them).
    """
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        processes, connections = [], {}
        for rank in range(world):
            mine, theirs = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_rank_main,
                args=(theirs, function, rank, world, store, group_timeout, timeout, backend, arguments),
                daemon=True,
            )
            process.start()
            theirs.close()
            processes.append(process)
            connections[mine] = rank
        results: list[Any] = [None] * world
        problems = []
        end = time.monotonic() + timeout + 5.0
        while connections and (left := end - time.monotonic()) > 0:
            for connection in wait(list(connections), timeout=left):
                assert isinstance(connection, Connection)
                rank = connections.pop(connection)
                try:
                    status, value = connection.recv()
                except EOFError:
                    processes[rank].join(5.0)
                    status, value = "died", f"exit code {processes[rank].exitcode}"
                if status == "ok":
                    results[rank] = value
                elif not (status == "died" and rank in may_die):
                    problems.append(f"rank {rank} of {world} {status}:\n{value}")
        problems += [f"rank {rank} of {world} did not finish in {timeout} s" for rank in connections.values()]
        for process in processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        if problems:
            raise RankFailed("\n".join(problems))
        return results
