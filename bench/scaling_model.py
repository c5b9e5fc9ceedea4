"""An analytic model of what a step's reductions cost from 8 to 1024 GPUs. Nothing here is a measurement.

    python bench/scaling_model.py                          # the tables
    python bench/scaling_model.py --plot figure.png        # matplotlib is needed for this alone
    python bench/scaling_model.py --bucket-mb 200 --nics 8 4 1

This project has not run on a GPU. The model adds up latencies, bytes over NVLink, bytes over network cards (NICs) and
passes over memory, with constants that are public figures for H100 nodes or estimates that are called so (`Constants`).

Compared per bucket and per step:

    plain       DDP's all-reduce, by the fastest of `Network.ALL_REDUCES`
    exact       all-to-all, partial Gramian, all-gather of partial Gramians, solve, combination, all-gather of shards
    sketch      sketch, all-reduce of the sketches, solve, scaling, all-reduce of the bucket. With lag 1 the weights
                are those of the step before: all-reduces of the sketches and solves come after the step's last bucket,
                and their latency is taken to be over before the next step's first bucket is ready
    all_gather  every rank gets every gradient

Assumptions: a bucket's stages and the buckets follow each other, on one stream; within a collective NVLink and NICs
work at the same time and the slower one counts; every collective reaches the bandwidth of large messages once its
latency is over; the ranks of a node are neighbours.

Left out: any other overlap with the backward pass, congestion and oversubscription of the fabric, stragglers, SHARP in
network switches, NCCL's use of SMs beside kernels, DDP's copies into buckets and its first small bucket, the first
step.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

NCCL = "NCCL 2.30.7 src/graph/tuning.cc (github.com/NVIDIA/nccl, 5067397)"
ESTIMATE = "ESTIMATE: "


@dataclass(frozen=True)
class Constant:
    """A number, its unit and where it is from. A source that begins with ESTIMATE is nobody's but ours."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Constants:
    """Everything that the model takes from outside."""

    hbm: Constant = Constant(3350, "GB/s", "HBM3, NVIDIA H100 SXM datasheet (nvidia.com/en-us/data-center/h100)")
    hbm_share: Constant = Constant(0.9, "of hbm", ESTIMATE + "what a kernel that streams gets; target in docs/gpu.md")
    nvlink: Constant = Constant(
        370, "GB/s", "achieved by NCCL of 450 GB/s a direction (datasheet: 900 both); NVIDIA in nccl-tests issue 212"
    )
    nvls: Constant = Constant(
        275, "GB/s", "bytes of a bucket over time, NVLS all-reduce of 8 GPUs (bus bandwidth 480); nccl-tests issue 212"
    )
    nic: Constant = Constant(
        48,
        "GB/s",
        "achieved of 50 GB/s (ConnectX-7, 400 Gb/s); NVIDIA in nccl-tests issues 267 (48-49) and 290 (46-48)",
    )
    ring_base_simple: Constant = Constant(8.4, "us", f"{NCCL}: baseLatencies, ring, Simple")
    ring_base_ll128: Constant = Constant(14.0, "us", f"{NCCL}: baseLatencies, ring, LL128")
    ring_base_ll: Constant = Constant(6.6, "us", f"{NCCL}: baseLatencies, ring, LL")
    ring_nvlink_simple: Constant = Constant(3.4, "us", f"{NCCL}: hwLatencies, NVLINK, ring, Simple")
    ring_nvlink_ll128: Constant = Constant(1.9, "us", f"{NCCL}: hwLatencies, NVLINK, ring, LL128")
    ring_nvlink_ll: Constant = Constant(0.6, "us", f"{NCCL}: hwLatencies, NVLINK, ring, LL")
    ring_net_simple: Constant = Constant(14.0, "us", f"{NCCL}: hwLatencies, NET, ring, Simple")
    ring_net_ll128: Constant = Constant(4.0, "us", f"{NCCL}: hwLatencies, NET, ring, LL128")
    ring_net_ll: Constant = Constant(2.7, "us", f"{NCCL}: hwLatencies, NET, ring, LL")
    ring_share_ll128: Constant = Constant(0.92, "of Simple", f"{NCCL}: bandwidth of ring, LL128")
    ring_share_ll: Constant = Constant(0.5, "of Simple", f"{NCCL}: bandwidth of ring, LL")
    ring_plateau: Constant = Constant(1.4, "factor", f"{NCCL}: latency of all-reduce by ring, Simple, several nodes")
    tree_base_simple: Constant = Constant(8.4, "us", f"{NCCL}: baseLatencies, tree, Simple")
    tree_base_ll128: Constant = Constant(14.0, "us", f"{NCCL}: baseLatencies, tree, LL128")
    tree_base_ll: Constant = Constant(6.8, "us", f"{NCCL}: baseLatencies, tree, LL")
    tree_nvlink_simple: Constant = Constant(4.0, "us", f"{NCCL}: hwLatencies, NVLINK, tree, Simple")
    tree_nvlink_ll128: Constant = Constant(1.25, "us", f"{NCCL}: hwLatencies, NVLINK, tree, LL128")
    tree_nvlink_ll: Constant = Constant(0.6, "us", f"{NCCL}: hwLatencies, NVLINK, tree, LL")
    tree_net_simple: Constant = Constant(14.0, "us", f"{NCCL}: hwLatencies, NET, tree, Simple")
    tree_net_ll128: Constant = Constant(8.5, "us", f"{NCCL}: hwLatencies, NET, tree, LL128")
    tree_net_ll: Constant = Constant(5.0, "us", f"{NCCL}: hwLatencies, NET, tree, LL")
    tree_share_simple: Constant = Constant(0.92, "of ring Simple", f"{NCCL}: bandwidth of tree")
    tree_share_ll128: Constant = Constant(0.92 * 120 / 128, "of ring Simple", f"{NCCL}: bandwidth of tree, LL128")
    tree_share_ll128_one_node: Constant = Constant(0.92 * 7 / 9, "of ring Simple", f"{NCCL}: tree, LL128, 1 node")
    tree_share_ll: Constant = Constant(0.92 / 3.8, "of ring Simple", f"{NCCL}: bandwidth of tree, LL")
    ll_one_node: Constant = Constant(141, "GB/s", f"{NCCL}: llMaxBws, Hopper, 1 node (bus bandwidth)")
    ll_two_nodes: Constant = Constant(39, "GB/s", f"{NCCL}: llMaxBws, Intel, 2 nodes (bus bandwidth)")
    ll_more_nodes: Constant = Constant(20.4, "GB/s", f"{NCCL}: llMaxBws, Intel, 4 nodes (bus bandwidth)")
    nvls_nvlink: Constant = Constant(25, "us", f"{NCCL}: hwLatencies, NVLINK, NVLS and NVLSTree")
    nvls_tree_net: Constant = Constant(20.9, "us", f"{NCCL}: hwLatencies, NET, NVLSTree, a level of the tree")
    net_post: Constant = Constant(1.0, "us", f"{NCCL}: getNetOverhead, Intel (AMD: 2); three for a step of Simple")
    kernel: Constant = Constant(2.0, "us", ESTIMATE + "from one kernel on a stream to the next, without its bytes")
    solve: Constant = Constant(15.0, "us", ESTIMATE + "MGDA, K = 8; the target in docs/gpu.md, not measured")


