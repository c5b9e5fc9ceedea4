"""The tables of ways to reduce in docs/scaling.md, as Markdown."""

from typing import Any

from scaling.markdown import print_table, ratio
from scaling.public_figures import public_rows
from scaling.setup import Setup

WAYS = ("plain", "exact", "sketch", "sketch, lag 1", "sketch, lag 1, every 4", "all_gather")


def print_ways(base: Setup, rows: list[dict[str, Any]]) -> None:
    """Times and bytes of a step of one pass, as Markdown."""
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
        ratios = [ratio(ways[way]["ratio"]) for way in WAYS]
        plain = f"{ways['plain']['ms']:.1f}"
        lines.append([str(row["nics_per_node"]), str(row["gpus"]), plain, row["plain_algorithm"], *ratios[1:]])
    print_table(header, lines)

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
    print_table(["GPUs", *shown], lines)

    print("\nWhere the microseconds of a step go (latency of collectives / wire / memory / kernels and solves):\n")
    lines = []
    for row in (row for row in rows if row["nics_per_node"] == nic):
        cells = []
        for way in shown[:3]:
            cost = row["ways"][way]
            parts = (cost[name] for name in ("latency_us", "wire_us", "hbm_us", "fixed_us"))
            cells.append(" / ".join(f"{part:.0f}" for part in parts))
        lines.append([str(row["gpus"]), *cells])
    print_table(["GPUs", *shown[:3]], lines)


def print_bandwidths() -> None:
    """The comparison with public figures, as Markdown."""
    print("\nBus bandwidth in GB/s that others reported, and the model's:\n")
    lines = [
        [row["collective"], str(row["gpus"]), f"{row['bytes'] / 2**20:.0f}", f"{row['reported']:.0f}",
         f"{row['model']:.0f}", row["source"]]
        for row in public_rows()
    ]  # fmt: skip
    print_table(["collective", "GPUs", "MB", "reported", "model", "source"], lines)
