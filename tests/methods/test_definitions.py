"""UPGrad, DualProj, IMTLG, AlignedMTL, NashMTL, FairGrad, ConFIG, GradVac, Krum, Adasum against their definitions.

References work in float64 on the gradients themselves (NNLS, SVD, pseudo-inverses, the published loops), or prove an
answer right by the equations that define it.
"""

import itertools
import math
from collections.abc import Sequence

import bucket_moo_ext as moo
import numpy as np
import pytest
from scipy.optimize import nnls

from tests.support.rows import (
    CLASSES,
    PREFERENCE,
    SIZES,
    Array,
    assert_update,
    gram_of,
    rows_of,
    solve,
    uniform,
    weights,
)

pytestmark = pytest.mark.device

Random = np.random.Generator


def conditioned(rng: Random, k: int, condition: float) -> Array:
    """Rows whose Gramian has eigenvalues spread evenly in the logarithm, 0 not in their hull."""
    basis = np.linalg.qr(rng.standard_normal((k, k)))[0]
    return np.asarray(basis * condition ** (-0.5 * np.linspace(0, 1, k)))


def rates(rows: Array, w: Array) -> Array:
    """<g_k, d>."""
    extended = rows.astype(np.longdouble)
    return np.asarray(extended @ (w.astype(np.longdouble) @ extended), dtype=np.float64)


def cosines(rows: Array, w: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1)
    return np.asarray(rates(rows, w) / norms / np.linalg.norm(w @ rows))


def cone_part(rows: Array, start: Array) -> Array:
    """argmin {v'Gv : v >= start}: v = start + u, with u >= 0 nearest to -start @ rows."""
    u, _ = nnls(rows.T, -(start @ rows), maxiter=10_000)
    return np.asarray(start + u)


def upgrad(rows: Array, p: Array) -> Array:
    return np.asarray(sum(cone_part(rows, p_i * e_i) for p_i, e_i in zip(p, np.eye(len(rows)), strict=True)))


