"""From the outcome of a study to what its report says: plain values, ready for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tuning
from inference import compare, holm, verdict
from registration import Cell, Registration
from scenarios import Scenario
from scipy import stats
from study import primary
from tasks import loss_weights

Outcome = Mapping[str, Any]
"""`cell -> {"arms": {name: ...}, "noise": ...}`, as `study.conduct` gives it."""


def measures(cell_outcome: Outcome, registration: Registration, cell: Cell) -> dict[str, dict[str, list[float]]]:
    """Arm -> measure -> values by seed. Infinite where a run diverged."""
    scenario = registration.scenarios[cell.scenario]

    def of(result: dict[str, Any]) -> dict[str, float]:
        measured = [result["bits_per_byte"][x] for x in scenario.measured] if result["diverged"] is None else [np.inf]
        values = {"primary": primary(result, scenario.measured), "worst": max(measured)}
        if scenario.kept:
            values["objectives"] = primary(result, scenario.objectives)
            values["kept"] = primary(result, scenario.kept)
        if scenario.focus in scenario.objectives:
            values["focus"] = primary(result, [scenario.focus])
        return values

    found = {}
    for name, arm in cell_outcome["arms"].items():
        rows = [of(result) for result in arm["tests"]]
        found[name] = {measure: [row[measure] for row in rows] for measure in rows[0]}
    return found


def reference(cell_outcome: Outcome, registration: Registration, cell: Cell) -> str:
    """The rival with the best validation loss in tuning."""
    rivals = [name for name in cell.arms if registration.arms[name].rival]
    return min(rivals, key=lambda name: cell_outcome["arms"][name]["validation"])


def comparisons(outcome: Outcome, registration: Registration) -> list[dict[str, Any]]:
    """Every arm with its cell's reference; those that know of conflicts are judged together."""
    rows: list[dict[str, Any]] = []
    margin, level = registration.rule.margin, registration.rule.level
    for cell in registration.cells:
        values = measures(outcome[cell.name], registration, cell)
        best = reference(outcome[cell.name], registration, cell)
        for name in cell.arms:
            both = (values[name]["primary"], values[best]["primary"])
            if name == best or not np.isfinite(both).all():
                continue
            difference = compare(*both, margin)
            judged = not registration.arms[name].rival
            rows.append({"cell": cell.name, "arm": name, "reference": best, "judged": judged, "difference": difference})
    judged_rows = [row for row in rows if row["judged"]]
    for row, adjusted in zip(judged_rows, holm([row["difference"].p for row in judged_rows]), strict=True):
        row["adjusted"] = adjusted
        row["verdict"] = verdict(row["difference"], adjusted, margin, level)
    return [{**row, "difference": asdict(row["difference"])} for row in rows]


def not_compared(outcome: Outcome, registration: Registration) -> list[dict[str, Any]]:
    """Arms that `comparisons` leaves out, since runs of theirs or of the reference diverged."""
    rows = []
    for cell in registration.cells:
        arms = outcome[cell.name]["arms"]
        best = reference(outcome[cell.name], registration, cell)
        lost = {name: sum(result["diverged"] is not None for result in arms[name]["tests"]) for name in cell.arms}
        for name in cell.arms:
            if name != best and (lost[name] or lost[best]):
                rows.append({"cell": cell.name, "arm": name, "diverged": lost[name], "of_reference": lost[best]})
    return rows


def repeated(outcome: Outcome, registration: Registration) -> list[dict[str, Any]]:
    """Arms whose tests came out, seed by seed, as those of another did: no runs of their own."""
    rows: list[dict[str, Any]] = []
    originals: list[tuple[Cell, str, dict[int, Any]]] = []
    for cell in registration.cells:
        for name, arm in outcome[cell.name]["arms"].items():
            tests = zip(cell.seeds, arm["tests"], strict=True)
            mine = {seed: test["bits_per_byte"] for seed, test in tests if test["diverged"] is None}
            for first, original, theirs in originals:
                seeds = mine.keys() & theirs.keys()
                if seeds and all(mine[seed] == theirs[seed] for seed in seeds):
                    rows.append({"cell": cell.name, "arm": name, "as_cell": first.name, "as_arm": original})
                    break
            else:
                originals.append((cell, name, mine))
    return rows


