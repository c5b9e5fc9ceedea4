"""Pages of recordings: what is in them, against the recorder."""

import base64
import hashlib
import html
import math
import re
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
from bucket_moo_ext.observe.page import NO_RECORDS, render, write_page
from bucket_moo_ext.observe.page_data import BUDGET, choose, encode

from tests.support.errors import error_of, expect
from tests.support.pages import Page, series
from tests.support.recorded import Linear, draw, train_step

NAMES = ("de", "sw", "tr")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--",
    "<img src=x onerror=alert(2)>",
    '"\' onload="alert(3)',
    "&lt;\u2028\u202e${title}",
)


def recorded(
    rng: np.random.Generator,
    steps: int,
    names: tuple[str, ...] = NAMES,
    sizes: tuple[int, ...] = (6, 4),
    **options: Any,
) -> moo.Recorder:
    """A bucket for each parameter; objectives 0 and 1 conflict in the first; a NaN and a zero among the gradients."""
    model = Linear(sizes)
    state = moo.register(model, "mgda", bucket_cap_mb=1e-6, **options)
    recorder = moo.Recorder(state, 1)
    for step in range(steps):
        gradients = draw(rng, names, sizes)
        if len(names) > 1:
            gradients[names[1]][0] = 0.1 * gradients[names[1]][0] - gradients[names[0]][0]
        if step == 3:
            gradients[names[-1]][0][0] = np.nan
        if step == 4:
            gradients[names[0]][1][:] = 0
        train_step(model, state, gradients)
        recorder.log({names[0]: 2.0 - 0.1 * step}, seconds=0.125)
        recorder.step()
    return recorder


def page_of(recorder: moo.Recorder, folder: Path, **options: Any) -> Page:
    recorder.page(folder / "page.html", **options)
    return Page((folder / "page.html").read_text(encoding="utf-8"))


def test_its_numbers_are_the_recorders(rng: np.random.Generator, tmp_path: Path) -> None:
    recorder = recorded(rng, 14)
    (run,) = page_of(recorder, tmp_path).data["runs"]
    assert run["objectives"] == list(NAMES)
    assert [part["title"] for part in run["parts"]] == ["whole gradients", "a", "b"]
    assert run["steps"] == [record.step for record in recorder.history]
    upper = np.triu_indices(3, 1)
    for step, record in enumerate(recorder.history):
        parts = {part.key.title: part for part in (record.whole, *record.parts)}
        for place, title in enumerate(("whole gradients", "a", "b")):
            part = parts[title]
            np.testing.assert_allclose(series(run, "cosines")[step, place], part.cosines.numpy()[upper], atol=5.1e-5)
            np.testing.assert_allclose(series(run, "weights")[step, place], part.weights, rtol=1e-6)
            np.testing.assert_allclose(series(run, "residual")[step, place], part.residual, rtol=1e-6)
            np.testing.assert_allclose(
                series(run, "conflicts")[step, place],
                part.conflicts / part.pairs if part.pairs else math.nan,
                rtol=1e-6,
            )
            assert run["status_names"][int(series(run, "status")[step, place])] == part.status
    assert np.isnan(series(run, "residual")[3]).tolist() == [True, True, False]
    np.testing.assert_allclose(series(run, "losses")[:, 0], [2.0 - 0.1 * step for step in range(14)], rtol=1e-6)
    assert np.isnan(series(run, "losses")[:, 1:]).all()
    assert (series(run, "seconds") == 0.125).all()
    pairs = {
        (pair.part.title, pair.objectives): pair for pair in (*recorder.summary().whole, *recorder.summary().parts)
    }
    for place, title in enumerate(("whole gradients", "a", "b")):
        for number, (i, j) in enumerate(zip(*upper, strict=True)):
            pair = pairs[title, (NAMES[i], NAMES[j])]
            assert series(run, "means")[place, number] == pytest.approx(pair.mean, rel=1e-6)
            assert series(run, "errors")[place, number] == pytest.approx(pair.error, rel=1e-6)
            assert run["verdict_names"][int(series(run, "verdicts")[place, number])] == pair.verdict


