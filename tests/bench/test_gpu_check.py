"""The driver of `make gpu-check`, with phases that need no GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import gpu_check as check  # noqa: E402


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_phases_pass_fail_time_out_and_wait_for_others(tmp_path: Path) -> None:
    phases = [
        check.Phase("good", _python("print('fine')"), 60),
        check.Phase("bad", _python("print('the reason'); raise SystemExit(3)"), 60),
        check.Phase("slow", _python("import time; time.sleep(600)"), 0.5),
        check.Phase("after good", _python("pass"), 60, ["good"]),
        check.Phase("after bad", _python("pass"), 60, ["good", "bad"]),
        check.Phase("with a word", _python("import os; assert os.environ['WORD'] == 'x'"), 60, (), {"WORD": "x"}),
    ]
    said: list[str] = []
    outcomes = {o.name: o for o in check.run_phases(phases, tmp_path, 300, said.append)}
    assert {name: o.status for name, o in outcomes.items()} == {
        "good": "passed",
        "bad": "failed",
        "slow": "timed out",
        "after good": "passed",
        "after bad": "not run",
        "with a word": "passed",
    }
    assert outcomes["bad"].why == "exit status 3"
    assert "the reason" in outcomes["bad"].output
    assert outcomes["after bad"].why == "needs bad"
    assert (tmp_path / "good.log").read_text() == "fine\n"
    assert any("the reason" in line for line in said)


def test_no_phase_begins_after_the_deadline(tmp_path: Path) -> None:
    phases = [check.Phase(name, _python("import time; time.sleep(60)"), 50) for name in ("first", "second")]
    outcomes = check.run_phases(phases, tmp_path, 2.5, lambda _: None)
    assert [o.status for o in outcomes] == ["timed out", "not run"]
    assert outcomes[0].seconds < 20
    assert outcomes[1].why == "the time was over"


def _figures(gramian: float, combine: float, microseconds: float) -> dict[str, Any]:
    row = {"dtype": "float32", "copy": 1000.0}
    return {
        "bandwidth": [
            {**row, "megabytes": 1, "k": 8, "gramian": 1.0, "combine": 1.0},  # too small to count
            {**row, "megabytes": 25, "k": 16, "gramian": 1.0, "combine": 1.0},  # too many
            {**row, "megabytes": 25, "k": 8, "gramian": gramian, "combine": combine},
            {**row, "megabytes": 1000, "k": 2, "gramian": 990.0, "combine": 990.0},
        ],
        "solve": [{"method": "mgda", "k": 8, "device_us": microseconds, "call_us": 50.0}],
    }


def test_targets() -> None:
    outcomes = [check.Outcome("memcheck", "passed"), check.Outcome("racecheck", "failed")]
    judged = check.targets(_figures(950.0, 899.0, 15.0), outcomes)
    assert [t["status"] for t in judged] == ["met", "missed", "met", "met", "missed", "not measured", "not measured"]
    assert judged[0]["value"] == "0.95"
    assert judged[1]["value"] == "0.90"
    nothing = check.targets({}, [])
    assert {t["status"] for t in nothing} == {"not measured"}


def test_the_page_has_everything() -> None:
    outcomes = [check.Outcome("tests", "failed", 12.3, "exit status 1"), check.Outcome("memcheck", "not run", why="x")]
    figures = {**_figures(950.0, 990.0, 12.0), "notes": ["a note"]}
    machine = {"device": "Some GPU", "commit": "abc", "torch": "2.11.0"}
    page = check.markdown(
        {
            "machine": machine,
            "phases": [vars(outcome) for outcome in outcomes],
            "targets": check.targets(figures, outcomes),
            "figures": figures,
        }
    )
    for text in ("# GPU check: Some GPU", "| commit | abc |", "| tests | failed | 12 | exit status 1 |", "12.0 us"):
        assert text in page
    assert "| float32 | 1000 | 25 | 8 | 950 | 990 |" in page
    assert "## Memory of the hook, megabytes\n\nNot measured." in page
    assert "- a note" in page


def test_notes_of_the_tests_come_into_the_figures(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text('{"note": "over NCCL"}\n{"memory": {"extra": 3.5}}\n')
    assert check.with_notes({"notes": ["a"]}, notes) == {"notes": ["a", "over NCCL"], "memory": [{"extra": 3.5}]}
    assert check.with_notes({}, tmp_path / "none") == {"notes": [], "memory": []}


def test_what_is_to_be_done(tmp_path: Path) -> None:
    phases = check.all_phases("python3", tmp_path / "figures.json", tmp_path / "notes")
    assert [p.name for p in phases] == [
        "build", "tests", "tests of several ranks", "benchmarks", "memcheck", "racecheck", "initcheck", "synccheck",
    ]  # fmt: skip
    assert all("build" in p.needs for p in phases[1:])
    for phase in phases[1:]:
        for word in phase.command:
            if word.endswith(".py"):
                assert (ROOT / word).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_machine_is_plain() -> None:
    facts = check.machine(sys.executable)
    assert facts["torch"] == torch.__version__
    assert len(facts["commit"]) == 40 or facts["commit"] == "unknown"
    json.dumps(facts)
