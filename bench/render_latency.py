"""The results of test_solve_latency.py as a Markdown table and as a small JSON file.

python bench/render_latency.py RAW.json bench/results/solve_latency
"""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

TARGETS = {8: 20.0, 32: 10.0}  # how many times faster than TorchJD, by K

# Why a solver alone is not further ahead.
WHY = {
    "Mean": "TorchJD fills a vector without looking at the Gramian; ours reads all of it for NaN and Inf.",
    "AlignedMTL": "Both are one eigendecomposition; TorchJD's is LAPACK's, ours is our own, for host and device.",
    "Krum": "Few operations on K x K numbers, which TorchJD leaves to torch's vectorised ones; ours is scalar code.",
}

Times = dict[tuple[str, int], dict[str, float]]  # (method, K) -> kind -> median microseconds a solve


def read(path: str) -> Times:
    """The medians in a file that pytest-benchmark wrote."""
    times: Times = {}
    for entry in json.loads(Path(path).read_text())["benchmarks"]:
        info = entry["extra_info"]
        micro = 1e6 * entry["stats"]["median"] / info["solves_per_call"]
        times.setdefault((info["method"], info["k"]), {})[info["kind"]] = micro
    return times


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def ratio(theirs: float | None, ours: float) -> str:
    """How many times faster ours is."""
    return "-" if theirs is None else f"{theirs / ours:,.1f}x" if theirs / ours < 9.95 else f"{theirs / ours:,.0f}x"


def table(times: Times) -> list[str]:
    """All times, a line a method and K."""
    lines = [
        "| method | K | single call, µs | batched, µs | TorchJD, µs | TorchJD / single | TorchJD / batched |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (method, k), row in times.items():
        theirs = row.get("torchjd")
        cells = [number(row["single"]), number(row["batched"]), number(theirs)]
        cells += [ratio(theirs, row["single"]), ratio(theirs, row["batched"])]
        lines.append(f"| {method} | {k} | " + " | ".join(cells) + " |")
    return lines


def missed(times: Times) -> list[str]:
    """What is slower than the targets, in the two ways of calling, with the share of the call from Python."""
    lines = []
    for (method, k), row in times.items():
        if k not in TARGETS or "torchjd" not in row:
            continue
        theirs, single, batched = row["torchjd"], row["single"], row["batched"]
        if theirs / single >= TARGETS[k]:
            continue
        met = theirs / batched >= TARGETS[k]
        solver = "the solver alone meets it" if met else f"the solver alone too ({ratio(theirs, batched)})"
        lines.append(
            f"- {method}, K = {k}: {ratio(theirs, single)} instead of {TARGETS[k]:.0f}x; {solver}. "
            f"{max(0.0, single - batched):.1f} of {single:.1f} µs are the call from Python."
            + ("" if met else f" {WHY.get(method, '')}")
        )
    return lines or ["- none"]


def versions() -> dict[str, Any]:
    """What the times depend on, apart from the machine."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "torchjd", "cvxpy", "quadprog", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Prints the table and writes it, and the times, next to each other."""
    raw, target = sys.argv[1:3]
    times = dict(sorted(read(raw).items(), key=lambda item: item[0][1]))  # by K; then by method, in their order
    times = {at: times[at] for name in _order(read(raw)) for at in times if at[0] == name}
    about = versions()
    text = [
        "# Time to solve one Gramian",
        "",
        "Medians of CPU time on one thread, `make bench-solve`; torch "
        f"{about['torch']}, TorchJD {about['torchjd']}, Python {about['python']}, {about['machine']}. Ratios carry "
        "over to other machines better than times do.",
        "",
        "- single call: `moo.weights` of one Gramian, with its checks in Python;",
        "- batched: `moo.weights` of 1000 Gramians, per Gramian: the solver;",
        "- TorchJD: its weighting of the same Gramian, in float64, with its default options.",
        "",
        "The Gramians are those of K Gaussian gradients of 2K + 3 elements, 16 in turn.",
        "",
        *table(times),
        "",
        f"## Below {TARGETS[8]:.0f}x at K = 8 or {TARGETS[32]:.0f}x at K = 32, as single calls",
        "",
        *missed(times),
        "",
    ]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{target}.md").write_text("\n".join(text))
    results = [
        {"method": method, "k": k, **{f"{kind}_us": round(value, 4) for kind, value in row.items()}}
        for (method, k), row in times.items()
    ]
    Path(f"{target}.json").write_text(json.dumps({"versions": about, "results": results}, indent=1) + "\n")
    print("\n".join(text))


def _order(times: Times) -> dict[str, None]:
    return dict.fromkeys(method for method, _ in times)


if __name__ == "__main__":
    main()
