"""The contract of all methods on random Gramians of every family that is hard for one of them."""

import math
from collections.abc import Callable

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import reference as ref
from tests.support.problems import SIZES, families, gram_of, problems, solve, weights, wide, zero_rows

pytestmark = pytest.mark.device

METHODS: list[str | moo.Method] = ["mean", "mgda", moo.MGDA("l2"), "cagrad", moo.CAGrad(1.5, True), "pcgrad"]

Random = np.random.Generator


# -------------------------------------------------------------------------------------------- contract


@pytest.mark.host
def test_available_methods() -> None:
    methods = moo.available_methods()
    assert {"mean", "mgda", "cagrad", "pcgrad"} <= set(methods)
    for name, info in methods.items():
        assert isinstance(info, moo.MethodInfo)
        assert info.name == name
        assert info.source
        gram = torch.tensor([[2.0, -1.0], [-1.0, 3.0]])
        assert torch.equal(moo.weights(gram, name), moo.weights(gram, name.upper()))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_nonfinite_gives_the_mean(rng: Random, method: moo.Method) -> None:
    for k in SIZES:
        for bad in (np.nan, np.inf, -np.inf):
            gram = gram_of(wide(rng, k))
            gram[0, 0] = 0.0  # even with an objective that would be left out
            gram[rng.integers(k), rng.integers(k)] = bad
            assert np.array_equal(weights(gram, method), np.full(k, 1 / k))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_nothing_active(method: moo.Method) -> None:
    for k in SIZES:
        w, certificate = solve(np.zeros((k, k)), method)
        assert np.array_equal(w, np.full(k, 1 / k) if method == "mean" else np.zeros(k))
        assert certificate == 0


@pytest.mark.parametrize("method", ["mgda", moo.MGDA("l2"), "cagrad", moo.CAGrad(1.5, True)], ids=str)
def test_inactive_objectives_change_nothing(rng: Random, method: moo.Method) -> None:
    for k in (2, 3, 8, 64):
        rows = wide(rng, k)
        on = rng.random(k) < 0.6
        on[rng.integers(k)] = True
        rows[~on] = 0
        gram = gram_of(rows)
        w = weights(gram, method)
        assert not w[~on].any()
        assert np.array_equal(w[on], weights(np.ascontiguousarray(gram[np.ix_(on, on)]), method))


def test_inactive_objectives_in_pcgrad(rng: Random) -> None:
    """They are left out of the explicit orders, and the mean is over the others."""
    for _ in range(20):
        rows = wide(rng, 5) - wide(rng, 5).mean(0)
        rows[[1, 3]] = 0
        orders = [list(rng.permutation(5)) for _ in range(5)]
        w = weights(gram_of(rows), moo.PCGrad(permutation=orders))
        assert not w[[1, 3]].any()
        np.testing.assert_allclose(w, ref.weights(rows, "pcgrad", orders=orders), rtol=1e-9, atol=1e-12)
        place = {0: 0, 2: 1, 4: 2}
        reduced = [[place[j] for j in orders[i] if j in place] for i in place]
        small = weights(gram_of(rows[[0, 2, 4]]), moo.PCGrad(permutation=reduced))
        assert np.array_equal(w[[0, 2, 4]], small)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_only_the_symmetric_part_counts(rng: Random, method: moo.Method) -> None:
    gram = gram_of(rng.integers(-8, 8, (5, 7)).astype(float))  # integers: halves are exact
    skew = np.triu(rng.integers(-8, 8, (5, 5)), 1)
    assert np.array_equal(weights(gram + skew - skew.T, method), weights(gram, method))


@pytest.mark.parametrize("method", METHODS, ids=str)
@families
def test_scale(rng: Random, family: str, method: moo.Method) -> None:
    for problem in problems(rng, family, repeat=1):
        if not problem.on.size:
            continue
        w = weights(problem.gram, method)
        for exponent in (-40, 40):  # 1e-12 and 1e12, exactly
            scaled = np.ldexp(problem.gram, 2 * exponent)
            assert np.array_equal(weights(scaled, method), w), f"{problem.label}: 2^{exponent}"
        if not problem.family.unique or method == moo.CAGrad(1.5, True):
            continue  # rounding t² G moves an ill-conditioned problem, and the formula 0/0
        for t in (1e-12, 3e-7, 1e12):
            other = weights(problem.gram * t**2, method)
            assert np.abs(other - w).max() <= 1e-6 * (1 + np.abs(w).sum()), f"{problem.label}: {t}"


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_determinism(rng: Random, method: moo.Method) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for k in SIZES:
        gram = gram_of(wide(rng, k))
        first = weights(gram, method, seed=5, step=6)
        torch.manual_seed(1)
        assert np.array_equal(first, weights(gram.copy(), method, seed=5, step=6))
        if method != "pcgrad":
            assert np.array_equal(first, weights(gram, method, seed=7, step=8))
    assert torch.equal(torch.get_rng_state(), before), "no method draws from the process"


