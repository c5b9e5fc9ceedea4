"""UPGrad, DualProj, IMTLG, AlignedMTL, NashMTL, FairGrad, ConFIG, GradVac, Krum and Adasum against their definitions.

References work in float64 on the gradients themselves (NNLS, SVD, pseudo-inverses, the published loops), or prove an
answer right by the equations that define it. Of all 14: what they promise of any input.
"""

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
Random = np.random.Generator

SIZES = (1, 2, 3, 5, 8, 16, 33, 64)
NEW = (
    "upgrad",
    "dualproj",
    "imtlg",
    "alignedmtl",
    "nashmtl",
    "fairgrad",
    "config",
    "gradvac",
    "krum",
    "adasum",
)
PREFERENCE = ("upgrad", "dualproj", "alignedmtl", "config")
SYMMETRIC = ("upgrad", "dualproj", "imtlg", "alignedmtl", "nashmtl", "fairgrad", "config", "krum")
CLASSES: dict[str, Any] = {
    "upgrad": moo.UPGrad,
    "dualproj": moo.DualProj,
    "alignedmtl": moo.AlignedMTL,
    "config": moo.ConFIG,
}


def rows_of(rng: Random, k: int, shared: float = 0.0) -> Array:
    """K gradients in general position; `shared` > 0: with something in common."""
    return rng.standard_normal((k, 2 * k + 3)) + shared * rng.standard_normal(2 * k + 3)


def conditioned(rng: Random, k: int, condition: float) -> Array:
    """Rows whose Gramian has eigenvalues spread evenly in the logarithm, 0 not in their hull."""
    basis = np.linalg.qr(rng.standard_normal((k, k)))[0]
    return np.asarray(basis * condition ** (-0.5 * np.linspace(0, 1, k)))


def gram_of(rows: Array) -> Array:
    extended = rows.astype(np.longdouble)
    return np.asarray(extended @ extended.T, dtype=np.float64)


def solve(rows: Array, method: str | moo.Method, **options: Any) -> tuple[Array, float]:
    w, certificate = moo.weights(gram_of(rows), method, return_certificate=True, **options)
    return w.numpy(), float(certificate)


def weights(rows: Array, method: str | moo.Method, **options: Any) -> Array:
    return solve(rows, method, **options)[0]


def assert_update(rows: Array, w: Array, expected: Array, tolerance: float = 1e-7, what: str = "") -> None:
    """Both weights give the same update, relative to what was added up."""
    size = np.abs(expected) @ np.linalg.norm(rows, axis=1)
    assert np.linalg.norm((w - expected) @ rows) <= tolerance * size, f"{what}: {w} is not {expected}"


def rates(rows: Array, w: Array) -> Array:
    """<g_k, d>."""
    extended = rows.astype(np.longdouble)
    return np.asarray(extended @ (w.astype(np.longdouble) @ extended), dtype=np.float64)


def cosines(rows: Array, w: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1)
    return np.asarray(rates(rows, w) / norms / np.linalg.norm(w @ rows))


def uniform(k: int) -> Array:
    return np.full(k, 1 / k)


# ---------------------------------------------------------------------------------------------- references


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


# ---------------------------------------------------------------------------------------------- definitions


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
                    w, certificate = solve(rows, moo.AlignedMTL(preference, mode))
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
            w = weights(rows, moo.GradVac(beta, orders))
            assert_update(rows, w, gradvac(rows, orders, np.zeros((k, k)), beta), 1e-10)
            assert_update(rows, w, weights(rows, moo.PCGrad(permutation=orders)), 1e-10)


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


# ---------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("method", SYMMETRIC)
def test_permutation(rng: Random, method: str) -> None:
    for k in SIZES:
        if method == "krum" and k == 3:
            continue  # every gradient has one neighbour, and two are each other's: always a tie
        rows = rows_of(rng, k, 0.3)
        order = rng.permutation(k)
        assert_update(rows[order], weights(rows[order], method), weights(rows, method)[order], 1e-7, f"K={k}")