def test_its_tables_say_the_same(rng: np.random.Generator, tmp_path: Path) -> None:
    recorder = recorded(rng, 14)
    recorder.describe({"learning rate": 0.004, "data": ["de", "sw"]})
    page = page_of(recorder, tmp_path)
    head, *rows = page.tables["Recorded steps, whole gradients"]
    assert head[:2] == ["step", "residual"]
    assert head[6:] == ["seconds a step", "loss of de"]
    for row, record in zip(rows, recorder.history, strict=True):
        assert int(row[0]) == record.step
        assert float(row[1]) == pytest.approx(record.whole.residual, abs=5.1e-5, nan_ok=True)
        assert int(row[2].removesuffix(" %")) == pytest.approx(100 * record.conflict_share, abs=0.51)
        assert row[4] == record.whole.status
        assert float(row[6]) == record.seconds
        assert float(row[7]) == pytest.approx(record.losses["de"])
    assert rows[3][1] == "NaN"
    of_pair = {row[0]: row[1:] for row in page.tables["Pairs of objectives in the whole gradients"]}
    for pair in recorder.summary().whole:
        mean, error, spread, records, verdict = of_pair[" \u2013 ".join(pair.objectives)]
        assert float(mean) == pytest.approx(pair.mean, abs=5.1e-5)
        assert float(error) == pytest.approx(pair.error, abs=5.1e-5)
        assert float(spread) == pytest.approx(pair.spread, abs=5.1e-5)
        assert int(records) == pair.records
        assert verdict.split() == [
            {"conflict": "\u25bc", "agreement": "\u25b2", "noise": "\u223c"}[pair.verdict],
            pair.verdict,
        ]
    (conflict,) = [pair for pair in recorder.summary().conflicts if not pair.part.is_whole]
    parts = page.tables["Conflicts above noise in parts, the clearest first"]
    assert parts[1][:2] == [conflict.part.title, "de \u2013 sw"] == ["a", "de \u2013 sw"]
    configuration = {row[0]: row[1] for row in page.tables["Configuration"]}
    assert configuration["method"] == "MGDA(normalize='none')"
    assert configuration["learning rate"] == "0.004"
    assert configuration["data"] == "de, sw"
    said = " ".join(page.contents["p"])
    count = sum(pair.verdict == "conflict" for pair in recorder.summary().whole)
    assert f"In the whole gradients {count} of 3 pairs of objectives conflict above noise" in said
    assert "In parts of the gradients 1 of 6 pairs conflict above noise" in said


def test_its_form(rng: np.random.Generator, tmp_path: Path) -> None:
    page = page_of(recorded(rng, 3), tmp_path)
    assert ("html", {"lang": "en"}) in page.elements
    tags = [tag for tag, _ in page.elements]
    assert tags.count("main") == tags.count("h1") == tags.count("header") == 1
    levels = [level for level, _ in page.headings]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert tags.count("table") == tags.count("caption") == len(page.tables)
    assert all(of["scope"] in ("row", "col") for tag, of in page.elements if tag == "th")


