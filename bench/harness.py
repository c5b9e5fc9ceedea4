"""Ratios that are measured side by side, and what is known of their noise.

What is measured and its reference take turns, round by round, so that what else the machine does hits both alike; what
is kept is the ratio. Rounds come in blocks, each with processes and memory of its own, because a ratio also depends on
where things happen to lie.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

VERSION = 2
KINDS = ("time", "bytes", "peak", "instructions")


@dataclass(frozen=True)
class Result:
    """One question's answer.

    Attributes:
        name: What was measured: the same in every run.
        reference: What its ratio is to; empty for counts.
        kind: "time": a ratio of times. "bytes": of bytes that are counted. "peak": of peaks of memory.
            "instructions": a count.
        value: The ratio or the count.
        noise: Standard deviation of the logarithm of ``value`` from one run to another, as far as one run shows it.
        rounds: Pairs that ``value`` is from.
        detail: Medians in ms, megabytes, and what else belongs to it.
        test: The test that measures it, to measure it again.
    """

    name: str
    reference: str
    kind: str
    value: float
    noise: float
    rounds: int
    detail: dict[str, float] = field(default_factory=dict)
    test: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {self.kind!r}")
        if not (self.value > 0 and math.isfinite(self.value)):
            raise ValueError(f"{self.name}: value must be a finite number > 0; got {self.value!r}")


Times = list[tuple[float, float]]
"""Pairs of seconds, of what is measured and of its reference, in one block."""


def paired_result(name: str, reference: str, blocks: Sequence[Times], **detail: float) -> Result:
    """The median of the paired ratios.

    Its noise is the larger of two: the standard error of the median within the blocks (1.2533 standard deviations,
    those as 1.4826 median absolute deviations, over the root of the number of rounds), and the standard deviation of
    the blocks' medians. All of logarithms.

    Raises:
        ValueError: There is no block, or one without rounds.
    """
    if not blocks or not all(blocks):
        raise ValueError(f"{name}: every block must have a round at least")
    logs = [[math.log(ours / theirs) for ours, theirs in block] for block in blocks]
    every = [ratio for block in logs for ratio in block]
    median = statistics.median(every)
    spread = 1.4826 * statistics.median(abs(ratio - median) for ratio in every)
    within = 1.2533 * spread / math.sqrt(len(every))
    between = statistics.stdev(map(statistics.median, logs)) if len(logs) > 1 else 0.0
    milliseconds = {
        f"{what}_ms": 1e3 * statistics.median(pair[place] for block in blocks for pair in block)
        for place, what in enumerate(("median", "reference"))
    }
    return Result(name, reference, "time", math.exp(median), max(within, between), len(every), milliseconds | detail)


def merged(results: Sequence[Result]) -> Result:
    """One result of several runs of the same question, whose spread is noise too."""
    first = results[0]
    if len(results) == 1:
        return first
    logs = [math.log(result.value) for result in results]
    noise = max(math.sqrt(statistics.mean(r.noise**2 for r in results)), statistics.stdev(logs))
    if first.kind != "time":
        noise = max(result.noise for result in results)
    value = math.exp(statistics.mean(logs))
    return replace(first, value=value, noise=noise, rounds=sum(r.rounds for r in results))


def take_turns(ours: Callable[[], float], reference: Callable[[], float], rounds: int, warmup: int = 2) -> Times:
    """One block: both return the seconds that they took."""
    pairs: Times = []
    for number in range(warmup + rounds):
        if number % 2:  # who comes second finds the cache as the other has left it
            mine = ours()
            pair = mine, reference()
        else:
            theirs = reference()
            pair = ours(), theirs
        if number >= warmup:
            pairs.append(pair)
    return pairs


def timed(call: Callable[[], object], repeat: int = 1) -> Callable[[], float]:
    """A function that runs ``call`` so often and returns the processor time of it: the machine may be shared."""

    def run() -> float:
        start = time.process_time()
        for _ in range(repeat):
            call()
        return time.process_time() - start

    return run


def repeats_for(call: Callable[[], object], seconds: float = 5e-3) -> int:
    """How often ``call`` must run to take as long."""
    call()
    once = max(timed(call)(), timed(call)(), 1e-7)
    return max(1, round(seconds / once))


def environment() -> dict[str, Any]:
    """What results depend on. Those of another machine, torch or number of threads are not compared by themselves."""
    import bucket_moo_ext as moo
    import torch

    built = moo.build_info()
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": str(built["compiler"]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


COMPARED = ("machine", "processor", "cores", "threads", "torch", "compiler")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Run:
    """What one run of the benchmarks found."""

    environment: dict[str, Any]
    results: dict[str, Result]

    def save(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": "bucket_moo_ext.bench",
            "version": VERSION,
            "environment": self.environment,
            "results": [asdict(self.results[name]) for name in sorted(self.results)],
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "Run":
        """What ``save()`` wrote.

        Raises:
            ValueError: It is none of ours, or of another version.
        """
        try:
            content = json.loads(path.read_text())
            if content["schema"] != "bucket_moo_ext.bench" or content["version"] != VERSION:
                raise ValueError(f"version {content['version']!r}")
            results = [Result(**entry) for entry in content["results"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no file of `make bench`, version {VERSION}: {error}") from error
        return Run(content["environment"], {result.name: result for result in results})

    def markdown(self) -> str:
        """A table of all results."""
        about = ", ".join(f"{name} {value}" for name, value in self.environment.items() if value)
        lines = [
            "# What `make bench` measured",
            "",
            f"{about}.",
            "",
            "A ratio below 1 is faster, or smaller, than the reference. Noise is the standard deviation from run to",
            "run, as far as this run shows it. Times are processor time of what runs in one process, else the slowest",
            "rank's.",
            "",
            "| what | beside | ratio | noise | ours | reference |",
            "|---|---|---|---|---|---|",
        ]
        counts = ["", "| instructions | count |", "|---|---|"]
        for name in sorted(self.results):
            result = self.results[name]
            if result.kind == "instructions":
                counts.append(f"| `{name}` | {result.value:,.0f} |")
                continue
            detail = result.detail
            units = ("median_ms", "reference_ms", "ms") if "median_ms" in detail else ("ours_mb", "reference_mb", "MB")
            shown = " | ".join(f"{detail[key]:.3g} {units[2]}" if key in detail else "" for key in units[:2])
            lines.append(
                f"| `{name}` | {result.reference} | {result.value:.3f} | {100 * result.noise:.1f} % | {shown} |"
            )
        return "\n".join([*lines, *(counts if len(counts) > 3 else [])]) + "\n"
