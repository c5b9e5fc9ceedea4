"""What collectives cost."""

import math
from collections.abc import Iterable

from scaling.constants import PROTOCOLS, TREE_SHARES, Constants
from scaling.cost import Cost
from scaling.setup import Group


def _collective(nvlink_bytes: float, nic_bytes: float, latency_us: float, wire_us: float) -> Cost:
    return Cost(nvlink_bytes, nic_bytes, latency_us=latency_us, wire_us=wire_us, launches=1)


class Network:
    """What collectives cost. Bytes are those that one GPU sends, or an even share of what its node sends."""

    def __init__(self, group: Group, constants: Constants | None = None) -> None:
        self.group = group
        self.constants = constants or Constants()

    def _value(self, name: str) -> float:
        return float(getattr(self.constants, name).value)

    def _levels(self) -> int:
        return math.ceil(math.log2(self.group.nodes))

    def wire_us(self, nvlink_bytes: float, nic_bytes: float, share: float = 1.0) -> float:
        """The slower of the two ways out of a GPU; the NICs of a node belong to all of its GPUs."""
        nic = self._value("nic") * self.group.nics_per_gpu
        return max(nvlink_bytes / self._value("nvlink"), nic_bytes / nic) / share / 1e3

    def _ll_us(self, bus_bytes: float, protocol: str) -> float:
        """NCCL's bound on the bus bandwidth of protocol LL."""
        if protocol != "ll":
            return 0.0
        name = {1: "ll_one_node", 2: "ll_two_nodes"}.get(self.group.nodes, "ll_more_nodes")
        return bus_bytes / self._value(name) / 1e3

    def _ring_step_us(self, protocol: str) -> float:
        """A step within a node, which over several nodes takes no less than the posting of network messages."""
        step = self._value(f"ring_nvlink_{protocol}")
        if self.group.nodes == 1:
            return step
        return max(step, self._value("net_post") * (3 if protocol == "simple" else 1))

    def _ring_net_us(self, protocol: str) -> float:
        """A step between nodes. With one GPU a node nothing hides it, and NCCL takes the tree's."""
        return self._value(f"{'tree' if self.group.local == 1 else 'ring'}_net_{protocol}")

    def _ring(self, bus_bytes: float, turns: int, protocol: str) -> Cost:
        """A ring through all ranks, of `turns` rounds, that moves bus_bytes out of every rank.

        Each of NCCL's channels leaves the node at another GPU, so that all NICs share what leaves the node.
        """
        nodes, local = self.group.nodes, self.group.local
        nic = bus_bytes / local if nodes > 1 else 0.0
        nvlink = bus_bytes - nic
        steps, between = turns * (self.group.gpus - 1), turns * (nodes - 1)
        latency = (steps - between) * self._ring_step_us(protocol) + between * self._ring_net_us(protocol)
        latency += self._value(f"ring_base_{protocol}")
        if turns == 2 and protocol == "simple" and nodes > 1:
            latency *= self._value("ring_plateau")
        share = 1.0 if protocol == "simple" else self._value(f"ring_share_{protocol}")
        wire = max(self.wire_us(nvlink, nic, share), self._ll_us(bus_bytes, protocol))
        return _collective(nvlink, nic, latency, wire)

    @staticmethod
    def _fastest(costs: Iterable[Cost]) -> Cost:
        return min(costs, key=lambda cost: cost.total_us)

    def ring(self, size: float) -> Cost:
        """All-reduce by a ring through all ranks."""
        bus = 2 * size * (self.group.gpus - 1) / self.group.gpus
        return self._fastest(self._ring(bus, 2, protocol) for protocol in PROTOCOLS)

    def _tree_nic_bytes(self, size: float) -> float:
        """Of the busiest node in a double binary tree, a GPU's share: up and down once each; with two nodes, half."""
        nodes, local = self.group.nodes, self.group.local
        return {1: 0.0, 2: size / local}.get(nodes, 2 * size / local)

    @staticmethod
    def _tree_share(size: float, protocol: str) -> float:
        shares = TREE_SHARES[protocol]
        doublings = max(int(math.log2(max(size, 64) / 64)), 0)
        return shares[doublings] if doublings < len(shares) else 1.0

    def tree(self, size: float) -> Cost:
        """All-reduce by a double binary tree over the nodes and a chain in each."""
        local = self.group.local
        nvlink, nic = 2 * size * (local - 1) / local, self._tree_nic_bytes(size)
        costs = []
        for protocol in PROTOCOLS:
            latency = (local - 1) * self._value(f"tree_nvlink_{protocol}")
            latency += self._levels() * self._value(f"tree_net_{protocol}")
            latency = self._value(f"tree_base_{protocol}") + 2 * latency
            one_node = "_one_node" if protocol == "ll128" and self.group.nodes == 1 else ""
            share = self._value(f"tree_share_{protocol}{one_node}") * self._tree_share(size, protocol)
            wire = max(self.wire_us(nvlink, nic, share), self._ll_us(2 * size, protocol))
            costs.append(_collective(nvlink, nic, latency, wire))
        return self._fastest(costs)

    def _nvls_us(self, size: float) -> float:
        """NVLink SHARP sends size (1 + 1/g) out of each of g GPUs; the constant is for 8."""
        return size / self._value("nvls") * (1 + 1 / self.group.local) / (1 + 1 / 8) / 1e3

    def nvls(self, size: float) -> Cost | None:
        """All-reduce in the switches of one node."""
        if self.group.nodes > 1:
            return None
        nvlink = size * (1 + 1 / self.group.local)
        return _collective(nvlink, 0.0, self._value("nvls_nvlink"), self._nvls_us(size))

    def hierarchical_tree(self, size: float) -> Cost | None:
        """Reduce-scatter in the node's switches, a tree over the nodes on every NIC, multicast: NCCL's NVLSTree."""
        if self.group.nodes == 1 or self.group.local == 1:
            return None
        nvlink, nic = size * (1 + 1 / self.group.local), self._tree_nic_bytes(size)
        latency = self._value("nvls_nvlink") + 2 * self._levels() * self._value("nvls_tree_net")
        return _collective(nvlink, nic, latency, max(self._nvls_us(size), self.wire_us(0.0, nic)))

    def _hierarchical_ring(self, size: float, turns: int) -> Cost | None:
        nodes, local = self.group.nodes, self.group.local
        if nodes == 1 or local == 1:
            return None
        nvlink = turns * size * (local - 1) / local
        nic = turns * size * (nodes - 1) / nodes / local
        latency = self._value("ring_base_simple") + turns * (local - 1) * self._value("ring_nvlink_simple")
        latency += turns * (nodes - 1) * self._value("ring_net_simple")
        return _collective(nvlink, nic, latency, self.wire_us(nvlink, nic))

    def hierarchical_ring(self, size: float) -> Cost | None:
        """Reduce-scatter in the node, rings over the nodes on every NIC, all-gather in the node, pipelined.

        NCCL has no such algorithm. It is here so that plain all-reduce gets what the network permits.
        """
        return self._hierarchical_ring(size, turns=2)

    ALL_REDUCES = ("ring", "tree", "nvls", "hierarchical_tree", "hierarchical_ring")
    # NCCL's ncclNvlsSupported (src/include/device.h) has no pre-multiplied sum: that leaves NVLS and NVLSTree out.
    PREMULTIPLIED = ("ring", "tree")

    def all_reduce(self, size: float, algorithms: tuple[str, ...] = ALL_REDUCES) -> tuple[str, Cost]:
        """The fastest all-reduce of `size` bytes, with its name."""
        costs: dict[str, Cost | None] = {name: getattr(self, name)(size) for name in algorithms}
        found = {name: cost for name, cost in costs.items() if cost is not None}
        name = min(found, key=lambda name: found[name].total_us)
        return name, found[name]

    def _pat(self, bus_bytes: float) -> Cost | None:
        """NCCL's parallel aggregated trees, an all-gather or reduce-scatter for groups of one GPU a node."""
        nodes = self.group.nodes
        if nodes == 1 or self.group.local > 1:
            return None
        latency = self._value("pat_base") + int(math.log2(nodes)) * self._value("pat_net")
        latency += nodes * self._value("pat_rank")
        return _collective(0.0, bus_bytes, latency, self.wire_us(0.0, bus_bytes, self._value("pat_share")))

    def _one_way(self, bus_bytes: float) -> list[Cost]:
        """What NCCL has for an all-gather or a reduce-scatter.

        It has NVLS for them within a node, which it likes less (nccl issue 1670; of a reduce-scatter as many bytes
        leave a GPU as by ring), and over several nodes of several GPUs only with SHARP in the network.
        """
        pat = self._pat(bus_bytes)
        return [self._ring(bus_bytes, 1, protocol) for protocol in PROTOCOLS] + ([] if pat is None else [pat])

    def all_gather(self, block: float) -> Cost:
        """Every rank gets the other ranks' `block` bytes."""
        return self._fastest(self._one_way(block * (self.group.gpus - 1)))

    def reduce_scatter(self, size: float) -> Cost:
        """Every rank gets 1/W of the sum of all ranks' `size` bytes.

        Half of hierarchical_ring() is here too, so that plain sharded training gets what the network permits.
        """
        costs = self._one_way(size * (self.group.gpus - 1) / self.group.gpus)
        hierarchical = self._hierarchical_ring(size, turns=1)
        return self._fastest(costs + ([] if hierarchical is None else [hierarchical]))

    def all_to_all(self, size: float) -> Cost:
        """Every rank sends 1/W of `size` to every other rank; nothing can be added up in the node on the way."""
        group = self.group
        nvlink = size * (group.local - 1) / group.gpus
        nic = size * (group.gpus - group.local) / group.gpus
        latency = self._value("ring_base_simple") + self._value("ring_nvlink_simple")
        if group.nodes > 1:
            latency += self._value("ring_net_simple") + (group.gpus - group.local) * self._value("net_post")
        return _collective(nvlink, nic, latency, self.wire_us(nvlink, nic))
