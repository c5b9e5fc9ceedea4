"""One PNG with what the tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from settings import PLAIN_DDP, Settings
from spec import in_lines

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Distinguishable for colour-blind readers."""


def draw(settings: Settings, result: dict[str, Any], path: Path) -> None:
    """Held-out loss, conflicts and step times of `summary.json`'s content, written to `path`."""
    figure = plt.figure(figsize=(13, 13.5), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(4, 4.6, 2.6))
    left, right = top.subplots(1, 2)
    _losses(left, settings, result["held_out"])
    _differences(right, settings, result["held_out"])
    _conflicts(middle, settings, result["conflicts"])
    left, right = bottom.subplots(1, 2, width_ratios=(3, 2))
    _times(left, settings, result["runs"])
    _ratios(right, settings, result["step_time"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _languages(axes: Axes, settings: Settings) -> None:
    names = settings.all_languages
    axes.set_xticks(range(len(names)), names)
    if settings.unseen:
        axes.axvline(len(settings.languages) - 0.5, color="grey", linewidth=0.8, linestyle=":")
        for start, label in ((0, "seen"), (len(settings.languages), "unseen")):
            axes.annotate(label, (start - 0.4, 1), xycoords=("data", "axes fraction"), va="top", color="grey")
    axes.set_xlim(-0.6, len(names) - 0.4)
    _clean(axes)


def _dots(axes: Axes, settings: Settings, methods: list[str], by_method: dict[str, Any]) -> None:
    width = 0.7 / max(1, len(methods))
    for i, method in enumerate(methods):
        colour = COLOURS[settings.methods.index(method) % len(COLOURS)]
        offset = (i - (len(methods) - 1) / 2) * width
        for x, language in enumerate(settings.all_languages):
            values = by_method[method][language]["values"]
            axes.plot(
                [x + offset] * len(values),
                values,
                "o",
                color=colour,
                markersize=4,
                alpha=0.75,
                label=method if x == 0 else None,
            )


def _losses(axes: Axes, settings: Settings, held_out: dict[str, Any]) -> None:
    before = [held_out["before"][x] for x in settings.all_languages]
    axes.plot(
        range(len(before)),
        before,
        "_",
        color="#888888",
        markersize=22,
        markeredgewidth=2,
        label="before",
    )
    _dots(axes, settings, list(settings.methods), held_out["after"])
    _languages(axes, settings)
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title("Held-out loss, one dot a seed", loc="left")
    axes.legend(frameon=False, loc="best")


def _differences(axes: Axes, settings: Settings, held_out: dict[str, Any]) -> None:
    axes.set_title("Held-out loss minus plain DDP's with the same seed", loc="left")
    if not held_out.get("minus_ddp"):
        axes.text(0.5, 0.5, "needs plain DDP and another method", ha="center", transform=axes.transAxes)
        return
    axes.axhline(0, color=COLOURS[0], linewidth=1)
    _dots(axes, settings, list(held_out["minus_ddp"]), held_out["minus_ddp"])
    _languages(axes, settings)
    axes.set_ylabel("bits per byte (below 0: better than DDP)")
    axes.legend(frameon=False, loc="best")


def _conflicts(figure: SubFigure | Figure, settings: Settings, conflicts: dict[str, Any]) -> None:
    figure.suptitle(
        "Share of conflicting gradient pairs (%) by layer group and step: different "
        "languages, beside the same language split in halves (noise)",
        x=0.01,
        ha="left",
        fontsize="large",
    )
    if not any(conflicts.values()):
        return
    panels = np.atleast_1d(figure.subplots(1, 2 * len(settings.methods), sharey=True))
    for i, method in enumerate(settings.methods):
        steps = list(conflicts[method])
        groups = list(conflicts[method][steps[0]])
        for axes, kind in zip(panels[2 * i : 2 * i + 2], ("languages", "control"), strict=True):
            share = np.array([[conflicts[method][s][g][kind]["share"] for s in steps] for g in groups])
            axes.imshow(
                share,
                vmin=0,
                vmax=1,
                cmap="Oranges" if kind == "languages" else "Greys",
                aspect="auto",
            )
            for (y, x), value in np.ndenumerate(share):
                axes.text(
                    x,
                    y,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > 0.65 else "black",
                )
            axes.set_xticks(range(len(steps)), steps, fontsize=8)
            axes.set_yticks(range(len(groups)), groups)
            axes.set_xlabel("step")
            axes.set_title(f"{in_lines(method)}:\n{kind}", fontsize="medium")
            axes.tick_params(length=0)


def _times(axes: Axes, settings: Settings, runs: list[dict[str, Any]]) -> None:
    for method, colour in zip(settings.methods, COLOURS, strict=False):
        own = [1e3 * np.array([max(ranks) for ranks in r["seconds"]]) for r in runs if r["method"] == method]
        axes.plot(np.concatenate(own), color=colour, linewidth=0.8, alpha=0.8, label=method)
    axes.set_xlabel("step (all seeds in a row)")
    axes.set_ylabel("ms, slowest rank")
    axes.set_title("Step times, interleaved" if not settings.one_at_a_time else "Step times", loc="left")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=min(4, len(settings.methods)), loc="lower right")
    _clean(axes)


def _ratios(axes: Axes, settings: Settings, times: dict[str, Any]) -> None:
    entries = {m: e["ratio_to_ddp"] for m, e in times["methods"].items() if "ratio_to_ddp" in e}
    if "control" in times:
        entries[f"control:\n{PLAIN_DDP}, next step"] = times["control"]
    for y, (name, r) in enumerate(entries.items()):
        index = settings.methods.index(name) if name in settings.methods else 0
        axes.plot([r["low"], r["high"]], [y, y], color=COLOURS[index % len(COLOURS)], linewidth=2)
        axes.plot(r["median"], y, "o", color=COLOURS[index % len(COLOURS)])
        axes.annotate(
            f"{r['median']:.3f}",
            (r["median"], y),
            xytext=(0, 6),
            ha="center",
            textcoords="offset points",
        )
    axes.axvline(1, color="grey", linewidth=1)
    axes.axvline(1.1, color="grey", linewidth=1, linestyle=":")
    axes.annotate("+10 % ", (1.1, 0), xycoords=("data", "axes fraction"), va="bottom", ha="right", color="grey")
    axes.set_yticks(range(len(entries)), [in_lines(name) for name in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlabel("step time / plain DDP's, median of paired steps, 95 % interval")
    axes.set_title("Overhead", loc="left")
    _clean(axes)
    axes.grid(False, axis="y")
