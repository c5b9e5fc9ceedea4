"""The invariants of the methods on random Gramians of every family that is hard for one of them.

Certificates are taken anew, in extended precision, by reference.py; nothing of the solvers is believed.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import reference as ref
from tests.support.reference import EPSILON, Array

SIZES = (1, 2, 3, 5, 8, 16, 33, 64)
METHODS: list[str | moo.Method] = ["mean", "mgda", moo.MGDA("l2"), "cagrad", moo.CAGrad(1.5, True), "pcgrad"]

Random = np.random.Generator


# -------------------------------------------------------------------------------------------- problems


def wide(rng: Random, k: int) -> Array:
    return rng.standard_normal((k, 2 * k + 3))


def conditioned(rng: Random, k: int, condition: float) -> Array:
    """Rows whose Gramian has eigenvalues spread evenly in the logarithm."""
    basis = np.linalg.qr(rng.standard_normal((k, k)))[0]
    return basis * condition ** (-0.5 * np.linspace(0, 1, k))


def spread(rng: Random, rows: Array, decades: float) -> Array:
    return rows * 10 ** (decades * (rng.random((len(rows), 1)) - 0.5))


def common(rng: Random, k: int) -> Array:
    return 0.3 * wide(rng, k) + rng.standard_normal(2 * k + 3)


def near_duplicates(rng: Random, k: int) -> Array:
    rows = wide(rng, k)
    for i in range(1, k, 2):
        rows[i] = rows[i - 1] + 10 ** rng.uniform(-12, -3) * rng.standard_normal(rows.shape[1])
    return rows


def exact_duplicates(rng: Random, k: int) -> Array:
    rows = wide(rng, k)
    for i in range(1, k):
        if rng.random() < 0.5:
            rows[i] = rows[rng.integers(i)]
    return rows


def stationary(rng: Random, rows: Array, members: int) -> Array:
    """The last row becomes what makes a positive combination of the first `members` vanish."""
    rows[-1] = -(0.1 + rng.random(members)) @ rows[:members] if members else 0.0
    return rows


def zero_rows(rng: Random, k: int) -> Array:
    rows = wide(rng, k)
    rows[rng.random(k) < 0.3] = 0
    return rows


def rank_one(rng: Random, k: int, signs: bool) -> Array:
    factors = rng.standard_normal(k)
    return np.outer(factors if signs else 0.1 + np.abs(factors), rng.standard_normal(2 * k + 3))


@dataclass(frozen=True)
class Family:
    make: Callable[[Random, int], Array]
    unique: bool = True  # the weights are determined well enough to be compared
    regular: bool = False  # far from 0 in the hull: no allowance for rounding is needed


FAMILIES = {
    "wishart": Family(wide, regular=True),
    "common component": Family(common, regular=True),
    "condition 1e2": Family(lambda r, k: conditioned(r, k, 1e2), regular=True),
    "condition 1e6": Family(lambda r, k: conditioned(r, k, 1e6)),
    "condition 1e10": Family(lambda r, k: conditioned(r, k, 1e10), unique=False),
    "norms over 2 decades": Family(lambda r, k: spread(r, wide(r, k), 2)),
    "norms over 4 decades": Family(lambda r, k: spread(r, wide(r, k), 4)),
    "condition 1e10, norms over 4 decades": Family(lambda r, k: spread(r, conditioned(r, k, 1e10), 4), unique=False),
    "near-duplicates": Family(near_duplicates, unique=False),
    "exact duplicates": Family(exact_duplicates, regular=True),
    "strongly stationary": Family(lambda r, k: stationary(r, wide(r, k), k - 1)),
    "weakly stationary": Family(lambda r, k: stationary(r, wide(r, k), (k - 1) // 2)),
    "zero rows": Family(zero_rows, regular=True),
    "rank one": Family(lambda r, k: rank_one(r, k, signs=False)),
    "rank one, signs differ": Family(lambda r, k: rank_one(r, k, signs=True), unique=False),
    "fewer dimensions than K": Family(lambda r, k: r.standard_normal((k, max(1, k // 3))), unique=False),
}


@dataclass(frozen=True)
class Problem:
    label: str
    family: Family
    rows: Array
    gram: Array

    @property
    def on(self) -> Any:
        return ref.active(self.gram)


def gram_of(rows: Array) -> Array:
    """Rounded once, from extended precision, and exactly symmetric."""
    extended = rows.astype(np.longdouble)
    return np.asarray(extended @ extended.T, dtype=np.float64)


def problems(rng: Random, name: str, sizes: tuple[int, ...] = SIZES, repeat: int = 2) -> Iterator[Problem]:
    family = FAMILIES[name]
    for k in sizes:
        for _ in range(repeat):
            rows = family.make(rng, k)
            yield Problem(f"{name}, K={k}", family, rows, gram_of(rows))


def solve(gram: Array, method: str | moo.Method, **options: Any) -> tuple[Array, float]:
    w, certificate = moo.weights(torch.from_numpy(gram), method, return_certificate=True, **options)
    return w.numpy(), float(certificate)


def weights(gram: Array, method: str | moo.Method, **options: Any) -> Array:
    return solve(gram, method, **options)[0]


def distance(gram: Array, v: Array, w: Array) -> float:
    """|Σ (v_k - w_k) g_k|² over the mean diagonal."""
    difference = (v - w).astype(np.longdouble)
    return float(difference @ gram.astype(np.longdouble) @ difference) / ref.mean_diagonal(gram)


def families(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("family", FAMILIES)(test)


# -------------------------------------------------------------------------------------------- contract


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
            assert weights(gram, method)[0] == pytest.approx(expected, rel=1e-15)


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


@pytest.mark.parametrize("method", ["mgda", moo.MGDA("l2"), "cagrad", moo.CAGrad(1.5)], ids=str)
def test_identical_objectives_share_equally(rng: Random, method: moo.Method) -> None:
    for k in (2, 3, 8, 33, 64):
        rows = wide(rng, k)
        source = rng.integers(0, max(1, k // 2), k)
        rows = rows[source]
        w = weights(gram_of(rows), method)
        for group in set(source):
            assert len(set(w[source == group])) == 1, (k, w[source == group])


def test_mgda_of_a_float32_gramian(rng: Random) -> None:
    """Rounded entries make it slightly indefinite; it is solved all the same."""
    for name in FAMILIES:
        for problem in problems(rng, name, repeat=1):
            gram = problem.gram.astype(np.float32).astype(np.float64)
            if ref.active(gram).size:
                w = weights(gram, "mgda")
                assert ref.mgda_gap(gram, w) <= 1e-9, problem.label


# ---------------------------------------------------------------------------------------------- CAGrad

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
                x: Array, gram: Array = gram, linear: Array = linear, radius: float = radius
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
            assert found.fun - worst <= 1e-5 * max(1.0, size**2), f"{label}: {found.fun} and {worst}"


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


# ---------------------------------------------------------------------------------------------- PCGrad


def orders_of(rng: Random, k: int) -> list[list[int]]:
    return [[int(j) for j in rng.permutation(k)] for _ in range(k)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@families
def test_pcgrad_against_the_algorithm(rng: Random, family: str, reduction: Any) -> None:
    for problem in problems(rng, family, sizes=(1, 2, 3, 5, 8, 16)):
        if not problem.on.size:
            continue
        orders = orders_of(rng, len(problem.rows))
        w, certificate = solve(problem.gram, moo.PCGrad(reduction, orders))
        assert certificate == 0
        expected = ref.weights(problem.rows, "pcgrad", orders=orders, reduction=reduction)
        norms = np.linalg.norm(problem.rows, axis=1)
        # Whether a product that is rounding noise counts as negative is anybody's guess, and does not matter: the
        # projection moves the update by that noise. So what each objective contributes is compared, not its weight.
        error = np.abs(w - expected) * norms / (norms.max() * len(norms))
        assert error.max() <= 1e-9, f"{problem.label}: {error.max():.2e}"


@families
def test_pcgrad_permutation(rng: Random, family: str) -> None:
    """w(PGP') = P w, if the orders are permuted and renamed too."""
    for problem in problems(rng, family, sizes=(2, 3, 5, 8, 64), repeat=1):
        k = len(problem.rows)
        orders = orders_of(rng, k)
        w = weights(problem.gram, moo.PCGrad(permutation=orders))
        moved = rng.permutation(k)  # objective moved[i] becomes objective i
        name = np.argsort(moved)
        renamed = [[int(name[j]) for j in orders[i]] for i in moved]
        permuted = weights(problem.gram[np.ix_(moved, moved)], moo.PCGrad(permutation=renamed))
        norms = np.sqrt(np.diagonal(problem.gram))
        assert (np.abs(permuted - w[moved]) * norms[moved]).max() <= 1e-12 * k * max(norms.max(), 1e-300), problem.label


def test_pcgrad_of_two(rng: Random) -> None:
    """Equal to UPGrad: both are the mean of the projections on the other's half-space; no conflict is left."""
    for _ in range(300):
        rows = spread(rng, rng.standard_normal((2, 3)), 4)
        gram = gram_of(rows)
        w = weights(gram, "pcgrad", step=int(rng.integers(1 << 40)))
        overlap = min(gram[0, 1], 0.0)
        assert w == pytest.approx([0.5 - 0.5 * overlap / gram[0, 0], 0.5 - 0.5 * overlap / gram[1, 1]], rel=1e-12)
        product = gram @ w
        assert (product >= -8 * EPSILON * np.sqrt(np.diagonal(gram)) * (w @ np.sqrt(np.diagonal(gram)))).all()


def test_pcgrad_without_conflict_is_the_mean(rng: Random) -> None:
    for k in SIZES:
        gram = gram_of(np.abs(wide(rng, k)))
        np.testing.assert_allclose(weights(gram, "pcgrad"), np.full(k, 1 / k), rtol=4 * EPSILON)
        assert np.array_equal(weights(gram, moo.PCGrad("sum")), np.ones(k))
        diagonal = np.diag(rng.random(k) + 0.1)
        np.testing.assert_allclose(weights(diagonal, "pcgrad"), np.full(k, 1 / k), rtol=4 * EPSILON)


def test_pcgrad_draws_every_order_and_no_other(rng: Random) -> None:
    rows = np.eye(3) - 0.5 + 0.03 * rng.standard_normal((3, 3))  # all conflict
    gram = gram_of(rows)
    assert (gram[np.triu_indices(3, 1)] < 0).all()
    choices = [list(itertools.permutations([j for j in range(3) if j != i])) for i in range(3)]
    possible = {tuple(np.round(ref.pcgrad(rows, orders), 9)) for orders in itertools.product(*choices)}
    assert len(possible) == 8
    drawn = [tuple(np.round(weights(gram, "pcgrad", seed=s, step=t), 9)) for s in range(16) for t in range(16)]
    assert set(drawn) == possible  # missing one of 8 in 256 draws: 1e-14


def test_pcgrad_depends_on_seed_step_and_place(rng: Random) -> None:
    rows = rng.standard_normal((6, 9))
    gram = gram_of(rows - 0.9 * rows.mean(0))
    assert len({weights(gram, "pcgrad", seed=s).tobytes() for s in range(8)}) > 4
    assert len({weights(gram, "pcgrad", step=t).tobytes() for t in range(8)}) > 4
    assert np.array_equal(weights(gram, "pcgrad"), weights(gram, "pcgrad", seed=0, step=0))
    last = 2**64 - 1
    assert np.array_equal(weights(gram, "pcgrad", seed=last), weights(gram, "pcgrad", seed=last))
    batch = moo.weights(torch.from_numpy(np.stack([gram] * 8)), "pcgrad", seed=3)
    assert isinstance(batch, torch.Tensor)
    assert np.array_equal(batch[0].numpy(), weights(gram, "pcgrad", seed=3))
    assert len({w.numpy().tobytes() for w in batch}) > 4


def test_pcgrad_may_conflict_for_three(rng: Random) -> None:
    """Documented: it is why there are other methods."""
    for _ in range(1000):
        gram = gram_of(rng.standard_normal((3, 3)))
        if (gram @ weights(gram, "pcgrad") < 0).any():
            return
    raise AssertionError("no conflict left in 1000 random problems")


# ------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: moo.CAGrad(c=-0.1), ["CAGrad", "c", "-0.1", ">= 0"]),
        (lambda: moo.CAGrad(c=math.nan), ["c", "nan"]),
        (lambda: moo.CAGrad(c=math.inf), ["c", "inf"]),
        (lambda: moo.CAGrad(c="0.4"), ["c", "'0.4'"]),
        (lambda: moo.CAGrad(c=True), ["c", "True"]),
        (lambda: moo.CAGrad(rescale=1), ["rescale", "1", "True or False"]),
        (lambda: moo.MGDA(normalize="l1"), ["normalize", "'l1'", "'none'", "'l2'"]),
        (lambda: moo.PCGrad(reduction="max"), ["reduction", "'max'", "'mean'", "'sum'"]),
        (lambda: moo.PCGrad(permutation=[]), ["permutation", "[]"]),
        (lambda: moo.PCGrad(permutation=[[0, 1]]), ["permutation", "[[0, 1]]"]),
        (lambda: moo.PCGrad(permutation=[[0, 0], [0, 1]]), ["permutation", "[0, 0]"]),
        (lambda: moo.PCGrad(permutation=[[1, 2], [2, 1]]), ["permutation", "0..K-1"]),
        (lambda: moo.Mean([1.0, -1.0]), ["weights", "-1.0", ">= 0"]),
        (lambda: moo.Mean([0.0, 0.0]), ["weights", "not all zero"]),
        (lambda: moo.Mean([]), ["weights", "not all zero"]),
        (lambda: moo.Mean([math.nan]), ["weights", "nan"]),
        (lambda: moo.Mean(["1"]), ["weights", "'1'"]),
    ],
)
def test_bad_parameters(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {str(caught.value)!r}"


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
