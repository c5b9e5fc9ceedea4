"""Which conflicts stand above noise."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bucket_moo_ext.observe.noise import CosineNoise, student_tail
from bucket_moo_ext.observe.records import PartKey

MOST_LINES = 20


@dataclass(frozen=True)
class PairSummary:
    """Two objectives in one part of the gradients.

    Attributes:
        part: Which part.
        objectives: The two.
        records: Records in which both had a gradient there.
        mean: Mean of their cosine, over the window.
        spread: Standard deviation of their cosine from record to record; NaN of one record.
        error: Standard error of the mean; NaN of one record.
        signal: Cosine of their signals: of gradients without the noise of the rows that they are means of. Their mean
            inner product over the roots of their mean squared lengths, over the window. NaN without
            ``row_norms=True``, for objectives of a single row, and where a signal is not longer than 0.
        verdict: "conflict": the mean is below 0 by more than ``z`` standard errors; "agreement": above 0 by as much;
            "noise": neither; "undecided": fewer records than ``minimum``.
    """

    part: PartKey
    objectives: tuple[str, str]
    records: int
    mean: float
    spread: float
    error: float
    signal: float
    verdict: str

    @property
    def score(self) -> float:
        """The mean in standard errors: negative for a conflict. Infinite where nothing varies."""
        if self.error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.error


@dataclass(frozen=True)
class Summary:
    """What the records say about which objectives conflict where.

    Attributes:
        records: How many there were.
        first_step, last_step: The state's numbers of the first and last recorded step that are kept.
        window: That of the recorder.
        z: Standard errors that the mean has to be away from 0.
        minimum: Records that a verdict takes.
        whole: Every pair in the whole gradients.
        parts: Every pair in every part.
    """

    records: int
    first_step: int
    last_step: int
    window: int | None
    z: float
    minimum: int
    whole: tuple[PairSummary, ...]
    parts: tuple[PairSummary, ...]

    @property
    def conflicts(self) -> tuple[PairSummary, ...]:
        """Those above noise: in the whole gradients first, then in parts, the clearest first."""
        return (*_clearest(self.whole, "conflict"), *_clearest(self.parts, "conflict"))

    @property
    def by_chance(self) -> float:
        """How many conflicts noise alone would show in the parts: the tails of Student's t, added up."""
        most = math.inf if self.window is None else self.window
        decided = [pair for pair in self.parts if pair.verdict != "undecided"]
        return sum(student_tail(self.z, int(min(pair.records, most)) - 1) for pair in decided)

    def to_dict(self) -> dict[str, Any]:
        """Strings, numbers, lists and dicts only, ready for JSON: what is undefined (NaN, Inf) becomes None."""
        plain = {name: value for name, value in vars(self).items() if name not in ("whole", "parts")}
        return {**plain, "whole": [_plain(pair) for pair in self.whole], "parts": [_plain(pair) for pair in self.parts]}

    def __str__(self) -> str:
        """Tables: the whole gradients, then the conflicts in parts that stand above noise."""
        over = "all records" if self.window is None else f"a window of {self.window} records"
        lines = [
            f"steps {self.first_step} to {self.last_step}: {self.records} records, means over {over}; a conflict is a "
            f"mean cosine below 0 by more than {self.z:g} standard errors, from {self.minimum} records on"
        ]
        lines += _table("whole gradients", self.whole)
        verdicts = [pair.verdict for pair in self.parts]
        decided = len(verdicts) - verdicts.count("undecided")
        found = _clearest(self.parts, "conflict")
        lines.append(
            f"parts: {len(found)} of {decided} pairs conflict above noise (noise alone: about {self.by_chance:.2g}), "
            f"{verdicts.count('agreement')} agree, {verdicts.count('noise')} are noise; {verdicts.count('undecided')} "
            "have too few records"
        )
        lines += _table("", found[:MOST_LINES])
        if len(found) > MOST_LINES:
            lines.append(f"  ... {len(found) - MOST_LINES} more")
        return "\n".join(lines)


def summarize_part(key: PartKey, noise: CosineNoise, z: float, minimum: int) -> tuple[PairSummary, ...]:
    """Every pair of objectives of a part that has been there together."""
    names = noise.objectives
    found = noise.of(names)
    count, mean, spread, error = (m.tolist() for m in (found.count, found.mean, found.spread, found.error))
    signal = noise.signal_cosines(names).tolist()
    return tuple(
        PairSummary(
            part=key,
            objectives=(names[i], names[j]),
            records=count[i][j],
            mean=mean[i][j],
            spread=spread[i][j],
            error=error[i][j],
            signal=signal[i][j],
            verdict=_verdict(count[i][j], mean[i][j], error[i][j], z, minimum),
        )
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if count[i][j] > 0
    )


def _verdict(count: int, mean: float, error: float, z: float, minimum: int) -> str:
    if count < minimum:
        return "undecided"
    if abs(mean) <= z * error:
        return "noise"
    return "conflict" if mean < 0 else "agreement"


def _clearest(pairs: Iterable[PairSummary], verdict: str) -> list[PairSummary]:
    return sorted((pair for pair in pairs if pair.verdict == verdict), key=lambda pair: pair.score)


def _table(title: str, pairs: Iterable[PairSummary]) -> list[str]:
    pairs = list(pairs)
    if not pairs:
        return []
    width = max(5, *(len(name) for pair in pairs for name in pair.objectives))
    where = "" if title else "  part"
    has_signal = any(math.isfinite(pair.signal) for pair in pairs)
    signals = f" {'signal':>7}" if has_signal else ""
    head = (
        f"{'pair':<{2 * width + 1}} {'cosine':>8} {'error':>7} {'spread':>7}{signals} {'records':>7}  "
        f"{'verdict':<9}{where}"
    )
    lines = [title] if title else []
    lines.append(f"  {head}".rstrip())
    for pair in pairs:
        a, b = pair.objectives
        part = "" if title else f"  {pair.part.title}"
        signals = f" {pair.signal:>7.3f}" if has_signal else ""
        lines.append(
            f"  {a:<{width}} {b:<{width}} {pair.mean:>8.4f} {pair.error:>7.4f} {pair.spread:>7.4f}{signals} "
            f"{pair.records:>7}  {pair.verdict:<9}{part}".rstrip()
        )
    return lines


def _plain(pair: PairSummary) -> dict[str, Any]:
    values = {**vars(pair), "part": pair.part._asdict(), "score": pair.score}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