def lengths(outcome: Outcome, registration: Registration) -> list[dict[str, Any]]:
    """Arms with the method's own length beside the same direction at the mean's."""
    rows = []
    for cell in registration.cells:
        values = measures(outcome[cell.name], registration, cell)
        for name in cell.arms:
            own = registration.arms[name]
            for other in cell.arms:
                rescaled = registration.arms[other]
                same = (own.method, dict(own.options), own.scope) == (
                    rescaled.method,
                    dict(rescaled.options),
                    rescaled.scope,
                )
                if not same or own.length is not None or rescaled.length is None:
                    continue
                both = (values[other]["primary"], values[name]["primary"])
                if np.isfinite(both).all():
                    difference = asdict(compare(*both, registration.rule.margin))
                    tuned = {x: outcome[cell.name]["arms"][x]["lr"] for x in (name, other)}
                    rows.append(
                        {"cell": cell.name, "own": name, "rescaled": other, "lr": tuned, "difference": difference}
                    )
    return rows


def taken_steps(arm: Outcome, scenario: Scenario) -> dict[str, Any] | None:
    """The optimizer's step beside the gradient, over all probed steps and objectives of an arm's tests."""
    weights = loss_weights(scenario, arm["focus_weight"])
    probes = [probe for result in arm["tests"] for probe in result["taken"]]
    columns = ("gradient", "taken", "measured", "fresh", "gradient_cosines", "taken_cosines")
    rows = np.array(
        [
            [probe[column][k] / (weights[name] if column in ("gradient", "taken") else 1.0) for column in columns]
            for probe in probes
            for k, name in enumerate(probe["objectives"])
            if all(probe[column][k] is not None for column in columns)
        ],
        dtype=np.float64,
    )
    if len(rows) < 3:
        return None
    gradient, taken, measured, fresh, gradient_cosine, taken_cosine = rows.T
    calm = gradient <= 0
    return {
        "count": len(rows),
        "gradient_raises": float((gradient > 0).mean()),
        "step_raises": float((taken > 0).mean()),
        "step_raises_though_gradient_does_not": float((taken[calm] > 0).mean()) if calm.any() else None,
        "measured_raises": float((measured > 0).mean()),
        "fresh_raises": float((fresh > 0).mean()),
        "gradient_cosine": float(-np.mean(gradient_cosine)),
        "taken_cosine": float(-np.mean(taken_cosine)),
        "predicted_to_measured": float(np.sum(taken * measured) / np.sum(taken * taken)),
        "rank_correlation_measured": float(stats.spearmanr(taken, measured).statistic),
        "rank_correlation_fresh": float(stats.spearmanr(taken, fresh).statistic),
        "conflicts": sum(p["conflicts"] for p in probes) / max(1, sum(p["pairs"] for p in probes)),
    }


def conflicts_above_noise(noise: Outcome, z: float = 3.0) -> list[dict[str, Any]]:
    """For each third of a training and part of the model, over all pairs and seeds."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for result in noise["runs"]:
        if result["diverged"] is not None:
            continue
        for part in result["noise"]["parts"]:
            row = found.setdefault(
                (part["third"], part["part"]),
                {"third": part["third"], "part": part["part"], "pairs": 0, "steps": 0, "negative": 0, "control": 0}
                | {"halves": 0, "conflict": 0, "agreement": 0, "cosine": [], "signal": []},
            )
            count, steps = len(part["mean"]), part["steps"]
            for i in range(count):
                row["control"] += part["control_negative"][i]
                row["halves"] += steps
                for j in range(i):
                    mean, error = part["mean"][i][j], part["spread"][i][j] / steps**0.5
                    row["pairs"] += 1
                    row["steps"] += steps
                    row["negative"] += part["negative"][i][j]
                    row["conflict"] += mean < -z * error
                    row["agreement"] += mean > z * error
                    row["cosine"].append(mean)
                    if part["signal"][i][j] is not None:
                        row["signal"].append(part["signal"][i][j])
    return [
        row
        | {
            "negative": row["negative"] / row["steps"],
            "control": row["control"] / row["halves"],
            "cosine": statistics.fmean(row["cosine"]),
            "signal": statistics.fmean(row["signal"]) if row["signal"] else None,
        }
        for row in found.values()
    ]


def separability(outcome: Outcome, registration: Registration) -> list[dict[str, Any]]:
    """Before and after each arm's training, by layer, mean over seeds."""
    rows = []
    for cell in registration.cells:
        for name, arm in outcome[cell.name]["arms"].items():
            looks = [look for result in arm["tests"] for look in result["separability"]]
            for when in ("before", "after"):
                for layer in sorted({look["layer"] for look in looks}):
                    here = [x for x in looks if (x["when"], x["layer"]) == (when, layer)]
                    keys = [key for key in here[0] if key not in ("when", "layer")]
                    means = {key: statistics.fmean(x[key] for x in here) for key in keys}
                    rows.append(
                        {"cell": cell.name, "arm": name, "when": when, "layer": layer, "runs": len(here), **means}
                    )
    return rows


