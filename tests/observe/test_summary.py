"""Which conflicts stand above noise: the estimator against NumPy, and how often noise alone looks like one."""

import json

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from bucket_moo_ext.observe.noise import CosineNoise, student_tail
from scipy import stats

from tests.support.recorded import Linear, cosines, draw, train_step
from tests.support.reference import Array

NAMES = ("de", "sw", "tr")


def weighted(values: Array, window: int | None) -> tuple[float, float, float]:
    """Mean, spread and standard error, by their definitions."""
    decay = 1.0 if window is None else (window - 1) / (window + 1)
    w = decay ** np.arange(len(values))[::-1]
    mean = (w * values).sum() / w.sum()
    variance = (w * (values - mean) ** 2).sum() / (w.sum() - (w**2).sum() / w.sum())
    return mean, variance**0.5, (variance * (w**2).sum()) ** 0.5 / w.sum()


@pytest.mark.parametrize("window", [None, 2, 7])
def test_the_estimator_of_a_training(rng: np.random.Generator, window: int | None) -> None:
    model = Linear((6,))
    state = moo.register(model, "mgda")
    recorder = moo.Recorder(state, 1, window=window)
    series = []
    for _ in range(12):
        gradients = draw(rng, NAMES, (6,))
        train_step(model, state, gradients)
        recorder.step()
        series.append(cosines([gradients[name][0] for name in NAMES]))
    summary = recorder.summary()
    assert (summary.records, summary.first_step, summary.last_step, summary.window) == (12, 1, 12, window)
    assert [pair.objectives for pair in summary.parts] == [("de", "sw"), ("de", "tr"), ("sw", "tr")]
    assert recorder.last is not None
    for pair in (*summary.parts, *summary.whole):
        i, j = (NAMES.index(name) for name in pair.objectives)
        values = np.array(series)[:, i, j]
        assert (pair.mean, pair.spread, pair.error) == pytest.approx(weighted(values, window), rel=1e-9)
        assert pair.records == 12
        assert pair.score == pair.mean / pair.error
        for record in recorder.history[1:]:
            expected = weighted(values[: record.index + 1], window)[1]
            assert float(record.parts[0].noise[i, j]) == pytest.approx(expected, rel=1e-9)
    assert recorder.history[0].parts[0].noise.isnan().all()


def test_a_window_has_the_error_of_as_many_records(rng: np.random.Generator) -> None:
    noise = CosineNoise(window=25)
    for _ in range(400):
        noise.add(("a", "b"), torch.from_numpy(rng.uniform(-1, 1, (2, 2))))
    found = noise.of(("a", "b"))
    torch.testing.assert_close(found.error, found.spread / 5)


def test_pairs_of_equal_cosines_have_no_noise() -> None:
    model = Linear((2,))
    state = moo.register(model, "mgda")
    recorder = moo.Recorder(state, 1)
    for _ in range(10):
        train_step(model, state, {"de": [np.array([1.0, 0.0])], "sw": [np.array([-1.0, 1.0])]})
        recorder.step()
    (pair,) = recorder.summary().parts
    assert pair.mean == pytest.approx(-(0.5**0.5))
    assert pair.error == pytest.approx(0, abs=1e-12)
    assert pair.score < -1e9
    assert pair.verdict == "conflict"


def test_a_known_signal_is_found_and_noise_is_not(rng: np.random.Generator) -> None:
    """Signals of de and sw with cosine -0.5, tr at right angles to both, in noise of ten times their length."""
    n = 2000
    basis = np.linalg.qr(rng.standard_normal((n, 3)))[0].T
    signal = {"de": basis[0], "sw": -0.5 * basis[0] + 0.75**0.5 * basis[1], "tr": basis[2]}
    model = Linear((n,))
    state = moo.register(model, "mgda")
    recorder = moo.Recorder(state, 1, window=None)
    conflicting = 0
    for _ in range(150):
        noisy = {name: [mean + 2 * rng.standard_normal(n) / n**0.5] for name, mean in signal.items()}
        train_step(model, state, noisy)
        record = recorder.step()
        assert record is not None
        conflicting += record.whole.cosine("de", "tr") < 0
    assert 40 < conflicting < 110  # half of the single steps show a conflict that is none
    summary = recorder.summary(z=4.0)
    assert {pair.objectives: pair.verdict for pair in summary.whole} == {
        ("de", "sw"): "conflict",
        ("de", "tr"): "noise",
        ("sw", "tr"): "noise",
    }
    first, second = summary.conflicts
    assert (first.objectives, second.objectives) == (("de", "sw"), ("de", "sw"))
    assert (first.part.is_whole, second.part.is_whole) == (True, False)
    # What noise leaves of the cosine: signals of length 1 in gradients of length sqrt(1 + 4).
    assert first.mean == pytest.approx(-0.5 / 5, abs=4 * first.error)


