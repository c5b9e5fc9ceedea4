"""Paired comparisons: differences by seed, their uncertainty, and the registered verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Of an arm to a reference, on the same seeds. Below 0: the arm is better."""

    mean: float
    standard_error: float
    """Of the mean: standard deviation of the differences over the root of their number."""
    low: float
    high: float
    """95 % confidence interval (Student's t)."""
    p: float
    """Two-sided, of no difference."""
    p_outside: float
    """Of a difference of at least the margin (two one-sided tests): small where the two are equivalent."""
    count: int
    better: int
    """Seeds in which the arm was better."""


def compare(arm: Sequence[float], reference: Sequence[float], margin: float) -> Difference:
    """`arm`, `reference`: measures of the same seeds in the same order, at least two."""
    values = np.asarray(arm, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    count = len(values)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    below, above = (_tail(mean + margin, error, count), _tail(margin - mean, error, count))
    return Difference(
        mean=mean,
        standard_error=error,
        low=mean - half,
        high=mean + half,
        p=2 * _tail(abs(mean), error, count),
        p_outside=max(below, above),
        count=count,
        better=int((values < 0).sum()),
    )


def _tail(distance: float, error: float, count: int) -> float:
    """Of Student's t: the chance of a mean that far out, or farther."""
    if error == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stats.t.sf(distance / error, count - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted by Holm's step-down procedure (1979)."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = highest
    return adjusted


def verdict(difference: Difference, adjusted: float, margin: float, level: float) -> str:
    """ "better" or "worse": significant and at least the margin; "equivalent": significantly within it; else "open"."""
    if adjusted < level and abs(difference.mean) >= margin:
        return "better" if difference.mean < 0 else "worse"
    return "equivalent" if difference.p_outside < level else "open"
