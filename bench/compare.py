"""Says whether anything got worse: `make bench-compare BASE=<file or git revision>`.

    python bench/compare.py OLD.json                                 # beside the last `make bench`
    python bench/compare.py OLD.json OLDER.json --new NEW.json       # two runs know how far they are apart
    python bench/compare.py main~3 --select "-k kernels"             # builds that revision and runs both in turn

A ratio got worse if it grew by more than 5 % and by more than chance explains: with the noise s of both runs and the
drift d between them, by z sqrt(s^2 + s'^2 + d^2) of logarithms, where z is such that of all ratios together none is
called worse in 99 of 100 comparisons of equal code. The drift is what no run sees by itself, as a neighbour on the
machine that takes memory bandwidth from one of the two: the spread of the changes of a suite, by its median, so that
a change of fewer than half of its results does not hide itself. Counts of instructions and bytes have no noise, and
may grow by 1 %; peaks of memory, which depend on what threads hold at the same time, by 20 %. With a revision, what
seems worse is measured again, on both sides, and is worse only if it is beyond its limit then too. Results that one
side alone has are listed and fail nothing. The exit status is 1 if something got worse.
"""

import argparse
import functools
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import COMPARED, Result, Run, merged

ROOT = Path(__file__).resolve().parent.parent
LAST = ROOT / "build" / "bench" / "last.json"
FALSE_ALARMS = 0.01  # of a whole comparison
KERNELS = ("gramian", "combine", "sketch")
FEW = 8  # changes from which on a spread is worth anything
FLOOR = {"time": math.log(1.05), "bytes": math.log(1.01), "peak": math.log(1.2), "instructions": math.log(1.01)}
NOISY = ("time", "peak")


@dataclass(frozen=True)
class Change:
    """Of one result: by what factor it grew, and beyond which factor that is no chance."""

    name: str
    old: float
    new: float
    factor: float
    limit: float

    @property
    def verdict(self) -> str:
        """ "worse", "better" or "same"."""
        return "worse" if self.factor > self.limit else "better" if self.factor < 1 / self.limit else "same"

    def __str__(self) -> str:
        """One line."""
        return f"{self.name}: {self.old:.4g} -> {self.new:.4g}, {self.factor:.3f} times (limit {self.limit:.3f})"


def changes(old: Run, new: Run) -> list[Change]:
    """Of all results that both have."""
    names = sorted(old.results.keys() & new.results.keys())
    times = sum(new.results[name].kind in NOISY for name in names)
    z = statistics.NormalDist().inv_cdf((1 - FALSE_ALARMS) ** (1 / max(times, 1)))
    drifts = _drifts(
        {
            name: math.log(new.results[name].value / old.results[name].value)
            for name in names
            if new.results[name].kind == "time"
        }
    )
    return [_change(old.results[name], new.results[name], z, drifts.get(_suite(name), drifts[""])) for name in names]


def _suite(name: str) -> str:
    """What a result is measured like: the kernels all by processor time and memory, others by their own name."""
    kind = name.split("[")[0]
    return "kernels" if kind in KERNELS else kind


def _drifts(logarithms: dict[str, float]) -> dict[str, float]:
    """Of each suite that has enough results, and under "" of all together: 0 if they too are few."""
    suites: dict[str, list[float]] = {"": list(logarithms.values())}
    for name, value in logarithms.items():
        suites.setdefault(_suite(name), []).append(value)
    spreads = {suite: _spread(values) for suite, values in suites.items() if len(values) >= FEW}
    return {"": 0.0} | spreads