PROTOCOLS = ("simple", "ll128", "ll")
# What a tree reaches of its bandwidth at 64 bytes, 128 bytes, ... (NCCL's treeCorrectionFactor); all of it beyond.
TREE_SHARES = {
    "ll": (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "ll128": (1, 1, 1, 1, 1, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9),
    "simple": (0.9,) * 7 + (0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9, 0.9),
}
# Rows for which cpp/collective/device_step.cpp makes room.
FEW_OBJECTIVES, ROOM, MAX_OBJECTIVES = 8, 16, 64
LEAST_SKETCHES = 4
RECORD_BYTES = 96  # objective, weight and call of a rank, once a step
SHARD_ALIGNMENT = 16  # bytes: kShardAlignment of cpp/collective/shard_layout.hpp
# A tail of which a thread would form more products than this has a Gramian's kernel: longest_tail() of cuda/solve.cu.
SOLVE_THREADS, SOLVE_PRODUCTS = 256, 256
# Kernels as cuda/operations.json counts them, without the solve, whose time is a constant of its own. The solve adds up
# the ranks' messages. Weights are kept by the solve and used by what scales: neither takes a kernel.
RECORD_KERNELS = 2  # record, table
EXACT_KERNELS = 2  # Gramian, combination of shard and tail
TAIL_COPIES = 1  # into the message; taken to cost what a kernel does
SKETCH_KERNELS = 2  # sketches of parts, their sum
SKETCHED_SOLVE_KERNELS = 1  # Gramian
SCALE_KERNELS = 1  # of the bucket, or of the factor of a pre-multiplied sum
GATHER_KERNELS = 2  # Gramian, combination
DEFAULT_GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


def _check(condition: bool, name: str, expected: str, given: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {given!r}")


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
            _check(isinstance(value, int) and not isinstance(value, bool), name, "an integer", value)
        _check(self.gpus >= 2, "gpus", "at least 2", self.gpus)
        _check(self.gpus_per_node >= 1, "gpus_per_node", "at least 1", self.gpus_per_node)
        whole = self.gpus <= self.gpus_per_node or self.gpus % self.gpus_per_node == 0
        _check(whole, "gpus", f"at most one node's or a multiple of {self.gpus_per_node}", self.gpus)
        _check(self.nics_per_node >= 1, "nics_per_node", "at least 1", self.nics_per_node)
        most = min(MAX_OBJECTIVES, self.gpus)
        _check(1 <= self.objectives <= most, "objectives", f"from 1 to {most}", self.objectives)
        _check(0 < self.gradient_bytes < math.inf, "gradient_bytes", "positive and finite", self.gradient_bytes)
        _check(0 < self.bucket_bytes < math.inf, "bucket_bytes", "positive and finite", self.bucket_bytes)
        _check(self.dtype_bytes in (2, 4, 8), "dtype_bytes", "2, 4 or 8", self.dtype_bytes)
        elements = int(self.bucket_bytes // self.dtype_bytes)
        columns = self.sketch_columns
        _check(1 <= columns <= elements, "sketch_columns", f"from 1 to a bucket's {elements} elements", columns)

    @property
    def local(self) -> int:
        """GPUs of a node that take part."""
        return min(self.gpus, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        """Nodes that take part."""
        return self.gpus // self.local

    @property
    def rows(self) -> int:
        """Objectives for which the exact way makes room, since the host does not learn a later step's number."""
        return min(ROOM if self.objectives <= FEW_OBJECTIVES else MAX_OBJECTIVES, self.gpus)

    @property
    def tail_bytes(self) -> int:
        """A bucket's rest, which is no shard's: less than 16 W bytes, on average half of them."""
        return SHARD_ALIGNMENT * self.gpus // 2

    @property
    def solve_takes_tail(self) -> bool:
        """Whether the solve forms the Gramian of that rest, which needs no kernel then."""
        of_a_thread = math.ceil(self.rows * (self.rows + 1) // 2 / SOLVE_THREADS)
        return self.tail_bytes // self.dtype_bytes <= SOLVE_PRODUCTS // of_a_thread

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


@dataclass(frozen=True)
class Cost:
    """What one GPU sends, what it moves in memory, and how many microseconds that takes."""

    nvlink_bytes: float = 0.0
    nic_bytes: float = 0.0
    hbm_bytes: float = 0.0
    latency_us: float = 0.0  # of collectives
    wire_us: float = 0.0
    hbm_us: float = 0.0
    fixed_us: float = 0.0  # kernels that are waited for, and solves

    @property
    def total_us(self) -> float:
        """All of it, one after another."""
        return self.latency_us + self.wire_us + self.hbm_us + self.fixed_us

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(getattr(self, f.name) * factor for f in fields(Cost)))


class Network:
    """What collectives cost. Bytes are those that one GPU sends, or an even share of what its node sends."""

    def __init__(self, setup: Setup, constants: Constants | None = None) -> None:
        self.setup = setup
        self.constants = constants or Constants()

    def _value(self, name: str) -> float:
        return float(getattr(self.constants, name).value)

    def _levels(self) -> int:
        return math.ceil(math.log2(self.setup.nodes))

    def wire_us(self, nvlink_bytes: float, nic_bytes: float, share: float = 1.0) -> float:
        """The slower of the two ways out of a GPU; the NICs of a node belong to all of its GPUs."""
        setup = self.setup
        nic = self._value("nic") * setup.nics_per_node / setup.local
        return max(nvlink_bytes / self._value("nvlink"), nic_bytes / nic) / share / 1e3

    def _ll_us(self, bus_bytes: float, protocol: str) -> float:
        """NCCL's bound on the bus bandwidth of protocol LL."""
        if protocol != "ll":
            return 0.0
        name = {1: "ll_one_node", 2: "ll_two_nodes"}.get(self.setup.nodes, "ll_more_nodes")
        return bus_bytes / self._value(name) / 1e3

    def _ring_step_us(self, protocol: str) -> float:
        """A step within a node, which over several nodes takes no less than the posting of network messages."""
        step = self._value(f"ring_nvlink_{protocol}")
        if self.setup.nodes == 1:
            return step
        return max(step, self._value("net_post") * (3 if protocol == "simple" else 1))

    def _ring(self, bus_bytes: float, turns: int, protocol: str) -> Cost:
        """A ring through all ranks, of `turns` rounds, that moves bus_bytes out of every rank.

        Each of NCCL's channels leaves the node at another GPU, so that all NICs share what leaves the node.
        """
        setup = self.setup
        nodes, local = setup.nodes, setup.local
        nic = bus_bytes / local if nodes > 1 else 0.0
        nvlink = bus_bytes - nic
        steps, between = turns * (setup.gpus - 1), turns * (nodes - 1)
        latency = (steps - between) * self._ring_step_us(protocol) + between * self._value(f"ring_net_{protocol}")
        latency += self._value(f"ring_base_{protocol}")
        if turns == 2 and protocol == "simple" and nodes > 1:
            latency *= self._value("ring_plateau")
        share = 1.0 if protocol == "simple" else self._value(f"ring_share_{protocol}")
        wire = max(self.wire_us(nvlink, nic, share), self._ll_us(bus_bytes, protocol))
        return Cost(nvlink, nic, 0.0, latency, wire)

    @staticmethod
    def _fastest(costs: Iterable[Cost]) -> Cost:
        return min(costs, key=lambda cost: cost.total_us)

    def ring(self, size: float) -> Cost:
        """All-reduce by a ring through all ranks."""
        bus = 2 * size * (self.setup.gpus - 1) / self.setup.gpus
        return self._fastest(self._ring(bus, 2, protocol) for protocol in PROTOCOLS)

    def _tree_nic_bytes(self, size: float) -> float:
        """Of the busiest node in a double binary tree, a GPU's share: up and down once each; with two nodes, half."""
        nodes, local = self.setup.nodes, self.setup.local
        return {1: 0.0, 2: size / local}.get(nodes, 2 * size / local)

    @staticmethod
    def _tree_share(size: float, protocol: str) -> float:
        shares = TREE_SHARES[protocol]
        doublings = max(int(math.log2(max(size, 64) / 64)), 0)
        return shares[doublings] if doublings < len(shares) else 1.0

    def tree(self, size: float) -> Cost:
        """All-reduce by a double binary tree over the nodes and a chain in each."""
        local = self.setup.local
        nvlink, nic = 2 * size * (local - 1) / local, self._tree_nic_bytes(size)
        costs = []
        for protocol in PROTOCOLS:
            latency = (local - 1) * self._value(f"tree_nvlink_{protocol}")
            latency += self._levels() * self._value(f"tree_net_{protocol}")
            latency = self._value(f"tree_base_{protocol}") + 2 * latency
            one_node = "_one_node" if protocol == "ll128" and self.setup.nodes == 1 else ""
            share = self._value(f"tree_share_{protocol}{one_node}") * self._tree_share(size, protocol)
            wire = max(self.wire_us(nvlink, nic, share), self._ll_us(2 * size, protocol))
            costs.append(Cost(nvlink, nic, 0.0, latency, wire))
        return self._fastest(costs)

    def _nvls_us(self, size: float) -> float:
        """NVLink SHARP sends size (1 + 1/g) out of each of g GPUs; the constant is for 8."""
        return size / self._value("nvls") * (1 + 1 / self.setup.local) / (1 + 1 / 8) / 1e3

    def nvls(self, size: float) -> Cost | None:
        """All-reduce in the switches of one node."""
        if self.setup.nodes > 1:
            return None
        nvlink = size * (1 + 1 / self.setup.local)
        return Cost(nvlink, 0.0, 0.0, self._value("nvls_nvlink"), self._nvls_us(size))

    def hierarchical_tree(self, size: float) -> Cost | None:
        """Reduce-scatter in the node's switches, a tree over the nodes on every NIC, multicast: NCCL's NVLSTree."""
        if self.setup.nodes == 1 or self.setup.local == 1:
            return None
        nvlink, nic = size * (1 + 1 / self.setup.local), self._tree_nic_bytes(size)
        latency = self._value("nvls_nvlink") + 2 * self._levels() * self._value("nvls_tree_net")
        return Cost(nvlink, nic, 0.0, latency, max(self._nvls_us(size), self.wire_us(0.0, nic)))

    def hierarchical_ring(self, size: float) -> Cost | None:
        """Reduce-scatter in the node, rings over the nodes on every NIC, all-gather in the node, pipelined.

        NCCL has no such algorithm. It is here so that plain all-reduce gets what the network permits.
        """
        nodes, local = self.setup.nodes, self.setup.local
        if nodes == 1 or local == 1:
            return None
        nvlink = 2 * size * (local - 1) / local
        nic = 2 * size * (nodes - 1) / nodes / local
        latency = self._value("ring_base_simple") + 2 * (local - 1) * self._value("ring_nvlink_simple")
        latency += 2 * (nodes - 1) * self._value("ring_net_simple")
        return Cost(nvlink, nic, 0.0, latency, self.wire_us(nvlink, nic))

    ALL_REDUCES = ("ring", "tree", "nvls", "hierarchical_tree", "hierarchical_ring")
    # NCCL's ncclNvlsSupported (src/include/device.h) has no pre-multiplied sum: that leaves NVLS and NVLSTree out.
    PREMULTIPLIED = ("ring", "tree")

    def all_reduce(self, size: float, algorithms: tuple[str, ...] = ALL_REDUCES) -> tuple[str, Cost]:
        """The fastest all-reduce of `size` bytes, with its name."""
        costs: dict[str, Cost | None] = {name: getattr(self, name)(size) for name in algorithms}
        found = {name: cost for name, cost in costs.items() if cost is not None}
        name = min(found, key=lambda name: found[name].total_us)
        return name, found[name]

    def all_gather(self, block: float) -> Cost:
        """Every rank gets the other ranks' `block` bytes, by ring.

        NCCL has NVLS for it within a node, which it likes less (nccl issue 1670), and over several nodes of several
        GPUs only with SHARP in the network; PAT is for one GPU a node.
        """
        bus = block * (self.setup.gpus - 1)
        return self._fastest(self._ring(bus, 1, protocol) for protocol in PROTOCOLS)

    def all_to_all(self, size: float) -> Cost:
        """Every rank sends 1/W of `size` to every other rank; nothing can be added up in the node on the way."""
        setup = self.setup
        nvlink = size * (setup.local - 1) / setup.gpus
        nic = size * (setup.gpus - setup.local) / setup.gpus
        latency = self._value("ring_base_simple") + self._value("ring_nvlink_simple")
        if setup.nodes > 1:
            latency += self._value("ring_net_simple") + (setup.gpus - setup.local) * self._value("net_post")
        return Cost(nvlink, nic, 0.0, latency, self.wire_us(nvlink, nic))


class Reductions:
    """What each way of reducing a bucket, and all of a step's buckets, costs."""

    def __init__(self, setup: Setup, constants: Constants | None = None) -> None:
        self.setup = setup
        self.network = Network(setup, constants)
        self.constants = self.network.constants

    def memory(self, size: float) -> Cost:
        """Bytes read or written in a GPU's memory."""
        speed = self.constants.hbm.value * self.constants.hbm_share.value
        return Cost(hbm_bytes=size, hbm_us=size / speed / 1e3)

    def kernels(self, count: int, solves: int = 0) -> Cost:
        """The times of kernels that their bytes do not explain; a solve is a kernel beside `count`."""
        return Cost(fixed_us=count * self.constants.kernel.value + solves * self.constants.solve.value)

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

    def weighted_sum(self, size: float) -> Cost:
        """A kernel that scales 16-bit gradients, and an ordinary sum; others are scaled in a pre-multiplied sum."""
        if self.setup.dtype_bytes == 2:
            return self.kernels(SCALE_KERNELS) + self.memory(2 * size) + self.plain(size)
        return self.kernels(SCALE_KERNELS) + self.network.all_reduce(size, Network.PREMULTIPLIED)[1]

    def sketch(self, size: float, lag: int = 0, refresh_every: int = 1) -> Cost:
        """Weights by a sketch of this step's gradients, or of those of the step before, every so many steps."""
        _check(lag in (0, 1), "lag", "0 or 1", lag)
        _check(isinstance(refresh_every, int) and refresh_every >= 1, "refresh_every", "at least 1", refresh_every)
        solve = self.late(self.sketched_solve()) if lag else self.sketched_solve()
        return (self.sketching(size) + solve) * (1 / refresh_every) + self.weighted_sum(size)

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


def busbw(kind: str, gpus: int, size: float, algorithms: tuple[str, ...] = Network.ALL_REDUCES, **setup: int) -> float:
    """GB/s of bus bandwidth, as nccl-tests reports them, that the model gives for one collective."""
    network = Network(Setup(gpus, **setup))
    share = (gpus - 1) / gpus
    if kind == "all_reduce":
        return 2 * share * size / network.all_reduce(size, algorithms)[1].total_us / 1e3
    cost = network.all_to_all(size) if kind == "all_to_all" else network.all_gather(size / gpus)
    return share * size / cost.total_us / 1e3


# collective, GPUs, bytes, algorithms, reported bus bandwidth in GB/s, what and where
PUBLIC_FIGURES: tuple[tuple[str, int, float, tuple[str, ...], float, str], ...] = (
    ("all_reduce", 8, 8 * 2**30, Network.ALL_REDUCES, 479, "8 H100; nccl-tests issue 347"),
    ("all_reduce", 16, 8 * 2**30, Network.ALL_REDUCES, 430, "2 x 8 H100, 8 x 400 Gb/s; nccl issue 1221"),
    ("all_reduce", 16, 8 * 2**30, ("ring", "tree"), 330, "the same without NVLS; nccl issue 1221"),
    ("all_reduce", 32, 8 * 2**30, Network.ALL_REDUCES, 320, "4 x 8 H100, 8 x 400 Gb/s; nccl issue 1221"),
    ("all_reduce", 128, 64 * 2**20, Network.ALL_REDUCES, 150, "16 nodes of H100, its good runs; nccl issue 1469"),
    ("all_reduce", 1984, 512 * 2**20, Network.ALL_REDUCES, 350, "248 x 8 H200; nccl-tests issue 283"),
    ("all_to_all", 64, 8 * 2**20, (), 28.4 * 63 / 64, "8 x 8 H800; nccl issue 1531"),
    ("all_gather", 256, 2 * 2**30, (), 200, "32 x 8 H100, 8 x 400 Gb/s, reported as low; nccl issue 1218"),
)


def public_rows() -> list[dict[str, Any]]:
    """Figures that others measured, beside the model's. The first one is where a constant is from."""
    rows = []
    for kind, gpus, size, algorithms, reported, source in PUBLIC_FIGURES:
        model = busbw(kind, gpus, size, algorithms)
        rows.append(
            {"collective": kind, "gpus": gpus, "bytes": size, "reported": reported, "model": model, "source": source}
        )
    return rows


def model_rows(base: Setup, gpus: Iterable[int], nics: Iterable[int]) -> list[dict[str, Any]]:
    """One row for every number of NICs and GPUs: steps of all ways, and the all-reduce that plain takes."""
    rows = []
    for nic in nics:
        for world in gpus:
            setup = replace(base, gpus=world, nics_per_node=nic)
            reductions = Reductions(setup)
            steps = reductions.steps()
            plain = steps["plain"].total_us
            rows.append(
                {
                    "gpus": world,
                    "nics_per_node": nic,
                    "plain_algorithm": reductions.network.all_reduce(setup.bucket_bytes)[0],
                    "sketch_algorithm": reductions.network.all_reduce(setup.sketch_bytes)[0],
                    "ways": {
                        name: {
                            **asdict(cost),
                            "ms": cost.total_us / 1e3,
                            "ratio": cost.total_us / plain,
                            "hbm_passes": cost.hbm_bytes / setup.gradient_bytes,
                        }
                        for name, cost in steps.items()
                    },
                }
            )
    return rows


WAYS = ("plain", "exact", "sketch", "sketch, lag 1", "sketch, lag 1, every 4", "all_gather")


def _print_table(header: list[str], lines: list[list[str]]) -> None:
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    print("| " + " | ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    for line in lines:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def print_tables(base: Setup, rows: list[dict[str, Any]]) -> None:
    """Times, bytes and the comparison with public figures, as Markdown."""
    print(
        f"A model, not a measurement: {base.gradient_bytes / 1e9:g} GB of gradients in buckets of "
        f"{base.bucket_bytes / 2**20:g} MB, K = {base.objectives}, {base.gpus_per_node} H100 a node, "
        f"{base.sketch_columns} columns.\n"
    )
    print("Milliseconds of plain all-reduce a step, and the other ways as multiples of it:\n")
    header = ["NICs a node", "GPUs", "plain ms", "by", *WAYS[1:]]
    lines = []
    for row in rows:
        ways = row["ways"]
        ratios = [
            f"{ways[way]['ratio']:.3g}" if ways[way]["ratio"] >= 10 else f"{ways[way]['ratio']:.2f}" for way in WAYS
        ]
        plain = f"{ways['plain']['ms']:.1f}"
        lines.append([str(row["nics_per_node"]), str(row["gpus"]), plain, row["plain_algorithm"], *ratios[1:]])
    _print_table(header, lines)

    print("\nGB that one GPU sends in a step, NVLink / its share of its node's NICs, and passes over the gradients in")
    print("memory (sketch: with every lag):\n")
    shown = ("plain", "exact", "sketch", "all_gather")
    lines = []
    nic = rows[0]["nics_per_node"]
    for row in (row for row in rows if row["nics_per_node"] == nic):
        cells = []
        for way in shown:
            cost = row["ways"][way]
            passes = f"{cost['hbm_passes']:.3g}"
            cells.append(f"{cost['nvlink_bytes'] / 1e9:.3g} / {cost['nic_bytes'] / 1e9:.3g}, {passes}")
        lines.append([str(row["gpus"]), *cells])
    _print_table(["GPUs", *shown], lines)

    print("\nWhere the microseconds of a step go (latency of collectives / wire / memory / kernels and solves):\n")
    lines = []
    for row in (row for row in rows if row["nics_per_node"] == nic):
        cells = []
        for way in shown[:3]:
            cost = row["ways"][way]
            parts = (cost[name] for name in ("latency_us", "wire_us", "hbm_us", "fixed_us"))
            cells.append(" / ".join(f"{part:.0f}" for part in parts))
        lines.append([str(row["gpus"]), *cells])
    _print_table(["GPUs", *shown[:3]], lines)

    print("\nBus bandwidth in GB/s that others reported, and the model's:\n")
    lines = [
        [row["collective"], str(row["gpus"]), f"{row['bytes'] / 2**20:.0f}", f"{row['reported']:.0f}",
         f"{row['model']:.0f}", row["source"]]
        for row in public_rows()
    ]  # fmt: skip
    _print_table(["collective", "GPUs", "MB", "reported", "model", "source"], lines)


# Okabe and Ito's colours, which people tell apart whatever colours they see.
STYLES = {
    "all_gather": ("#D55E00", "v", "all-gather of all gradients"),
    "exact": ("#0072B2", "s", "exact"),
    "sketch": ("#E69F00", "o", "sketch"),
    "sketch, lag 1": ("#009E73", "D", "sketch, lag 1"),
    "plain": ("#000000", "", "plain all-reduce"),
}
LEFT_TOP = 40  # all-gather goes far beyond; the others are what one wants to tell apart


def plot(rows: list[dict[str, Any]], nics: tuple[int, int], base: Setup, path: Path) -> None:
    """Draws ratios for two numbers of NICs, and bytes over NICs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for nic, line in zip(nics, ("-", "--"), strict=True):
        of_nic = [row for row in rows if row["nics_per_node"] == nic]
        gpus = [row["gpus"] for row in of_nic]
        for way, (colour, marker, _) in STYLES.items():
            if way != "plain":
                ratios = [row["ways"][way]["ratio"] for row in of_nic]
                left.plot(gpus, ratios, line, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
    left.axhline(1, color=STYLES["plain"][0], linewidth=3, alpha=0.35)
    left.set_title("Time of a step's reductions")
    left.set_ylabel("multiple of plain all-reduce")

    of_nic = [row for row in rows if row["nics_per_node"] == nics[0] and row["gpus"] > base.gpus_per_node]
    gpus = [row["gpus"] for row in of_nic]
    for way, (colour, marker, _) in STYLES.items():
        if way == "sketch, lag 1":
            continue  # the same bytes as without lag
        sent = [row["ways"][way]["nic_bytes"] / 1e9 for row in of_nic]
        width, alpha, marker = (4, 0.35, "") if way == "plain" else (1.6, 1, marker)
        right.plot(
            gpus, sent, color=colour, marker=marker, markersize=4.5, linewidth=width, alpha=alpha, zorder=width < 4
        )
    right.set_title("Sent over NICs in a step")
    right.set_ylabel(f"GB a GPU (its node: {base.gpus_per_node} times that)")

    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("GPUs")
        axes.set_xticks(sorted({row["gpus"] for row in rows}))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set_yticks([1, 1.2, 1.5, 2, 3, 5, 10, 20])
    right.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500])
    left.set_ylim(0.9, LEFT_TOP)
    last = {nic: [row for row in rows if row["nics_per_node"] == nic][-1] for nic in nics}
    beyond = [f"{last[nic]['ways']['all_gather']['ratio']:.0f} with {nic} NIC{'s' if nic > 1 else ''}" for nic in nics]
    left.annotate(
        f"all-gather at {last[nics[0]]['gpus']} GPUs:\n{', '.join(beyond)}",
        (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=9, color=STYLES["all_gather"][0],
    )  # fmt: skip
    right.set_ylim(min(row["ways"]["plain"]["nic_bytes"] for row in of_nic) / 1e9 / 1.3, None)

    handles: list[Any] = []
    for way, (colour, marker, label) in STYLES.items():
        width, alpha = (4, 0.35) if way == "plain" else (1.6, 1)
        handles.append(
            Line2D([], [], color=colour, marker=marker, markersize=4.5, linewidth=width, alpha=alpha, label=label)
        )
    handles += [
        Line2D([], [], color="grey", linestyle=line, label=f"{nic} NIC{'s' if nic > 1 else ''} a node")
        for nic, line in zip(nics, ("-", "--"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(
        f"A model, not a measurement: {base.gradient_bytes / 1e9:g} GB of gradients, {base.bucket_bytes / 2**20:g} MB "
        f"buckets, K = {base.objectives}, {base.gpus_per_node} H100 and 400 Gb/s NICs a node",
        fontsize=11,
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables; writes JSON and a figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=list(DEFAULT_GPUS))
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--nics", type=int, nargs="+", default=[8, 4, 1], help="NICs a node (default 8 4 1)")
    parser.add_argument("--objectives", type=int, default=8, help="K (default 8)")
    parser.add_argument("--gradient-gb", type=float, default=2.0, help="10^9 bytes of gradients (default 2)")
    parser.add_argument("--bucket-mb", type=float, default=25.0, help="2^20 bytes of a bucket, as for DDP (default 25)")
    parser.add_argument("--dtype-bytes", type=int, default=2, help="of a gradient (default 2)")
    parser.add_argument("--sketch-columns", type=int, default=16384)
    parser.add_argument("--json", type=Path, help="write figures and constants to this file")
    parser.add_argument("--plot", type=Path, help="draw the first and the last number of NICs into this PNG")
    options = parser.parse_args(arguments)

    try:
        base = Setup(
            gpus=options.gpus[0],
            gpus_per_node=options.gpus_per_node,
            nics_per_node=options.nics[0],
            objectives=options.objectives,
            gradient_bytes=options.gradient_gb * 1e9,
            bucket_bytes=options.bucket_mb * 2**20,
            dtype_bytes=options.dtype_bytes,
            sketch_columns=options.sketch_columns,
        )
        rows = model_rows(base, options.gpus, options.nics)
    except ValueError as error:
        parser.error(str(error))
    print_tables(base, rows)
    if options.json:
        document = {
            "what": "bench/scaling_model.py: a model, not a measurement; nothing of this project has run on a GPU",
            "setup": {name: value for name, value in asdict(base).items() if name not in ("gpus", "nics_per_node")},
            "constants": asdict(Constants()),
            "tree_shares": TREE_SHARES,
            "public_figures": public_rows(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot:
        plot(rows, (options.nics[0], options.nics[-1]), base, options.plot)


if __name__ == "__main__":
    main()
