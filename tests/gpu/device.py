"""The device of the GPU tests and benchmarks: a GPU, or what stands in for it in a dry run.

Tests and benchmarks reach torch.cuda through DEVICE alone. In a dry run (`make gpu-check-dry`, by GPU_CHECK_DRY) it is
the CPU, whose tensors the emulated kernels reduce, so that every line but those of `Device` runs without a GPU.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
IS_DRY_RUN = bool(os.environ.get("GPU_CHECK_DRY"))


def note(kind: str, value: object) -> None:
    """Adds a line to what the check reports, if it is the check that runs."""
    if path := os.environ.get("GPU_CHECK_NOTES"):
        with Path(path).open("a") as file:
            file.write(json.dumps({kind: value}) + "\n")


@dataclass
class Graph:
    """What was captured. `output` is what the captured function returned, as the newest replay left it."""

    replay: Callable[[], None]
    output: Any


class Device:
    """A GPU."""

    name = "cuda"
    other_name = "cpu"  # a device whose tensors cannot be mixed with this one's
    nccl = "nccl"

    def lacks(self, what: str) -> bool:
        """Whether the device does not have this; then it is noted. Only in a dry run: see dry_run.NOT_EXECUTED."""
        return False

    def require(self, what: str) -> None:
        """Skips the test if the device lacks this."""

    def pick(self, on_gpu: T, dry: T) -> T:
        """A size, or a list of them: a dry run is about the lines, not about what large data shows."""
        return on_gpu

    def synchronize(self) -> None:
        """Waits for all that was enqueued."""
        torch.cuda.synchronize()

    def enter_rank(self) -> None:
        """Before a rank makes its group."""
        torch.cuda.set_device(0)

    # Streams.

    def busy(self, cycles: int) -> None:
        """Keeps the current stream busy for that many clock cycles."""
        torch.cuda._sleep(cycles)

    def stream(self) -> Any:
        """A new stream."""
        return torch.cuda.Stream()

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Makes a stream the current one."""
        return torch.cuda.stream(stream)

    @contextlib.contextmanager
    def on_side_stream(self) -> Iterator[None]:
        """A new stream, behind and before the current one: where torch wants the warm-up of a graph."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            yield
        current.wait_stream(side)

    def record(self) -> Any:
        """An event behind what is on the current stream; `query()` says whether that is done."""
        event = torch.cuda.Event()
        event.record()
        return event

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Whatever waits for the device is an error."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    # Graphs.

    def capturing(self) -> contextlib.AbstractContextManager[Any]:
        """What is enqueued inside goes into a graph and is not run."""
        return torch.cuda.graph(torch.cuda.CUDAGraph())

    def capture(self, function: Callable[[], Any]) -> Graph:
        """Captures what `function` enqueues. Nothing of it is run before the first replay."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = function()
        return Graph(graph.replay, output)

    # Memory and time.

    def allocations(self) -> int:
        """How often torch's allocator was asked so far."""
        return int(torch.cuda.memory_stats()["allocation.all.allocated"])

    def allocated_bytes(self) -> int:
        """The memory that tensors have now."""
        return int(torch.cuda.memory_allocated())

    def peak_bytes(self, function: Callable[[], Any]) -> int:
        """The most memory that tensors had while `function` ran."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())

    def kernel_launches(self) -> dict[str, int]:
        """Launches of each kernel of cuda/ so far, in this process. Only a dry run counts them; else it is empty."""
        return {}

    def kernel_microseconds(self, function: Callable[[], Any]) -> dict[str, float]:
        """Device time of what `function` enqueues, by name of the kernel or copy."""
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function()
            torch.cuda.synchronize()
        times: Counter[str] = Counter()
        for event in profile.key_averages():
            times[event.key] += event.device_time_total
        return dict(times)


def _device() -> Device:
    if IS_DRY_RUN:
        from tests.gpu.dry_run import DryDevice

        return DryDevice()
    return Device()


DEVICE = _device()
