"""What the study measures of hidden states and of noise, on made-up data whose answers are known."""

# ruff: noqa: E402
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs requirements/demo.txt")
pytest.importorskip("sklearn", reason="needs requirements/study.txt")
for folder in ("examples", "studies"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder / "multilingual"))

from conflicts import WHOLE
from noise import Noise
from separability import describe, fisher_ratio, mean_cka

LANGUAGES, SEGMENTS, HIDDEN = 3, 60, 12


def _states(apart: float, shared: float, seed: int = 0) -> Any:
    """A place for each language, a meaning for each segment, and noise of length 1."""
    random = np.random.default_rng(seed)
    places = apart * random.normal(size=(LANGUAGES, 1, HIDDEN))
    meanings = shared * random.normal(size=(1, SEGMENTS, HIDDEN))
    return places + meanings + random.normal(size=(LANGUAGES, SEGMENTS, HIDDEN))


def test_languages_that_lie_apart_are_told_apart_and_no_segment_is_known() -> None:
    found = describe(_states(apart=5, shared=0))
    assert found["language"] > 0.95
    assert found["identity"] < 0.1
    assert found["fisher"] > 5
    assert abs(found["cka"] - found["cka_control"]) < 0.1


def test_translations_that_lie_together_are_known_and_no_language_is() -> None:
    found = describe(_states(apart=0, shared=5))
    assert found["identity"] > 0.8
    assert found["cka"] > 0.85 > found["cka_control"]
    assert abs(found["language"] - 1 / LANGUAGES) < 0.2
    assert found["fisher"] < 0.1


def test_controls_are_chance_whatever_the_states_are() -> None:
    for seed, (apart, shared) in enumerate([(0, 0), (5, 0), (0, 5), (5, 5)]):
        found = describe(_states(apart, shared, seed))
        assert abs(found["language_control"] - 1 / LANGUAGES) < 0.2
        assert found["identity_control"] < 0.1
        assert found["fisher_control"] < 0.1
        assert found["cka_control"] < 0.5


def test_fisher_ratio_and_cka_are_those_of_their_definitions() -> None:
    states = _states(2, 2)
    labels = np.repeat(np.arange(LANGUAGES)[:, None], SEGMENTS, axis=1)
    overall = states.reshape(-1, HIDDEN).mean(0)
    between = sum(SEGMENTS * np.outer(m - overall, m - overall) for m in states.mean(1))
    within = sum(np.outer(x, x) for x in (states - states.mean(1, keepdims=True)).reshape(-1, HIDDEN))
    np.testing.assert_allclose(fisher_ratio(states, labels), np.trace(between) / np.trace(within))

    def kernel(x: Any) -> Any:
        centring = np.eye(SEGMENTS) - 1 / SEGMENTS
        return centring @ x @ x.T @ centring

    def hsic(a: Any, b: Any) -> Any:
        return np.trace(kernel(a) @ kernel(b))

    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [
        hsic(states[i], states[j]) / np.sqrt(hsic(states[i], states[i]) * hsic(states[j], states[j])) for i, j in pairs
    ]
    np.testing.assert_allclose(mean_cka(states), np.mean(expected))


def _report(gramian: Any, signal: Any) -> Any:
    """Of one part that is the whole."""
    bucket = SimpleNamespace(
        parameters=("model.layers.0.mlp.up_proj.weight",), gramian=torch.tensor(gramian), signal=torch.tensor(signal)
    )
    whole = {"gramian": bucket.gramian, "signal": bucket.signal}
    return SimpleNamespace(objectives=("de", "sw"), buckets=(bucket,), **whole)


def test_noise_counts_signs_and_averages_signals_before_it_divides() -> None:
    noise = Noise(steps=6)
    for step in range(6):
        sign = -1.0 if step % 2 else 1.0
        own = 3.0 if step < 5 else -1.0
        noise.add(step, _report([[4.0, sign], [sign, 4.0]], [[own, -1.0], [-1.0, 3.0]]))
    found = noise.to_dict()
    parts = {(row["third"], row["part"]): row for row in found["parts"]}
    assert found["objectives"] == ["de", "sw"]
    assert sorted(parts) == [(third, part) for third in range(3) for part in ("MLP 0", WHOLE)]
    first, last = parts[0, "MLP 0"], parts[2, WHOLE]
    assert first["steps"] == 2
    assert first["mean"][0][1] == 0.0
    assert first["spread"][0][1] == pytest.approx(np.std([0.25, -0.25], ddof=1), abs=1e-6)
    assert first["negative"] == [[0, 1], [1, 0]]
    assert first["signal"][0][1] == pytest.approx(-1 / 3, abs=1e-6)
    assert last["control_negative"] == [1, 0], "the halves of de conflict in the last step"
    assert last["signal"][0][1] == pytest.approx(-2 / np.sqrt(2.0 * 6.0), abs=1e-6)
