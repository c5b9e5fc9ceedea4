"""What the model takes from outside: public figures and estimates."""

from dataclasses import dataclass

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
    pat_base: Constant = Constant(8.0, "us", f"{NCCL}: baseLatencies, PAT")
    pat_net: Constant = Constant(14 / 3.5, "us", f"{NCCL}: hwLatencies, NET, tree, Simple, by 3.5: a level of PAT")
    pat_rank: Constant = Constant(2.8, "us", f"{NCCL}: latency of PAT that grows with every rank")
    pat_share: Constant = Constant(0.75, "of ring Simple", f"{NCCL}: bandwidth of PAT")
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
