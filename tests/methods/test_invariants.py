"""What methods keep: under permutation and scale, with identical, inactive and broken objectives, in batches."""

import math
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support.rows import CLASSES, PREFERENCE, SIZES, assert_update, gram_of, rows_of, uniform, weights

pytestmark = pytest.mark.device

Random = np.random.Generator

OWN_FILES = ("mean", "mgda", "cagrad", "pcgrad")
NEW = [name for name in moo.available_methods() if name not in OWN_FILES]

SYMMETRIC = ("upgrad", "dualproj", "imtlg", "alignedmtl", "nashmtl", "fairgrad", "config", "krum", "normalizedmean")


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
        expected = weights(rows, moo.GradVac(permutation=orders))[moved]  # type: ignore[arg-type]
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
        expected = min(1.0, 1 / 1.0) / norm  # type: ignore[assignment]
    elif method == "fairgrad":
        expected = 1 / norm  # type: ignore[assignment]
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
            methods: tuple[Any, Any] = moo.GradVac(permutation=[order] * k), moo.GradVac(permutation=fewer)  # type: ignore[list-item]
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
