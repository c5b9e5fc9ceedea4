"""CAGrad on random Gramians of every family: certificates and other solvers."""

import math

import bucket_moo_ext as moo
import numpy as np
import pytest

from tests.support import reference as ref
from tests.support.problems import families, gram_of, problems, solve, weights
from tests.support.reference import Array

pytestmark = pytest.mark.device

Random = np.random.Generator

CS = (0.1, 0.4, 0.9, 1.0, 2.0)


@families
def test_cagrad(rng: Random, family: str) -> None:
    for problem in problems(rng, family, repeat=1):
        label, gram, on = problem.label, problem.gram, problem.on
        k = on.size
        if not k:
            continue
        assert np.array_equal(weights(gram, moo.CAGrad(c=0.0))[on], np.full(k, 1 / k)), label
        shortest = ref.weights(problem.rows, "mgda")
        for c in CS:
            what = f"{label}, c={c}"
            w, reported = solve(gram, moo.CAGrad(c=c))
            assert np.isfinite(w).all(), what
            assert not np.delete(w, on).any(), what
            assert (w[on] >= 1 / k - 1e-15).all(), what
            smaller = weights(gram, moo.CAGrad(c=c, rescale=True))
            np.testing.assert_allclose(smaller * (1 + c), w, rtol=1e-14, err_msg=what)

            certificate = ref.cagrad_certificate(gram, w, c, shortest, weights(gram, "mgda"))
            if certificate.mean_square < 1e-9:
                continue  # the mean vanishes up to rounding; tested on its own
            # d is huge weights times rows that cancel where 0 is nearly in the hull: writing w down in float64 moves d
            # by EPSILON Σ w_k |g_k| alone, and G itself is rounded by as much. Elsewhere nothing is allowed.
            strict = problem.family.regular and c < 1
            slack = 0.0 if strict else (32 + k) * certificate.rounding
            assert certificate.gap <= 1e-9 + slack, f"{what}: {certificate}"
            assert certificate.outside <= 1e-9 + slack, f"{what}: {certificate}"
            assert reported <= 1e-9 + slack, f"{what}: reported {reported:.2e}, {certificate}"
            product = gram.astype(np.longdouble) @ w
            relative = float(product[on].min()) / (certificate.mean_square * ref.mean_diagonal(gram))
            if c >= 1:
                assert relative >= -1e-9 - (32 + k) * certificate.rounding, f"{what}: conflict {relative:.2e}"
            else:
                # |d| >= (1 - c) |g_0|
                length = math.sqrt(max(float(w @ product), 0) / ref.mean_diagonal(gram) / certificate.mean_square)
                assert length >= (1 - c) * (1 - 1e-6) - slack, what

            if problem.family.regular:
                order = rng.permutation(len(gram))
                permuted = np.empty_like(w)
                permuted[order] = weights(gram[np.ix_(order, order)], moo.CAGrad(c=c))
                assert np.abs(w - permuted).max() <= 1e-7 * w.sum(), what


@pytest.mark.parametrize(
    "family", ["wishart", "common component", "condition 1e2", "norms over 2 decades", "zero rows"]
)
def test_cagrad_against_other_solvers(rng: Random, family: str) -> None:
    """The update against the reference's root finder, the optimum against SLSQP on the paper's F."""
    from scipy.optimize import minimize

    for problem in problems(rng, family, sizes=(2, 3, 5, 8), repeat=2):
        on = problem.on
        if not on.size:
            continue
        rows = problem.rows[on] / math.sqrt(ref.mean_diagonal(problem.gram))
        k = len(rows)
        for c in (0.2, 0.4, 0.9, 1.5):
            label = f"{problem.label}, c={c}"
            w = weights(problem.gram, moo.CAGrad(c=c))[on]
            expected = ref.cagrad(rows, c=c)
            mean = rows.mean(0)
            size = np.linalg.norm(mean)
            assert np.linalg.norm((w - expected) @ rows) <= 1e-6 * size, label

            gram = rows @ rows.T
            linear, radius = rows @ mean, c * size

            def bound(
                x: Array,
                gram: Array = gram,
                linear: Array = linear,
                radius: float = radius,  # type: ignore[assignment]
            ) -> tuple[float, Array]:
                length = math.sqrt(x @ gram @ x)
                return float(linear @ x + radius * length), linear + radius / length * (gram @ x)

            found = minimize(
                bound,
                np.full(k, 1 / k),
                jac=True,
                method="SLSQP",
                bounds=[(0, 1)] * k,
                constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
                options={"ftol": 1e-14, "maxiter": 500},
            )
            worst = (rows @ (w @ rows)).min()
            assert worst <= found.fun + 1e-9, f"{label}: weak duality"
            assert found.fun - worst <= 1e-5 * max(1.0, size**2), f"{label}: {found.fun} and {worst}"  # type: ignore[operator]


def test_cagrad_of_a_short_and_a_long_gradient() -> None:
    """Norms 3.4e-3 and 66, nearly opposite: the hull comes as near to 0 as 6e-10 of the rms norm.

    float64 resolves that easily (the rounding of w moves d by 1e-11), so a limit on the mass of w comes too early.
    """
    corner = -float.fromhex("0x1.c941ceff78535p-3")
    gram = np.array(
        [[float.fromhex("0x1.7dcec8a13546dp-17"), corner], [corner, float.fromhex("0x1.11ced85dfd1dap+12")]]
    )
    w, reported = solve(gram, moo.CAGrad(c=2.0))
    certificate = ref.cagrad_certificate(gram, w, 2.0, weights(gram, "mgda"))
    assert certificate.rounding <= 1e-10
    assert certificate.gap <= 1e-9 + 34 * certificate.rounding, certificate
    assert reported >= 0.5 * certificate.gap - certificate.rounding, "what is reported is what it is"


@pytest.mark.parametrize("c", CS)
def test_cagrad_where_the_mean_vanishes(rng: Random, c: float) -> None:
    assert np.array_equal(weights(np.array([[1.0, -1.0], [-1.0, 1.0]]), moo.CAGrad(c=c)), [0.5, 0.5])
    rows = rng.standard_normal((4, 9))
    rows -= rows.mean(0)
    w = weights(gram_of(rows), moo.CAGrad(c=c))
    assert np.linalg.norm(w @ rows) <= 1e-6 * np.linalg.norm(rows)
