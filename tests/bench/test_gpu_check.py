"""The driver of `make gpu-check`, with phases that need no GPU. `make gpu-check-dry` runs those that do."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check as check  # noqa: E402
import gpu_report as report  # noqa: E402


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
    outcomes = {o.name: o for o in check.run_phases(phases, tmp_path, said.append)}
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


def _figures(gramian: float, combine: float, microseconds: float) -> dict[str, Any]:
    row = {"dtype": "float32", "length": "shard", "copy": 1000.0}
    return {
        "bandwidth": [
            {**row, "megabytes": 1, "k": 8, "gramian": 1.0, "combine": 1.0},  # too small to count
            {**row, "megabytes": 25, "k": 16, "gramian": 1.0, "combine": 1.0},  # too many
            {**row, "length": "odd", "megabytes": 25, "k": 2, "gramian": 1.0, "combine": 1.0},  # not aligned
            {**row, "megabytes": 25, "k": 8, "gramian": gramian, "combine": combine},
            {**row, "megabytes": 1000, "k": 2, "gramian": 990.0, "combine": 990.0},
        ],
        "solve": [{"method": "mgda", "k": 8, "device_us": microseconds, "call_us": 50.0}],
    }


def test_targets() -> None:
    judged = report.kernel_targets(_figures(950.0, 899.0, 15.0))
    assert [t["status"] for t in judged] == ["met", "missed", "met"]
    assert [t["value"] for t in judged] == ["0.950", "0.899", "15.0 us"]
    outcomes = [report.Outcome("memcheck", "passed"), report.Outcome("racecheck", "failed")]
    judged = report.sanitizer_targets(outcomes)
    assert [t["status"] for t in judged] == ["met", "missed", "not measured", "not measured"]
    nothing = report.kernel_targets({}) + report.sanitizer_targets([])
    assert {t["status"] for t in nothing} == {"not measured"}


def _result(figures: dict[str, Any], outcomes: list[report.Outcome]) -> dict[str, Any]:
    return {
        "title": "GPU check, kernels: Some GPU",
        "machine": {"device": "Some GPU", "commit": "abc", "torch": "2.11.0"},
        "phases": [vars(outcome) for outcome in outcomes],
        "targets": report.kernel_targets(figures),
        "figures": figures,
        "measures": ["bandwidth", "memory"],
    }


def test_the_page_has_everything() -> None:
    outcomes = [
        report.Outcome("tests", "failed", 12.3, "exit status 1"),
        report.Outcome("memcheck", "not run", why="x"),
    ]
    page = report.markdown(_result({**_figures(950.0, 990.0, 12.0), "notes": ["a note"]}, outcomes))
    for text in (
        "# GPU check, kernels: Some GPU",
        "| commit | abc |",
        "| tests | failed | 12 | exit status 1 |",
        "12.0 us",
    ):
        assert text in page
    assert "| float32 | shard | 1000 | 25 | 8 | 950 | 990 |" in page
    assert "## Memory of the hook, megabytes\n\nNot measured." in page
    assert "- a note" in page


def test_a_dry_run_keeps_no_figure() -> None:
    figures = {**_figures(950.0, 990.0, 12.0), "notes": ["a note"]}
    kept = check.dry_result(_result(figures, []), {"NCCL": "Gloo stands in"})
    assert {t["status"] for t in kept["targets"]} == {"not measured"}
    assert kept["figures"] == {"notes": ["Not executed in a dry run: NCCL: Gloo stands in."]}
    assert "950" not in report.markdown(kept)


def test_what_a_dry_run_leaves_out_is_what_is_listed() -> None:
    listed = {"NCCL": "x", "CuPy": "y"}
    assert check.left_out({"not executed": ["CuPy", "NCCL"]}, listed) == []
    (more,) = check.left_out({"not executed": ["CuPy", "NCCL", "a test"]}, listed)
    assert more.startswith("a test: not executed")
    (fewer,) = check.left_out({"not executed": ["NCCL"]}, listed)
    assert fewer.startswith("CuPy: in not_executed.json")


def test_the_documentation_says_what_a_dry_run_leaves_out() -> None:
    listed: dict[str, str] = json.loads(check.NOT_EXECUTED.read_text())
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", page.partition("### Dry run")[2].partition("\n## ")[0], re.MULTILINE)
    assert dict(rows) == {"not executed": "because", **listed}


def test_notes_of_the_tests_come_into_the_figures(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    lines = ('{"note": "over NCCL"}', '{"memory": {"extra": 3.5}}', *['{"not executed": "CuPy"}'] * 2)
    notes.write_text("\n".join(lines))
    assert report.with_notes({"notes": ["a"]}, notes) == {
        "notes": ["a", "over NCCL"],
        "memory": [{"extra": 3.5}],
        "not executed": ["CuPy"],
    }
    assert report.with_notes({}, tmp_path / "none") == {"notes": [], "memory": [], "not executed": []}


@pytest.mark.parametrize("dry", [False, True])
def test_what_is_to_be_done(tmp_path: Path, dry: bool) -> None:
    run = check.Run("python3", dry, tmp_path)
    build, kernels, sanitizers = check.build_phase(run), check.kernel_phases(run), check.sanitizer_phases(run)
    assert [p.name for p in kernels] == ["tests", "tests of ranks", "benchmarks"]
    assert [p.name for p in sanitizers] == (["every kernel"] if dry else list(report.SANITIZERS))
    for phases in (kernels, sanitizers):
        assert sum(phase.seconds for phase in (build, *phases)) <= check.TIME, "one that is late takes no other's time"
        assert all(phase.needs == [build.name] for phase in phases)
    words = [word for phase in kernels for word in phase.command]
    assert all((ROOT / word).exists() for word in words if word.endswith((".py", ".ini")))
    tests = {path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert {Path(word).name for word in words if word.startswith("tests/gpu/test_")} == tests
    for phase in sanitizers:
        assert phase.command[-2:] == ["-m", "tests.gpu.sanitized"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_machine_is_plain() -> None:
    facts = check.machine(sys.executable)
    assert facts["torch"] == torch.__version__
    assert len(facts["commit"]) == 40 or facts["commit"] == "unknown"
    json.dumps(facts)
