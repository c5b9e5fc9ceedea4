"""Recorder.to(): scalars for those who draw them."""

import importlib.util
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest

from tests.support.errors import error_of, expect
from tests.support.recorded import Linear, cosines, draw, train_step

SIZES = (4, 3)


class TensorBoard:
    """``SummaryWriter.add_scalar(tag, scalar_value, global_step)``."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        assert global_step is not None
        self.sent.append((tag, scalar_value, global_step))


class WandbRun:
    """``Run.define_metric(name, step_metric)`` and ``Run.log(data, step, commit)``."""

    def __init__(self) -> None:
        self.axes: list[tuple[str, str | None]] = []
        self.rows: list[dict[str, float]] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, data: dict[str, float], step: int | None = None, commit: bool | None = None) -> None:
        assert (step, commit) == (None, None)
        self.rows.append(data)


class Mlflow:
    """``mlflow.log_metrics(metrics, step)``."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((metrics, step))


def recorder_and_rows(rng: np.random.Generator) -> tuple[moo.Recorder, Any]:
    """A recorder, and what takes a step and returns its gradients; one of them is zero in parameter b."""
    model = Linear(SIZES)
    state = moo.register(model, "mgda", bucket_cap_mb=8 * 3 / 2**20)
    recorder = moo.Recorder(state, 1)

    def step() -> dict[str, Any]:
        gradients = draw(rng, ("de", "sw", "el GR"), SIZES)
        gradients["sw"][1][:] = 0
        train_step(model, state, gradients)
        recorder.step()
        return gradients

    return recorder, step


def test_scalars_of_a_record(rng: np.random.Generator) -> None:
    recorder, step = recorder_and_rows(rng)
    mlflow = Mlflow()
    assert recorder.to(mlflow) is recorder
    gradients = step()
    ((values, number),) = mlflow.rows
    assert number == 1
    whole = cosines([np.concatenate(rows) for rows in gradients.values()])
    assert values["moo/cosine/de-sw"] == pytest.approx(whole[0, 1])
    assert values["moo/cosine/sw-el_GR"] == pytest.approx(whole[1, 2])
    assert values["moo/norm/de"] == pytest.approx(np.linalg.norm(np.concatenate(gradients["de"])))
    assert recorder.last is not None
    assert values["moo/residual"] == recorder.last.whole.residual
    assert values["moo/conflict_share"] == recorder.last.conflict_share
    assert values["moo/part/a/weight/el_GR"] == recorder.last.parts[1].weight("el GR")
    part = cosines([rows[1] for rows in gradients.values()])
    assert values["moo/part/b/min_cosine"] == pytest.approx(part[0, 2])  # the only pair without the zero
    assert not [name for name in values if name.startswith("moo/part/") and "cosine/" in name]
    assert not [name for name in values if name.startswith("moo/noise")]  # NaN in the first record
    step()
    spread = recorder.last.whole.noise[0, 1]
    assert mlflow.rows[1][0]["moo/noise/de-sw"] == float(spread)
    assert all(np.isfinite(value) for row, _ in mlflow.rows for value in row.values())


def test_every_writer_gets_the_same(rng: np.random.Generator) -> None:
    recorder, step = recorder_and_rows(rng)
    board, run, mlflow = TensorBoard(), WandbRun(), Mlflow()
    recorder.to(board, prefix="conflicts", details=True)
    recorder.to(run, prefix="conflicts", details=True)
    recorder.to(mlflow, prefix="conflicts", details=True)
    for _ in range(2):
        step()
    assert run.axes == [("conflicts/step", None), ("conflicts/*", "conflicts/step")]
    for number, (values, at) in enumerate(mlflow.rows, 1):
        assert at == number
        assert {tag: value for tag, value, step in board.sent if step == number} == values
        assert run.rows[number - 1] == {**values, "conflicts/step": number}
        assert "conflicts/part/b/cosine/de-el_GR" in values
        assert "conflicts/part/b/cosine/de-sw" not in values  # undefined
    assert len(mlflow.rows) == 2


def test_what_is_no_writer() -> None:
    recorder = moo.Recorder(moo.BucketMOO())
    expect(error_of(lambda: recorder.to(print)), TypeError, "writer must have add_scalar", "builtin_function")
    expect(error_of(lambda: recorder.to(Mlflow(), prefix="")), TypeError, "prefix must be")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_real_tensorboard(rng: np.random.Generator, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    recorder, step = recorder_and_rows(rng)
    with SummaryWriter(str(tmp_path)) as writer:
        recorder.to(writer)
        step()
        step()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (first, second) = events.Scalars("moo/cosine/sw-el_GR")
    assert (first.step, second.step) == (1, 2)
    assert recorder.last is not None
    assert second.value == pytest.approx(recorder.last.whole.cosine("sw", "el GR"), rel=1e-6)
