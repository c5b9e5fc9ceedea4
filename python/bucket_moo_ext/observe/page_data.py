"""What a page shows of a recorder, in a form that is small: chosen so that the page's size is bounded.

Series are base64 of little-endian numbers, indexed [step, part, ...] over what is shown: cosines as int16 in units of
1e-4 (-32768: NaN), of pairs i < j row by row; the rest float32. The scripts in page_files/ read them.
"""

import base64
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bucket_moo_ext.observe.recorder import Recorder
from bucket_moo_ext.observe.records import PartKey, Record
from bucket_moo_ext.observe.summary import PairSummary, Summary

BUDGET = 3 << 20
"""Bytes of numbers on a page, before base64 makes 4 of 3, shared by its runs."""
MOST_OBJECTIVES = 64
LEAST_STEPS = 24  # below that parts are left out rather than further steps
STATUS = ("ok", "inactive", "fallback", "not_converged", "nonfinite")
VERDICTS = ("undecided", "noise", "conflict", "agreement")

_UNIT = 1e-4
_NOT_A_NUMBER = -(2**15)


@dataclass(frozen=True)
class Shown:
    """What of a recorder a page shows, and of how much.

    Attributes:
        records: Oldest first, evenly spread, the first and the last among them.
        parts: The whole gradients, then parts of the gradients from what backward passes reach last to first.
        objectives: In the order in which they first appear.
        all_records, all_parts, all_objectives: How many there are; of records those that the recorder keeps.
    """

    records: tuple[Record, ...]
    parts: tuple[PartKey, ...]
    objectives: tuple[str, ...]
    all_records: int
    all_parts: int
    all_objectives: int

    @property
    def notes(self) -> list[str]:
        """What was left out, in sentences; none if nothing was."""
        said = []
        if len(self.records) < self.all_records:
            said.append(f"{len(self.records)} of {self.all_records} recorded steps are shown, evenly spread.")
        if len(self.parts) < self.all_parts:
            said.append(
                f"{len(self.parts) - 1} of {self.all_parts - 1} parts are shown: those with the clearest conflicts."
            )
        if len(self.objectives) < self.all_objectives:
            said.append(f"{len(self.objectives)} of {self.all_objectives} objectives are shown: those seen most often.")
        return said


def kept_records(recorder: Recorder) -> list[Record]:
    """Those that the recorder keeps, and the newest."""
    records = list(recorder.history)
    if recorder.last is not None and (not records or records[-1] is not recorder.last):
        records.append(recorder.last)
    return records


