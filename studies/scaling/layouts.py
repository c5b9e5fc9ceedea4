"""What a step of several passes costs in each layout of objectives, beside plain accumulation.

The tile of a bucket has a row for every objective and, of each row, the rank's shard: float32, float64 for float64.
Every pass adds its rows to it. A pass that leaves the step open hands back zeros; the one that closes it takes the
Gramian of the tile. A step of one pass needs no tile: it works on what the exchange brings.

What is counted here for several passes, and for the two-level layout, is a plan that is older than the device path,
which launches up to three kernels a pass more (cuda/operations.json: units of weights, the tail, a scaling). For one
pass in the layout "ranks" it is the device path as it is.

A reduction is an all-reduce (replicated gradients) or a reduce-scatter (sharded ones; in the two-level layout they are
sharded within the node and replicated over nodes, as HSDP has them). What it is compared with:

    all-reduce                 accumulation under no_sync(): one all-reduce a step
    reduce-scatter             FSDP and ZeRO: one reduce-scatter a pass
    reduce-scatter, two-level  HSDP that reduces over nodes in the last pass alone: one reduce-scatter within the node a
                               pass, one all-reduce of the shard over nodes a step (or its two halves, if NCCL is
                               faster at these)
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from scaling.constants import Constants
from scaling.cost import Cost
from scaling.device_path import ADD_KERNELS, EXACT_KERNELS, TAIL_COPIES, ZERO_FILLS, room, solve_takes_tail
from scaling.network import Network
from scaling.reductions import Reductions
from scaling.setup import Setup, check

OPERATIONS = ("all-reduce", "reduce-scatter")
LAYOUTS = ("ranks", "passes", "two-level")


@dataclass(frozen=True)
class Layout:
    """How rows get to the tile, and shards of the answer to where they are wanted."""

    name: str
    rows: int  # that a rank gets in a pass, a shard of each
    keepers: int  # ranks that a sharded gradient is spread over
    exchange: Callable[[float], Cost]
    gathers: dict[str, Callable[[float], Cost]]  # by operation; of a bucket's size


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank: the gradients that it keeps anyway, the tiles of all buckets, and what one bucket needs."""

    gradients: float
    tiles: float
    scratch: float

    @property
    def ratio(self) -> float:
        """All of it as a multiple of the gradients."""
        return (self.gradients + self.tiles + self.scratch) / self.gradients


def tile_bytes(size: float, rows: int, gpus: int, dtype_bytes: int) -> float:
    """`rows` rows of a rank's shard of `size` bytes, float32 (float64 for float64)."""
    return rows * size / gpus * max(4, dtype_bytes) / dtype_bytes


