"""What a page says in words and tables, which need no script."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from bucket_moo_ext.observe.page_data import Shown, spread
from bucket_moo_ext.observe.records import Record
from bucket_moo_ext.observe.summary import PairSummary, Summary

MOST_PAIRS = 100
MOST_STEPS = 60
MARKS = {"conflict": "\u25bc", "agreement": "\u25b2", "noise": "\u223c", "undecided": "?"}
"""A sign for each verdict, so that none is told by colour alone."""

Row = Sequence[str]


def table(caption: str, head: Row, rows: Iterable[Row], *, of: str = "numbers") -> str:
    """An HTML table in a box that scrolls by itself; all texts are escaped. ``of``: "numbers" or "texts"."""
    columns = "".join(f'<th scope="col">{named(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{named(row[0])}</th>{"".join(f"<td>{named(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table class="{of}">'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>\n"
    )


def named(text: str) -> str:
    """A text of unknown script and direction, escaped."""
    return f"<bdi>{escape(text)}</bdi>"


def number(value: float, digits: int = 4) -> str:
    """Plain for people; NaN and infinity by these names."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}f}"


def verdict(pair: PairSummary) -> str:
    """With its sign."""
    return f"{MARKS[pair.verdict]} {pair.verdict}"


def findings(summary: Summary) -> list[str]:
    """What stands above noise, in sentences; plain text."""
    whole = [pair for pair in summary.conflicts if pair.part.is_whole]
    decided = [pair for pair in summary.whole if pair.verdict != "undecided"]
    said = []
    if not decided:
        said.append(
            f"Too few records for a verdict on the whole gradients: a pair takes {summary.minimum} of them, and there "
            f"are {summary.records}."
        )
    else:
        some = "; ".join(
            f"{' and '.join(pair.objectives)}, mean cosine {pair.mean:.3f} with a standard error of {pair.error:.3f}"
            for pair in whole[:3]
        )
        more = f"; and {len(whole) - 3} more" if len(whole) > 3 else ""
        said.append(
            f"In the whole gradients {len(whole)} of {len(decided)} pairs of objectives conflict above noise"
            + (f": {some}{more}." if whole else ".")
        )
    verdicts = [pair.verdict for pair in summary.parts]
    count = len(verdicts) - verdicts.count("undecided")
    if count:
        said.append(
            f"In parts of the gradients {verdicts.count('conflict')} of {count} pairs conflict above noise (noise "
            f"alone would show about {_count(summary.by_chance)}), {verdicts.count('agreement')} agree and "
            f"{verdicts.count('noise')} are noise."
        )
    return said


def circumstances(shown: Shown, summary: Summary) -> str:
    """How much there is, and what a verdict is."""
    over = "all records" if summary.window is None else f"a window of {summary.window} records"
    return (
        f"{summary.records} records, of steps {summary.first_step} to {summary.last_step}; {shown.all_objectives} "
        f"objectives; {shown.all_parts - 1} parts of the gradients. A verdict is about the mean cosine over {over} up "
        f"to the last: conflict or agreement where it is more than {summary.z:g} standard errors from 0, from "
        f"{summary.minimum} records on."
    )


def pairs_of_whole(summary: Summary) -> str:
    """Each pair in the whole gradients."""
    order = {"conflict": 0, "noise": 1, "agreement": 2, "undecided": 3}
    pairs = sorted(summary.whole, key=lambda pair: (order[pair.verdict], pair.score))
    rows = [[" \u2013 ".join(p.objectives), *_numbers(p, pairs)] for p in pairs[:MOST_PAIRS]]
    more = f"; the first {MOST_PAIRS} of {len(pairs)}" if len(pairs) > MOST_PAIRS else ""
    return table(f"Pairs of objectives in the whole gradients{more}", ["pair", *_heads(pairs)], rows)


def conflicts_of_parts(summary: Summary) -> str:
    """The clearest conflicts; empty if there are none."""
    found = [pair for pair in summary.conflicts if not pair.part.is_whole]
    if not found:
        return ""
    rows = [[p.part.title, " \u2013 ".join(p.objectives), *_numbers(p, found)] for p in found[:MOST_PAIRS]]
    more = f"; the first {MOST_PAIRS} of {len(found)}" if len(found) > MOST_PAIRS else ""
    return table(f"Conflicts above noise in parts, the clearest first{more}", ["part", "pair", *_heads(found)], rows)


def steps(shown: Shown) -> str:
    """Recorded steps with their scalars."""
    records: list[Record] = spread(shown.records, MOST_STEPS)
    with_losses = [name for name in shown.objectives if any(name in record.losses for record in records)]
    timed = any(not math.isnan(record.seconds) for record in records)
    head = ["step", "residual", "conflicting pairs in parts", "in whole gradients", "status", "fallbacks"]
    head += ["seconds a step"] * timed + [f"loss of {name}" for name in with_losses]
    rows = []
    for record in records:
        row = [
            str(record.step),
            number(record.whole.residual),
            _percent(record.conflict_share),
            _percent(record.global_conflict_share),
            record.whole.status.replace("_", " "),
            str(record.fallbacks),
        ]
        row += [number(record.seconds)] * timed
        rows.append(row + [number(record.losses[n]) if n in record.losses else "\u2013" for n in with_losses])
    caption = "Recorded steps, whole gradients"
    if len(records) < shown.all_records:
        caption += f"; {len(records)} of {shown.all_records}, evenly spread"
    return table(caption, head, rows)


def configuration(values: dict[str, Any]) -> str:
    """What the recorder says of the training; empty if nothing."""
    if not values:
        return ""
    return table(
        "Configuration", ["name", "value"], [[name, plain(value)] for name, value in values.items()], of="texts"
    )


def plain(value: object) -> str:
    """A value of a configuration."""
    if value is None or value == "":
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _has_signals(pairs: list[PairSummary]) -> bool:
    return any(math.isfinite(pair.signal) for pair in pairs)


def _heads(pairs: list[PairSummary]) -> list[str]:
    signals = ["cosine of signals"] * _has_signals(pairs)
    return ["mean cosine", "standard error", "spread", *signals, "records", "verdict"]


def _numbers(pair: PairSummary, among: list[PairSummary]) -> list[str]:
    signals = [number(pair.signal)] * _has_signals(among)
    return [number(pair.mean), number(pair.error), number(pair.spread), *signals, str(pair.records), verdict(pair)]


def _count(expected: float) -> str:
    return f"{expected:.2g}" if expected < 10 else f"{expected:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
