"""What each way of reducing a bucket costs in a step of one pass."""

from collections.abc import Callable
from dataclasses import replace

from scaling.constants import Constants
from scaling.cost import Cost
from scaling.device_path import (
    EXACT_KERNELS,
    GATHER_KERNELS,
    RECORD_BYTES,
    RECORD_KERNELS,
    SCALE_KERNELS,
    SKETCH_KERNELS,
    SKETCHED_SOLVE_KERNELS,
    TAIL_COPIES,
)
from scaling.network import Network
from scaling.setup import Setup, check


class Reductions:
    """What each way of reducing a bucket, and all of a step's buckets, costs."""

    def __init__(self, setup: Setup, constants: Constants | None = None) -> None:
        self.setup = setup
        self.network = Network(setup.world, constants)
        self.constants = self.network.constants

    def memory(self, size: float) -> Cost:
        """Bytes read or written in a GPU's memory."""
        speed = self.constants.hbm.value * self.constants.hbm_share.value
        return Cost(hbm_bytes=size, hbm_us=size / speed / 1e3)

    def kernels(self, count: int, solves: int = 0) -> Cost:
        """The times of kernels that their bytes do not explain; a solve is a kernel beside `count`."""
        times = count * self.constants.kernel.value + solves * self.constants.solve.value
        return Cost(fixed_us=times, launches=count + solves)

    def late(self, cost: Cost) -> Cost:
        """The same work when nothing waits for it: its bytes keep links and memory busy, latencies do not count."""
        busy = self.network.wire_us(cost.nvlink_bytes, cost.nic_bytes)
        return replace(cost, latency_us=0.0, wire_us=busy, fixed_us=0.0)

    def plain(self, size: float) -> Cost:
        """An ordinary all-reduce."""
        return self.network.all_reduce(size)[1]

    def exact(self, size: float) -> Cost:
        """The device path as it is, with a bucket's average rest."""
        world, rows = self.setup.gpus, self.setup.rows
        partial = rows * (rows + 1) / 2 * 8 + self.setup.tail_bytes
        cost = self.network.all_to_all(size) + self.memory(size)
        cost += self.network.all_gather(partial) + self.memory(2 * partial * world)
        cost += self.memory(size + size / world) + self.network.all_gather(size / world)
        return cost + self.kernels(EXACT_KERNELS + TAIL_COPIES + (not self.setup.solve_takes_tail), solves=1)

    def sketching(self, size: float) -> Cost:
        """The sketch of a bucket."""
        return self.memory(size + self.setup.sketch_bytes) + self.kernels(SKETCH_KERNELS)

    def sketched_solve(self) -> Cost:
        """From the sketches to the weights."""
        sketches = self.setup.sketch_bytes
        cost = self.network.all_reduce(sketches)[1] + self.memory(sketches)
        return cost + self.kernels(SKETCHED_SOLVE_KERNELS, solves=1)

    def weighted_sum(self, size: float, sharded: bool = False) -> Cost:
        """A kernel that scales 16-bit gradients, and an ordinary sum; others are scaled in a pre-multiplied sum."""
        scaling = self.kernels(SCALE_KERNELS)
        if self.setup.dtype_bytes == 2:
            scaling += self.memory(2 * size)
        if sharded:  # by ring, which takes a pre-multiplied sum as well
            return scaling + self.network.reduce_scatter(size)
        algorithms = Network.ALL_REDUCES if self.setup.dtype_bytes == 2 else Network.PREMULTIPLIED
        return scaling + self.network.all_reduce(size, algorithms)[1]

    def sketch(self, size: float, lag: int = 0, refresh_every: int = 1, sharded: bool = False) -> Cost:
        """Weights by a sketch of this step's gradients, or of those of the step before, every so many steps.

        `sharded`: the weighted sum is a reduce-scatter.
        """
        check(lag in (0, 1), "lag", "0 or 1", lag)
        check(isinstance(refresh_every, int) and refresh_every >= 1, "refresh_every", "at least 1", refresh_every)
        solve = self.late(self.sketched_solve()) if lag else self.sketched_solve()
        return (self.sketching(size) + solve) * (1 / refresh_every) + self.weighted_sum(size, sharded)

    def all_gather(self, size: float) -> Cost:
        """Every rank gets every gradient, and reads all of them twice."""
        world = self.setup.gpus
        return self.network.all_gather(size) + self.memory((2 * world + 1) * size) + self.kernels(GATHER_KERNELS, 1)

    def records(self) -> Cost:
        """Which objectives a step has."""
        return self.network.all_gather(RECORD_BYTES) + self.kernels(RECORD_KERNELS)

    def step(self, way: Callable[[float], Cost], once: Cost | None = None) -> Cost:
        """All buckets of a step, and what it has once."""
        cost = once or Cost()
        for count, size in self.setup.buckets():
            cost += way(size) * count
        return cost

    def steps(self) -> dict[str, Cost]:
        """A step of every way."""
        records = self.records()
        return {
            "plain": self.step(self.plain),
            "exact": self.step(self.exact, records),
            "sketch": self.step(self.sketch, records),
            "sketch, lag 1": self.step(lambda size: self.sketch(size, lag=1), records),
            "sketch, lag 1, every 4": self.step(lambda size: self.sketch(size, 1, 4), records),
            "all_gather": self.step(self.all_gather, records),
        }
