"""What a study's report leaves out or counts twice, it says."""

# ruff: noqa: E402

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="needs requirements/study.txt")
pytest.importorskip("transformers", reason="needs requirements/demo.txt")
STUDY = Path(__file__).resolve().parents[2] / "studies" / "multilingual"
for folder in (STUDY, STUDY.parents[1] / "examples" / "multilingual"):
    sys.path.insert(0, str(folder))

import findings
import study_report
from registration import read

SMALL = read(STUDY / "small.toml")


def _test(value: float | None) -> dict[str, Any]:
    bits = {} if value is None else {"de": value}
    return {"diverged": 7 if value is None else None, "bits_per_byte": bits}


def _outcome(**changed: Sequence[float | None]) -> dict[str, Any]:
    """Every arm of every cell with numbers of its own, but for those that are given, as cell number _ arm."""
    outcome: dict[str, Any] = {}
    for number, cell in enumerate(SMALL.cells):
        arms = {}
        for place, name in enumerate(cell.arms):
            own = [number + 0.01 * place + 0.001 * seed for seed in cell.seeds]
            values = changed.get(f"{name}_{number}", own)
            arms[name] = {"validation": place, "tests": [_test(value) for value in values]}
        outcome[cell.name] = {"arms": arms}
    return outcome


def test_arms_whose_runs_diverged_are_named() -> None:
    assert findings.not_compared(_outcome(), SMALL) == []
    cell = SMALL.cells[1]
    count = len(cell.seeds)
    lost = findings.not_compared(_outcome(nashmtl_1=[None, *[1.0] * (count - 1)]), SMALL)
    assert lost == [{"cell": cell.name, "arm": "nashmtl", "diverged": 1, "of_reference": 0}]
    said = study_report.not_compared({"not_compared": lost})
    assert said == f"Not compared, since runs diverged: `nashmtl` in {cell.name} (1 of its runs, 0 of the reference's)."
    best = next(name for name in cell.arms if SMALL.arms[name].rival)
    of_reference = findings.not_compared(_outcome(**{f"{best}_1": [None] * count}), SMALL)
    assert [row["arm"] for row in of_reference] == [name for name in cell.arms if name != best]


def test_arms_that_repeat_others_are_named() -> None:
    assert findings.repeated(_outcome(), SMALL) == []
    first, second = SMALL.cells[:2]
    shared = [seed for seed in second.seeds if seed in first.seeds]
    assert shared
    copied = [0.5 + seed for seed in second.seeds]
    same = _outcome(nashmtl_0=[0.5 + seed for seed in first.seeds], nashmtl_1=copied)
    rows = findings.repeated(same, SMALL)
    assert rows == [{"cell": second.name, "arm": "nashmtl", "as_cell": first.name, "as_arm": "nashmtl"}]
    assert f"| {second.name} | nashmtl | `nashmtl` in {first.name} |" in study_report.repeated({"repeated": rows})
    copied[second.seeds.index(shared[0])] += 1e-5
    assert findings.repeated(_outcome(nashmtl_0=[0.5 + seed for seed in first.seeds], nashmtl_1=copied), SMALL) == []
