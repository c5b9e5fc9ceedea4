"""Methods solved on the rows that a Gramian is made of."""

from typing import Any

import bucket_moo_ext as moo
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Random = np.random.Generator

SIZES = (1, 2, 3, 5, 8, 16, 33, 64)

PREFERENCE = ("upgrad", "dualproj", "alignedmtl", "config")

CLASSES: dict[str, Any] = {
    "upgrad": moo.UPGrad,
    "dualproj": moo.DualProj,
    "alignedmtl": moo.AlignedMTL,
    "config": moo.ConFIG,
}


def rows_of(rng: Random, k: int, shared: float = 0.0) -> Array:
    """K gradients in general position; `shared` > 0: with something in common."""
    return rng.standard_normal((k, 2 * k + 3)) + shared * rng.standard_normal(2 * k + 3)


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


def uniform(k: int) -> Array:
    return np.full(k, 1 / k)
