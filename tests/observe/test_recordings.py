"""``python -m bucket_moo_ext report`` and ``compare``."""

import math
import re
import subprocess
import sys
from pathlib import Path

import bucket_moo_ext as moo
import numpy as np
import pytest
from bucket_moo_ext.__main__ import main
from bucket_moo_ext.observe.comparison import compare

from tests.observe.test_page import recorded
from tests.support.errors import error_of, expect
from tests.support.pages import Page


@pytest.fixture
def files(rng: np.random.Generator, tmp_path: Path) -> list[Path]:
    """Two recordings in folders of their own, 14 and 11 records."""
    paths = [tmp_path / "runs" / name / "moo.jsonl" for name in ("first", "second")]
    for path, steps, lr in zip(paths, (14, 11), (0.1, 0.2), strict=True):
        recorder = recorded(rng, steps)
        recorder.describe({"lr": lr, "model": "tiny"})
        path.parent.mkdir(parents=True)
        recorder.save(path)
    return paths


def test_report_of_a_file_and_of_a_folder(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(files[0]), "-o", str(page)]) == 0
    assert capsys.readouterr().out == f"written: {page}\n"
    (run,) = Page(page.read_text(encoding="utf-8")).data["runs"]
    assert (run["name"], len(run["steps"])) == ("moo", 14)
    assert main(["report", str(tmp_path / "runs"), "-o", str(page)]) == 0
    runs = Page(page.read_text(encoding="utf-8")).data["runs"]
    assert [(run["name"], len(run["steps"])) for run in runs] == [("first/moo", 14), ("second/moo", 11)]


def test_compare_says_what_both_say(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, files)]) == 0
    text = capsys.readouterr().out
    lines = {
        re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line.strip())[1:]
        for line in text.splitlines()
        if line
    }
    assert lines["name"] == lines["number"] == ["first/moo", "second/moo"]
    assert lines["lr"] == ["0.1", "0.2"]
    assert "model" not in lines
    first, second = (moo.Recorder.load(file) for file in files)
    for column, recorder in enumerate((first, second)):
        records = recorder.history
        assert lines["records"][column] == str(len(records))
        residuals = [record.whole.residual for record in records]
        mean = float(np.nanmean(residuals))
        assert float(lines["mean residual of the whole gradients"][column]) == pytest.approx(mean, abs=5.1e-5)
        shares = [record.conflict_share for record in records]
        said = float(lines["mean share of conflicting pairs, in parts"][column])
        assert said == pytest.approx(float(np.mean(shares)), abs=5.1e-5)
        assert lines["median seconds a step"][column] == "0.1250"
        assert lines["loss of de, first to last"][column] == f"2.0000 to {records[-1].losses['de']:.4f}"
    ours, theirs = ({pair.objectives: pair for pair in recorder.summary().whole} for recorder in (first, second))
    for pair in ours:
        a, b, difference, error = lines[" \u2013 ".join(pair)]
        assert a.split()[::2] == [f"{ours[pair].mean:.4f}", ours[pair].verdict]
        assert b.split()[::2] == [f"{theirs[pair].mean:.4f}", theirs[pair].verdict]
        assert float(difference) == pytest.approx(theirs[pair].mean - ours[pair].mean, abs=5.1e-5)
        assert float(error) == pytest.approx(math.hypot(ours[pair].error, theirs[pair].error), abs=5.1e-5)

    page = tmp_path / "both.html"
    assert main(["compare", *map(str, files), "-o", str(page)]) == 0
    found = Page(page.read_text(encoding="utf-8"))
    assert found.data["side_by_side"] is True
    table = compare(first, second, ("first/moo", "second/moo"))
    assert found.tables["Mean cosines in the whole gradients"][1:] == table.pairs
    assert found.tables["What differs in the configuration"][1:] == [["lr", "0.1", "0.2"]]


def test_what_one_has_alone(rng: np.random.Generator) -> None:
    first, second = recorded(rng, 3, ("de", "sw")), recorded(rng, 3, ("de", "tr"))
    second.describe({"note": "x"})
    found = compare(first, second, ("a", "b"))
    assert found.configuration == [["note", "\u2013", "x"]]
    assert [row[0] for row in found.pairs] == ["de \u2013 sw", "de \u2013 tr"]
    assert [row[1] == "\u2013" for row in found.pairs] == [False, True]
    assert [row[3:] for row in found.pairs] == [["\u2013", "\u2013"]] * 2
    expect(error_of(lambda: compare(first, moo.Recorder(None), ("a", "b"))), RuntimeError, "b has no record")


def test_bad_input(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, other = tmp_path / "page.html", tmp_path / "other.jsonl"
    other.write_text("x\n")
    (tmp_path / "empty").mkdir()
    first, second = map(str, files)
    for arguments, said in (
        (["report", str(tmp_path / "none.jsonl"), "-o", str(page)], "none.jsonl"),
        (["report", str(other), "-o", str(page)], "other.jsonl, line 1: it is damaged"),
        (["report", str(tmp_path / "empty"), "-o", str(page)], "empty has no recording"),
        (["report", first, first, "-o", str(page)], "must be different files"),
        (["compare", first, str(tmp_path / "runs")], "must be different files"),
        (["compare", second, str(other)], "other.jsonl, line 1: it is damaged"),
    ):
        assert main(arguments) == 2
        assert re.fullmatch(rf"error: .*{re.escape(said)}.*\n", capsys.readouterr().err)
    third = tmp_path / "runs" / "third.jsonl"
    third.write_bytes(files[0].read_bytes())
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(files[0].read_bytes())
    assert main(["compare", str(copy), str(tmp_path / "runs")]) == 2
    assert "compare takes two recordings; got 4" in capsys.readouterr().err
    assert not page.exists()


def test_as_a_module(files: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bucket_moo_ext", "report", str(files[0]), "-o", str(tmp_path / "page.html")]
    subprocess.run(command, timeout=120, check=True)
    assert (tmp_path / "page.html").exists()