def _spread(values: list[float]) -> float:
    """Standard deviation by the median of distances from the median, as normal values have it."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def _change(old: Result, new: Result, z: float, drift: float) -> Change:
    chance = 0.0
    if new.kind in NOISY:
        chance = z * math.hypot(old.noise, new.noise, drift if new.kind == "time" else 0.0)
    limit = math.exp(max(FLOOR[new.kind], chance))
    return Change(new.name, old.value, new.value, new.value / old.value, limit)


def differences(old: Run, new: Run) -> list[str]:
    """Why the two cannot be compared by themselves."""
    return [
        f"{name}: {old.environment.get(name)!r} and {new.environment.get(name)!r}"
        for name in COMPARED
        if old.environment.get(name) != new.environment.get(name)
    ]


def report(old: Run, new: Run, again: Callable[[list[str]], tuple[Run, Run]] | None = None) -> tuple[str, bool]:
    """What to print, and whether nothing got worse. ``again(tests)`` measures both sides of them anew."""
    found = changes(old, new)
    lines = []
    suspects = [change for change in found if change.verdict == "worse"]
    if suspects and again:
        tests = sorted({new.results[change.name].test for change in suspects})
        cleared = _cleared(suspects, *again(tests))
        found = [change for change in found if change not in cleared]
        lines += [f"seemed worse, and was not when measured again ({len(cleared)}):", *(f"  {c}" for c in cleared)]
    for verdict in ("worse", "better"):
        some = [change for change in found if change.verdict == verdict]
        lines += [f"{verdict} ({len(some)}):", *(f"  {change}" for change in some)]
    for title, names in (
        ("in the old run alone", old.results.keys() - new.results.keys()),
        ("in the new run alone", new.results.keys() - old.results.keys()),
    ):
        if names:
            lines.append(f"{title} ({len(names)}): {', '.join(sorted(names))}")
    unchanged = sum(change.verdict == "same" for change in found)
    widest = max((change.limit for change in found), default=1.0)
    lines.append(f"unchanged: {unchanged} of {len(found)}; the widest limit is {widest:.2f}")
    return "\n".join(lines), not any(change.verdict == "worse" for change in found)


def _cleared(suspects: list[Change], old: Run, new: Run) -> list[Change]:
    """Those that are within their limits this time."""
    return [c for c in suspects if new.results[c.name].value / old.results[c.name].value <= c.limit]


def run_benchmarks(
    python: Path, out: Path, instructions: Path | None, arguments: list[str], tests: list[str] | None = None
) -> Run:
    """In an environment of its own. ``tests``: those alone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "bench")}
    chosen = [str(ROOT / "bench" / test) for test in tests or [""]]
    command = [str(python), "-m", "pytest", "-q", "-c", str(ROOT / "bench" / "pytest.ini"), *chosen]
    command += ["--bench-json", str(out), *arguments]
    if instructions is not None:
        command += ["--instructions", str(instructions)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return Run.load(out)


def build_revision(revision: str) -> tuple[Path, Path | None]:
    """The Python that has that revision's package, and its program that counts instructions, if it has one."""
    folder = ROOT / "build" / "bench" / "base"
    git = ["git", "-C", str(ROOT)]
    if folder.exists():
        subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*git, "worktree", "prune"], check=True)
    subprocess.run([*git, "worktree", "add", "--detach", str(folder), revision], check=True)
    venv, tree = folder / "build" / "venv", folder / "build" / "tree"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own, shared = (
        subprocess.run([str(p), "-c", where], capture_output=True, text=True, check=True).stdout.strip()
        for p in (python, sys.executable)
    )
    (Path(own) / "shared.pth").write_text(shared + "\n")
    options = ["-DBUCKET_MOO_CUDA=OFF", "-DBUCKET_MOO_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    configure = ["cmake", "-S", str(folder), "-B", str(tree), "-G", "Ninja", *options]
    subprocess.run(configure, check=True, env=tools, stdout=subprocess.DEVNULL)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "install", "--ignore-installed"]
    pip += ["--no-build-isolation", "--no-deps", str(folder), "-C", f"build-dir={tree}"]
    subprocess.run(pip, check=True, env=tools)
    counts = subprocess.run(["cmake", "--build", str(tree), "--target", "instructions"], env=tools, check=False)
    return python, tree / "bench" / "cpp" / "instructions" if counts.returncode == 0 else None


class Sides:
    """A revision and what is checked out, whose results are measured in turn."""

    def __init__(self, revision: str) -> None:
        self._sides = {
            "old": build_revision(revision),
            "new": (Path(sys.executable), ROOT / "build" / "tree" / "bench" / "cpp" / "instructions"),
        }

    def measure(self, arguments: list[str], tests: list[str] | None = None) -> tuple[Run, Run]:
        """Old, new, new, old."""
        runs: dict[str, list[Run]] = {"old": [], "new": []}
        for place, side in enumerate(("old", "new", "new", "old")):
            python, instructions = self._sides[side]
            out = ROOT / "build" / "bench" / f"{place}_{side}.json"
            runs[side].append(run_benchmarks(python, out, instructions, ["--blocks", "1", *arguments], tests))
        return _together(runs["old"]), _together(runs["new"])


def _together(runs: list[Run]) -> Run:
    names = set.intersection(*(set(run.results) for run in runs))
    return Run(runs[0].environment, {name: merged([run.results[name] for run in runs]) for name in names})


def is_revision(base: str) -> bool:
    """Whether git knows it."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Compares; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="+", help="files of `make bench` of one revision, or a git revision")
    parser.add_argument("--new", type=Path, default=LAST, help=f"a file (default {LAST.relative_to(ROOT)})")
    parser.add_argument("--any-machine", action="store_true", help="compare results of different machines too")
    parser.add_argument("--select", default="", help="options of pytest where a revision is run")
    arguments = parser.parse_args()
    again: Callable[[list[str]], tuple[Run, Run]] | None = None
    if all(Path(base).is_file() for base in arguments.base):
        if not arguments.new.is_file():
            parser.error(f"{arguments.new} is not there: run `make bench` first")
        try:
            runs, new = [Run.load(Path(base)) for base in arguments.base], Run.load(arguments.new)
        except ValueError as error:
            parser.error(str(error))
        if among := [text for run in runs for text in differences(runs[0], run)]:
            parser.error(f"the base must be runs on one machine; {among[0]}")
        old = _together(runs)
    elif len(arguments.base) == 1 and is_revision(arguments.base[0]):
        sides = Sides(arguments.base[0])
        old, new = sides.measure(shlex.split(arguments.select))
        again = functools.partial(sides.measure, [])
    else:
        parser.error(f"base must be files or a git revision; got {' '.join(arguments.base)!r}")
    if (apart := differences(old, new)) and not arguments.any_machine:
        print(
            "not compared, for they are from different machines or builds (--any-machine compares):", *apart, sep="\n  "
        )
        return 2
    text, is_fine = report(old, new, again)
    print(text)
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
