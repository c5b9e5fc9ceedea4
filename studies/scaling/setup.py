"""The machine and the model."""

import math
from dataclasses import dataclass, replace

from scaling.device_path import LEAST_SKETCHES, MAX_OBJECTIVES, SHARD_ALIGNMENT, room, solve_takes_tail


def check(condition: bool, name: str, expected: str, given: object) -> None:
    """Raises ValueError with the argument's name."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {given!r}")


@dataclass(frozen=True)
class Group:
    """The ranks of a collective: `local` GPUs in each of `nodes` nodes, and the network cards that a GPU has."""

    nodes: int
    local: int
    nics_per_gpu: float

    @property
    def gpus(self) -> int:
        """Ranks of the group."""
        return self.nodes * self.local


@dataclass(frozen=True)
class Setup:
    """A machine and a model. Wrong values raise ValueError with the argument's name."""

    gpus: int
    gpus_per_node: int = 8
    nics_per_node: int = 8
    objectives: int = 8
    gradient_bytes: float = 2e9
    bucket_bytes: float = 25 * 2**20
    dtype_bytes: int = 2
    sketch_columns: int = 16384

    def __post_init__(self) -> None:
        for name in ("gpus", "gpus_per_node", "nics_per_node", "objectives", "sketch_columns"):
            value = getattr(self, name)
            check(isinstance(value, int) and not isinstance(value, bool), name, "an integer", value)
        check(self.gpus >= 2, "gpus", "at least 2", self.gpus)
        check(self.gpus_per_node >= 1, "gpus_per_node", "at least 1", self.gpus_per_node)
        whole = self.gpus <= self.gpus_per_node or self.gpus % self.gpus_per_node == 0
        check(whole, "gpus", f"at most one node's or a multiple of {self.gpus_per_node}", self.gpus)
        check(self.nics_per_node >= 1, "nics_per_node", "at least 1", self.nics_per_node)
        most = min(MAX_OBJECTIVES, self.gpus)
        check(1 <= self.objectives <= most, "objectives", f"from 1 to {most}", self.objectives)
        check(0 < self.gradient_bytes < math.inf, "gradient_bytes", "positive and finite", self.gradient_bytes)
        check(0 < self.bucket_bytes < math.inf, "bucket_bytes", "positive and finite", self.bucket_bytes)
        check(self.dtype_bytes in (2, 4, 8), "dtype_bytes", "2, 4 or 8", self.dtype_bytes)
        elements = int(self.bucket_bytes // self.dtype_bytes)
        columns = self.sketch_columns
        check(1 <= columns <= elements, "sketch_columns", f"from 1 to a bucket's {elements} elements", columns)

    @property
    def local(self) -> int:
        """GPUs of a node that take part."""
        return min(self.gpus, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        """Nodes that take part."""
        return self.gpus // self.local

    @property
    def world(self) -> Group:
        """All ranks."""
        return Group(self.nodes, self.local, self.nics_per_node / self.local)

    @property
    def node(self) -> Group:
        """The ranks of one node."""
        return replace(self.world, nodes=1)

    @property
    def across(self) -> Group:
        """One rank of every node. A node has as many such groups as GPUs, at work at the same time."""
        return replace(self.world, local=1)

    @property
    def rows(self) -> int:
        """Objectives for which the exact way makes room."""
        return room(self.objectives, self.gpus)

    @property
    def tail_bytes(self) -> int:
        """A bucket's rest, which is no shard's: less than 16 W bytes, on average half of them."""
        return SHARD_ALIGNMENT * self.gpus // 2

    @property
    def solve_takes_tail(self) -> bool:
        """Whether the solve forms the Gramian of that rest, which needs no kernel then."""
        return solve_takes_tail(self.rows, self.tail_bytes // self.dtype_bytes)

    @property
    def sketch_rows(self) -> int:
        """Objectives for which a sketch makes room: those of the first step, raised to a power of two."""
        return min(max(LEAST_SKETCHES, 1 << (self.objectives - 1).bit_length()), self.gpus)

    @property
    def sketch_bytes(self) -> int:
        """The sketches of a bucket, float32 but for float64: what is summed over the ranks."""
        return self.sketch_rows * self.sketch_columns * max(4, self.dtype_bytes)

    def buckets(self) -> list[tuple[int, float]]:
        """How many buckets of how many bytes a step has: full ones and a last one."""
        full, rest = divmod(self.gradient_bytes, self.bucket_bytes)
        return [(count, size) for count, size in ((int(full), self.bucket_bytes), (1, rest)) if count and size]