def test_one_objective() -> None:
    for square in (4.0, 1e-24, 1e24):
        gram = np.array([[square]])
        for method, expected in [
            ("mean", 1.0),
            ("mgda", 1.0),
            (moo.MGDA("l2"), 1.0),
            ("pcgrad", 1.0),
            (moo.PCGrad("sum"), 1.0),
            (moo.CAGrad(0.4), 1.4),
            (moo.CAGrad(2.0), 3.0),
            (moo.CAGrad(2.0, rescale=True), 1.0),
        ]:
            assert weights(gram, method)[0] == pytest.approx(expected, rel=1e-15)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ mean


def test_mean(rng: Random) -> None:
    for k in SIZES:
        gram = gram_of(zero_rows(rng, k))
        assert np.array_equal(weights(gram, "mean"), np.full(k, 1 / k))
        given = rng.random(k) + 0.01
        given[0] = 2.0
        w = weights(gram, moo.Mean(given.tolist()))
        np.testing.assert_allclose(w, given / given.sum(), rtol=1e-14)
        assert np.array_equal(weights(gram, moo.Mean((4 * given).tolist())), w)
    assert weights(np.eye(3), moo.Mean([1, 0, 3])).tolist() == [0.25, 0.0, 0.75]


# ------------------------------------------------------------------------------------------------ MGDA


@pytest.mark.parametrize("method", ["mgda", moo.MGDA("l2"), "cagrad", moo.CAGrad(1.5)], ids=str)
def test_identical_objectives_share_equally(rng: Random, method: moo.Method) -> None:
    for k in (2, 3, 8, 33, 64):
        rows = wide(rng, k)
        source = rng.integers(0, max(1, k // 2), k)
        rows = rows[source]
        w = weights(gram_of(rows), method)
        for group in set(source):
            assert len(set(w[source == group])) == 1, (k, w[source == group])


# ------------------------------------------------------------------------------------------ parameters


@pytest.mark.host
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: moo.CAGrad(c=-0.1), ["CAGrad", "c", "-0.1", ">= 0"]),
        (lambda: moo.CAGrad(c=math.nan), ["c", "nan"]),
        (lambda: moo.CAGrad(c=math.inf), ["c", "inf"]),
        (lambda: moo.CAGrad(c="0.4"), ["c", "'0.4'"]),  # type: ignore[arg-type]
        (lambda: moo.CAGrad(c=True), ["c", "True"]),
        (lambda: moo.CAGrad(rescale=1), ["rescale", "1", "True or False"]),  # type: ignore[arg-type]
        (lambda: moo.MGDA(normalize="l1"), ["normalize", "'l1'", "'none'", "'l2'"]),  # type: ignore[arg-type]
        (lambda: moo.PCGrad(reduction="max"), ["reduction", "'max'", "'mean'", "'sum'"]),  # type: ignore[arg-type]
        (lambda: moo.PCGrad(permutation=[]), ["permutation", "[]"]),
        (lambda: moo.PCGrad(permutation=[[0, 1]]), ["permutation", "[[0, 1]]"]),
        (lambda: moo.PCGrad(permutation=[[0, 0], [0, 1]]), ["permutation", "[0, 0]"]),
        (lambda: moo.PCGrad(permutation=[[1, 2], [2, 1]]), ["permutation", "0..K-1"]),
        (lambda: moo.Mean([1.0, -1.0]), ["weights", "-1.0", ">= 0"]),
        (lambda: moo.Mean([0.0, 0.0]), ["weights", "not all zero"]),
        (lambda: moo.Mean([]), ["weights", "not all zero"]),
        (lambda: moo.Mean([math.nan]), ["weights", "nan"]),
        (lambda: moo.Mean(["1"]), ["weights", "'1'"]),  # type: ignore[list-item]
    ],
)
def test_bad_parameters(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {str(caught.value)!r}"


@pytest.mark.host
def test_methods_are_values() -> None:
    for make in (
        lambda: moo.Mean([1, 2]),
        lambda: moo.MGDA("l2"),
        lambda: moo.CAGrad(0.3, True),
        lambda: moo.PCGrad("sum", [[0, 1], [1, 0]]),
    ):
        first, second = make(), make()
        assert first == second
        assert hash(first) == hash(second)
        assert repr(first) == repr(second)
        assert first != moo.Mean()
        with pytest.raises(AttributeError):
            first.extra = 1  # type: ignore[union-attr]
    permutation = [[0, 1], [1, 0]]
    method = moo.PCGrad(permutation=permutation)
    permutation[0][0] = 1
    assert method == moo.PCGrad(permutation=[[0, 1], [1, 0]])
