"""Figures of plain values, drawn by matplotlib: matrices, maps and lines. Knows nothing of reports or recordings.

matplotlib is imported when something is drawn; without a display and beside any backend that the program has chosen.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#0068a8", "#b84a00", "#00775a", "#8a3d8f", "#7a6000", "#1b1e23", "#a3174f", "#4b5fc4")
DASHES = ("-", "--", ":", "-.")
DIVERGING = "PuOr"  # told apart by readers who confuse red and green; its low end, orange, is conflict
MOST_NUMBERS = 8  # objectives up to which a matrix has its numbers in it

Rows = Sequence[Sequence[float]]


def new_figure(width: float, height: float) -> Any:
    """A figure of that size in inches.

    Raises:
        ImportError: matplotlib is not installed; says what to install.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot() needs matplotlib, which is not installed: pip install matplotlib, or install bucket_moo_ext with "
            "the optional dependency [plot]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | Path) -> None:
    """Writes it; the name's ending says the format: .png, .pdf, .svg, ..."""
    figure.savefig(path, dpi=130)


def name(text: str, most: int = 0) -> str:
    """A text that is no formula, whatever is in it; the end of it if it is longer than ``most``."""
    short = f"...{text[3 - most :]}" if most and len(text) > most else text
    return short.replace("\\", "\\\\").replace("$", r"\$") if "$" in short else short


def matrix(axes: Any, values: Rows, names: Sequence[str], title: str, notes: Sequence[str] = ()) -> Any:
    """``[K, K]`` cosines with their numbers; NaN stays white. ``notes``: a line for each row, on the right."""
    k = len(names)
    image = axes.imshow(_array(values), cmap=DIVERGING, vmin=-1, vmax=1)
    axes.set_title(name(title, 40), fontsize=8, loc="left")
    axes.tick_params(length=0, labelsize=7)
    shown = [name(each, 14) for each in names]
    every = range(k) if k <= 16 else range(0, k, math.ceil(k / 16))
    axes.set_xticks(list(every), [shown[i] for i in every], rotation=90 if k > MOST_NUMBERS else 0)
    axes.set_yticks(list(every), [shown[i] for i in every])
    for i, row in enumerate(values if k <= MOST_NUMBERS else ()):
        for j, value in enumerate(row):
            if i != j:
                text = "NaN" if math.isnan(value) else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=_ink(value))
    for i, note in enumerate(notes if k <= MOST_NUMBERS else ()):
        axes.text(k - 0.4, i, note, va="center", fontsize=7)
    return image


def step_map(axes: Any, values: Rows, rows: Sequence[str], steps: Sequence[int], title: str, most: float) -> Any:
    """``[rows, steps]`` from ``-most`` to ``most``; NaN stays white."""
    image = axes.imshow(_array(values), cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9, loc="left")
    every = range(len(rows)) if len(rows) <= 40 else range(0, len(rows), math.ceil(len(rows) / 40))
    axes.set_yticks(list(every), [name(rows[i], 44) for i in every], fontsize=7)
    places = sorted({round(i * (len(steps) - 1) / 5) for i in range(6)})
    axes.set_xticks(places, [str(steps[place]) for place in places], fontsize=7)
    axes.set_xlabel("step", fontsize=8)
    return image


def lines(axes: Any, steps: Sequence[int], series: Mapping[str, Sequence[float]], title: str, *, zero: bool) -> None:
    """A line for each name; gaps where values are not finite. ``zero``: the axis has 0."""
    for number, (label, values) in enumerate(series.items()):
        finite = [value if math.isfinite(value) else math.nan for value in values]
        axes.plot(
            steps, finite,
            color=COLOURS[number % len(COLOURS)], linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            marker="." if len(steps) < 30 else None, linewidth=1.2, label=name(label, 30),
        )  # fmt: skip
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.set_xlabel("step", fontsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(frameon=False, fontsize=6, ncols=math.ceil(len(series) / 16), loc="upper left", bbox_to_anchor=(1, 1))


def _ink(value: float) -> str:
    return "white" if abs(value) > 0.75 else "black"


def _array(values: Rows) -> Any:
    import numpy as np  # comes with matplotlib

    return np.asarray(values, dtype=float)
