"""Statistics over seeds, and the tables that the demo prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from conflicts import WHOLE, group_order, pool
from inference import compare
from settings import PLAIN_DDP, Settings

Run = dict[str, Any]
"""One (method, seed): `method`, `seed`, `after`, `losses`, `seconds`, `probes`, `reports`."""
BLIND = "normalizedmean"
"""The rival that balances lengths and knows nothing of conflicts."""
MARGIN = 0.005
"""Bits per byte that would matter."""
WHOLE_TASK = "mean of all"
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
    """Mean and worst (highest) bits per byte of the seen and the unseen languages; with replay, the mean of both."""
    result: dict[str, float] = {}
    if settings.replay:
        result[WHOLE_TASK] = statistics.fmean(loss[x] for x in settings.all_languages)
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
    seconds = {(r["method"], r["seed"]): np.array([max(ranks) for ranks in r["seconds"]])[WARM_UP:] for r in runs}
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
    rates = [f"{settings.rate(m):g}" for m in settings.methods]
    rows.append(["learning rate", "", "", *rates])
    text = table(["held-out bits per byte", "uniform", "before", *settings.methods], rows)
    worst = "; ".join(f"{m} " + ", ".join(sorted(set(result["worst_language"][m].values()))) for m in settings.methods)
    count = len(settings.seeds)
    return f"{text}\n± standard deviation over {count} seed(s); worst seen language: {worst}"


def difference_table(settings: Settings, result: dict[str, Any]) -> str:
    """Method minus plain DDP, paired by seed; empty where plain DDP did not run."""
    if not result.get("minus_ddp"):
        return ""
    methods = list(result["minus_ddp"])
    totals = [n for n in result["before"] if n not in settings.all_languages]
    rows = [
        [name, *(_difference(result["minus_ddp"][m][name]["values"]) for m in methods)]
        for name in (*settings.all_languages, *totals)
    ]
    rows.insert(len(settings.all_languages), [])
    text = table(["minus ddp, same seed", *methods], rows)
    return (
        f"{text}\nbelow 0: better than plain DDP; ± standard error of the mean difference, [95 % interval], x/y: "
        "better in x of y seeds"
    )


def _difference(values: Sequence[float]) -> str:
    better = f"{sum(v < 0 for v in values)}/{len(values)}"
    if len(values) < 2:
        return f"{values[0]:+.4f}  {better}"
    d = compare(values, [0.0] * len(values), MARGIN)
    return f"{d.mean:+.4f} ±{d.standard_error:.4f} [{d.low:+.4f}, {d.high:+.4f}]  {better}"


def reading(settings: Settings, result: dict[str, Any]) -> str:
    """What is direction and what is length: each method beside the mean and beside what knows nothing of conflicts."""
    row = WHOLE_TASK if settings.replay else "mean seen"
    after = result["after"]
    lines = []
    for method in settings.methods:
        own, at, _ = method.partition("@")
        pairs = [(PLAIN_DDP, "the clipped mean (DDP)"), (BLIND, "the mean of directions, blind to conflicts")]
        if at:
            pairs.append((own, "the same with its own length, so by length alone"))
        for other, text in pairs:
            if other in after and method not in (PLAIN_DDP, other) and len(settings.seeds) > 1:
                d = compare(after[method][row]["values"], after[other][row]["values"], MARGIN)
                said = "not told apart" if d.low <= 0 <= d.high else "better" if d.mean < 0 else "worse"
                interval = f"{d.mean:+.4f} ±{d.standard_error:.4f} [{d.low:+.4f}, {d.high:+.4f}]"
                lines.append(f"  {method} minus {text}: {interval}: {said}")
    if not lines:
        return ""
    return (
        f"{row}, paired by seed, each method with the learning rate that the same rule found for it on another seed\n"
        + "\n".join(lines)
        + f"\n{len(settings.seeds)} seeds tell large differences apart, no others; studies/multilingual has more"
    )


def overview(results: Sequence[tuple[Settings, dict[str, Any]]]) -> str:
    """All scenarios on one page: what was learnt, what was forgotten."""
    rows: list[list[str]] = []
    for settings, result in results:
        for method in settings.methods:
            after = result["after"][method]
            row = [settings.task.name, method, f"{settings.rate(method):g}"]
            for name in ("mean seen", "worst seen", "mean unseen"):
                if name in after:
                    row.append(f"{result['before'][name]:.4f} > {after[name]['mean']:.4f}")
                else:
                    row.append("-")
            rows.append(row)
        rows.append([])
    text = table(["scenario", "method", "learning rate", "mean seen", "worst seen", "mean unseen"], rows[:-1])
    parts = [
        text + "\nbits per byte before > after, mean over seeds; unseen: what the model knew and was not trained on"
    ]
    parts += [f"{settings.task.name}: {said}" for settings, result in results if (said := reading(settings, result))]
    return "\n\n".join(parts)


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
