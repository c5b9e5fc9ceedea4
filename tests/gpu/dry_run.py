"""What stands in for a GPU in a dry run, and what it cannot stand in for."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.device import Device, Graph, T, note
from tests.support import emulated_kernels

# What a dry run does not execute, and why: all of it, so that a run which leaves out anything else fails.
NOT_EXECUTED: dict[str, str] = json.loads(Path(__file__).with_name("not_executed.json").read_text())

SKIPPED = "dry run"  # how the reason begins for which a test is skipped that is not executed


def leave_out(what: str) -> None:
    """Notes something that is not executed.

    Raises:
        KeyError: It is not in the list.
    """
    assert NOT_EXECUTED[what]
    note("not executed", what)


class _Stream:
    """Of a device that does everything at once."""

    def wait_stream(self, other: "_Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Event:
    def query(self) -> bool:
        return False  # as one that is recorded behind Device.busy()


class DryDevice(Device):
    """The CPU, in the build with emulated CUDA kernels."""

    name = "cpu"
    other_name = "meta"
    nccl = "gloo"

    def __init__(self) -> None:
        if not emulated_kernels.are_used():
            raise RuntimeError("a dry run needs the build with emulated CUDA kernels: make gpu-check-dry")

    def lacks(self, what: str) -> bool:
        leave_out(what)
        return True

    def require(self, what: str) -> None:
        leave_out(what)
        pytest.skip(f"{SKIPPED}: {what}")

    def pick(self, on_gpu: T, dry: T) -> T:
        return dry

    def synchronize(self) -> None:
        pass

    def enter_rank(self) -> None:
        pass

    def busy(self, cycles: int) -> None:
        pass

    def stream(self) -> Any:
        leave_out("streams")
        return _Stream()

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def on_side_stream(self) -> Iterator[None]:
        leave_out("streams")
        yield

    def record(self) -> Any:
        return _Event()

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        leave_out("waiting")
        yield

    def capturing(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def capture(self, function: Callable[[], Any]) -> Graph:
        leave_out("graphs")
        graph = Graph(lambda: None, None)

        def replay() -> None:
            graph.output = function()

        graph.replay = replay
        return graph

    def allocations(self) -> int:
        leave_out("memory statistics")
        return 0

    def allocated_bytes(self) -> int:
        leave_out("memory statistics")
        return 0

    def peak_bytes(self, function: Callable[[], Any]) -> int:
        leave_out("memory statistics")
        function()
        return 0

    def kernel_launches(self) -> dict[str, int]:
        return emulated_kernels.launches()

    def kernel_microseconds(self, function: Callable[[], Any]) -> dict[str, float]:
        leave_out("profiler")
        before = emulated_kernels.launches()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            function()
        after = emulated_kernels.launches()
        times = {name: float(count - before[name]) for name, count in after.items() if count > before[name]}
        copies = sum(event.count for event in profile.key_averages() if event.key == "aten::copy_")
        return times | ({"copy": float(copies)} if copies else {})