def choose(records: Sequence[Record], summary: Summary, budget: int = BUDGET) -> Shown:
    """What fits into ``budget`` bytes: fewer steps first, then fewer parts."""
    counts: dict[str, int] = {}
    for record in records:
        for name in record.whole.objectives:
            counts[name] = counts.get(name, 0) + 1
    most = set(sorted(counts, key=counts.__getitem__, reverse=True)[:MOST_OBJECTIVES])
    objectives = tuple(name for name in counts if name in most)
    parts = _parts_in_order(records)
    steps, amount = _fit(len(records), len(parts), len(objectives), budget)
    if amount < len(parts):
        chosen = {parts[0], *_clearest(parts[1:], summary)[: amount - 1]}
        shown = tuple(part for part in parts if part in chosen)
    else:
        shown = parts
    return Shown(tuple(spread(records, steps)), shown, objectives, len(records), len(parts), len(counts))


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` >= 2 of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def encode(shown: Shown, summary: Summary) -> dict[str, Any]:
    """For the page's scripts, ready for JSON."""
    k = len(shown.objectives)
    pairs = k * (k - 1) // 2
    place = {part: number for number, part in enumerate(shown.parts)}
    shape = (len(shown.records), len(shown.parts))
    series = {
        "cosines": _empty(*shape, pairs),
        "weights": _empty(*shape, k),
        "residual": _empty(*shape),
        "conflicts": _empty(*shape),
        "status": _empty(*shape),
    }
    where = _Places(shown.objectives)
    for step, record in enumerate(shown.records):
        for part in (record.whole, *record.parts):
            if part.key not in place:
                continue
            at = (step, place[part.key])
            theirs, ours, theirs_of_pair, ours_of_pair = where.of(part.objectives)
            series["weights"][at][ours] = part.weights[theirs]
            series["cosines"][at][ours_of_pair] = part.cosines[theirs_of_pair]
            series["residual"][at] = part.residual
            series["conflicts"][at] = part.conflicts / part.pairs if part.pairs else math.nan
            series["status"][at] = STATUS.index(part.status)
    losses = _empty(shape[0], k)
    for step, record in enumerate(shown.records):
        for number, name in enumerate(shown.objectives):
            losses[step, number] = record.losses.get(name, math.nan)
    return {
        "objectives": list(shown.objectives),
        "steps": [record.step for record in shown.records],
        "parts": [{"title": part.title, "about": about(part)} for part in shown.parts],
        "status_names": STATUS,
        "verdict_names": VERDICTS,
        "cosines": _int16(series.pop("cosines")),
        **{name: _float32(values) for name, values in series.items()},
        "losses": _float32(losses),
        "seconds": _float32(torch.tensor([record.seconds for record in shown.records], dtype=torch.float64)),
        "conflict_share": _float32(
            torch.tensor([record.conflict_share for record in shown.records], dtype=torch.float64)
        ),
        **_verdicts(shown, summary),
    }


def about(part: PartKey) -> str:
    """Its parameters, shortened."""
    names = part.parameters
    if not names:
        return f"{part.numel} elements without a name"
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{len(names)} parameter{'s'[: len(names) > 1]}: {', '.join(names[:6])}{rest}"


def _parts_in_order(records: Sequence[Record]) -> tuple[PartKey, ...]:
    """The newest record's first: buckets may have been rebuilt."""
    found: dict[PartKey, None] = {}
    whole: dict[PartKey, None] = {}
    for record in reversed(records):
        whole.setdefault(record.whole.key)
        for part in reversed(record.parts):
            found.setdefault(part.key)
    newest = next(iter(whole))
    return (newest, *found, *(key for key in whole if key is not newest))


def _clearest(parts: Sequence[PartKey], summary: Summary) -> list[PartKey]:
    """Those with the lowest mean cosine in standard errors first."""
    best: dict[PartKey, float] = {}
    for pair in summary.parts:
        if pair.verdict == "conflict":
            best[pair.part] = min(best.get(pair.part, 0.0), pair.score)
    return sorted(parts, key=lambda part: best.get(part, 0.0))


def _fit(steps: int, parts: int, k: int, budget: int) -> tuple[int, int]:
    """How many steps and parts."""
    pairs = k * (k - 1) // 2
    cell, once, a_step = 2 * pairs + 4 * k + 12, 15 * pairs, 4 * k + 8
    least = min(steps, LEAST_STEPS)
    if (parts * cell + a_step) * least + parts * once > budget:
        parts = max(2, (budget - a_step * least) // (cell * least + once))
    return max(least, min(steps, (budget - parts * once) // (parts * cell + a_step))), parts


class _Places:
    """Where a part's objectives are among those that are shown, by its list of them."""

    def __init__(self, shown: tuple[str, ...]) -> None:
        self._of_name = {name: place for place, name in enumerate(shown)}
        self._known: dict[tuple[str, ...], tuple[torch.Tensor, torch.Tensor, Any, torch.Tensor]] = {}

    def of(self, objectives: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor, Any, torch.Tensor]:
        """Theirs and ours; the same of pairs: theirs an index of a matrix, ours of pairs in a row."""
        if objectives not in self._known:
            both = [(i, self._of_name[name]) for i, name in enumerate(objectives) if name in self._of_name]
            theirs, ours = torch.tensor(both, dtype=torch.long).reshape(-1, 2).unbind(1)
            first, second = torch.triu_indices(len(both), len(both), offset=1)
            low, high = torch.minimum(ours[first], ours[second]), torch.maximum(ours[first], ours[second])
            of_pair = low * (2 * len(self._of_name) - low - 1) // 2 + high - low - 1
            self._known[objectives] = (theirs, ours, (theirs[first], theirs[second]), of_pair)
        return self._known[objectives]


def _verdicts(shown: Shown, summary: Summary) -> dict[str, Any]:
    """Of every pair in every part that is shown, over all records."""
    k = len(shown.objectives)
    shape = (len(shown.parts), k * (k - 1) // 2)
    means, errors, verdicts = _empty(*shape), _empty(*shape), torch.zeros(shape, dtype=torch.float64)
    place = {part: number for number, part in enumerate(shown.parts)}
    where = _Places(shown.objectives)

    def note(pair: PairSummary) -> None:
        at = where.of(pair.objectives)[3]
        if pair.part in place and len(at):
            number = place[pair.part]
            means[number, at], errors[number, at] = pair.mean, pair.error
            verdicts[number, at] = VERDICTS.index(pair.verdict)

    for pair in (*summary.whole, *summary.parts):
        note(pair)
    return {"means": _float32(means), "errors": _float32(errors), "verdicts": _float32(verdicts)}


def _empty(*shape: int) -> torch.Tensor:
    return torch.full(shape, math.nan, dtype=torch.float64)


def _int16(values: torch.Tensor) -> str:
    units = torch.where(values.isfinite(), (values / _UNIT).round(), _NOT_A_NUMBER)
    return _base64(units.to(torch.int16))


def _float32(values: torch.Tensor) -> str:
    return _base64(values.to(torch.float32))


def _base64(values: torch.Tensor) -> str:
    flat = values.flatten().tolist()
    kind = {torch.int16: "h", torch.float32: "f"}[values.dtype]
    return base64.b64encode(struct.pack(f"<{len(flat)}{kind}", *flat)).decode()