def test_permutation_of_gradvac(rng: Random) -> None:
    for k in SIZES:
        rows = rows_of(rng, k, -0.3)
        orders = [rng.permutation(k) for _ in range(k)]
        moved = rng.permutation(k)
        place = np.argsort(moved)
        renamed = [[int(place[j]) for j in orders[i]] for i in moved]
        expected = weights(rows, moo.GradVac(permutation=orders))[moved]
        assert_update(rows[moved], weights(rows[moved], moo.GradVac(permutation=renamed)), expected, 1e-9)


@pytest.mark.parametrize("method", [name for name in SYMMETRIC if name != "krum"])
def test_identical_objectives_share(rng: Random, method: str) -> None:
    for k in (2, 5, 16):
        rows = rows_of(rng, k, 0.5)
        rows[-1] = rows[0]
        w = weights(rows, method)
        assert abs(w[0] - w[-1]) <= 1e-6 * np.abs(w).sum(), f"K={k}: {w}"


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("method", NEW)
def test_scale(rng: Random, method: str, factor: float) -> None:
    for k in SIZES:
        rows = rows_of(rng, k, 0.3)
        chosen: str | moo.Method = moo.NashMTL(math.inf) if method == "nashmtl" else method
        power = {"nashmtl": -1.0, "fairgrad": -1.0}.get(method, 0.0)
        expected = factor**power * weights(rows, chosen)
        assert_update(factor * rows, weights(factor * rows, chosen), expected, 1e-7, f"K={k}")


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_scale_of_fairgrad(rng: Random, alpha: float) -> None:
    rows = rows_of(rng, 5, 0.3)
    for factor in (1e-8, 1e8):
        expected = factor ** (-2 * alpha / (1 + alpha)) * weights(rows, moo.FairGrad(alpha))
        np.testing.assert_allclose(weights(factor * rows, moo.FairGrad(alpha)), expected, rtol=1e-6)


@pytest.mark.parametrize("method", NEW)
def test_one_objective(rng: Random, method: str) -> None:
    rows = rng.standard_normal((1, 9))
    norm = np.linalg.norm(rows)
    expected = 1.0
    if method == "nashmtl":
        expected = min(1.0, 1 / 1.0) / norm
    elif method == "fairgrad":
        expected = 1 / norm
    np.testing.assert_allclose(weights(rows, method), [expected], rtol=1e-9)


