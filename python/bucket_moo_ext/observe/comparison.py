"""Two recordings side by side."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from bucket_moo_ext.observe.page_data import kept_records
from bucket_moo_ext.observe.page_tables import number, plain, verdict
from bucket_moo_ext.observe.recorder import Recorder
from bucket_moo_ext.observe.records import Record
from bucket_moo_ext.observe.summary import PairSummary

ABSENT = "\u2013"

Lines = list[list[str]]


@dataclass(frozen=True)
class Comparison:
    """Tables whose rows have a name, what the first recording says and what the second does.

    Attributes:
        names: Of the two.
        configuration: What differs.
        numbers: Of all recorded steps.
        pairs: Mean cosines and verdicts in the whole gradients, the difference of the means last.
    """

    names: tuple[str, str]
    configuration: Lines
    numbers: Lines
    pairs: Lines

    @property
    def tables(self) -> list[tuple[str, list[str], Lines]]:
        """Caption, head and rows of each that has rows."""
        a, b = self.names
        every = [
            ("What differs in the configuration", ["name", a, b], self.configuration),
            ("Numbers of the recorded steps", ["number", a, b], self.numbers),
            (
                "Mean cosines in the whole gradients",
                ["pair", a, b, "difference", "its standard error"],
                self.pairs,
            ),
        ]
        return [(caption, head, rows) for caption, head, rows in every if rows]

    def __str__(self) -> str:
        """The tables as text."""
        return "\n\n".join("\n".join([caption, *_aligned([head, *rows])]) for caption, head, rows in self.tables)


def compare(first: Recorder, second: Recorder, names: tuple[str, str]) -> Comparison:
    """What two recordings say of the same things.

    Raises:
        RuntimeError: One of them has no record.
    """
    for recorder, name in zip((first, second), names, strict=True):
        if recorder.last is None:
            raise RuntimeError(f"{name} has no record, so there is nothing to compare")
    return Comparison(names, _configuration(first, second), _scalars(first, second), _pairs(first, second))


def _configuration(first: Recorder, second: Recorder) -> Lines:
    ours, theirs = first.configuration, second.configuration
    rows = [[name, _value(ours, name), _value(theirs, name)] for name in {**ours, **theirs}]
    return [row for row in rows if row[1] != row[2]]


def _value(values: dict[str, Any], name: str) -> str:
    return plain(values[name]) if name in values else ABSENT


def _scalars(first: Recorder, second: Recorder) -> Lines:
    of_both = [kept_records(recorder) for recorder in (first, second)]
    losses = dict.fromkeys(name for records in of_both for record in records for name in record.losses)
    of: dict[str, Callable[[list[Record]], str]] = {
        "steps": lambda records: f"{records[0].step} to {records[-1].step}",
        "records": lambda records: str(len(records)),
        "mean residual of the whole gradients": lambda records: _mean(record.whole.residual for record in records),
        "last residual of the whole gradients": lambda records: number(records[-1].whole.residual),
        "mean share of conflicting pairs, in parts": lambda records: _mean(r.conflict_share for r in records),
        "mean share of conflicting pairs, in whole gradients": lambda records: _mean(
            r.global_conflict_share for r in records
        ),
        "fallbacks to the mean (NaN or Inf)": lambda records: str(records[-1].fallbacks),
        "median seconds a step": lambda records: _median([r.seconds for r in records]),
    }
    for name in losses:
        of[f"loss of {name}, first to last"] = lambda records, name=name: _ends(  # type: ignore[misc]
            [record.losses[name] for record in records if name in record.losses]
        )
    rows = [[label, *(say(records) for records in of_both)] for label, say in of.items()]
    return [row for row in rows if row[1:] != [ABSENT, ABSENT]]


def _pairs(first: Recorder, second: Recorder) -> Lines:
    ours, theirs = ({tuple(sorted(p.objectives)): p for p in r.summary().whole} for r in (first, second))
    rows = []
    for pair in {**ours, **theirs}:
        a, b = ours.get(pair), theirs.get(pair)
        shown = (a or b).objectives  # type: ignore[union-attr]
        rows.append([" \u2013 ".join(shown), _said(a), _said(b), *_difference(a, b)])
    return rows


def _said(pair: PairSummary | None) -> str:
    return ABSENT if pair is None else f"{number(pair.mean)} {verdict(pair)}"


def _difference(first: PairSummary | None, second: PairSummary | None) -> tuple[str, str]:
    """Of independent recordings: errors add in squares."""
    if first is None or second is None:
        return ABSENT, ABSENT
    return number(second.mean - first.mean), number(math.hypot(first.error, second.error))


def _mean(values: Any) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return number(fmean(finite)) if finite else "NaN"


def _median(values: list[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return number(median(finite)) if finite else ABSENT


def _ends(values: list[float]) -> str:
    return f"{number(values[0])} to {number(values[-1])}" if values else ABSENT


def _aligned(rows: Lines) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