class Layouts:
    """Steps of `passes` passes. `summed`: partial Gramians are added by an all-reduce, not gathered."""

    def __init__(self, setup: Setup, passes: int = 1, summed: bool = False, constants: Constants | None = None) -> None:
        check(isinstance(passes, int) and passes >= 1, "passes", "an integer of at least 1", passes)
        self.setup = setup
        self.passes = passes
        self.summed = summed
        self.reductions = Reductions(setup, constants)
        self.world = self.reductions.network
        self.node = Network(setup.node, constants)
        self.across = Network(setup.across, constants)

    def layout(self, name: str) -> Layout | None:
        """One of LAYOUTS. The two-level one is for several nodes of several GPUs: None elsewhere."""
        check(name in LAYOUTS, "layout", f"one of {LAYOUTS}", name)
        setup, world, node, across = self.setup, self.world, self.node, self.across
        if name != "two-level":
            return Layout(
                name,
                rows=setup.gpus if name == "ranks" else 1,
                keepers=setup.gpus,
                exchange=world.all_to_all if name == "ranks" else world.reduce_scatter,
                gathers={
                    "all-reduce": lambda size: world.all_gather(size / setup.gpus),
                    "reduce-scatter": lambda size: Cost(),
                },
            )
        if setup.nodes == 1 or setup.local == 1:
            return None
        return Layout(
            name,
            rows=setup.nodes,
            keepers=setup.local,
            exchange=lambda size: node.reduce_scatter(size) + across.all_to_all(size / setup.local),
            gathers={
                "all-reduce": lambda size: across.all_gather(size / setup.gpus) + node.all_gather(size / setup.local),
                "reduce-scatter": lambda size: across.all_gather(size / setup.gpus),
            },
        )

    def objectives(self, layout: Layout) -> int:
        """Those of a step: the setup's, or as many as there are rows."""
        return min(self.setup.objectives, layout.rows * self.passes)

    def _rows_bytes(self, size: float, rows: int) -> float:
        return tile_bytes(size, rows, self.setup.gpus, self.setup.dtype_bytes)

    def _tile_bytes(self, layout: Layout, size: float) -> float:
        return self._rows_bytes(size, self.objectives(layout)) if self.passes > 1 else 0.0

    def _received_bytes(self, layout: Layout, size: float) -> float:
        return layout.rows * size / self.setup.gpus

    def _add(self, layout: Layout, size: float) -> Cost:
        """Adds a pass's rows to the tile's rows of their objectives."""
        met = min(layout.rows, self.objectives(layout))
        moved = self._received_bytes(layout, size) + 2 * self._rows_bytes(size, met)
        return self.reductions.memory(moved) + self.reductions.kernels(ADD_KERNELS)

    def open_pass(self, layout: Layout, operation: str, size: float) -> Cost:
        """Of a bucket, in a pass that leaves the step open."""
        handed_back = size if operation == "all-reduce" else size / layout.keepers
        zeros = self.reductions.memory(handed_back) + self.reductions.kernels(ZERO_FILLS)
        return layout.exchange(size) + self._add(layout, size) + zeros

    def _room(self, layout: Layout) -> int:
        return room(self.setup.objectives, layout.rows * self.passes)

    def _tail_elements(self, operation: str) -> int:
        """A bucket's average rest. What is reduce-scattered has none: frameworks pad it."""
        return self.setup.tail_bytes // self.setup.dtype_bytes if operation == "all-reduce" else 0

    def _message_bytes(self, layout: Layout, operation: str) -> float:
        """A partial Gramian and tails: own ones as wide as the tile, for every objective that the rank has had."""
        rows, tail = self._room(layout), self._tail_elements(operation)
        gramian = rows * (rows + 1) / 2 * 8
        wide = max(4, self.setup.dtype_bytes)
        if self.summed:
            return gramian + rows * tail * wide
        if self.passes == 1:
            return gramian + tail * self.setup.dtype_bytes
        return gramian + min(self.passes, self.objectives(layout)) * tail * wide

    def _messages(self, layout: Layout, operation: str) -> Cost:
        message = self._message_bytes(layout, operation)
        if self.summed:
            return self.world.all_reduce(message)[1] + self.reductions.memory(2 * message)
        return self.world.all_gather(message) + self.reductions.memory(2 * message * self.setup.gpus)

    def closing_pass(self, layout: Layout, operation: str, size: float) -> Cost:
        """Of a bucket, in the pass that closes the step."""
        reductions = self.reductions
        cost = layout.exchange(size)
        if self.passes > 1:
            cost += self._add(layout, size)
        rows = self._tile_bytes(layout, size) or self._received_bytes(layout, size)
        cost += reductions.memory(rows) + self._messages(layout, operation)
        cost += reductions.memory(rows + size / self.setup.gpus) + layout.gathers[operation](size)
        kernels = EXACT_KERNELS
        tail = self._tail_elements(operation)
        if tail:
            kernels += TAIL_COPIES + (not solve_takes_tail(self._room(layout), tail))
        return cost + reductions.kernels(kernels, solves=1)

    def bucket(self, layout: Layout, operation: str, size: float) -> Cost:
        """All passes of a step over one bucket."""
        check(operation in OPERATIONS, "operation", f"one of {OPERATIONS}", operation)
        open_passes = self.open_pass(layout, operation, size) * (self.passes - 1)
        return open_passes + self.closing_pass(layout, operation, size)

    def step(self, layout: Layout, operation: str) -> Cost:
        """All buckets of a step; every pass begins with the ranks' records."""
        records = self.reductions.records() * self.passes
        return self.reductions.step(lambda size: self.bucket(layout, operation, size), records)

    def reference_bucket(self, layout: Layout, operation: str, size: float) -> Cost:
        """Plain accumulation over one bucket."""
        if operation == "all-reduce":
            return self.reductions.plain(size)
        if layout.name != "two-level":
            return self.world.reduce_scatter(size) * self.passes
        shard = size / self.setup.local
        over_nodes = self.across.all_reduce(shard)[1]
        in_halves = self.across.reduce_scatter(shard) + self.across.all_gather(shard / self.setup.nodes)
        over_nodes = min(over_nodes, in_halves, key=lambda cost: cost.total_us)
        return self.node.reduce_scatter(size) * self.passes + over_nodes

    def reference(self, layout: Layout, operation: str) -> Cost:
        """Plain accumulation over all buckets of a step."""
        return self.reductions.step(lambda size: self.reference_bucket(layout, operation, size))

    def memory(self, layout: Layout, operation: str) -> Memory:
        """What a rank holds."""
        setup = self.setup
        size = min(setup.bucket_bytes, setup.gradient_bytes)
        received = self._received_bytes(layout, size)
        if layout.name == "ranks":
            received -= size / setup.gpus  # the own row is read where it lies
        if layout.name == "two-level":
            received += (
                size / setup.local - size / setup.gpus
            )  # and what is reduced within the node, of which one is own
        messages = self._message_bytes(layout, operation) * (1 if self.summed else setup.gpus)
        kept = setup.gradient_bytes / (1 if operation == "all-reduce" else layout.keepers)
        return Memory(kept, self._tile_bytes(layout, setup.gradient_bytes), received + messages)


def cases(layouts: Layouts) -> Iterator[tuple[Layout, str]]:
    """Every layout that there is, with both operations."""
    for operation in OPERATIONS:
        for name in LAYOUTS:
            layout = layouts.layout(name)
            if layout is not None:
                yield layout, operation


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def layout_row(layouts: Layouts) -> dict[str, Any]:
    """Steps in all layouts, their references, and one as a multiple of the other."""
    rows: dict[str, Any] = {}
    for layout, operation in cases(layouts):
        cost, reference = layouts.step(layout, operation), layouts.reference(layout, operation)
        memory = layouts.memory(layout, operation)
        size = layouts.setup.bucket_bytes
        rows[f"{operation}, {layout.name}"] = {
            "objectives": layouts.objectives(layout),
            "ms": cost.total_us / 1e3,
            "reference_ms": reference.total_us / 1e3,
            "time_ratio": cost.total_us / reference.total_us,
            "nic_bytes": cost.nic_bytes,
            "nic_ratio": _ratio(cost.nic_bytes, reference.nic_bytes),
            "nvlink_bytes": cost.nvlink_bytes,
            "nvlink_ratio": _ratio(cost.nvlink_bytes, reference.nvlink_bytes),
            "bucket_launches": layouts.bucket(layout, operation, size).launches,
            "reference_bucket_launches": layouts.reference_bucket(layout, operation, size).launches,
            "memory": asdict(memory),
            "memory_ratio": memory.ratio,
        }
    setup = layouts.setup
    return {"gpus": setup.gpus, "nics_per_node": setup.nics_per_node, "passes": layouts.passes, "layouts": rows}
