"""Everything that only a GPU can show: build, tests and benchmarks in one run, compute-sanitizer in another.

`make gpu-check` and `make gpu-check-sanitizers` run this with the Python and the torch that are installed; no network,
no virtual environment. Results go to bench/results as JSON and Markdown, with device, versions and commit. With
--dry-run (`make gpu-check-dry`) all of it is run over the emulated kernels, and what comes out is thrown away. Needs
the standard library only.
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

from gpu_report import SANITIZERS, Outcome, kernel_targets, markdown, sanitizer_targets, with_notes

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu" / "site"
NOT_EXECUTED = ROOT / "tests" / "gpu" / "not_executed.json"  # in a dry run
TIME = 540  # seconds that the phases of one check may take together: a machine may be lent for ten minutes a command


@dataclass
class Phase:
    """One step of a check."""

    name: str
    command: Sequence[str]
    seconds: float  # it may take at most
    needs: Sequence[str] = ()  # phases without whose success it is pointless
    environment: dict[str, str] = field(default_factory=dict)


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
    say: Callable[[str], None] = print,
    run: Callable[[Phase, float, Path], Outcome] = run_phase,
) -> list[Outcome]:
    """Runs the phases one after another, none without what it needs."""
    logs.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    for phase in phases:
        lacking = [name for name in phase.needs if not outcomes[name].passed]
        if lacking:
            outcome = Outcome(phase.name, "not run", why=f"needs {', '.join(lacking)}")
        else:
            say(f"== {phase.name} (at most {phase.seconds:.0f} s)")
            outcome = run(phase, phase.seconds, logs / f"{phase.name.replace(' ', '_')}.log")
        say(f"   {phase.name}: {outcome.status} in {outcome.seconds:.0f} s {outcome.why}")
        if outcome.output:
            say(outcome.output)
        outcomes[phase.name] = outcome
    return list(outcomes.values())


# --- what there is to do ---


def sanitizer() -> str | None:
    """compute-sanitizer, from the PATH or beside nvcc."""
    places = [os.environ["PATH"], "/usr/local/cuda/bin"]
    if nvcc := shutil.which("nvcc"):
        places.append(str(Path(nvcc).resolve().parent))
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


@dataclass
class Run:
    """Where the phases of a run find things, and where they leave them."""

    python: str
    dry: bool
    logs: Path

    @property
    def figures(self) -> Path:
        """What the benchmarks write."""
        return self.logs / "figures.json"

    @property
    def notes(self) -> Path:
        """What tests and benchmarks note."""
        return self.logs / "notes.jsonl"

    def environment(self) -> dict[str, str]:
        """The extension that was built here comes first; in a dry run it is the interpreter's."""
        path = [*([] if self.dry else [str(SITE)]), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        common = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "GPU_CHECK_NOTES": str(self.notes)}
        if self.dry:
            return {**common, "GPU_CHECK_DRY": "1"}
        # torch asks NVML whether there is a GPU: once CUDA is asked, no process that is forked later can use it.
        return {**common, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def build_phase(run: Run) -> Phase:
    """For the GPU that is there. In a dry run: whether the interpreter's extension is the emulated one."""
    if run.dry:
        code = "import torch; from bucket_moo_ext import _C; exit(not _C.reduces_on_device(torch.device('cpu')))"
        return Phase("build", [run.python, "-c", code], 60)
    return Phase(
        "build",
        [
            run.python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade",
            "--quiet", "--target", str(SITE), "-C", "build-dir=build/gpu/tree",
            "-C", "cmake.define.BUCKET_MOO_CUDA=ON", "-C", "cmake.define.CMAKE_CUDA_ARCHITECTURES=native", ".",
        ],
        150,
    )  # fmt: skip


def kernel_phases(run: Run) -> list[Phase]:
    """Tests and benchmarks. What one rank does alone comes before what several do, which may hang."""

    def pytest(*files: str) -> list[str]:
        paths = [f"tests/gpu/{file}" for file in files]
        return [run.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "tests/gpu/pytest.ini", *paths]

    environment = run.environment()
    ranks = pytest("test_one_rank.py", "test_collectives.py", "test_ddp.py", "test_sharded.py")
    benchmarks = [run.python, "bench/gpu_kernels.py", "--json", str(run.figures)]
    return [
        Phase("tests", pytest("test_functions.py", "test_large.py", "test_jax.py"), 75, ["build"], environment),
        Phase("tests of ranks", ranks, 240, ["build"], environment),
        Phase("benchmarks", benchmarks, 75, ["build"], environment),
    ]


def sanitizer_phases(run: Run) -> list[Phase]:
    """Every kernel under each tool of compute-sanitizer; in a dry run once, under none."""
    program = [run.python, "-m", "tests.gpu.sanitized"]
    if run.dry:
        return [Phase("every kernel", program, 95, ["build"], run.environment())]
    # torch's allocator hands out parts of large blocks: without it the tools see the edges of every tensor.
    environment = {**run.environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    own = ["--kernel-name", "kns=bucket_moo"]
    options = {
        "memcheck": ["--report-api-errors", "no"],  # torch tries calls that may fail; those of our own raise
        "racecheck": own,
        "initcheck": ["--check-api-memory-access", "no"],  # what is sent may have room that nobody reads
        "synccheck": own,
    }
    common = [sanitizer() or "compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"]
    return [
        Phase(tool, [*common, "--tool", tool, *options[tool], *program], 95, ["build"], environment)
        for tool in SANITIZERS
    ]


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


# --- what comes of it ---


def left_out(figures: dict[str, Any], listed: dict[str, str]) -> list[str]:
    """Of a dry run: what was not executed and is not listed, and what is listed and was executed."""
    found = set(figures["not executed"])
    return [f"{what}: not executed, and not in {NOT_EXECUTED.name}" for what in sorted(found - listed.keys())] + [
        f"{what}: in {NOT_EXECUTED.name}, but nothing was left out for it" for what in sorted(listed.keys() - found)
    ]


def dry_result(result: dict[str, Any], listed: dict[str, str]) -> dict[str, Any]:
    """Without the figures, which mean nothing, and with what was not executed."""
    nothing = [{**target, "value": "dry run", "status": "not measured"} for target in result["targets"]]
    notes = [f"Not executed in a dry run: {what}: {why}." for what, why in sorted(listed.items())]
    return {**result, "targets": nothing, "figures": {"notes": notes}, "measures": []}


def write(result: dict[str, Any], out: Path, name: str) -> None:
    """The result as JSON and as a page, which is printed too."""
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.md").write_text(markdown(result))
    print(markdown(result))
    print(f"written to {out / name}.json and .md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a check; 0 if every phase passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    out = os.environ.get("GPU_CHECK_OUT") or str(ROOT / "bench" / "results")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the results (or GPU_CHECK_OUT)")
    parser.add_argument("--sanitizers", action="store_true", help="compute-sanitizer, in place of tests and benchmarks")
    parser.add_argument("--dry-run", action="store_true", help="all of it over emulated kernels; results go to build")
    options = parser.parse_args(arguments)
    facts = machine(sys.executable)
    if options.dry_run:
        facts["device"] = "none (dry run)"
        options.out = ROOT / "build" / "gpu" / "dry_run"
    elif not facts["device"]:
        print(f"error: no GPU: torch {facts['torch']} of {sys.executable} finds no CUDA device", file=sys.stderr)
        return 2
    run = Run(sys.executable, options.dry_run, ROOT / "build" / "gpu" / ("dry_run" if options.dry_run else "logs"))
    for file in (run.figures, run.notes):
        file.unlink(missing_ok=True)
    # A dry run does both, over one build.
    with_kernels, with_sanitizers = options.dry_run or not options.sanitizers, options.dry_run or options.sanitizers
    build, kernels, sanitizers = build_phase(run), kernel_phases(run), sanitizer_phases(run)
    outcomes = run_phases(
        [build, *(kernels if with_kernels else []), *(sanitizers if with_sanitizers else [])], run.logs
    )
    figures = with_notes(json.loads(run.figures.read_text()) if run.figures.exists() else {}, run.notes)
    what = "sanitizers" if options.sanitizers else "kernels"
    result: dict[str, Any] = {
        "title": f"GPU check, {what}: {facts['device']}",
        "machine": facts,
        "phases": [asdict(outcome) for outcome in outcomes],
        "targets": [
            *(kernel_targets(figures) if with_kernels else []),
            *(sanitizer_targets(outcomes) if with_sanitizers else []),
        ],
        "figures": figures,
        "measures": ["bandwidth", "solve", "others", "memory"] if with_kernels else [],
    }
    passed = all(outcome.passed for outcome in outcomes)
    if options.dry_run:
        markdown(result)  # with the figures, to see that it can be made
        listed = json.loads(NOT_EXECUTED.read_text())
        figures["not executed"] += ["build", "compute-sanitizer"]
        wrong = left_out(figures, listed)
        write(dry_result(result, listed), options.out, "gpu_dry_run")
        for line in wrong:
            print(f"error: {line}", file=sys.stderr)
        return 0 if passed and not wrong else 1
    write(result, options.out, f"gpu_{what}_{facts['device']}_{facts['date'][:10]}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
