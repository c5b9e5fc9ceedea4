"""MGDA on random Gramians of every family: certificates, closed forms, no conflict."""

import bucket_moo_ext as moo
import numpy as np
import pytest

from tests.support import reference as ref
from tests.support.problems import FAMILIES, families, gram_of, problems, solve, spread, weights
from tests.support.reference import EPSILON, Array

pytestmark = pytest.mark.device

Random = np.random.Generator


def distance(gram: Array, v: Array, w: Array) -> float:
    """|Σ (v_k - w_k) g_k|² over the mean diagonal."""
    difference = (v - w).astype(np.longdouble)
    return float(difference @ gram.astype(np.longdouble) @ difference) / ref.mean_diagonal(gram)


@families
def test_mgda(rng: Random, family: str) -> None:
    for problem in problems(rng, family):
        label, gram, on = problem.label, problem.gram, problem.on
        if not on.size:
            continue
        w, certificate = solve(gram, "mgda")
        assert (w >= 0).all(), label
        assert abs(w.sum() - 1) <= 1e-14, label
        assert not np.delete(w, on).any(), label

        gap = ref.mgda_gap(gram, w)
        assert gap <= 1e-9, f"{label}: gap {gap:.2e}"
        assert 0 <= certificate <= 1e-9, f"{label}: certificate {certificate:.2e}"
        assert abs(certificate - max(gap, 0)) <= 1e-12, f"{label}: certificate {certificate:.2e}, gap {gap:.2e}"

        product = gram.astype(np.longdouble) @ w
        square = w @ product
        support = w > 0
        assert np.abs(product[support] - square).max() <= 1e-9 * ref.mean_diagonal(gram), label
        # |d| <= min |g_k|, up to what the rounding of w moves |d|^2 by.
        norms = np.sqrt(np.diagonal(gram))
        assert square <= norms[on].min() ** 2 * (1 + 1e-12) + 4 * EPSILON * (w @ norms) ** 2, label

        # Any two optima have the same d: |d - d*|^2 is at most the sum of their gaps. The rounding of G is in there.
        expected = ref.weights(problem.rows, "mgda")
        assert ref.mgda_gap(gram, expected) <= 1e-9, f"{label}: the reference is off"
        assert distance(gram, w, expected) <= 1e-12, label
        if problem.family.regular and family != "exact duplicates":
            np.testing.assert_allclose(w, expected, atol=1e-9, err_msg=label)

        order = rng.permutation(len(gram))
        permuted = np.empty_like(w)
        permuted[order] = weights(gram[np.ix_(order, order)], "mgda")
        assert distance(gram, w, permuted) <= 1e-13, label
        if problem.family.unique:
            assert np.abs(w - permuted).max() <= 1e-8, label


@families
def test_mgda_of_unit_gradients(rng: Random, family: str) -> None:
    for problem in problems(rng, family, repeat=1):
        label, gram, on = problem.label, problem.gram, problem.on
        if not on.size:
            continue
        w, certificate = solve(gram, moo.MGDA(normalize="l2"))
        assert (w >= 0).all(), label
        assert abs(w.sum() - 1) <= 1e-14, label
        norms = np.sqrt(np.diagonal(gram)[on])
        cosines = gram[np.ix_(on, on)] / np.outer(norms, norms)
        np.fill_diagonal(cosines, 1)
        v = w[on] * norms
        gap = ref.mgda_gap(cosines, v / v.sum())
        assert gap <= 1e-9, f"{label}: gap {gap:.2e}"
        assert certificate <= 1e-9, f"{label}: certificate {certificate:.2e}"


def test_mgda_does_not_conflict(rng: Random) -> None:
    """Where the gap is far below the norm: <g_k, d> >= |d|² > 0, each objective improves."""
    for name in ("wishart", "common component", "norms over 2 decades", "norms over 4 decades"):
        for problem in problems(rng, name, repeat=3):
            product = problem.gram @ weights(problem.gram, "mgda")
            assert (product > 0).all(), problem.label


def test_mgda_of_two_in_closed_form(rng: Random) -> None:
    for _ in range(200):
        rows = spread(rng, rng.standard_normal((2, 4)), 2)
        a, b, c = rows[0] @ rows[0], rows[0] @ rows[1], rows[1] @ rows[1]
        expected = min(max((c - b) / (a + c - 2 * b), 0), 1)
        assert weights(gram_of(rows), "mgda") == pytest.approx([expected, 1 - expected], abs=1e-12)
    assert weights(np.array([[1.0, -1.0], [-1.0, 1.0]]), "mgda") == pytest.approx([0.5, 0.5], abs=1e-15)


def test_mgda_of_a_float32_gramian(rng: Random) -> None:
    """Rounded entries make it slightly indefinite; it is solved all the same."""
    for name in FAMILIES:
        for problem in problems(rng, name, repeat=1):
            gram = problem.gram.astype(np.float32).astype(np.float64)
            if ref.active(gram).size:
                w = weights(gram, "mgda")
                assert ref.mgda_gap(gram, w) <= 1e-9, problem.label