def test_a_training_of_noise_has_no_conflicts(rng: np.random.Generator) -> None:
    """132 pairs, of which each looks like a conflict with 0.28 %: more than four do with a probability of 4e-5."""
    names = [f"language {number}" for number in range(12)]
    model = Linear((300, 200))
    state = moo.register(model, "mean", scope="parameter")
    recorder = moo.Recorder(state, 1, window=None)
    conflicts = 0.0
    for _ in range(30):
        train_step(model, state, draw(rng, names, (300, 200)))
        record = recorder.step()
        assert record is not None
        conflicts += record.conflict_share / 30
    summary = recorder.summary()
    assert conflicts == pytest.approx(0.5, abs=0.05)  # of the pairs of a single step
    assert len(summary.parts) == 132
    assert summary.by_chance == pytest.approx(132 * stats.t.sf(3, 29))
    assert sum(pair.verdict == "conflict" for pair in summary.parts) <= 4


@pytest.mark.parametrize(("window", "records"), [(None, 10), (None, 30), (20, 100)])
def test_noise_alone_is_seldom_a_conflict(rng: np.random.Generator, window: int | None, records: int) -> None:
    """Cosines of independent gradients, of many pairs: the share of conflicts at z = 2 is that of Student's t.

    With a window weights are unequal; the share is between those of the window's degrees of freedom and half as many.
    """
    pairs, z = 20_000, 2.0
    noise = CosineNoise(window)
    names = tuple(map(str, range(200)))
    for _ in range(records):
        noise.add(names, torch.from_numpy(rng.standard_normal((200, 200)) / 30))
    found = noise.of(names)
    upper = tuple(torch.triu_indices(200, 200, offset=1))
    share = float((found.mean < -z * found.error)[upper].double().mean())
    freedom = (records if window is None else window) - 1
    tails = [stats.t.sf(z, freedom), stats.t.sf(z, freedom if window is None else freedom / 2)]
    slack = 5 * (max(tails) / pairs) ** 0.5  # five standard deviations of the count
    assert min(tails) - slack <= share <= max(tails) + slack


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 99, 999, 5000])
def test_the_tail_of_students_t(freedom: int) -> None:
    for z in (0.5, 2.0, 3.0, 5.0):
        assert student_tail(z, freedom) == pytest.approx(stats.t.sf(z, freedom), rel=0.05 if freedom > 1000 else 1e-6)


def test_what_a_summary_prints(rng: np.random.Generator) -> None:
    model = Linear((2, 3))
    state = moo.register(model, "mgda", bucket_cap_mb=8 * 2 / 2**20)
    recorder = moo.Recorder(state, 1)
    for _ in range(12):
        opposed = rng.uniform(0.5, 1.5, 2)
        rows = {"de": [opposed, rng.standard_normal(3)], "sw": [-opposed[::-1].copy(), rng.standard_normal(3)]}
        train_step(model, state, rows)
        recorder.step()
    train_step(model, state, {"de": [np.ones(2), np.ones(3)], "el": [np.ones(2), np.ones(3)]})
    recorder.step()
    summary = recorder.summary()
    lines = str(summary).splitlines()
    assert "steps 1 to 13: 13 records, means over a window of 100 records" in lines[0]
    assert "below 0 by more than 3 standard errors, from 10 records on" in lines[0]
    assert lines[1] == "whole gradients"
    (line,) = (line for line in lines if line.startswith("parts:"))
    assert "1 of 2 pairs conflict above noise (noise alone: about 0.012)" in line
    assert "2 have too few records" in line
    assert lines[-1].split()[:2] == ["de", "sw"]
    assert lines[-1].split()[-2:] == ["conflict", "a"]
    plain = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    (undecided,) = (pair for pair in plain["whole"] if pair["verdict"] == "undecided")
    assert (undecided["objectives"], undecided["error"]) == (["de", "el"], None)
    assert undecided["part"]["parameters"] == ["a", "b"]
