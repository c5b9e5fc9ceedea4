"""Statistics over seeds, and the tables that the demo prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from conflicts import WHOLE, group_order, pool
from settings import PLAIN_DDP, Settings

Run = dict[str, Any]
"""One (method, seed): `method`, `seed`, `after`, `losses`, `seconds`, `probes`, `reports`."""
WARM_UP = 2
"""First steps of each seed that do not count as step times."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample; 0 for one value) and range over the seeds."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def aggregates(loss: dict[str, float], settings: Settings) -> dict[str, float]:
    """Mean and worst (highest) bits per byte of the seen and the unseen languages."""
    result: dict[str, float] = {}
    for kind, languages in (("seen", settings.languages), ("unseen", settings.unseen)):
        if languages:
            result[f"mean {kind}"] = statistics.fmean(loss[x] for x in languages)
            result[f"worst {kind}"] = max(loss[x] for x in languages)
    return result


def held_out(
    settings: Settings, uniform: dict[str, float], before: dict[str, float], runs: Sequence[Run]
) -> dict[str, Any]:
    """Bits per byte before, and after by method; differences to plain DDP paired by seed."""
    after = {
        m: {r["seed"]: r["after"] | aggregates(r["after"], settings) for r in runs if r["method"] == m}
        for m in settings.methods
    }
    rows = [*settings.all_languages, *aggregates(before, settings)]
    result: dict[str, Any] = {
        "unit": "bits per byte",
        "uniform": uniform | aggregates(uniform, settings),
        "before": before | aggregates(before, settings),
        "after": {m: {row: spread([s[row] for s in seeds.values()]) for row in rows} for m, seeds in after.items()},
        "worst_language": {
            m: {seed: max(settings.languages, key=lambda x: loss[x]) for seed, loss in seeds.items()}
            for m, seeds in after.items()
        },
    }
    if PLAIN_DDP in after:
        plain = after[PLAIN_DDP]
        result["minus_ddp"] = {
            m: {row: spread([s[row] - plain[seed][row] for seed, s in seeds.items()]) for row in rows}
            for m, seeds in after.items()
            if m != PLAIN_DDP
        }
    return result


def conflicts(settings: Settings, runs: Sequence[Run]) -> dict[str, Any]:
    """Shares and mean cosines by method, step and group, pooled over the seeds."""
    result: dict[str, Any] = {}
    for method in settings.methods:
        probes = [r["probes"] for r in runs if r["method"] == method]
        result[method] = {
            step: {
                group: {
                    kind: pool([p[step][group] for p in probes], kind)
                    for kind in ("languages", "control", "languages_full")
                }
                for group in sorted(probes[0][step], key=group_order)
            }
            for step in sorted(probes[0], key=int)
        }
    return result


def step_times(settings: Settings, runs: Sequence[Run]) -> dict[str, Any]:
    """Seconds a step (of the slowest rank) and, where interleaved, ratios to plain DDP.

    Ratios are taken between steps of the same number and seed, which ran one after the other;
    their median has a bootstrap interval. The control is plain DDP against its own next step.
    """
    seconds = {(r["method"], r["seed"]): np.array(r["seconds"]).max(axis=1)[WARM_UP:] for r in runs}
    result: dict[str, Any] = {"interleaved": not settings.one_at_a_time, "methods": {}}
    for method in settings.methods:
        own = np.concatenate([seconds[method, s] for s in settings.seeds])
        entry: dict[str, Any] = {"steps": len(own)}
        if len(own):
            entry |= {f"p{q}": float(np.percentile(own, q)) for q in (10, 50, 90)}
        if PLAIN_DDP in settings.methods and not settings.one_at_a_time and method != PLAIN_DDP:
            entry["ratio_to_ddp"] = median_interval(
                np.concatenate([seconds[method, s] / seconds[PLAIN_DDP, s] for s in settings.seeds])
            )
        result["methods"][method] = entry
    if PLAIN_DDP in settings.methods:
        plain = [seconds[PLAIN_DDP, s] for s in settings.seeds]
        result["control"] = median_interval(np.concatenate([x[1:] / x[:-1] for x in plain]))
    return result


def median_interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Median with a 95 % bootstrap interval."""
    if len(values) == 0:
        return {"median": float("nan"), "low": float("nan"), "high": float("nan")}
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, size=(2000, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text: first column to the left, the others to the right; `-` rows are rules."""
    cells = [header, *(r for r in rows if r)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def line(row: Sequence[str]) -> str:
        rest = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *rest]).rstrip()

    return "\n".join([line(header), rule, *(line(r) if r else rule for r in rows)])


