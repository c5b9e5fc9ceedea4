"""Pages of recordings in a headless Chromium: what they show, against the recorder."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
from bucket_moo_ext.observe.page import write_page

from tests.observe.test_page import HOSTILE, recorded

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

if CHROMIUM is None:
    pytest.skip("no chromium on the PATH (apt-get install chromium)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="needs requirements/dev.txt")

FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NAMES = ("de", "sw", "tr")
PHONE = {"width": 360, "height": 740}
MARKS = {"conflict": "\u25bc", "agreement": "\u25b2", "noise": "\u223c", "undecided": "?"}

Opened = Callable[..., Any]
"""A page of a file, in a context with the given options."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """Whatever is opened must neither complain nor fetch anything."""
    said: list[str] = []
    contexts = []

    def dismiss(dialog: Any) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    def open_(path: Path, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", dismiss)
        page.on("request", lambda request: said.extend([request.url] * (not request.url.startswith("file:"))))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="module")
def recorder() -> moo.Recorder:
    """A NaN in its fourth record, a zero gradient in the fifth."""
    return recorded(np.random.default_rng(5), 14)


@pytest.fixture
def file(recorder: moo.Recorder, tmp_path: Path) -> Path:
    recorder.page(tmp_path / "page.html")
    return tmp_path / "page.html"


def shown(value: float, digits: int = 3) -> str:
    return "NaN" if math.isnan(value) else f"{value:.{digits}f}"


def check_matrix(page: Any, recorder: moo.Recorder, step: int, title: str) -> None:
    """The matrix shows a part of a record, and verdicts over all."""
    record = recorder.history[step]
    part = {part.key.title: part for part in (record.whole, *record.parts)}[title]
    summary = recorder.summary()
    verdicts = {pair.objectives: pair.verdict for pair in (*summary.whole, *summary.parts) if pair.part.title == title}
    rows = [row.locator("td").all_inner_texts() for row in page.locator(".matrix tbody tr").all()]
    for i, row in enumerate(rows):
        for j, cell in enumerate(row[:-1]):
            if i == j:
                assert cell == "1"
                continue
            number, mark, verdict = cell.split()
            # Cosines are kept in units of 1e-4, so the second digit may be the neighbour's.
            assert float(number) == pytest.approx(float(part.cosines[i, j]), abs=0.0051, nan_ok=True)
            expected = verdicts[NAMES[min(i, j)], NAMES[max(i, j)]]
            assert (mark, verdict) == (MARKS[expected], expected)
        weight = float(part.weights[i])
        assert row[-1] == ("\u2013" if math.isnan(weight) else shown(weight))
    said = page.locator(".said").inner_text()
    assert said.startswith(f"Step {record.step}, {title}: status {part.status}, residual {shown(part.residual)}")


def test_it_steps_through_time(opened: Opened, file: Path, recorder: moo.Recorder) -> None:
    page = opened(file)
    slider, part = page.get_by_label("Step", exact=True), page.get_by_label("Part", exact=True)
    check_matrix(page, recorder, 13, "whole gradients")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    check_matrix(page, recorder, 3, "whole gradients")
    assert page.locator(".matrix td.none").count() == 4, "a NaN has no colour"
    part.select_option("b")
    check_matrix(page, recorder, 3, "b")
    page.get_by_role("button", name="Next step").click()
    part.select_option("a")
    check_matrix(page, recorder, 4, "a")
    page.keyboard.press("Tab")
    assert page.locator("output").first.inner_text() == f"{recorder.history[4].step} (5 of 14)"
    legend = page.locator("figure.chart").filter(has_text="Weights of a").locator("li").all_inner_texts()
    weights = next(part.weights for part in recorder.history[4].parts if part.key.title == "a").tolist()
    assert [text.split() for text in legend] == [[name, shown(w)] for name, w in zip(NAMES, weights, strict=True)]
    losses = page.locator("figure.chart").filter(has_text="Loss of each objective").locator("li").all_inner_texts()
    assert [text.split() for text in losses] == [["de", "1.600"]]
    crosses = page.locator(".cross").evaluate_all("all => all.map(each => each.title)")
    assert f"whole gradients, step {recorder.history[3].step}: NaN" in crosses


def test_the_map_says_and_chooses_what_is_pointed_at(opened: Opened, file: Path, recorder: moo.Recorder) -> None:
    page = opened(file)
    page.get_by_label("Show").select_option("cosine of two objectives")
    page.get_by_label("of", exact=True).select_option("de")
    page.get_by_label("and", exact=True).select_option("sw")
    svg = page.locator(".map svg").first
    box = svg.bounding_box()

    def at(part: int, step: int) -> dict[str, float]:
        return {"x": box["width"] * (step + 0.5) / 14, "y": box["height"] * (part + 0.5) / 3}

    svg.hover(position=at(1, 6))
    record = recorder.history[6]
    cosine = next(part for part in record.parts if part.key.title == "a").cosine("de", "sw")
    assert page.locator(".pointed").first.inner_text() == f"Step {record.step}, a: Cosine of de and sw {shown(cosine)}"
    svg.click(position=at(2, 7))
    check_matrix(page, recorder, 7, "b")
    page.locator(".across").first.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    check_matrix(page, recorder, 8, "a")
    marks = page.locator(".map").first.locator(".labels .mark").all_inner_texts()
    summary = recorder.summary()
    pairs = [pair for pair in (*summary.whole, *summary.parts) if pair.objectives == ("de", "sw")]
    verdicts = {pair.part.title: pair.verdict for pair in pairs}
    assert marks == [MARKS[verdicts[title]] for title in ("whole gradients", "a", "b")]
    assert marks[1] == MARKS["conflict"]
    page.get_by_text("The map as a table").click()
    page.locator("details[open] tbody tr").first.wait_for()
    rows = page.locator("details[open] tbody tr").all()
    values = [float(text) for text in rows[1].locator("td").all_inner_texts()]
    parts = [next(part for part in record.parts if part.key.title == "a") for record in recorder.history]
    np.testing.assert_allclose(values, [part.cosine("de", "sw") for part in parts], atol=5.6e-4)


@pytest.mark.parametrize("kind", ["one", "several", "side by side", "long names", "empty"])
def test_a_phone_needs_no_scrolling_sideways(opened: Opened, recorder: moo.Recorder, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "page.html"
    if kind == "one":
        recorder.page(path)
    elif kind == "long names":
        recorded(np.random.default_rng(0), 12, tuple(f"{'x' * 55}{i}" for i in range(12))).page(path, title="y" * 300)
    elif kind == "empty":
        moo.Recorder(None).page(path)
    else:
        write_page(path, {"a": recorder, "b": recorder}, side_by_side=kind == "side by side")
    page = opened(path, viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    page.wait_for_function("document.querySelectorAll('details:not(:has(table))').length === 0")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    sizes = page.locator("p").evaluate_all("all => all.map(each => parseFloat(getComputedStyle(each).fontSize))")
    assert min(sizes) > 13


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const style = (element) => getComputedStyle(element);
  const cell = document.querySelector(".matrix td:not(.same)");
  const page = style(document.body);
  const names = ["z", ...[..."np"].flatMap((side) => Array.from({ length: 10 }, (_, i) => `${side}${i + 1}`))];
  const cells = names.map((name) => {
    cell.className = name;
    return ratio(style(cell).backgroundColor, style(cell).color);
  });
  const lines = Array.from({ length: 8 }, (_, i) => {
    const line = document.querySelector(".line");
    line.setAttribute("class", `line l${i}`);
    return ratio(style(line).stroke, page.backgroundColor);
  });
  const texts = [document.body, document.querySelector(".quiet"), document.querySelector("summary")]
    .map((each) => ratio(style(each).color, page.backgroundColor));
  return { cells, lines, texts, background: light(page.backgroundColor) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened: Opened, file: Path, scheme: str) -> None:
    """Of WCAG 2.1: 4.5 for text, 3 for what a picture is read by."""
    found = opened(file, color_scheme=scheme).evaluate(CONTRASTS)
    assert (found["background"] > 0.5) == (scheme == "light")
    assert len(found["cells"]) == 21
    assert min(found["cells"]) >= 4.5, found["cells"]
    assert min(found["texts"]) >= 4.5, found["texts"]
    assert min(found["lines"]) >= 3, found["lines"]


def test_print(opened: Opened, file: Path) -> None:
    page = opened(file, color_scheme="dark")
    has_rows = "each.querySelector('tbody tr') !== null"
    details = f"[...document.querySelectorAll('details')].map(each => each.open && {has_rows})"
    assert not any(page.evaluate(details))
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {details}; }})")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert page.evaluate("window.printed") == [True] * 6
    assert page.locator("details[open]").count() == 0, "closed again"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in ("select", "input", "button", "summary"):
        assert not page.locator(hidden).first.is_visible()
    assert page.locator(".matrix").is_visible()


def test_hostile_names_do_nothing(opened: Opened, tmp_path: Path) -> None:
    recorder = recorded(np.random.default_rng(0), 4, HOSTILE)
    recorder.describe({HOSTILE[0]: HOSTILE[2]})
    recorder.page(tmp_path / "page.html", title=HOSTILE[0])
    page = opened(tmp_path / "page.html")
    assert page.locator(".matrix thead th").all_text_contents() == [*HOSTILE, "weight"]
    assert page.locator("h2").first.inner_text() == HOSTILE[0]
    assert page.locator("img").count() == 0


def test_many_objectives_are_rows(opened: Opened, tmp_path: Path) -> None:
    names = tuple(f"task {number:02d}" for number in range(64))
    recorded(np.random.default_rng(0), 12, names).page(tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    assert page.locator(".matrix tbody tr").count() == 64
    assert page.locator(".map").filter(has_text="task 63").count() == 1
    page.get_by_role("button", name="Step before").click()
    assert "(11 of 12)" in page.locator("output").first.inner_text()


def test_one_of_several_runs_is_shown(opened: Opened, recorder: moo.Recorder, tmp_path: Path) -> None:
    other = recorded(np.random.default_rng(6), 3)
    write_page(tmp_path / "page.html", {"first": recorder, "nothing": moo.Recorder(None), "other": other})
    page = opened(tmp_path / "page.html")
    check_matrix(page.locator("section.run").first, recorder, 13, "whole gradients")
    choice = page.get_by_label("Run", exact=True)
    choice.select_option("nothing")
    assert page.locator("section.run:visible").inner_text().startswith("nothing\n\nNothing was recorded yet")
    choice.select_option("other")
    assert page.locator("section.run:visible").count() == 1
    check_matrix(page.locator("section.run:visible"), other, 2, "whole gradients")


def test_two_runs_side_by_side(opened: Opened, recorder: moo.Recorder, tmp_path: Path) -> None:
    other = recorded(np.random.default_rng(6), 3)
    write_page(tmp_path / "page.html", {"one": recorder, "two": other}, side_by_side=True)
    page = opened(tmp_path / "page.html", viewport={"width": 1400, "height": 800})
    first, second = page.locator("section.run").all()
    check_matrix(first, recorder, 13, "whole gradients")
    check_matrix(second, other, 2, "whole gradients")
    assert first.bounding_box()["y"] == second.bounding_box()["y"]
    both = page.locator(".both figure").all()
    assert [figure.locator("figcaption").inner_text() for figure in both] == [
        "Residual of the whole gradients", "Share of conflicting pairs in parts", "Mean loss of the objectives",
        "Seconds a step",
    ]  # fmt: skip
    assert [text.split()[0] for text in both[0].locator("li").all_inner_texts()] == ["one", "two"]


def test_without_records(opened: Opened, tmp_path: Path) -> None:
    moo.Recorder(None).page(tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    assert "Nothing was recorded yet, so there is nothing to show." in page.locator("main").inner_text()
    assert page.locator("svg").count() == 0


@pytest.mark.parametrize("names", [("de",), ("de", "sw")])
def test_one_record(opened: Opened, tmp_path: Path, names: tuple[str, ...]) -> None:
    recorded(np.random.default_rng(0), 1, names).page(tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    assert "There is one record" in page.locator("main").inner_text()
    assert page.locator("output").first.inner_text() == "1 (1 of 1)"
