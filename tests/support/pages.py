"""What an HTML page of recordings holds, read without a browser."""

import base64
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

from tests.support.reference import Array

VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Tables by caption as rows of texts, headings as (level, text), scripts and styles, and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[tuple[int, str]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": [], "title": [], "p": []}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self._open == [], "elements that are not closed"

    @property
    def data(self) -> dict[str, Any]:
        """What the scripts read."""
        found: dict[str, Any] = json.loads(self.contents["script"][0], parse_constant=self._refuse)
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag in self.contents:
            self.contents[tag].append("")
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self._rows = []
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            if tag in self.contents:
                self.contents[tag][-1] += data
            if tag in ("h1", "h2", "h3", "h4"):
                level, text = self.headings[-1]
                self.headings[-1] = (level, text + data)
            if tag == "caption":
                self._caption += data
            if tag in ("td", "th"):
                self._rows[-1][-1] += data

    @staticmethod
    def _refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")


def series(run: dict[str, Any], name: str) -> Array:
    """A run's numbers: [step, part, ...], or [part, pair] of what is about all steps; cosines with NaN."""
    steps, parts, k = len(run["steps"]), len(run["parts"]), len(run["objectives"])
    pairs = k * (k - 1) // 2
    shapes = {
        "cosines": (steps, parts, pairs),
        "weights": (steps, parts, k),
        "losses": (steps, k),
        "seconds": (steps,),
        "conflict_share": (steps,),
        **dict.fromkeys(("means", "errors", "verdicts"), (parts, pairs)),
    }
    raw = base64.b64decode(run[name])
    if name == "cosines":
        units = np.frombuffer(raw, "<i2").astype(float)
        return np.where(units == -(2**15), np.nan, units * 1e-4).reshape(shapes[name])
    return np.frombuffer(raw, "<f4").astype(float).reshape(shapes.get(name, (steps, parts)))
