"""report.plot() and recorder.plot()."""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import bucket_moo_ext as moo
import numpy as np
import pytest

from tests.observe.test_page import HOSTILE, recorded
from tests.support.errors import error_of, expect
from tests.support.recorded import Linear, draw, train_step

NAMES = ("de", "sw", "tr")


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of an SVG stay texts."""
    matplotlib = pytest.importorskip("matplotlib", reason="needs requirements/demo.txt")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def texts(path: Path) -> list[str]:
    """Of an SVG."""
    return ["".join(found.itertext()) for found in ET.parse(path).iter() if found.tag.endswith("}text")]


def report(rng: np.random.Generator, names: tuple[str, ...], sizes: tuple[int, ...]) -> moo.Report:
    model = Linear(sizes)
    state = moo.register(model, "mgda", bucket_cap_mb=1e-6)
    train_step(model, state, draw(rng, names, sizes))
    return state.report()


@pytest.mark.usefixtures("readable")
def test_a_report_has_its_cosines_and_weights(rng: np.random.Generator, tmp_path: Path) -> None:
    found = report(rng, NAMES, (6, 4))
    found.plot(tmp_path / "report.svg")
    said = texts(tmp_path / "report.svg")
    assert said.count("whole gradients") == said.count("a") == said.count("b") == 1
    numbers = [text for text in said if re.fullmatch(r"[-\u2212]?\d\.\d\d", text)]
    for bucket in found.buckets:
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert numbers.count(f"{bucket.cosines[i, j]:.2f}") >= 2
        assert {f"{weight:.3f}" for weight in bucket.weights.tolist()} < set(said)
    assert any(text.startswith("Cosines at step 1: MGDA(normalize='none')") for text in said)
    found.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("readable")
def test_names_are_no_formulas_and_many_are_thinned(rng: np.random.Generator, tmp_path: Path) -> None:
    report(rng, ("$x^$", "a$b", r"\$\frac", "<&>"), (6,)).plot(tmp_path / "few.svg")
    assert {"$x^$", "a$b", r"\$\frac", "<&>"} < set(texts(tmp_path / "few.svg"))
    report(rng, tuple(f"task {number}" for number in range(64)), (6,)).plot(tmp_path / "many.svg")
    assert texts(tmp_path / "many.svg").count("task 4") == 4
    recorded(rng, 3, HOSTILE[:4]).plot(tmp_path / "hostile.svg")
    assert "<!--" in texts(tmp_path / "hostile.svg")


@pytest.mark.usefixtures("readable")
def test_a_recorder_has_maps_weights_and_scalars(rng: np.random.Generator, tmp_path: Path) -> None:
    recorder = recorded(rng, 8)
    recorder.plot(tmp_path / "recorder.svg")
    said = texts(tmp_path / "recorder.svg")
    for title in (
        "Parts of the gradients over steps", "lowest cosine of any pair", "residual", "Weights: a", "Weights: b",
        "Residual of the whole gradients", "Share of conflicting pairs", "Loss of each objective", "Seconds a step",
    ):  # fmt: skip
        assert title in said, title
    assert said.count("sw") == 2, "in the weights, not in the losses"
    recorded(rng, 1, ("de",)).plot(tmp_path / "one.pdf")
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


def test_without_records(tmp_path: Path) -> None:
    expect(error_of(lambda: moo.Recorder(None).plot(tmp_path / "x.png")), RuntimeError, "no step was recorded yet")


def test_without_matplotlib(rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(rng, NAMES, (6, 4))
    recorder = recorded(rng, 2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for plot in (found.plot, recorder.plot):
        expect(error_of(lambda plot=plot: plot(tmp_path / "x.png")), ImportError, r"pip install matplotlib.*\[plot\]")  # type: ignore[misc]
    assert list(tmp_path.iterdir()) == []
