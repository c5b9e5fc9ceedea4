"""What is said of a run of gpu_check.py: figures against targets, and the result as a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the figures are held to: share of the copy bandwidth at K <= 8 from 25 MB on, and microseconds.
BANDWIDTH_SHARE = 0.9
SOLVE_MICROSECONDS = 15.0
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


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


def _judged(target: str, value: float | None, shown: str, met: bool) -> dict[str, str]:
    if value is None:
        return {"target": target, "value": "not measured", "status": "not measured"}
    return {"target": target, "value": shown, "status": "met" if met else "missed"}


def kernel_targets(figures: dict[str, Any]) -> list[dict[str, str]]:
    """The figures against what they are held to: met, missed or not measured."""
    rows = [
        row
        for row in figures.get("bandwidth", [])
        if row["k"] <= 8 and row["megabytes"] >= 25 and row["dtype"] == "float32" and row["length"] != "odd"
    ]
    judged = []
    for kernel in ("gramian", "combine"):
        share = min((row[kernel] / row["copy"] for row in rows), default=None)
        judged.append(
            _judged(
                f"{kernel}, float32: lowest bandwidth over that of a copy, K <= 8, from 25 MB on, aligned rows: "
                f"at least {BANDWIDTH_SHARE}",
                share,
                f"{share or 0.0:.3f}",
                (share or 0.0) >= BANDWIDTH_SHARE,
            )
        )
    solves = [r["device_us"] for r in figures.get("solve", []) if r["method"] == "mgda" and r["k"] == 8]
    time = solves[0] if solves else None
    judged.append(
        _judged(
            f"solve of MGDA, K = 8: time of its kernel, at most {SOLVE_MICROSECONDS} us",
            time,
            f"{time or 0.0:.1f} us",
            (time or 0.0) <= SOLVE_MICROSECONDS,
        )
    )
    return judged


def sanitizer_targets(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """No findings: met, missed, or not measured where a tool did not come to its end."""
    judged = []
    for check in SANITIZERS:
        outcome = next((o for o in outcomes if o.name == check), Outcome(check, "not run"))
        status = {"passed": "met", "failed": "missed"}.get(outcome.status, "not measured")
        judged.append({"target": f"compute-sanitizer {check}: no finding", "value": outcome.status, "status": status})
    return judged


def with_notes(figures: dict[str, Any], notes: Path) -> dict[str, Any]:
    """The figures with what the tests noted, one JSON object a line."""
    lines = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return {
        **figures,
        "notes": figures.get("notes", []) + [line["note"] for line in lines if "note" in line],
        "memory": [line["memory"] for line in lines if "memory" in line],
        "not executed": sorted({line["not executed"] for line in lines if "not executed" in line}),
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    figures = result["figures"]
    lines = [f"# {result['title']}", ""]
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
        if rows:
            head = list(rows[0])
            lines += ["", f"## {title}", "", *_table(head, [[_shown(row[name]) for name in head] for row in rows])]
        elif key in result["measures"]:
            lines += ["", f"## {title}", "", "Not measured."]
    for note in figures.get("notes", []):
        lines += ["", f"- {note}"]
    return "\n".join(lines) + "\n"