@pytest.mark.parametrize("method", NEW)
def test_inactive_objectives(rng: Random, method: str) -> None:
    """They get 0 and change nothing for the others."""
    for k in (2, 3, 8, 64):
        rows = rows_of(rng, k, 0.3)
        on = rng.random(k) < 0.6
        on[rng.integers(k)] = True
        rows[~on] = 0
        if method == "gradvac":
            order = rng.permutation(k)
            place = np.cumsum(on) - 1
            fewer = [[int(place[j]) for j in order if on[j]]] * int(on.sum())
            methods: tuple[Any, Any] = moo.GradVac(permutation=[order] * k), moo.GradVac(permutation=fewer)
        elif method in PREFERENCE:
            p = rng.random(k) + 0.1
            methods = CLASSES[method](p), CLASSES[method](p[on])
        else:
            methods = method, method
        w = weights(rows, methods[0])
        assert not w[~on].any()
        np.testing.assert_allclose(w[on], weights(rows[on], methods[1]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", NEW)
def test_nonfinite_and_nothing_active(rng: Random, method: str) -> None:
    for k in SIZES:
        assert not weights(np.zeros((k, 3)), method).any()
        for bad in (np.nan, np.inf, -np.inf):
            gram = gram_of(rows_of(rng, k))
            gram[rng.integers(k), rng.integers(k)] = bad
            assert np.array_equal(moo.weights(gram, method).numpy(), uniform(k))


@pytest.mark.parametrize("method", [*moo.available_methods(), "smoothed"])
def test_batches_and_arrays(rng: Random, method: str) -> None:
    """A batch is solved entry by entry; NumPy and torch, float32 and float64 are taken alike; nothing is remembered."""
    chosen: str | moo.Method = moo.Smoothed("gradvac", 0.7) if method == "smoothed" else method
    grams = np.stack([gram_of(rows_of(rng, 4, 0.3)) for _ in range(3)])
    batch, certificates = moo.weights(grams, chosen, return_certificate=True)
    assert batch.shape == (3, 4)
    assert certificates.shape == (3,)
    again = moo.weights(torch.from_numpy(grams), chosen)
    assert torch.equal(batch, again)
    assert torch.equal(batch[0], moo.weights(grams[0], chosen))
    if method not in ("pcgrad", "gradvac", "smoothed"):  # whose order depends on the place
        for entry, w in zip(grams, batch, strict=True):
            assert torch.equal(w, moo.weights(entry, chosen))
    rounded = grams[0].astype(np.float32)
    assert torch.equal(moo.weights(rounded, chosen), moo.weights(rounded.astype(np.float64), chosen))


@pytest.mark.parametrize("method", moo.available_methods())
def test_smoothed_first_step(rng: Random, method: str) -> None:
    gram = gram_of(rows_of(rng, 5, 0.3))
    for alpha in (0.0, 0.5, 0.999):
        w, certificate = moo.weights(gram, moo.Smoothed(method, alpha), return_certificate=True)
        expected, same = moo.weights(gram, method, return_certificate=True)
        assert torch.equal(w, expected)
        assert torch.equal(certificate, same)


# ---------------------------------------------------------------------------------------------- any bits

PATTERNS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1e-308, 1.7e308, -1.7e308, math.nan, math.inf]).map(
        lambda value: struct.unpack("<Q", struct.pack("<d", value))[0]
    ),
    st.integers(0x3FE0000000000000, 0x4010000000000000),  # ordinary sizes
)
ANY: dict[str, Callable[[int], moo.Method]] = {
    "mean": lambda flags: moo.Mean(),
    "mgda": lambda flags: moo.MGDA("l2" if flags & 1 else "none"),
    "cagrad": lambda flags: moo.CAGrad([0.0, 0.4, 1.0, 1e6][flags % 4], bool(flags & 4)),
    "pcgrad": lambda flags: moo.PCGrad("sum" if flags & 1 else "mean"),
    "upgrad": lambda flags: moo.UPGrad(),
    "dualproj": lambda flags: moo.DualProj(),
    "imtlg": lambda flags: moo.IMTLG(),
    "alignedmtl": lambda flags: moo.AlignedMTL(None, ("min", "median", "mean")[flags % 3]),  # type: ignore[arg-type]
    "nashmtl": lambda flags: moo.NashMTL([1e-6, 1.0, math.inf][flags % 3]),
    "fairgrad": lambda flags: moo.FairGrad([1e-3, 0.5, 1.0, 50.0][flags % 4]),
    "config": lambda flags: moo.ConFIG(),
    "gradvac": lambda flags: moo.GradVac(flags % 3 / 2),
    "krum": lambda flags: moo.Krum(flags % 3, 1 + flags % 4),
    "adasum": lambda flags: moo.Adasum(),
}


def test_every_method_is_driven() -> None:
    assert set(ANY) == set(moo.available_methods())


@pytest.mark.parametrize("method", ANY)
@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_any_bits(method: str, data: st.DataObject) -> None:
    """No crash, no NaN from finite input, and always a certificate."""
    k = data.draw(st.integers(1, 7))
    half = k * (k + 1) // 2
    symmetric = data.draw(st.booleans())
    patterns = data.draw(st.lists(PATTERNS, min_size=half, max_size=half))
    gram = np.zeros((k, k))
    upper = np.triu_indices(k)
    gram[upper] = np.array(patterns, dtype=np.uint64).view(np.float64)
    if symmetric:
        gram.T[upper] = gram[upper]
    chosen = ANY[method](data.draw(st.integers(0, 7)))
    if data.draw(st.booleans()):
        chosen = moo.Smoothed(chosen, 0.5)
    w, certificate = moo.weights(gram, chosen, return_certificate=True)
    assert w.shape == (k,)
    assert torch.isfinite(w).all(), f"{gram} -> {w}"
    assert float(certificate) >= 0, f"{gram} -> {certificate}"
    if not np.isfinite(gram).all():
        assert np.array_equal(w.numpy(), uniform(k))
