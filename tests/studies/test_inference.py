"""Paired comparisons of the study, beside SciPy's tests and by simulation."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "multilingual"))

from inference import Difference, compare, holm, verdict


def _samples(count: int, shift: float, spread: float, seed: int = 0) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    reference = random.normal(2.5, 0.1, count)
    return list(reference + random.normal(shift, spread, count)), list(reference)


@pytest.mark.parametrize("count", [2, 3, 8, 40])
def test_differences_are_those_of_a_paired_t_test(count: int) -> None:
    arm, reference = _samples(count, -0.01, 0.02, seed=count)
    found = compare(arm, reference, margin=0.005)
    expected = stats.ttest_rel(arm, reference)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose([found.p, found.low, found.high], [expected.pvalue, interval.low, interval.high])
    np.testing.assert_allclose(found.mean, np.mean(arm) - np.mean(reference))
    np.testing.assert_allclose(found.standard_error, stats.sem(np.subtract(arm, reference)))
    one_sided = [
        stats.ttest_1samp(np.subtract(arm, reference), -0.005, alternative="greater").pvalue,
        stats.ttest_1samp(np.subtract(arm, reference), 0.005, alternative="less").pvalue,
    ]
    np.testing.assert_allclose(found.p_outside, max(one_sided))
    assert found.better == sum(a < b for a, b in zip(arm, reference, strict=True))


@pytest.mark.parametrize(("shift", "p", "outside"), [(0.0, 1.0, 0.0), (-0.1, 0.0, 1.0), (0.1, 0.0, 1.0)])
def test_differences_without_spread(shift: float, p: float, outside: float) -> None:
    found = compare([1.0 + shift] * 3, [1.0] * 3, margin=0.005)
    assert (found.p, found.p_outside) == (p, outside)


def test_holm_is_the_step_down_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_rate_of_any_false_alarm() -> None:
    random = np.random.default_rng(1)
    alarms = sum(min(holm(list(random.uniform(size=20)))) < 0.05 for _ in range(2000))
    assert 60 < alarms < 140, "5 % of families without any effect"


def _difference(mean: float, p_outside: float) -> Difference:
    return Difference(mean, 0.001, 0.0, 0.0, 0.0, p_outside, 8, 0)


@pytest.mark.parametrize(
    ("mean", "adjusted", "p_outside", "expected"),
    [
        (-0.02, 0.01, 1.0, "better"),
        (0.02, 0.01, 1.0, "worse"),
        (-0.02, 0.2, 0.6, "open"),
        (-0.004, 0.01, 0.2, "open"),
        (-0.001, 0.9, 0.01, "equivalent"),
        (-0.001, 0.01, 0.01, "equivalent"),
    ],
)
def test_verdicts(mean: float, adjusted: float, p_outside: float, expected: str) -> None:
    assert verdict(_difference(mean, p_outside), adjusted, margin=0.005, level=0.05) == expected


def test_equal_arms_are_rarely_called_different_and_mostly_equivalent() -> None:
    verdicts = []
    for seed in range(400):
        arm, reference = _samples(8, 0.0, 0.003, seed)
        difference = compare(arm, reference, 0.005)
        verdicts.append(verdict(difference, difference.p, 0.005, 0.05))
    assert verdicts.count("better") + verdicts.count("worse") < 20
    assert verdicts.count("equivalent") > 340
