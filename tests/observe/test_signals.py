"""Cosines of signals over a training, where objectives have several rows."""

import contextlib
import math
from pathlib import Path

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from bucket_moo_ext.observe.page_tables import pairs_of_whole


def recorded(rows: int, steps: int = 60, seed: int = 5, row_norms: bool = True) -> tuple[moo.Recorder, np.ndarray]:
    """Signals (3, 0) and (-1, 1) in 300 dimensions, with noise twice as long; and the means of the reports' signals."""
    rng = np.random.default_rng(seed)
    signals = {"de": np.r_[3.0, np.zeros(299)], "sw": np.r_[-1.0, 1.0, np.zeros(298)]}
    model = torch.nn.Linear(300, 1, bias=False).double()
    state = moo.register(model, "mgda", row_norms=row_norms)
    recorder = moo.Recorder(state, every=1, window=None)
    found = []
    for _ in range(steps):
        model.zero_grad()
        passes = [name for name in signals for _ in range(rows)]
        for number, name in enumerate(passes):
            state.objective = name
            gradient = torch.from_numpy(signals[name] + 0.35 * rng.standard_normal(300))
            with contextlib.nullcontext() if number == len(passes) - 1 else state.accumulate():
                (model.weight[0] * gradient).sum().backward()
        found.append(state.report().signal.numpy())
        recorder.step()
    return recorder, np.mean(found, axis=0)


def test_noise_does_not_shorten_the_cosine_of_signals() -> None:
    recorder, mean = recorded(2)
    (pair,) = recorder.summary().whole
    assert pair.signal == pytest.approx(mean[0, 1] / math.sqrt(mean[0, 0] * mean[1, 1]), rel=1e-9)
    assert pair.signal == pytest.approx(-1 / math.sqrt(2), abs=0.15)
    assert pair.mean > -0.3  # what the noise leaves of it
    assert pair.verdict == "conflict"
    text = str(recorder.summary())
    assert f"{pair.signal:.3f}" in text
    assert "signal" in text
    assert "cosine of signals" in pairs_of_whole(recorder.summary())


def test_they_are_in_the_file(tmp_path: Path) -> None:
    recorder, _ = recorded(3, steps=12)
    recorder.save(tmp_path / "a.jsonl")
    again = moo.Recorder.load(tmp_path / "a.jsonl")
    assert again.summary() == recorder.summary()


@pytest.mark.parametrize(("rows", "row_norms"), [(2, False), (1, True)])
def test_without_norms_or_with_single_rows_there_are_none(rows: int, row_norms: bool) -> None:
    recorder, _ = recorded(rows, steps=12, row_norms=row_norms)
    (pair,) = recorder.summary().whole
    assert math.isnan(pair.signal)
    assert "signal" not in str(recorder.summary())
    assert "signals" not in pairs_of_whole(recorder.summary())