def find(outcome: Outcome, registration: Registration) -> dict[str, Any]:
    """Everything."""
    cells = {}
    for cell in registration.cells:
        here = outcome[cell.name]
        measured = measures(here, registration, cell)
        cells[cell.name] = {
            "seeds": list(cell.seeds),
            "reference": reference(here, registration, cell),
            "arms": {
                name: {key: arm[key] for key in ("tried", "at_end_of_grid", "lr", "focus_weight", "validation")}
                | {
                    "measures": measured[name],
                    "bits_per_byte": [result.get("bits_per_byte") for result in arm["tests"]],
                    "diverged": [result["diverged"] for result in arm["tests"]],
                    "taken": taken_steps(arm, registration.scenarios[cell.scenario]),
                }
                for name, arm in here["arms"].items()
            },
            "noise": conflicts_above_noise(here["noise"]) if here["noise"] else [],
        }
    return {
        "cells": cells,
        "comparisons": comparisons(outcome, registration),
        "not_compared": not_compared(outcome, registration),
        "repeated": repeated(outcome, registration),
        "lengths": lengths(outcome, registration),
        "separability": separability(outcome, registration),
        "runs": _counts(outcome),
    }


def tuned_rates(outcome: Outcome, registration: Registration, source: str) -> dict[str, dict[str, Any]]:
    """The learning rates that arms without other settings got, as the demo looks them up. `source`: what to call it."""
    training = registration.training
    found = {}
    for cell in registration.cells:
        for name, arm in outcome[cell.name]["arms"].items():
            registered = registration.arms[name]
            if registered.options or registered.focus_weights or registered.scope != "bucket":
                continue
            key = tuning.key(
                model=registration.models[cell.model],
                recipe=training.recipe,
                scenario=registration.scenarios[cell.scenario],
                method=registered.method + (f"@{registered.length}" if registered.length else ""),
                scope=registered.scope,
                clip=registered.clip,
                steps=training.steps,
                batch_size=training.batch_size,
                length=training.length,
                bucket_cap_mb=training.bucket_cap_mb,
                validation_bytes=training.validation_bytes,
            )
            found[key] = {"lr": arm["lr"], "source": source, "cell": cell.name, "arm": name}
    return found


def _counts(outcome: Outcome) -> dict[str, int]:
    arms = [arm for cell in outcome.values() for arm in cell["arms"].values()]
    noise = [cell["noise"] for cell in outcome.values() if cell["noise"]]
    return {
        "tuning": sum(len(arm["tuning"]) for arm in arms),
        "test": sum(len(arm["tests"]) for arm in arms),
        "noise": sum(len(one["runs"]) for one in noise),
        "diverged": sum(
            result["diverged"] is not None
            for results in [*(arm["tests"] + arm["tuning"] for arm in arms), *(one["runs"] for one in noise)]
            for result in results
        ),
    }


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, for tables."""
    if not np.isfinite(values).all():
        return "diverged"
    return f"{statistics.fmean(values):.4f} ±{statistics.stdev(values):.4f}"