def test_nothing_is_fetched_and_only_its_own_script_runs(rng: np.random.Generator, tmp_path: Path) -> None:
    page = page_of(recorded(rng, 3), tmp_path)
    policy = next(of["content"] for tag, of in page.elements if tag == "meta" and "http-equiv" in of)
    data, script = page.contents["script"]
    (style,) = page.contents["style"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; base-uri 'none'; "
        "form-action 'none'"
    )
    for _, attributes in page.elements:
        assert not {"src", "style", "action"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    for text in (style, script):
        assert not re.search(
            r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|insertAdjacentHTML|document\.write|eval\(", text
        )
    assert set(re.findall(r"https?://[^\"'\s]+", style + script + data)) == {"http://www.w3.org/2000/svg"}


def test_hostile_names_are_text(rng: np.random.Generator, tmp_path: Path) -> None:
    recorder = recorded(rng, 4, HOSTILE)
    recorder.describe({HOSTILE[0]: HOSTILE[2]})
    page = page_of(recorder, tmp_path, title=HOSTILE[0] + "\ud800")
    assert len(page.contents["script"]) == 2
    assert "img" not in [tag for tag, _ in page.elements]
    assert not [tag for tag, of in page.elements if "onload" in of or "onerror" in of]
    assert page.data["runs"][0]["objectives"] == list(HOSTILE)
    assert page.headings[1] == (2, HOSTILE[0] + "\ufffd")
    assert page.tables["Configuration"][-1] == [HOSTILE[0], HOSTILE[2]]
    assert HOSTILE[0] in page.contents["title"][0]
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.escape(HOSTILE[2]) in raw
    assert HOSTILE[2] not in raw


def test_no_record_and_one_record(rng: np.random.Generator, tmp_path: Path) -> None:
    empty = page_of(moo.Recorder(None), tmp_path)
    assert empty.data["runs"] == [None]
    assert NO_RECORDS in empty.contents["p"]
    one = page_of(recorded(rng, 1), tmp_path)
    said = " ".join(one.contents["p"])
    assert "There is one record" in said
    assert "Too few records for a verdict" in said
    assert len(one.data["runs"][0]["steps"]) == 1
    alone = page_of(recorded(rng, 2, ("de",)), tmp_path)
    assert alone.data["runs"][0]["cosines"] == ""


def test_its_size_is_bounded_and_it_says_what_is_left_out(rng: np.random.Generator) -> None:
    names = tuple(f"task {number}" for number in range(64))
    recorder = recorded(rng, 30, names, sizes=(3,) * 8)
    summary = recorder.summary()
    whole = choose(recorder.history, summary)
    assert (len(whole.records), len(whole.parts), whole.notes) == (30, 9, [])
    budget = BUDGET // 4
    shown = choose(recorder.history, summary, budget)
    assert 24 <= len(shown.records) < 30
    assert (shown.all_records, shown.all_parts) == (30, 9)
    assert shown.records[0] is recorder.history[0]
    assert shown.records[-1] is recorder.history[-1]
    assert 1 < len(shown.parts) < 9
    assert {"a"} < {part.title for part in shown.parts}, "the part with the clearest conflict"
    assert shown.notes == [
        f"{len(shown.records)} of 30 recorded steps are shown, evenly spread.",
        f"{len(shown.parts) - 1} of 8 parts are shown: those with the clearest conflicts.",
    ]
    series_of = encode(shown, summary)
    size = sum(len(value) for value in series_of.values() if isinstance(value, str))
    assert 0.6 * budget < size <= budget * 4 / 3 + 100
    text = render({"a": recorder, "b": recorder}, side_by_side=False)
    assert len(text) < 1.4 * BUDGET + 2 * 100_000
    for note in choose(recorder.history, summary, BUDGET // 2).notes:
        assert text.count(note) == 2


def test_objectives_and_parts_that_come_and_go(rng: np.random.Generator, tmp_path: Path) -> None:
    model = Linear((5, 4))
    state = moo.register(model, "mgda", bucket_cap_mb=1e-6)
    recorder = moo.Recorder(state, 1)
    sampled = [("de", "sw"), ("tr", "de"), ("sw", "tr", "de")]
    for names in sampled:
        train_step(model, state, draw(rng, names, (5, 4)))
        recorder.step()
    (run,) = page_of(recorder, tmp_path).data["runs"]
    assert run["objectives"] == ["de", "sw", "tr"]
    first, second, third = recorder.history
    of_whole = series(run, "cosines")[:, 0]
    expected = [
        [first.whole.cosine("de", "sw"), np.nan, np.nan],
        [np.nan, second.whole.cosine("de", "tr"), np.nan],
        [third.whole.cosine("de", "sw"), third.whole.cosine("de", "tr"), third.whole.cosine("sw", "tr")],
    ]
    np.testing.assert_allclose(of_whole, expected, atol=5.1e-5)
    assert np.isnan(series(run, "weights")[1, 1]).tolist() == [False, True, False]
    assert series(run, "weights")[1, 1, 2] == pytest.approx(second.parts[1].weight("tr"), rel=1e-6)


def test_bad_calls(tmp_path: Path) -> None:
    empty = moo.Recorder(None)
    expect(error_of(lambda: write_page(tmp_path / "x.html", {})), ValueError, "recorders must be at least one; got 0")
    expect(
        error_of(lambda: write_page(tmp_path / "x.html", {"a": empty}, side_by_side=True)),
        ValueError,
        "must be two; got 1",
    )
    expect(
        error_of(lambda: write_page(tmp_path / "x.html", {"a": empty, "b": empty}, side_by_side=True)),
        RuntimeError,
        "a has no record",
    )
    assert list(tmp_path.iterdir()) == []


def test_its_files_are_in_the_package() -> None:
    folder = resources.files("bucket_moo_ext.observe") / "page_files"
    assert {"page.html", "page.css", "page.js", "charts.js", "explorer.js", "elements.js"} == {
        file.name for file in folder.iterdir()
    }