def loss_table(settings: Settings, result: dict[str, Any]) -> str:
    """Held-out bits per byte by language and method, mean and standard deviation over seeds."""

    def row(name: str, label: str) -> list[str]:
        cells = [result["after"][m][name] for m in settings.methods]
        return [
            label,
            *(f"{result[when][name]:.4f}" for when in ("uniform", "before")),
            *(f"{c['mean']:.4f} ±{c['std']:.4f}" for c in cells),
        ]

    rows = [row(x, f"{x} (seen)") for x in settings.languages]
    rows += [row(x, f"{x} (unseen)") for x in settings.unseen]
    totals = [n for n in result["before"] if n not in settings.all_languages]
    rows += [[], *(row(n, n) for n in totals)]
    text = table(["held-out bits per byte", "uniform", "before", *settings.methods], rows)
    worst = "; ".join(f"{m} " + ", ".join(sorted(set(result["worst_language"][m].values()))) for m in settings.methods)
    count = len(settings.seeds)
    return f"{text}\n± standard deviation over {count} seed(s); worst seen language: {worst}"


def difference_table(settings: Settings, result: dict[str, Any]) -> str:
    """Method minus plain DDP, paired by seed; empty where plain DDP did not run."""
    if not result.get("minus_ddp"):
        return ""
    methods = list(result["minus_ddp"])
    rows = []
    totals = [n for n in result["before"] if n not in settings.all_languages]
    for name in (*settings.all_languages, *totals):
        cells = [result["minus_ddp"][m][name] for m in methods]
        rows.append(
            [
                name,
                *(
                    f"{c['mean']:+.4f} ±{c['std']:.4f}  {sum(v < 0 for v in c['values'])}/{len(c['values'])}"
                    for c in cells
                ),
            ]
        )
    rows.insert(len(settings.all_languages), [])
    text = table(["minus ddp, same seed", *methods], rows)
    return f"{text}\nbelow 0: better than plain DDP; x/y: in x of y seeds"


def gramian_lines(runs: Sequence[Run]) -> str:
    """Which Gramians each method's last report was from; a small bucket's is exact even with a sketch."""
    lines: dict[str, str] = {}
    for run in runs:
        if not run["reports"]:
            continue
        report = run["reports"][max(run["reports"], key=int)]
        sketched = [b["numel"] for b in report["buckets"] if b["width"]]
        share = sum(sketched) / sum(b["numel"] for b in report["buckets"])
        lines[run["method"]] = (
            f"Gramians of {run['method']}: {report['estimator']}; sketched: {len(sketched)} of "
            f"{len(report['buckets'])} buckets, {100 * share:.0f} % of elements"
        )
    return "\n".join(lines.values())


def conflict_table(settings: Settings, result: dict[str, Any], method: str) -> str:
    """Share of conflicting pairs by group and step, `languages / control`."""
    steps = list(result[method])
    groups = list(result[method][steps[0]])
    rows: list[list[str]] = []
    for group in groups:
        if group == WHOLE:
            rows.append([])
        cells = [result[method][s][group] for s in steps]
        rows.append(
            [
                group,
                *(f"{c['languages']['share']:4.0%} /{c['control']['share']:4.0%}" for c in cells),
            ]
        )
    some = result[method][steps[0]][groups[0]]
    text = table([f"{method}: conflicting pairs", *(f"step {s}" for s in steps)], rows)
    return (
        f"{text}\ndifferent languages / same language split in halves (noise); "
        f"{some['languages']['pairs']} and {some['control']['pairs']} pairs a cell"
    )


def time_table(settings: Settings, result: dict[str, Any]) -> str:
    """Step times side by side."""

    def interval(r: dict[str, float]) -> str:
        return f"{r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"

    rows = []
    for method, entry in result["methods"].items():
        times = [f"{1e3 * entry[p]:.1f}" if p in entry else "-" for p in ("p50", "p10", "p90")]
        ratio = interval(entry["ratio_to_ddp"]) if "ratio_to_ddp" in entry else "-"
        rows.append([method, *times, str(entry["steps"]), ratio])
    if "control" in result:
        rows.append([f"control: {PLAIN_DDP}, next step", "", "", "", "", interval(result["control"])])
    text = table(["step time", "median ms", "p10", "p90", "steps", "ratio to ddp [95 %]"], rows)
    how = "interleaved step by step" if result["interleaved"] else "one method after another"
    return f"{text}\nslowest rank; {how}; ratio: median of paired steps"
