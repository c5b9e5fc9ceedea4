"""Scalars of a record for TensorBoard, Weights & Biases and MLflow, known by what they can do."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from bucket_moo_ext.observe.records import PartKey, PartRecord, Record

_Send = Callable[[dict[str, float], int], None]


class Writer(NamedTuple):
    """Where scalars go: ``write`` takes them by name, without prefix, and the step."""

    write: _Send
    details: bool


def find_writer(writer: object, prefix: str, details: bool) -> Writer:
    """The way to hand scalars to a writer.

    Raises:
        TypeError: It is of no kind that is known, or ``prefix`` is no string.
    """
    if not isinstance(prefix, str) or not prefix:
        raise TypeError(f"prefix must be a string of at least a character; got {type(prefix).__name__} {prefix!r}")
    for has, make in (
        (("add_scalar",), _tensorboard),
        (("log", "define_metric"), _wandb),
        (("log_metrics",), _mlflow),
    ):
        if all(callable(getattr(writer, name, None)) for name in has):
            return Writer(make(writer, prefix), details)
    raise TypeError(
        "writer must have add_scalar (TensorBoard's SummaryWriter), log and define_metric (a wandb run) or log_metrics "
        f"(the module mlflow); got {type(writer).__name__}"
    )


def scalars(record: Record, details: bool) -> dict[str, float]:
    """What is finite of a record, by name. ``details``: cosines of every part too."""
    values: dict[str, float] = {
        "conflict_share": record.conflict_share,
        "global_conflict_share": record.global_conflict_share,
        "residual": record.whole.residual,
        "fallbacks": record.fallbacks,
        **_pairs("cosine", record.whole, record.whole.cosines.tolist()),
        **_pairs("noise", record.whole, record.whole.noise.tolist()),
        **_each("norm", record.whole.objectives, record.whole.norms.tolist()),
    }
    for part in record.parts:
        tag = f"part/{_tag(part.key)}"
        cosines = _pairs(f"{tag}/cosine", part, part.cosines.tolist())
        finite = [cosine for cosine in cosines.values() if math.isfinite(cosine)]
        values[f"{tag}/residual"] = part.residual
        values[f"{tag}/min_cosine"] = min(finite, default=math.nan)
        values |= _each(f"{tag}/weight", part.objectives, part.weights.tolist())
        if details:
            values |= cosines | _pairs(f"{tag}/noise", part, part.noise.tolist())
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _each(name: str, objectives: tuple[str, ...], values: list[float]) -> dict[str, float]:
    return {f"{name}/{_clean(objective)}": value for objective, value in zip(objectives, values, strict=True)}


def _pairs(name: str, part: PartRecord, matrix: list[list[float]]) -> dict[str, float]:
    names = [_clean(objective) for objective in part.objectives]
    places = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    return {f"{name}/{names[i]}-{names[j]}": matrix[i][j] for i, j in places}


def _tag(key: PartKey) -> str:
    """A part by its group and first parameter, so that a series goes on where buckets are rebuilt."""
    group = [key.group] if key.group not in ("", "model", *key.parameters) else []
    first = key.parameters[0] if key.parameters else f"{key.numel}_elements"
    return "/".join(map(_clean, [*group, first])) + (f"_{key.number + 1}" if key.number else "")


def _clean(name: str) -> str:
    """Characters that all three take in a name: TensorBoard's are the fewest."""
    return re.sub(r"[^-\w.]", "_", name)


def _tensorboard(writer: Any, prefix: str) -> _Send:
    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{prefix}/{name}", value, step)

    return send


def _wandb(run: Any, prefix: str) -> _Send:
    """With an axis of its own: the run's step belongs to who else logs."""
    run.define_metric(f"{prefix}/step")
    run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def send(values: dict[str, float], step: int) -> None:
        run.log({f"{prefix}/{name}": value for name, value in {**values, "step": step}.items()})

    return send


def _mlflow(mlflow: Any, prefix: str) -> _Send:
    def send(values: dict[str, float], step: int) -> None:
        mlflow.log_metrics({f"{prefix}/{name}": value for name, value in values.items()}, step=step)

    return send
