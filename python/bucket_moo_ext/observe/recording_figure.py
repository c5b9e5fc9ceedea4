"""A recorder's records as one figure: maps of parts over steps, weights, residuals, losses, step times."""

import math
from pathlib import Path
from typing import Any

from bucket_moo_ext import drawing
from bucket_moo_ext.observe.page_data import Shown, choose, kept_records
from bucket_moo_ext.observe.recorder import Recorder
from bucket_moo_ext.observe.records import PartKey, PartRecord, Record

MOST_PARTS = 60
MOST_WEIGHTS = 6  # parts with a panel of weights


def plot_recorder(recorder: Recorder, path: str | Path) -> None:
    """Writes the figure.

    Raises:
        RuntimeError: There are no records.
        ImportError: matplotlib is not installed.
    """
    records = kept_records(recorder)
    if not records:
        raise RuntimeError("there is nothing to plot: no step was recorded yet")
    shown = choose(records, recorder.summary())
    parts = shown.parts[: MOST_PARTS + 1]
    weighted = [part for part in shown.parts if _has_weights(shown, part)][:MOST_WEIGHTS]
    curves = _scalars(shown)
    tall = max(2.5, 0.17 * len(parts) + 1)
    rows = math.ceil((len(weighted) + len(curves)) / 2)
    figure = drawing.new_figure(13, tall + 2.4 * rows)
    top, bottom = figure.subfigures(2, 1, height_ratios=(tall, max(2.4 * rows, 0.1)))
    more = f" (the first {MOST_PARTS} of {shown.all_parts - 1} parts)" if shown.all_parts - 1 > MOST_PARTS else ""
    top.suptitle(f"Parts of the gradients over steps{more}", x=0.01, ha="left")
    _maps(top, shown, parts)
    axes = iter(bottom.subplots(rows, 2, squeeze=False).flat)
    for part in weighted:
        series = {name: [_weight(record, part, name) for record in shown.records] for name in shown.objectives}
        drawing.lines(next(axes), _steps(shown), series, f"Weights: {drawing.name(part.title, 60)}", zero=True)
    for title, (series, zero) in curves.items():
        drawing.lines(next(axes), _steps(shown), series, title, zero=zero)
    for unused in axes:
        unused.set_axis_off()
    drawing.save(figure, path)


def _maps(figure: Any, shown: Shown, parts: tuple[PartKey, ...]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    lowest = [[_lowest(_of(record, part)) for record in shown.records] for part in parts]
    residuals = [[_residual(_of(record, part)) for record in shown.records] for part in parts]
    titles = [part.title for part in parts]
    for axes, values, title, least in (
        (left, lowest, "lowest cosine of any pair", -_largest(lowest)),
        (right, residuals, "residual", 0.0),
    ):
        image = drawing.step_map(axes, values, titles, _steps(shown), title, least)
        figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def _scalars(shown: Shown) -> dict[str, tuple[dict[str, Any], bool]]:
    records = shown.records
    curves: dict[str, tuple[dict[str, Any], bool]] = {
        "Residual of the whole gradients": ({"residual": [record.whole.residual for record in records]}, True),
        "Share of conflicting pairs": (
            {
                "in parts": [record.conflict_share for record in records],
                "in the whole gradients": [record.global_conflict_share for record in records],
            },
            True,
        ),
    }
    losses = {name: [record.losses.get(name, math.nan) for record in records] for name in shown.objectives}
    losses = {name: values for name, values in losses.items() if not all(map(math.isnan, values))}
    if losses:
        curves["Loss of each objective"] = (losses, False)
    seconds = [record.seconds for record in records]
    if not all(map(math.isnan, seconds)):
        curves["Seconds a step"] = ({"seconds": seconds}, True)
    return curves


def _steps(shown: Shown) -> list[int]:
    return [record.step for record in shown.records]


def _of(record: Record, part: PartKey) -> PartRecord | None:
    return next((found for found in (record.whole, *record.parts) if found.key == part), None)


def _lowest(part: PartRecord | None) -> float:
    if part is None:
        return math.nan
    finite = part.cosines[part.cosines.isfinite()]
    return float(finite.min()) if finite.numel() else math.nan


def _largest(values: list[list[float]]) -> float:
    """In size; 1 where there is none."""
    return max((abs(value) for row in values for value in row if not math.isnan(value)), default=0.0) or 1.0


def _residual(part: PartRecord | None) -> float:
    return math.nan if part is None else part.residual


def _weight(record: Record, part: PartKey, objective: str) -> float:
    found = _of(record, part)
    return found.weight(objective) if found is not None and objective in found.objectives else math.nan


def _has_weights(shown: Shown, part: PartKey) -> bool:
    return any(
        (found := _of(record, part)) is not None and bool(found.weights.isfinite().any()) for record in shown.records
    )
