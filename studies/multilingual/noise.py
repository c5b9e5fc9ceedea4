"""Conflicts against noise: cosines of parts of the model over training, with several rows of every objective."""

from __future__ import annotations

from typing import Any

import numpy as np
from bucket_moo_ext import Report
from conflicts import WHOLE, group_of, group_order
from numpy.typing import NDArray

THIRDS = 3
"""Pieces that a training is cut into."""


class Noise:
    """Sums over the steps of each third of a training, for each part of the model."""

    def __init__(self, steps: int) -> None:
        """`steps`: of the training."""
        self._steps = steps
        self._names: tuple[str, ...] = ()
        self._gramians: dict[tuple[int, str], list[NDArray[np.float64]]] = {}
        self._signals: dict[tuple[int, str], list[NDArray[np.float64]]] = {}

    def add(self, step: int, report: Report) -> None:
        """A step's report, with `signal`."""
        self._names = report.objectives
        third = step * THIRDS // self._steps
        gramians: dict[str, NDArray[np.float64]] = {WHOLE: report.gramian.numpy()}
        signals: dict[str, NDArray[np.float64]] = {WHOLE: report.signal.numpy()}
        for bucket in report.buckets:  # of one parameter each
            group = group_of(bucket.parameters[0])
            gramians[group] = gramians.get(group, 0.0) + bucket.gramian.numpy()
            signals[group] = signals.get(group, 0.0) + bucket.signal.numpy()
        for group, gramian in gramians.items():
            self._gramians.setdefault((third, group), []).append(gramian)
            self._signals.setdefault((third, group), []).append(signals[group])

    def to_dict(self) -> dict[str, Any]:
        """Per third and part: K by K means and spreads of cosines, cosines of the mean signals, and sign counts."""
        groups = sorted({group for _, group in self._gramians}, key=group_order)
        return {
            "objectives": list(self._names),
            "parts": [
                {"third": third, "part": group, **_describe(self._gramians[third, group], self._signals[third, group])}
                for third in range(THIRDS)
                for group in groups
            ],
        }


def _describe(gramians: list[NDArray[np.float64]], signals: list[NDArray[np.float64]]) -> dict[str, Any]:
    cosines = np.stack([_cosines(g) for g in gramians])
    own = np.stack([np.diag(s) for s in signals])  # of two rows: their inner product
    return {
        "steps": len(gramians),
        "mean": np.round(cosines.mean(0), 6).tolist(),
        "spread": np.round(cosines.std(0, ddof=1), 6).tolist(),
        "signal": _finite(np.round(_cosines(np.sum(signals, axis=0)), 6)),
        "negative": (cosines < 0).sum(0).tolist(),
        "control_negative": (own < 0).sum(0).tolist(),
    }


def _cosines(gramian: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where a diagonal element is not above 0, as an estimate of a signal can be."""
    diagonal = np.diag(gramian)
    norms = np.sqrt(np.where(diagonal > 0, diagonal, np.nan))
    return np.asarray(gramian / np.outer(norms, norms))


def _finite(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[float(x) if np.isfinite(x) else None for x in row] for row in values]
