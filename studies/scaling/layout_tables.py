"""The tables of layouts of objectives in docs/scaling.md, as Markdown."""

from typing import Any

from scaling.layouts import LAYOUTS, OPERATIONS, tile_bytes
from scaling.markdown import print_table, ratio
from scaling.setup import Setup

CASES = tuple(f"{operation}, {layout}" for operation in OPERATIONS for layout in LAYOUTS)


def _cells(row: dict[str, Any], *names: str) -> list[str]:
    layouts = row["layouts"]
    return [" / ".join(ratio(layouts[case][name]) for name in names) if case in layouts else "-" for case in CASES]


def _print_times(rows: list[dict[str, Any]]) -> None:
    header = [
        "NICs a node",
        "GPUs",
        "all-reduce ms",
        *LAYOUTS,
        "reduce-scatter ms",
        *LAYOUTS[:2],
        "HSDP ms",
        "two-level",
    ]
    lines = []
    for row in rows:
        layouts, cells = row["layouts"], _cells(row, "time_ratio")
        milliseconds = [
            f"{layouts[case]['reference_ms']:.1f}" if case in layouts else "-"
            for case in ("all-reduce, ranks", "reduce-scatter, ranks", "reduce-scatter, two-level")
        ]
        line = [milliseconds[0], *cells[:3], milliseconds[1], *cells[3:5], milliseconds[2], cells[5]]
        lines.append([str(row["nics_per_node"]), str(row["gpus"]), *line])
    print_table(header, lines)


def print_layout_tables(
    base: Setup, rows: list[dict[str, Any]], summed: list[dict[str, Any]], choices: list[dict[str, Any]]
) -> None:
    """Times, bytes, launches and memory of `rows`, steps with added Gramians, and what to choose, as Markdown."""
    nic = rows[0]["nics_per_node"]
    every_passes = list(dict.fromkeys(row["passes"] for row in rows))

    print("\nWhat to choose when, with time, NIC bytes and memory as multiples of plain accumulation:\n")
    print_choices(choices)

    for passes in every_passes:
        print(f"\nLayouts of objectives, steps of {passes} {'passes' if passes > 1 else 'pass'}: milliseconds of plain")
        print("accumulation (one all-reduce; a reduce-scatter a pass; HSDP), and the layouts as multiples of it:\n")
        _print_times([row for row in rows if row["passes"] == passes])

    for passes in every_passes:
        print(f"\nBytes over NICs / NVLink as multiples of plain accumulation's, P = {passes}:\n")
        of_nic = [row for row in rows if row["nics_per_node"] == nic and row["passes"] == passes]
        print_table(["GPUs", *CASES], [[str(row["gpus"]), *_cells(row, "nic_ratio", "nvlink_ratio")] for row in of_nic])

    print("\nLaunches for a bucket in a step (plain accumulation's):\n")
    lines = []
    for passes in every_passes:
        row = max((row for row in rows if row["passes"] == passes), key=lambda row: len(row["layouts"]))
        cells = []
        for case in CASES:
            found = row["layouts"].get(case)
            launches = found and (found["bucket_launches"], found["reference_bucket_launches"])
            cells.append(f"{launches[0]:.0f} ({launches[1]:.0f})" if launches else "-")
        lines.append([str(passes), str(row["gpus"]), *cells])
    print_table(["P", "GPUs", *CASES], lines)

    print("\nGB of tiles that a rank holds in a step of several passes, by objectives:\n")
    counts = (2, 4, 8, 16, 32, 64)
    lines = []
    for row in (row for row in rows if row["nics_per_node"] == nic and row["passes"] == every_passes[-1]):
        sizes = [tile_bytes(base.gradient_bytes, count, row["gpus"], base.dtype_bytes) for count in counts]
        lines.append([str(row["gpus"]), *(f"{size / 1e9:.3g}" for size in sizes)])
    print_table(["GPUs", *(f"K = {count}" for count in counts)], lines)

    print(f"\nMemory of a rank as a multiple of the gradients that it keeps, P = {every_passes[-1]}:\n")
    of_nic = [row for row in rows if row["nics_per_node"] == nic and row["passes"] == every_passes[-1]]
    print_table(["GPUs", *CASES], [[str(row["gpus"]), *_cells(row, "memory_ratio")] for row in of_nic])

    print("\nTimes if partial Gramians and tails were added by an all-reduce, P = 1:\n")
    of_nic = [row for row in summed if row["nics_per_node"] == nic]
    print_table(["GPUs", *CASES], [[str(row["gpus"]), *_cells(row, "time_ratio")] for row in of_nic])


def _span(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    ends = list(dict.fromkeys(ratio(value) for value in values))
    return " to ".join(ends)


def print_choices(choices: list[dict[str, Any]]) -> None:
    """The decision table."""
    nics = list(choices[0]["time"]) if choices else []
    times = [f"time, {nic} NIC{'s' if nic > 1 else ''}" for nic in nics]
    lines = []
    for row in choices:
        first, last = row["nodes"]
        nodes = str(first) if first == last else f"{first} to {last}"
        spans = [*(_span(row["time"][nic]) for nic in nics), _span(row["nic_bytes"]), _span(row["memory"])]
        lines.append([row["gradients"], row["language"], row["passes"], nodes, row["choose"], *spans])
    header = ["gradients", "language of its own", "passes", "nodes", "choose", *times, "NIC bytes", "memory"]
    print_table(header, lines)
