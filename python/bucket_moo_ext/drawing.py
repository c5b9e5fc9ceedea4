"""Figures of plain values, drawn by matplotlib: matrices, maps and lines. Knows nothing of reports or recordings.

matplotlib is imported when something is drawn; without a display and beside any backend that the program has chosen.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COLOURS = ("#0068a8", "#b84a00", "#00775a", "#8a3d8f", "#7a6000", "#1b1e23", "#a3174f", "#4b5fc4")
DASHES = ("-", "--", ":", "-.")
DIVERGING = "PuOr"  # told apart by readers who confuse red and green; its low end, orange, is conflict
SEQUENTIAL = "Purples"
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
    return short.replace("$", r"\$")


class Matrix(NamedTuple):
    """Cosines of K objectives.

    Attributes:
        title: What they are of.
        names: K.
        values: ``[K, K]``, symmetric; NaN stays white, and so does the diagonal.
        weights: K numbers beside the rows, or none.
    """

    title: str
    names: Sequence[str]
    values: Rows
    weights: Sequence[float] = ()


def lowest(matrices: Sequence[Matrix], most: int) -> list[Matrix]:
    """At most so many, in their order: those with the lowest values."""
    least = [min((x for row in one.values for x in row if not math.isnan(x)), default=math.inf) for one in matrices]
    places = sorted(range(len(matrices)), key=least.__getitem__)[:most]
    return [matrices[place] for place in sorted(places)]


def matrices(several: Sequence[Matrix], title: str) -> Any:
    """A figure of matrices, four in a row.

    Raises:
        ImportError: As for ``new_figure``.
    """
    columns = min(4, len(several))
    rows = math.ceil(len(several) / columns)
    figure = new_figure(3.6 * columns + 0.8, 3.0 * rows + 0.6)
    figure.suptitle(name(title), fontsize=10)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, one in zip(panels.flat, several, strict=False):
        image = _matrix(axes, one)
    for unused in list(panels.flat)[len(several) :]:
        unused.set_axis_off()
    figure.colorbar(image, ax=panels, shrink=1 / rows, label="cosine", fraction=0.04)
    return figure


def _matrix(axes: Any, one: Matrix) -> Any:
    k = len(one.names)
    coloured = [[math.nan if i == j else value for j, value in enumerate(row)] for i, row in enumerate(one.values)]
    image = axes.imshow(_array(coloured), cmap=DIVERGING, vmin=-1, vmax=1)
    axes.set_title(name(one.title, 44), fontsize=8, loc="left")
    axes.tick_params(length=0, labelsize=7)
    shown = [name(each, 14) for each in one.names]
    every = range(0, k, math.ceil(k / 16))
    axes.set_xticks(list(every), [shown[i] for i in every], rotation=90 if k > MOST_NUMBERS else 0)
    axes.set_yticks(list(every), [shown[i] for i in every])
    if k > MOST_NUMBERS:
        return image
    for i, row in enumerate(coloured):
        for j, value in enumerate(row):
            if i != j:
                text = "NaN" if math.isnan(value) else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=_ink(value))
    for i, weight in enumerate(one.weights):
        axes.text(k - 0.4, i, f"{weight:.3f}", va="center", fontsize=7)
    return image


def step_map(axes: Any, values: Rows, rows: Sequence[str], steps: Sequence[int], title: str, least: float) -> Any:
    """``[rows, steps]`` from ``least`` < 0 to as much above 0, or from 0 to 1; NaN stays white."""
    colours = DIVERGING if least < 0 else SEQUENTIAL
    image = axes.imshow(
        _array(values), cmap=colours, vmin=least, vmax=-least or 1, aspect="auto", interpolation="nearest"
    )
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
            color=COLOURS[number % len(COLOURS)], linestyle=DASHES[(number + number // len(COLOURS)) % len(DASHES)],
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
    return "white" if abs(value) > 0.5 else "black"


def _array(values: Rows) -> Any:
    import numpy as np  # comes with matplotlib

    return np.asarray(values, dtype=float)
