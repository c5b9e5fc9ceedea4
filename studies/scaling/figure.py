"""The figure of docs/scaling.md."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scaling.setup import Setup

# Okabe and Ito's colours, which people tell apart whatever colours they see.
STYLES = {
    "all_gather": ("#D55E00", "v", "all-gather of all gradients"),
    "exact": ("#0072B2", "s", "exact"),
    "sketch": ("#E69F00", "o", "sketch"),
    "sketch, lag 1": ("#009E73", "D", "sketch, lag 1"),
    "plain": ("#000000", "", "plain all-reduce"),
}
LEFT_TOP = 40  # all-gather goes far beyond; the others are what one wants to tell apart
LAYOUT_STYLES = {"ranks": ("#0072B2", "s"), "passes": ("#CC79A7", "^"), "two-level": ("#009E73", "D")}
OPERATION_LINES = {"all-reduce": ("-", "replicated gradients"), "reduce-scatter": ("--", "sharded gradients")}


def _dress(axes: Any, gpus: Iterable[int]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("GPUs")
    axes.set_xticks(sorted(gpus))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _nics(count: int) -> str:
    return f"{count} NIC{'s' if count > 1 else ''}"


def _draw_ways(figure: Any, rows: list[dict[str, Any]], nics: tuple[int, int], base: Setup) -> None:
    """Ratios for two numbers of NICs, and bytes over NICs, in steps of one pass."""
    from matplotlib.lines import Line2D

    left, right = figure.subplots(1, 2)
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
        _dress(axes, {row["gpus"] for row in rows})
    left.set_yticks([1, 1.2, 1.5, 2, 3, 5, 10, 20])
    right.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500])
    left.set_ylim(0.9, LEFT_TOP)
    last = {nic: [row for row in rows if row["nics_per_node"] == nic][-1] for nic in nics}
    beyond = [f"{last[nic]['ways']['all_gather']['ratio']:.0f} with {_nics(nic)}" for nic in nics]
    left.annotate(
        f"all-gather at {last[nics[0]]['gpus']} GPUs:\n{', '.join(beyond)}",
        (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=9, color=STYLES["all_gather"][0],
    )  # fmt: skip
    if of_nic:
        right.set_ylim(min(row["ways"]["plain"]["nic_bytes"] for row in of_nic) / 1e9 / 1.3, None)

    handles: list[Any] = []
    for way, (colour, marker, label) in STYLES.items():
        width, alpha = (4, 0.35) if way == "plain" else (1.6, 1)
        handles.append(
            Line2D([], [], color=colour, marker=marker, markersize=4.5, linewidth=width, alpha=alpha, label=label)
        )
    handles += [
        Line2D([], [], color="grey", linestyle=line, label=f"{_nics(nic)} a node")
        for nic, line in zip(nics, ("-", "--"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def _draw_layouts(figure: Any, rows: list[dict[str, Any]], nic: int) -> None:
    """Ratios of the layouts of objectives, a panel for every number of passes."""
    from matplotlib.lines import Line2D

    every_passes = list(dict.fromkeys(row["passes"] for row in rows))
    for axes, passes in zip(
        figure.subplots(1, len(every_passes), sharey=True, squeeze=False)[0], every_passes, strict=True
    ):
        of_passes = [row for row in rows if row["passes"] == passes and row["nics_per_node"] == nic]
        for operation, (line, _) in OPERATION_LINES.items():
            for layout, (colour, marker) in LAYOUT_STYLES.items():
                case = f"{operation}, {layout}"
                shown = [row for row in of_passes if case in row["layouts"]]
                ratios = [row["layouts"][case]["time_ratio"] for row in shown]
                gpus = [row["gpus"] for row in shown]
                axes.plot(gpus, ratios, line, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
        axes.axhline(1, color="#000000", linewidth=3, alpha=0.35)
        _dress(axes, {row["gpus"] for row in rows})
        axes.set_yticks([1, 1.2, 1.5, 2, 3, 5, 10, 20, 40])
        axes.set_title(f"Time of a step of {passes} {'passes' if passes > 1 else 'pass'}, {_nics(nic)} a node")
        axes.set_ylabel("multiple of plain accumulation")

    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, markersize=4.5, label=f"layout: {layout}")
        for layout, (colour, marker) in LAYOUT_STYLES.items()
    ]
    handles += [Line2D([], [], color="grey", linestyle=line, label=label) for line, label in OPERATION_LINES.values()]
    handles.append(Line2D([], [], color="#000000", linewidth=4, alpha=0.35, label="plain accumulation"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def plot(
    rows: list[dict[str, Any]], layouts: list[dict[str, Any]], nics: tuple[int, int], base: Setup, path: Path
) -> None:
    """Draws the ways of a step of one pass above, the layouts of objectives below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 9.6), layout="constrained")
    above, below = figure.subfigures(2, 1)
    _draw_ways(above, rows, nics, base)
    _draw_layouts(below, layouts, nics[0])
    figure.suptitle(
        f"A model, not a measurement: {base.gradient_bytes / 1e9:g} GB of gradients, {base.bucket_bytes / 2**20:g} MB "
        f"buckets, K = {base.objectives}, {base.gpus_per_node} H100 and 400 Gb/s NICs a node",
        fontsize=11,
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
