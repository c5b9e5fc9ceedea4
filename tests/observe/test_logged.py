"""Losses, step times and configuration that a recorder is told."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support.errors import error_of, expect
from tests.support.recorded import Linear, draw, train_step

NAMES = ("de", "sw")


def registered(every: int = 1) -> tuple[Linear, moo.BucketMOO, moo.Recorder]:
    model = Linear((4,))
    state = moo.register(model, "mgda", scope="model", bucket_cap_mb=3)
    return model, state, moo.Recorder(state, every)


def test_a_record_has_the_means_since_the_record_before(rng: np.random.Generator) -> None:
    model, state, recorder = registered(every=3)
    losses, seconds = rng.standard_normal((7, 2)), rng.uniform(0.1, 1, 7)
    for step in range(7):
        train_step(model, state, draw(rng, NAMES, (4,)))
        recorder.log({"de": losses[step, 0]}, seconds=seconds[step])
        if step % 2 == 0:
            recorder.log({"sw": torch.tensor(losses[step, 1], requires_grad=True)})
        recorder.step()
    for record, first, last in zip(recorder.history, (0, 1, 4), (1, 4, 7), strict=True):
        assert record.losses["de"] == pytest.approx(losses[first:last, 0].mean())
        seen = [losses[step, 1] for step in range(first, last) if step % 2 == 0]
        assert record.losses["sw"] == pytest.approx(np.mean(seen), rel=1e-6)
        assert record.seconds == pytest.approx(seconds[first:last].mean())


def test_a_record_without_them(rng: np.random.Generator) -> None:
    model, state, recorder = registered()
    for step in range(3):
        train_step(model, state, draw(rng, NAMES, (4,)))
        if step == 1:
            recorder.log({"de": math.nan, "sw": math.inf}, seconds=0)
        recorder.step()
    first, second, third = recorder.history
    assert first.losses == third.losses == {}
    assert math.isnan(first.seconds)
    assert math.isnan(second.losses["de"])
    assert second.losses["sw"] == math.inf
    assert second.seconds == 0


def test_they_are_in_files(rng: np.random.Generator, tmp_path: Path) -> None:
    model, state, recorder = registered()
    described: dict[str, Any] = {"model": "tiny \u1e3f", "lr": 4e-3, "seeds": (0, 1), "amp": False, "note": None}
    recorder.describe(described)
    for step in range(2):
        train_step(model, state, draw(rng, NAMES, (4,)))
        if step == 0:
            recorder.log({"de": 1.5, "sw": math.nan}, seconds=0.25)
        recorder.step()
    path = tmp_path / "records.jsonl"
    recorder.save(path)
    loaded = moo.Recorder.load(path)
    for ours, theirs in zip(loaded.history, recorder.history, strict=True):
        np.testing.assert_equal(dict(ours.losses), dict(theirs.losses))
        np.testing.assert_equal(ours.seconds, theirs.seconds)
    reduction = {
        "method": "MGDA(normalize='none')",
        "estimator": "exact",
        "layout": "ranks",
        "scope": "model",
        "split_by_support": False,
        "mesh": "",
        "bucket_moo_ext": moo.__version__,
        "torch": torch.__version__,
    }
    assert loaded.configuration == recorder.configuration == {**reduction, **described, "seeds": [0, 1]}
    header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert header["configuration"] == {"reduction": reduction, "described": {**described, "seeds": [0, 1]}}


def test_what_cannot_be_logged() -> None:
    recorder = moo.Recorder(None)
    for losses, said in (
        ([1.0], "losses must be a mapping .* got list"),
        ({3: 1.0}, "losses must have names of objectives; got int 3"),
        ({"de": "1.0"}, "losses must be real numbers; got str for 'de'"),
        ({"de": True}, "losses must be real numbers; got bool for 'de'"),
        ({"de": torch.ones(2)}, "losses must be real numbers; got Tensor for 'de'"),
    ):
        expect(error_of(partial(recorder.log, losses)), TypeError, said)  # type: ignore[arg-type]
    expect(error_of(lambda: recorder.log(seconds="1")), TypeError, "seconds must be a number; got str '1'")  # type: ignore[arg-type]
    expect(error_of(lambda: recorder.log(seconds=-1.0)), ValueError, "seconds must be finite and >= 0; got -1.0")
    expect(error_of(lambda: recorder.describe({"method": "adam"})), ValueError, "must not have method, .* got 'method'")
    expect(error_of(lambda: recorder.describe({"lr": object()})), TypeError, "got object for 'lr'")
    expect(error_of(lambda: recorder.describe({1: 2})), TypeError, "strings as names; got int 1")  # type: ignore[dict-item]
    expect(error_of(lambda: recorder.describe([1])), TypeError, "must be a mapping .* got list")  # type: ignore[arg-type]
