"""A CUDA device for a torch that has none: the emulation's, in the build with emulated CUDA kernels.

Tensors on ``cuda`` are then reduced on streams that are as strict as a GPU's, over a stand-in for NCCL. What would go
wrong on a GPU (memory used before it was waited for, or while a stream still needs it) ends the process with a message.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def _native() -> Any:
    return importlib.import_module("bucket_moo_ext._emulation")


def install() -> None:
    """Makes the device known to torch, in this process and once."""
    _native().install_device()
    torch.cuda._lazy_init = lambda: None  # what torch calls before it makes a tensor there


def _make_group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> Any:
    return _native().Nccl(dist.ProcessGroupGloo(store, rank, size, timeout))


def nccl(rank: int) -> str:
    """The backend of ranks that reduce on the emulated device, for ``run_ranks(backend=...)``."""
    install()
    dist.Backend.register_backend("emulated", _make_group, devices=["cuda"])
    return "cpu:gloo,cuda:emulated"


def operations() -> dict[str, int]:
    """What was asked of the device so far, by kind."""
    counted: dict[str, int] = _native().operations()
    return counted


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Fills the dict with what is asked of the device inside, once that is over, without kinds that are not used."""
    before = operations()
    counted: dict[str, int] = {}
    yield counted
    counted.update({kind: count - before[kind] for kind, count in operations().items() if count != before[kind]})


@contextmanager
def faults() -> Iterator[list[str]]:
    """Fills the list with what goes wrong inside, instead of ending the process."""
    native = _native()
    native.collect_faults(True)
    found: list[str] = []
    try:
        yield found
    finally:
        found.extend(native.take_faults())
        native.collect_faults(False)


def set_max_pitch(size: int) -> None:
    """The largest pitch of a copy of rows, in bytes."""
    _native().set_max_pitch(size)


@contextmanager
def cached_memory() -> Iterator[None]:
    """Inside, torch has all memory that it needs and asks CUDA for none, as after some steps on a GPU."""
    native = _native()
    native.set_cached(True)
    try:
        yield
    finally:
        native.set_cached(False)


def stream() -> Any:
    """A context with a new stream as the current one, as torch.cuda.stream() makes it; not the legacy stream."""
    return _native().OnNewStream()


class Graph:
    """Like ``torch.cuda.graph`` and ``torch.cuda.CUDAGraph``: captures what is done inside, on the current stream."""

    def __init__(self) -> None:
        self._graph = _native().Graph()

    def __enter__(self) -> "Graph":
        self._graph.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self._graph.end()

    def replay(self) -> None:
        """Does what was captured."""
        self._graph.replay()
