"""Pages and the README's figure say what the results say."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import tables
from harness import Result


@pytest.fixture(scope="module")
def results() -> tables.Results:
    return tables.load()


def test_tables_are_made_of_the_results(results: tables.Results) -> None:
    shown = set()
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        shown |= {found[2] for found in tables.MARK.finditer(text)}
        assert tables.filled(text, results) == text, f"{page.name}: run python bench/tables.py"
    assert shown == tables.TABLES.keys()


def test_the_figure_is_drawn_from_the_results(results: tables.Results) -> None:
    assert tables.FIGURE.read_text(encoding="utf-8") == tables.figure(results)


def test_bars_are_as_long_as_ratios(results: tables.Results) -> None:
    bars = [float(width) for width in re.findall(r'width="([\d.]+)" height="24"', tables.figure(results))]
    ratios = [1.0, *(results[f"backward[{case}]"].value for case in tables.BARS.values())]
    assert [bar / bars[0] for bar in bars] == pytest.approx(ratios, rel=0.01)


def test_a_row_has_its_own_figures() -> None:
    of = {
        "backward[x]": Result("backward[x]", "plain ddp", "time", 1.25, 0.02, 9, {"median_ms": 50, "reference_ms": 40}),
        "wire[x]": Result("wire[x]", "plain ddp", "bytes", 1.001, 0.0, 1),
        "peak[x]": Result("peak[x]", "plain ddp", "peak", 0.9, 0.0, 2, {"more_mb": -24.4}),
    }
    assert tables.reductions(of, {"a case": "x"}).splitlines()[-1] == (
        "| a case | 40.0 | 50.0 | 1.25 ± 2 % | 1.001 |  | -24 |"
    )


def test_a_table_that_is_unknown_is_an_error(results: tables.Results) -> None:
    with pytest.raises(KeyError, match="nothing"):
        tables.filled("<!-- bench: nothing -->\n<!-- end -->", results)
