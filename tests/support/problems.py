"""Random Gramians of every family that is hard for a method.

Certificates are taken anew, in extended precision, by reference.py; nothing of the solvers is believed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import reference as ref
from tests.support.reference import Array

SIZES = (1, 2, 3, 5, 8, 16, 33, 64)

Random = np.random.Generator


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


def families(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("family", FAMILIES)(test)
