"""The report of a study: Markdown, a figure, and all findings as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from corpus import write_atomically
from findings import Outcome, find, spread
from registration import Registration

THIRDS = ("first", "second", "last")


def write(registration: Registration, path: Path, outcome: Outcome, folder: Path, seconds: float) -> list[Path]:
    """Writes `<name>.md`, `.png` and `.json` into `folder`; their paths. `path`: of the registration."""
    found = find(outcome, registration)
    environment = {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    computed = sum(  # whenever they were made
        result.get("seconds", 0.0)
        for cell in outcome.values()
        for results in [
            *(arm["tests"] + arm["tuning"] for arm in cell["arms"].values()),
            cell["noise"]["runs"] if cell["noise"] else [],
        ]
        for result in results
    )
    head = {"registration": path.name, "sha256": registration.sha256, "environment": environment}
    head |= {"seconds_of_all_runs": round(computed), "seconds_of_this_call": round(seconds)}
    name = path.stem
    files = [folder / f"{name}.md", folder / f"{name}.json", folder / f"{name}.png"]
    write_atomically(files[1], json.dumps(rounded({**head, **found}), indent=1).encode())
    write_atomically(files[0], markdown(registration, path, found, head).encode())
    draw(registration, found, files[2])
    return files


def rounded(value: Any) -> Any:
    """Floats with six significant digits, for files that are kept."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None
    return value