def imtlg(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / norms[:, None]
    v = np.linalg.pinv(unit @ unit.T) @ np.ones(len(rows)) / norms
    return np.asarray(v / v.sum())


def aligned_mtl(rows: Array, p: Array, mode: str) -> Array:
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    kept = s**2 > len(rows) * 2.0**-23 * s[0] ** 2
    u, values = u[:, kept], s[kept] ** 2
    scale = {"min": values[-1], "median": values[len(values) // 2], "mean": values.mean()}[mode]
    return np.asarray(math.sqrt(scale) * (u / np.sqrt(values)) @ (u.T @ p))


def config(rows: Array, p: Array) -> Array:
    """The update, eq. 2 of the paper: the direction by a pseudo-inverse, then the length."""
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    direction = np.linalg.pinv(unit) @ p
    direction /= np.linalg.norm(direction)
    return np.asarray((rows @ direction).sum() * direction)


def gradvac(rows: Array, orders: Sequence[Sequence[int]], phi: Array, beta: float) -> Array:
    """Algorithm 1 on the rows; changes phi."""
    k = len(rows)
    norms = np.linalg.norm(rows, axis=1)
    coefficients = np.eye(k)
    for i, order in enumerate(orders):
        g = rows[i].copy()
        for j in order:
            if i == j:
                continue
            size = np.linalg.norm(g)
            rho = g @ rows[j] / (size * norms[j]) if size else 0.0
            target = phi[i, j]
            if rho < target:
                factor = size * (target * math.sqrt(1 - rho**2) - rho * math.sqrt(1 - target**2))
                factor /= norms[j] * math.sqrt(1 - target**2)
                g += factor * rows[j]
                coefficients[i, j] += factor
            phi[i, j] = (1 - beta) * target + beta * rho
    return np.asarray(coefficients.mean(0))


def krum(rows: Array, f: int, m: int) -> Array:
    k = len(rows)
    if k - f - 2 < 1:
        return uniform(k)
    distance = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    scores = [np.sort(np.delete(distance[i], i))[: k - f - 2].sum() for i in range(k)]
    chosen = np.argsort(scores, kind="stable")[:m]
    w = np.zeros(k)
    w[chosen] = 1 / len(chosen)
    return w


def adasum(rows: Array) -> Array:
    """The update."""
    level = list(rows)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = []
        for pair in pairs:
            if len(pair) == 1:
                level += pair
                continue
            a, b = pair
            level.append((1 - a @ b / (2 * a @ a)) * a + (1 - a @ b / (2 * b @ b)) * b)
    return np.asarray(level[0])


def preferences(rng: Random, k: int) -> list[Array | None]:
    random = rng.random(k) + 0.05
    zeros = random * (rng.random(k) < 0.6)
    zeros[rng.integers(k)] = 1.0
    return [None, 7 * random, zeros]


def share(preference: Array | None, k: int) -> Array:
    return uniform(k) if preference is None else preference / preference.sum()


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("method", PREFERENCE)
def test_methods_with_a_preference(rng: Random, method: str, shared: float) -> None:
    for k in SIZES:
        rows = rows_of(rng, k, shared)
        for preference in preferences(rng, k):
            p = share(preference, k)
            if method == "alignedmtl":
                for mode in ("min", "median", "mean"):
                    w, certificate = solve(rows, moo.AlignedMTL(preference, mode))  # type: ignore[arg-type]
                    if k % 2 or mode != "median":
                        assert_update(rows, w, aligned_mtl(rows, p, mode), 1e-9, f"{mode}, K={k}")
                    assert certificate <= 1e-9
                continue
            w, certificate = solve(rows, CLASSES[method](preference))
            assert certificate <= 1e-9, f"K={k}"
            if method == "config":
                expected = config(rows, p)
                assert np.linalg.norm(w @ rows - expected) <= 1e-8 * np.linalg.norm(expected), f"K={k}"
            else:
                start = upgrad(rows, p) if method == "upgrad" else cone_part(rows, p)
                assert_update(rows, w, start, 1e-7, f"K={k}")
                assert (w >= p * (1 - 1e-12)).all()


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("decades", [0, 4])
@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_no_conflict_and_complementarity(rng: Random, method: str, condition: float, decades: int) -> None:
    for k in SIZES[1:]:
        rows = conditioned(rng, k, condition) * 10 ** (decades * (rng.random((k, 1)) - 0.5))
        w, certificate = solve(rows, method)
        norms = np.linalg.norm(rows, axis=1)
        assert certificate <= 1e-9
        assert (w >= (1 - 1e-12) / k).all()
        assert (rates(rows, w) >= -1e-9 * norms * norms.mean()).all(), f"K={k}"
        if method == "dualproj":
            assert (w - 1 / k) @ rates(rows, w) <= 1e-9 * norms.mean() ** 2, f"K={k}"


@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_nothing_in_conflict_gives_the_preference(rng: Random, method: str) -> None:
    for k in SIZES:
        rows = np.abs(rows_of(rng, k))
        for preference in preferences(rng, k):
            w = weights(rows, CLASSES[method](preference))
            np.testing.assert_allclose(w, share(preference, k), rtol=1e-12, atol=1e-15)


def test_upgrad_of_two_is_pcgrad(rng: Random) -> None:
    for _ in range(50):
        rows = rows_of(rng, 2, -0.5)
        np.testing.assert_allclose(weights(rows, "upgrad"), weights(rows, "pcgrad"), rtol=1e-10)


def test_imtlg(rng: Random) -> None:
    for k in SIZES:
        rows = rows_of(rng, k, 0.5) * 10 ** rng.uniform(-2, 2, (k, 1))
        w, certificate = solve(rows, "imtlg")
        assert certificate <= 1e-9
        assert w.sum() == pytest.approx(1, abs=1e-12 * np.abs(w).sum())
        assert np.ptp(cosines(rows, w)) <= 1e-8, f"K={k}"
        assert_update(rows, w, imtlg(rows), 1e-8, f"K={k}")


def test_imtlg_of_opposite_gradients() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(weights(rows, "imtlg"), [0.5, 0.5])


@pytest.mark.parametrize("condition", [1e2, 1e6])
@pytest.mark.parametrize("decades", [0, 4])
def test_equilibria(rng: Random, condition: float, decades: int) -> None:
    for k in SIZES:
        rows = conditioned(rng, k, condition) * 10 ** (decades * (rng.random((k, 1)) - 0.5))
        w, certificate = solve(rows, moo.NashMTL(max_norm=math.inf))
        assert certificate <= 1e-8
        assert (w > 0).all()
        assert np.abs(w * rates(rows, w) - 1).max() <= 1e-7, f"K={k}"
        assert np.linalg.norm(w @ rows) == pytest.approx(math.sqrt(k), rel=1e-6)
        for longest in (0.5, 1.0, 100.0):
            clipped = weights(rows, moo.NashMTL(longest))
            np.testing.assert_allclose(clipped, w * min(1, longest / math.sqrt(k)), rtol=1e-6)
        for alpha in (0.5, 1.0, 2.0):
            fair, certificate = solve(rows, moo.FairGrad(alpha))
            assert (fair > 0).all()
            unit = fair ** (1 / alpha)
            # What rounding the weights, their products and their sum to float64 moves; above 1e-8 where alpha < 1.
            rounding = 2.0**-53 * (np.abs(gram_of(rows)) @ fair * unit).max()
            assert certificate <= max(1e-8, 4 * rounding), f"K={k}, alpha={alpha}"
            # Scaling the Gramian rounds each entry some six times, and its own rounding is one of the rows' norms.
            norms = np.linalg.norm(rows, axis=1)
            rounding = 2.0**-53 * (norms * (norms @ fair) * unit).max()
            assert np.abs(rates(rows, fair) * unit - 1).max() <= 1e-7 + 12 * rounding, f"K={k}, alpha={alpha}"


@pytest.mark.parametrize("method", ["nashmtl", "fairgrad"])
def test_equilibria_of_stationary_gradients_are_mgda(rng: Random, method: str) -> None:
    for k in (2, 3, 8, 33):
        rows = rows_of(rng, k)
        rows[-1] = -(0.2 + rng.random(k - 1)) @ rows[:-1]
        w = weights(rows, method)
        assert np.isfinite(w).all()
        size = np.linalg.norm(rows, axis=1).max()
        assert np.linalg.norm(w @ rows) <= 1e-4 * size
        np.testing.assert_allclose(w, weights(rows, "mgda"), atol=1e-6)


def test_config_has_equal_cosines(rng: Random) -> None:
    for k in SIZES:
        rows = rows_of(rng, k) * 10 ** rng.uniform(-2, 2, (k, 1))
        w, certificate = solve(rows, "config")
        c = cosines(rows, w)
        assert certificate <= 1e-9
        assert np.ptp(c) <= 1e-8
        assert (c > 0).all()
        length = (rows @ (w @ rows)).sum() / np.linalg.norm(w @ rows)
        assert np.linalg.norm(w @ rows) == pytest.approx(length, rel=1e-8)


def test_gradvac_first_step_is_pcgrad(rng: Random) -> None:
    for k in SIZES:
        rows = rows_of(rng, k, -0.2)
        orders = [rng.permutation(k) for _ in range(k)]
        for beta in (0.0, 0.5, 1.0):
            w = weights(rows, moo.GradVac(beta, orders))  # type: ignore[arg-type]
            assert_update(rows, w, gradvac(rows, orders, np.zeros((k, k)), beta), 1e-10)  # type: ignore[arg-type]
            assert_update(rows, w, weights(rows, moo.PCGrad(permutation=orders)), 1e-10)  # type: ignore[arg-type]


def test_gradvac_draws_its_order_from_seed_and_step(rng: Random) -> None:
    rows = rows_of(rng, 6)
    rows -= 0.95 * rows.mean(0)
    draws = [weights(rows, "gradvac", seed=seed, step=step) for seed in range(4) for step in range(4)]
    assert len({w.tobytes() for w in draws}) > 8
    np.testing.assert_array_equal(draws[0], weights(rows, "gradvac"))


def test_krum(rng: Random) -> None:
    for k in SIZES:
        rows = rows_of(rng, k)
        for f, m in itertools.product((0, 1, 5), (1, 2, 100)):
            expected = krum(rows, f, min(m, k))
            np.testing.assert_allclose(weights(rows, moo.Krum(f, m)), expected, rtol=1e-14)


def test_krum_leaves_the_odd_one_out(rng: Random) -> None:
    rows = 0.1 * rows_of(rng, 7) + rng.standard_normal(17)
    rows[3] = -100 * rows[3]
    w = weights(rows, moo.Krum(1, 4))
    assert w[3] == 0
    assert sorted(w) == [0, 0, 0, 0.25, 0.25, 0.25, 0.25]


def test_adasum(rng: Random) -> None:
    for k in SIZES:
        for shared in (0.0, 1.0):
            rows = rows_of(rng, k, shared)
            expected = adasum(rows)
            assert np.linalg.norm(weights(rows, "adasum") @ rows - expected) <= 1e-9 * np.linalg.norm(expected)
    np.testing.assert_allclose(weights(np.eye(5), "adasum"), np.ones(5), rtol=1e-14)
    np.testing.assert_allclose(weights(np.ones((4, 3)), "adasum") @ np.ones(4), 1, rtol=1e-14)
    opposite = np.array([[1.0, 2.0], [-1.0, -2.0]])
    assert not (weights(opposite, "adasum") @ opposite).any()
