"""One HTML page of recordings, which needs nothing but itself: no network, no library.

Its styles and scripts are in page_files/. They are allowed by their hashes, and nothing else is; what comes from
recordings is data, never markup.
"""

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from bucket_moo_ext.observe import page_tables as tables
from bucket_moo_ext.observe.comparison import compare
from bucket_moo_ext.observe.page_data import BUDGET, choose, encode, kept_records
from bucket_moo_ext.observe.recorder import Recorder

SCRIPTS = ("elements.js", "charts.js", "explorer.js", "page.js")
NO_RECORDS = "Nothing was recorded yet, so there is nothing to show."


def write_page(path: str | Path, recorders: Mapping[str, Recorder], *, side_by_side: bool = False) -> None:
    """Writes a page of recorders by their names; the file is replaced as a whole, or stays as it was.

    Args:
        path: The HTML file.
        recorders: At least one, by what to call it.
        side_by_side: Of exactly two, both of which have records: beside each other, with tables of both.

    Raises:
        ValueError: There are none, or not two to put side by side.
        RuntimeError: One of two that are put side by side has no record.
    """
    if not recorders or (side_by_side and len(recorders) != 2):
        raise ValueError(f"recorders must be {'two' if side_by_side else 'at least one'}; got {len(recorders)}")
    text = render(recorders, side_by_side).encode("utf-8", "xmlcharrefreplace")
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def render(recorders: Mapping[str, Recorder], side_by_side: bool) -> str:
    """The page's text."""
    runs = [
        _run(number, name, recorder, BUDGET // len(recorders))
        for number, (name, recorder) in enumerate(recorders.items())
    ]
    title = "Which objectives conflict where: " + (" and " if side_by_side else ", ").join(recorders)
    files = resources.files("bucket_moo_ext.observe") / "page_files"
    style = (files / "page.css").read_text(encoding="utf-8")
    script = "\n".join((files / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Template((files / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title if len(title) < 120 else title[:117] + "..."),
        policy=_policy(style, script),
        style=style,
        script=script,
        comparison=_comparison(recorders) if side_by_side else "",
        runs_class="runs beside" if side_by_side else "runs",
        runs="\n".join(text for text, _ in runs),
        data=_embedded({"side_by_side": side_by_side, "runs": [data for _, data in runs]}),
    )


def _run(number: int, name: str, recorder: Recorder, budget: int) -> tuple[str, dict[str, Any] | None]:
    """A run's section, and what its scripts read: None without records."""
    records = kept_records(recorder)
    opening = (
        f'<section class="run" data-name="{html.escape(name)}" aria-labelledby="run-{number}-title">\n'
        f'<h2 id="run-{number}-title">{tables.named(name)}</h2>\n'
    )
    configuration = _folded("Configuration", tables.configuration(recorder.configuration))
    if not records:
        return f"{opening}<p>{NO_RECORDS}</p>\n{configuration}</section>", None
    summary = recorder.summary()
    shown = choose(records, summary, budget)
    sentences = [*tables.findings(summary), *shown.notes]
    if len(records) == 1:
        sentences.append("There is one record, so nothing can be said about changes over time.")
    text = (
        opening
        + '<div class="findings">\n'
        + "".join(f"<p>{html.escape(said)}</p>\n" for said in sentences)
        + f'<p class="quiet">{html.escape(tables.circumstances(shown, summary))}</p>\n</div>\n'
        + '<div class="explorer"></div>\n'
        + "<h3>Tables</h3>\n"
        + _folded("Pairs in the whole gradients", tables.pairs_of_whole(summary))
        + _folded("Conflicts in parts", tables.conflicts_of_parts(summary))
        + _folded("Recorded steps", tables.steps(shown))
        + configuration
        + "</section>"
    )
    return text, {"name": name, **encode(shown, summary)}


def _comparison(recorders: Mapping[str, Recorder]) -> str:
    (first, ours), (second, theirs) = recorders.items()
    found = compare(ours, theirs, (first, second))
    inside = "".join(tables.table(caption, head, rows, of="texts") for caption, head, rows in found.tables)
    return f'<section aria-labelledby="both"><h2 id="both">Both</h2>\n<div class="both"></div>\n{inside}</section>\n'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n{content}</details>\n" if content else ""


def _embedded(data: object) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(style: str, script: str) -> str:
    """Nothing is fetched, and nothing runs but these."""
    own = f"style-src {_hash(style)}; script-src {_hash(script)}"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
