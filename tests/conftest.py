"""Fixtures of all tests."""

import faulthandler
import hashlib
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support.checks import ON_DEVICE

# Ranks are forked from a server that has imported all that they need and runs no threads: starting one takes
# milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = "tests.support.preloaded"

GROUP_TIMEOUT = timedelta(seconds=60)


# `make gpu-check` runs these with settings of their own; so does its dry run, over emulated kernels.
collect_ignore = [] if torch.cuda.is_available() or "GPU_CHECK_DRY" in os.environ else ["gpu"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ON_DEVICE:
        for item in items:
            if item.get_closest_marker("host"):
                item.add_marker(pytest.mark.skip(reason="not for reductions on a device"))


def pytest_collection_finish(session: pytest.Session) -> None:
    items = [item for item in session.items if isinstance(item, pytest.Function)]
    modules = {item.module.__name__ for item in items if "run_ranks" in item.fixturenames}
    _CONTEXT.set_forkserver_preload([*sorted(modules), _PRELOADED])


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


def _run_ranks(
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


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """``run_ranks(world, function, *arguments, timeout=120.0, group_timeout=..., may_die=())``; see `_run_ranks`."""
    return _run_ranks


@pytest.fixture
def random_seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own, by its name: the same in every run, unless BUCKET_MOO_TEST_SEED says otherwise."""
    base = os.environ.get("BUCKET_MOO_TEST_SEED", "0")
    print(f"BUCKET_MOO_TEST_SEED={base}")
    return int.from_bytes(hashlib.sha256(f"{base} {request.node.name}".encode()).digest()[:4], "little")


@pytest.fixture
def rng(random_seed: int) -> np.random.Generator:
    """NumPy's generator over `random_seed`."""
    return np.random.default_rng(random_seed)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent
