"""Everything that only a GPU can show, in one run: build, tests, compute-sanitizer, benchmarks.

`make gpu-check` runs this with the Python and the torch that are installed; no network, no virtual environment. Results
go to bench/results as JSON and Markdown, with device, versions and commit. Needs the standard library only.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu" / "site"
DEADLINE = 8.5 * 60  # seconds for all phases together; the whole is to end in under nine minutes

# What the figures are held to: share of the copy bandwidth at K <= 8 from 25 MB on, and microseconds.
BANDWIDTH_SHARE = 0.9
SOLVE_MICROSECONDS = 15.0


@dataclass
class Phase:
    """One step of the check."""

    name: str
    command: Sequence[str]
    seconds: float  # it may take at most
    needs: Sequence[str] = ()  # phases without whose success it is pointless
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a phase: passed, failed, timed out or not run."""

    name: str
    status: str
    seconds: float = 0.0
    why: str = ""
    output: str = ""  # its end

    @property
    def passed(self) -> bool:
        """Whether it ran and succeeded."""
        return self.status == "passed"


def run_phase(phase: Phase, seconds: float, log: Path) -> Outcome:
    """Runs a phase's command in a session of its own, which is killed whole when its time is over."""
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            phase.command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **phase.environment},
            start_new_session=True,
        )
        try:
            status = "passed" if process.wait(timeout=seconds) == 0 else "failed"
            why = "" if status == "passed" else f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status, why = "timed out", f"after {seconds:.0f} s"
    end = log.read_text(errors="replace")[-6000:]
    return Outcome(phase.name, status, round(time.monotonic() - started, 1), why, "" if status == "passed" else end)


def run_phases(
    phases: Sequence[Phase],
    logs: Path,
    deadline: float,
    say: Callable[[str], None] = print,
    run: Callable[[Phase, float, Path], Outcome] = run_phase,
) -> list[Outcome]:
    """Runs the phases one after another; none after the deadline (seconds from now), or without what it needs."""
    logs.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + deadline
    outcomes: dict[str, Outcome] = {}
    for phase in phases:
        left = end - time.monotonic()
        lacking = [name for name in phase.needs if name not in outcomes or not outcomes[name].passed]
        if lacking:
            outcome = Outcome(phase.name, "not run", why=f"needs {', '.join(lacking)}")
        elif left <= 1:
            outcome = Outcome(phase.name, "not run", why="the time was over")
        else:
            say(f"== {phase.name} (at most {min(phase.seconds, left):.0f} s)")
            outcome = run(phase, min(phase.seconds, left), logs / f"{phase.name.replace(' ', '_')}.log")
            say(f"   {outcome.status} in {outcome.seconds:.0f} s {outcome.why}")
            if outcome.output:
                say(outcome.output)
        outcomes[phase.name] = outcome
    return list(outcomes.values())


# --- what there is to do ---


def build_environment() -> dict[str, str]:
    """The extension that was built here comes first."""
    path = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def sanitizer() -> str | None:
    """compute-sanitizer, from the PATH or beside nvcc."""
    places = [os.environ["PATH"], "/usr/local/cuda/bin"]
    if nvcc := shutil.which("nvcc"):
        places.append(str(Path(nvcc).resolve().parent))
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def all_phases(python: str, figures: Path, notes: Path) -> list[Phase]:
    """Build, tests, sanitizers and benchmarks, with their shares of the time."""
    environment = {**build_environment(), "GPU_CHECK_NOTES": str(notes)}
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "tests/gpu/pytest.ini", "tests/gpu"]
    tool = sanitizer() or "compute-sanitizer"
    phases = [
        Phase(
            "build",
            [
                python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade",
                "--quiet", "--target", str(SITE), "-C", "build-dir=build/gpu/tree",
                "-C", "cmake.define.BUCKET_MOO_CUDA=ON", "-C", "cmake.define.CMAKE_CUDA_ARCHITECTURES=native", ".",
            ],
            240,
        ),
        Phase("tests", [*pytest, "-m", "not ranks"], 110, ["build"], environment),
        Phase("tests of several ranks", [*pytest, "-m", "ranks"], 90, ["build"], environment),
        Phase("benchmarks", [python, "bench/gpu_kernels.py", "--json", str(figures)], 80, ["build"], environment),
    ]  # fmt: skip
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        # torch's allocator hands out parts of large blocks: without it the tools see the edges of every tensor.
        phases.append(
            Phase(
                check,
                [*command, python, "tests/gpu/sanitized.py"],
                60,
                ["build"],
                {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        )
    return phases


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(python: str) -> dict[str, Any]:
    """Device, versions and commit. Empty `device`: there is none."""
    code = (
        "import json, torch\n"
        "from importlib.metadata import version, PackageNotFoundError\n"
        "def of(name):\n"
        "    try:\n        return version(name)\n"
        "    except PackageNotFoundError:\n        return 'not installed'\n"
        "there = torch.cuda.is_available()\n"
        "print(json.dumps({'device': torch.cuda.get_device_name() if there else '', 'torch': torch.__version__,\n"
        " 'cuda of torch': torch.version.cuda or 'none',\n"
        " 'nccl': '.'.join(map(str, torch.cuda.nccl.version())) if there else 'none',\n"
        " 'cupy': of('cupy-cuda13x'), 'torchjd': of('torchjd')}))"
    )
    found = _output(python, "-c", code)
    facts: dict[str, Any] = json.loads(found) if found.startswith("{") else {"device": "", "torch": "not installed"}
    facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    release = re.search(r"release (\S+),", _output("nvcc", "--version"))
    facts["nvcc"] = release[1] if release else "unknown"
    facts["python"] = _output(python, "-c", "import platform; print(platform.python_version())")
    facts["system"] = platform.platform()
    facts["commit"] = os.environ.get("BUCKET_MOO_COMMIT") or _output("git", "rev-parse", "HEAD")
    changes = _output("git", "status", "--porcelain", "--untracked-files=no")
    facts["changed since the commit"] = changes if changes == "unknown" else bool(changes)
    facts["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return facts


# --- what is said of it ---


def targets(figures: dict[str, Any], outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """The figures against what they are held to: met, missed or not measured."""
    rows = [
        row
        for row in figures.get("bandwidth", [])
        if row["k"] <= 8 and row["megabytes"] >= 25 and row["dtype"] == "float32"
    ]
    judged = []
    for kernel in ("gramian", "combine"):
        shares = [row[kernel] / row["copy"] for row in rows]
        value = f"{min(shares):.2f}" if shares else "not measured"
        status = "not measured" if not shares else "met" if min(shares) >= BANDWIDTH_SHARE else "missed"
        judged.append(
            {
                "target": f"{kernel}: lowest share of the copy bandwidth at K <= 8 from 25 MB on, "
                f"at least {BANDWIDTH_SHARE}",
                "value": value,
                "status": status,
            }
        )
    solves = [r["device_us"] for r in figures.get("solve", []) if r["method"] == "mgda" and r["k"] == 8]
    judged.append(
        {
            "target": f"solve of MGDA, K = 8, on the device: at most {SOLVE_MICROSECONDS} us",
            "value": f"{solves[0]:.1f} us" if solves else "not measured",
            "status": "not measured" if not solves else "met" if solves[0] <= SOLVE_MICROSECONDS else "missed",
        }
    )
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        outcome = next((o for o in outcomes if o.name == check), Outcome(check, "not run"))
        status = {"passed": "met", "failed": "missed"}.get(outcome.status, "not measured")
        judged.append({"target": f"compute-sanitizer {check}: no finding", "value": outcome.status, "status": status})
    return judged


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    figures = result["figures"]
    lines = [f"# GPU check: {result['machine']['device']}", ""]
    lines += _table(["", ""], [[key, str(value)] for key, value in result["machine"].items()])
    lines += ["", "## Phases", ""]
    lines += _table(
        ["phase", "", "s", ""], [[o["name"], o["status"], f"{o['seconds']:.0f}", o["why"]] for o in result["phases"]]
    )
    lines += ["", "## Targets", ""]
    lines += _table(["target", "measured", ""], [[t["target"], t["value"], t["status"]] for t in result["targets"]])
    for title, key in (
        ("Bandwidth in GB/s", "bandwidth"),
        ("Solve, microseconds", "solve"),
        ("Beside other libraries, milliseconds", "others"),
        ("Memory of the hook, megabytes", "memory"),
    ):
        rows = figures.get(key, [])
        lines += ["", f"## {title}", ""]
        if rows:
            head = list(rows[0])
            lines += _table(head, [[_shown(row[name]) for name in head] for row in rows])
        else:
            lines += ["Not measured."]
    for note in figures.get("notes", []):
        lines += ["", f"- {note}"]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def with_notes(figures: dict[str, Any], notes: Path) -> dict[str, Any]:
    """The figures with what the tests noted, one JSON object a line."""
    lines = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return {
        **figures,
        "notes": figures.get("notes", []) + [line["note"] for line in lines if "note" in line],
        "memory": [line["memory"] for line in lines if "memory" in line],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check; 0 if every phase passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    out = os.environ.get("GPU_CHECK_OUT") or str(ROOT / "bench" / "results")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the results (or GPU_CHECK_OUT)")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for everything")
    options = parser.parse_args(arguments)
    facts = machine(sys.executable)
    if not facts["device"]:
        print(f"error: no GPU: torch {facts['torch']} of {sys.executable} finds no CUDA device", file=sys.stderr)
        return 2
    logs = ROOT / "build" / "gpu" / "logs"
    figures_file = logs / "figures.json"
    notes_file = logs / "notes.jsonl"
    for file in (figures_file, notes_file):
        file.unlink(missing_ok=True)
    outcomes = run_phases(all_phases(sys.executable, figures_file, notes_file), logs, options.deadline)
    measured = json.loads(figures_file.read_text()) if figures_file.exists() else {}
    figures = with_notes(measured, notes_file)
    result = {
        "machine": facts,
        "phases": [asdict(outcome) for outcome in outcomes],
        "targets": targets(figures, outcomes),
        "figures": figures,
    }
    name = re.sub(r"[^a-z0-9]+", "_", f"gpu_{facts['device']}_{facts['date'][:10]}".lower()).strip("_")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(markdown(result))
    print(markdown(result))
    print(f"written to {options.out / name}.json and .md")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