def prose(text: str) -> str:
    """One line, however it is broken here."""
    return " ".join(text.split())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(registration: Registration, path: Path, found: dict[str, Any], head: dict[str, Any]) -> str:
    """The whole report."""
    runs, environment, rule = found["runs"], head["environment"], registration.rule
    judged = sum(row["judged"] for row in found["comparisons"])
    parts = [
        f"# {registration.title}",
        prose(
            f"""Registered in `{path.name}`, SHA-256 `{registration.sha256}`. {runs["tuning"]} runs for tuning,
            {runs["test"]} tests and {runs["noise"]} runs for noise, {runs["diverged"]} of them diverged. All runs
            together took {head["seconds_of_all_runs"] / 60:.0f} minutes of one {environment["gpu"] or "CPU core"}
            (torch {environment["torch"]}, transformers {environment["transformers"]}). Made by `python
            studies/multilingual/study.py {path.as_posix()}`."""
        ),
        "**Question.** " + prose(registration.question),
        "## Verdicts",
        verdicts(found),
        prose(
            f"""Differences in bits a byte, arm minus reference; below 0 the arm is better. ± is the standard error
            over seeds, in brackets a 95 % interval, p by a paired t-test, adjusted by Holm over the {judged}
            judged comparisons. Margin {rule.margin} bits a byte, level {rule.level}. Rivals are not judged. Each
            cell has {registration.bases} pre-trained model(s) and one corpus, so what is found holds for these;
            with the same seed all arms see the same data."""
        ),
        not_compared(found),
        repeated(found),
        f"![Differences]({path.stem}.png)",
        "## Cells",
        *(cell_section(registration, name, cell) for name, cell in found["cells"].items()),
        "## Direction and length",
        length_section(found),
        "## The step that is really taken",
        taken_section(found),
        "## Conflicts against noise",
        noise_section(found),
        "## Separability",
        separability_section(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def interval(difference: dict[str, Any]) -> list[str]:
    """Cells of a difference."""
    return [
        f"{difference['mean']:+.4f} ±{difference['standard_error']:.4f}",
        f"[{difference['low']:+.4f}, {difference['high']:+.4f}]",
        f"{difference['better']}/{difference['count']}",
    ]


def verdicts(found: dict[str, Any]) -> str:
    """All judged comparisons."""
    rows = [
        [
            row["cell"],
            row["arm"],
            row["reference"],
            *interval(row["difference"]),
            f"{row['adjusted']:.3f}",
            f"**{row['verdict']}**",
        ]
        for row in found["comparisons"]
        if row["judged"]
    ]
    return table(["cell", "arm", "reference", "difference", "95 %", "better in", "adjusted p", "verdict"], rows)


def not_compared(found: dict[str, Any]) -> str:
    """What the verdicts lack."""
    rows = [
        f"`{row['arm']}` in {row['cell']} ({row['diverged']} of its runs, {row['of_reference']} of the reference's)"
        for row in found["not_compared"]
    ]
    return f"Not compared, since runs diverged: {'; '.join(rows)}." if rows else ""


def repeated(found: dict[str, Any]) -> str:
    """Arms that say nothing of their own."""
    if not found["repeated"]:
        return ""
    rows = [[row["cell"], row["arm"], f"`{row['as_arm']}` in {row['as_cell']}"] for row in found["repeated"]]
    said = "The same numbers, seed by seed, as another arm, so no evidence of their own:"
    return f"{said}\n\n{table(['cell', 'arm', 'as'], rows)}"


def cell_section(registration: Registration, name: str, cell: dict[str, Any]) -> str:
    """What came of every arm, and how it was tuned."""
    names = list(next(iter(cell["arms"].values()))["measures"])
    rows, tried = [], []
    for arm, values in cell["arms"].items():
        marks = " (rival)" if registration.arms[arm].rival else ""
        marks += ", the reference" if arm == cell["reference"] else ""
        weight = f", focus weight {values['focus_weight']:g}" if registration.arms[arm].focus_weights else ""
        edge = " (end of grid)" if values["at_end_of_grid"] else ""
        measured = [spread(values["measures"][measure]) for measure in names]
        rows.append([arm + marks, f"{values['lr']:g}{weight}{edge}", *measured])
        points = [
            f"{t['lr']:g}"
            + ("" if t["focus_weight"] == 1 else f" x {t['focus_weight']:g}")
            + f": {t['validation']:.4f}"
            for t in values["tried"]
        ]
        tried.append([arm, ", ".join(points)])
    seeds = ", ".join(map(str, cell["seeds"]))
    parts = [
        f"### {name}",
        f"Bits a byte of test text, mean ± standard deviation over seeds {seeds}.",
        table(["arm", "learning rate", *names], rows),
        "Tuning, learning rate (x focus weight): validation bits a byte.",
        table(["arm", "tried"], tried),
    ]
    return "\n\n".join(parts)


def length_section(found: dict[str, Any]) -> str:
    """Methods with their own length and at the mean's."""
    if not found["lengths"]:
        return ""
    rows = [
        [
            row["cell"],
            row["own"],
            f"{row['lr'][row['own']]:g}, {row['lr'][row['rescaled']]:g}",
            *interval(row["difference"]),
        ]
        for row in found["lengths"]
    ]
    text = prose(
        """The same direction at the length of the mean's update, minus the method with a length of its own; each
        with its own tuned learning rate. What differs is the length alone: how it changes over steps and buckets."""
    )
    return f"{text}\n\n" + table(["cell", "method", "learning rates", "rescaled minus own", "95 %", "better in"], rows)


def percent(share: float | None) -> str:
    """A share, or a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def taken_section(found: dict[str, Any]) -> str:
    """Gradient, step, and what the losses did."""
    rows = []
    shares = ("conflicts", "gradient_raises", "step_raises", "step_raises_though_gradient_does_not")
    for name, cell in found["cells"].items():
        for arm, values in cell["arms"].items():
            t = values["taken"]
            if t is not None:
                row = [name, arm, str(t["count"])]
                row += [percent(t[key]) for key in (*shares, "measured_raises", "fresh_raises")]
                row += [f"{t['gradient_cosine']:.3f}", f"{t['taken_cosine']:.3f}", f"{t['predicted_to_measured']:.2f}"]
                row.append(f"{t['rank_correlation_measured']:.2f}, {t['rank_correlation_fresh']:.2f}")
                rows.append(row)
    text = prose(
        """Over all probed steps and objectives of the tests. *Pairs* in conflict within buckets; share of (step,
        objective) whose loss rises to first order along the *gradient* that the optimizer got, and by the *step*
        that AdamW took (and, of those that the gradient does not raise, by the step nevertheless); whose loss on
        the step's own blocks really *rose*, and on *other* blocks of the objective. Mean cosine of descent with
        each objective's gradient, of the update and of the step. *Slope*: regression through 0 of the real change
        on the predicted one (1: first order says all). Rank correlations of the prediction with the change on the
        step's blocks, and on others."""
    )
    header = ["cell", "arm", "n", "pairs", "gradient", "step", "step though not gradient", "rose", "others rose"]
    return f"{text}\n\n" + table([*header, "cosine of gradient", "of step", "slope", "rank correlations"], rows)


def noise_section(found: dict[str, Any]) -> str:
    """Per cell, third and part."""
    parts = [
        prose(
            """Additional runs of the clipped mean with two rows (batches of their own) for each objective.
            *Negative*: share of (step, pair) with a negative cosine; *halves*: share of (step, objective) whose
            own two rows have one, which is noise. A pair *conflicts* (*agrees*) above noise if the mean of its
            cosine over a third of the training is more than 3 standard errors below (above) 0. *Signal*: cosine
            of the gradients without noise (unbiased inner products, averaged before they are divided)."""
        )
    ]
    header = ["third", "part", "negative", "halves", "conflict above noise", "agree above noise", "cosine", "signal"]
    for name, cell in found["cells"].items():
        rows = [
            [
                THIRDS[row["third"]],
                row["part"],
                f"{100 * row['negative']:.0f} %",
                f"{100 * row['control']:.0f} %",
                f"{row['conflict']} of {row['pairs']}",
                f"{row['agreement']} of {row['pairs']}",
                f"{row['cosine']:+.3f}",
                "-" if row["signal"] is None else f"{row['signal']:+.3f}",
            ]
            for row in cell["noise"]
        ]
        if rows:
            parts.append(f"### {name}\n\n" + table(header, rows))
    return "\n\n".join(parts)


def separability_section(found: dict[str, Any]) -> str:
    """Layers before and after."""
    rows = []
    shown: set[tuple[str, int]] = set()
    for row in found["separability"]:
        place = (row["cell"], row["layer"])
        if row["when"] == "before":
            if place in shown:
                continue  # the same models for all arms
            shown.add(place)
        cells = [f"{row[key]:.3f} ({row[f'{key}_control']:.3f})" for key in ("language", "identity", "fisher", "cka")]
        rows.append([row["cell"], "before" if row["when"] == "before" else row["arm"], str(row["layer"]), *cells])
    if not rows:
        return ""
    text = prose(
        """Mean-pooled hidden states of parallel test segments; layer 0 is the embedding. Accuracy of a linear probe
        of the *language*, and of which *segment* it is, trained on the other languages' translations; *Fisher*
        ratio of languages (variance between over within); linear *CKA* between languages. In brackets the same
        with permuted labels."""
    )
    return f"{text}\n\n" + table(["cell", "arm", "layer", "language", "segment", "Fisher", "CKA"], rows)


def draw(registration: Registration, found: dict[str, Any], path: Path) -> None:
    """A forest plot of all differences."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = [name for name in found["cells"] if any(row["cell"] == name for row in found["comparisons"])]
    heights = [sum(row["cell"] == name for row in found["comparisons"]) for name in cells]
    figure, axes = plt.subplots(
        len(cells),
        1,
        figsize=(8, 0.9 * len(cells) + 0.24 * sum(heights)),
        layout="constrained",
        sharex=True,
        squeeze=False,
        height_ratios=heights,
    )
    margin = registration.rule.margin
    for axis, name in zip(axes[:, 0], cells, strict=True):
        rows = [row for row in found["comparisons"] if row["cell"] == name]
        for place, row in enumerate(reversed(rows)):
            difference = row["difference"]
            colour = "#0068a8" if row["judged"] else "#7a7a7a"
            axis.plot([difference["low"], difference["high"]], [place, place], color=colour, linewidth=2)
            axis.plot(difference["mean"], place, "o" if row["judged"] else "s", color=colour, markersize=5)
        axis.set_yticks(range(len(rows)), [row["arm"] for row in reversed(rows)])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.axvspan(-margin, margin, color="black", alpha=0.06, linewidth=0)
        axis.set_title(f"{name}: minus {rows[0]['reference']}", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(
        "bits a byte; left: better than the reference; bars: 95 %; squares: rivals; grey: the margin"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
