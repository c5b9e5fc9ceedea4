"""What the package should compute, once more: float64 NumPy and SciPy on the gradients themselves, no code shared.

The solvers are of another kind than ours (non-negative least squares on the rows, a scalar root finder, the published
loops), and the certificates below prove an answer optimal without any solver.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EPSILON = float(np.finfo(np.float64).eps)


def float64(tensor: torch.Tensor) -> Array:
    """A CPU tensor of any dtype, without rounding."""
    result: Array = tensor.detach().double().numpy()
    return result


# ------------------------------------------------------------------------------------------------ methods, on the rows


def min_norm_point(rows: Array) -> Array:
    """argmin over the simplex of |w @ rows|, by non-negative least squares.

    min over v >= 0 of |v @ rows|^2 + (1 - sum v)^2 is attained at a multiple of the w that we want.
    """
    from scipy.optimize import nnls  # slow to import; ranks that only import this module need not pay for it

    size = np.sqrt((rows**2).sum(1).max())
    if size == 0:
        return np.full(len(rows), 1 / len(rows))
    square = np.linalg.qr(rows.T, mode="r")  # the same inner products in K dimensions
    v, _ = nnls(np.vstack([square / size, np.ones(len(rows))]), np.eye(len(square) + 1)[-1], maxiter=10_000)
    result: Array = v / v.sum()
    return result


def mgda(rows: Array, normalize: str = "none") -> Array:
    """Weights of the shortest vector in the convex hull of the rows (or in that of the unit rows)."""
    if normalize == "none":
        return min_norm_point(rows)
    norms = np.linalg.norm(rows, axis=1)
    w = min_norm_point(rows / norms[:, None]) / norms
    result: Array = w / w.sum()
    return result


def cagrad(rows: Array, c: float = 0.4, rescale: bool = False) -> Array:
    """u + s l / |g_l| at the minimum over l of F(l) = <g_0, g_l> + s |g_l|, s = c |g_0|; needs 0 outside the hull.

    With v = s l / |g_l| and mass m = sum v, g_0 + g_v is the shortest vector in the hull of the rows g_0 + m g_k, for
    the m at which |g_v| = s.
    """
    from scipy.optimize import brentq

    k = len(rows)
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)
    w = np.full(k, 1 / k)
    if radius > 0:

        def excess(mass: float) -> float:
            return float(mass * np.linalg.norm(min_norm_point(mean + mass * rows) @ rows) - radius)

        high = 1.0
        while excess(high) < 0:
            high *= 2
            assert high < 1e12, "the rows have 0 in their convex hull"
        mass = brentq(excess, 0.0, high, xtol=1e-300, rtol=4 * EPSILON)
        w += mass * min_norm_point(mean + mass * rows)
    return w / (1 + c) if rescale else w


def pcgrad(rows: Array, orders: Sequence[Sequence[int]], reduction: str = "mean") -> Array:
    """Algorithm 1 of the paper, literally, noting which rows were subtracted how often."""
    coefficients = np.eye(len(rows))
    for i, order in enumerate(orders):
        projected = rows[i].copy()
        for j in order:
            if j == i or not rows[j].any():
                continue
            inner = projected @ rows[j]
            if inner < 0:
                step = inner / (rows[j] @ rows[j])
                projected -= step * rows[j]
                coefficients[i, j] -= step
    total: Array = coefficients.sum(0)
    return total / len(rows) if reduction == "mean" else total


METHODS: dict[str, Callable[..., Array]] = {"mgda": mgda, "cagrad": cagrad, "pcgrad": pcgrad}


def weights(rows: Array, method: str, **options: Any) -> Array:
    """Weights of K objectives, whose gradients are the rows: NaN and zero rows first, then the method."""
    k = len(rows)
    if method == "mean" or not np.isfinite(rows).all():
        return np.full(k, 1 / k)
    w = np.zeros(k)
    on = np.flatnonzero(rows.any(axis=1))
    if on.size:
        if "orders" in options:
            place = {int(objective): at for at, objective in enumerate(on)}
            orders = [options["orders"][i] for i in on]
            options = options | {"orders": [[place[j] for j in o if j in place] for o in orders]}
        active = rows[on]
        w[on] = METHODS[method](active / np.abs(active).max(), **options)
    return w


# ------------------------------------------------------------------------------------------------------- the collective


def objective_means(
    rows: Sequence[Array], objective: Sequence[Hashable], weight: Sequence[float]
) -> tuple[list[Hashable], Array]:
    """Objectives in the order of the lowest rank that has them, and the weighted mean of each one's rows.

    Rows of weight 0 are not read; an objective whose weights are all zero has the gradient 0.
    """
    names = list(dict.fromkeys(objective))
    means = np.zeros((len(names), np.size(rows[0])))
    for k, name in enumerate(names):
        ranks = [r for r in range(len(rows)) if objective[r] == name and weight[r] > 0]
        total = sum(weight[r] for r in ranks)
        for r in ranks:
            with np.errstate(invalid="ignore"):  # Inf - Inf is meant
                means[k] += weight[r] / total * rows[r]
    return names, means


def gramian(rows: Array) -> Array:
    """Inner products."""
    with np.errstate(invalid="ignore"):
        result: Array = rows @ rows.T
    return result


@dataclass(frozen=True)
class Reduction:
    """What becomes of one bucket."""

    objectives: list[Hashable]
    means: Array
    gramian: Array
    weights: Array
    update: Array


def combine(rows: Array, w: Array) -> Array:
    """Σ w_k g_k; rows of weight 0 are not read."""
    on = w != 0
    with np.errstate(invalid="ignore"):
        result: Array = (w[on, None] * rows[on]).sum(0)
    return result


def reduce(
    rows: Sequence[Array],
    objective: Sequence[Hashable] | None = None,
    weight: Sequence[float] | None = None,
    method: str = "mgda",
    **options: Any,
) -> Reduction:
    """The reduction of one bucket, of which every rank has one row."""
    ranks = range(len(rows))
    names, means = objective_means(rows, objective or list(ranks), weight or [1.0 for _ in ranks])
    w = weights(means, method, **options)
    return Reduction(names, means, gramian(means), w, combine(means, w))


# ----------------------------------------------------------------------------------------------------------- the sketch


def _mix_bits(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser; products are taken modulo 2**64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return result


def random_bits(key: Sequence[int], count: int) -> NDArray[np.uint64]:
    """The first words of the random stream that has these words as its key."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    origin = np.zeros(1, np.uint64)
    for word in key:
        origin = _mix_bits((origin ^ np.uint64(word)) + gamma)
    return _mix_bits(origin + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * gamma)


def sketch(row: Array, width: int, seed: int = 0, step: int = 0, bucket: int = 0) -> Array:
    """[width]: element i goes to column (i % width) ^ flip(i // width), with the sign of bit i % 64 of word i // 64."""
    runs = -(-row.size // width)
    padded = np.zeros((runs, width))
    padded.reshape(-1)[: row.size] = row
    words = random_bits((seed, step, bucket, int.from_bytes(b"SIGN", "big") << 32), runs * width // 64)
    negative = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    signed = np.where(negative.reshape(runs, width) == 1, -padded, padded)
    flips = random_bits((seed, step, bucket, int.from_bytes(b"FLIP", "big") << 32), runs) >> np.uint64(32)
    places = np.arange(width) ^ (flips.astype(np.int64) & (width - 1))[:, None]  # of the elements, by column
    with np.errstate(invalid="ignore"):
        result: Array = np.take_along_axis(signed, places, axis=1).sum(0)
    return result


# --------------------------------------------------------------------------------------------------------- certificates
# In extended precision, so that the rounding of the check is far below what is checked.


def _extended(values: Array) -> NDArray[np.longdouble]:
    return np.asarray(values, dtype=np.longdouble)


def active(gram: Array) -> NDArray[np.intp]:
    """Objectives with a gradient."""
    return np.flatnonzero(np.diagonal(gram) > 0)


def mean_diagonal(gram: Array) -> float:
    """Mean squared norm of the active objectives."""
    return float(np.diagonal(gram)[active(gram)].mean())


def mgda_gap(gram: Array, w: Array) -> float:
    """(w'Gw - min_k (Gw)_k) over the mean diagonal.

    For w on the simplex it is >= 0 and bounds |d - d*|^2, the squared distance to the optimum.
    """
    on = active(gram)
    scale = mean_diagonal(gram)
    product = (_extended(gram) / scale)[np.ix_(on, on)] @ _extended(w[on])
    return float(_extended(w[on]) @ product - product.min())


@dataclass(frozen=True)
class CagradCertificate:
    """How far weights are from optimal, relative to the mean gradient g_0."""

    gap: float  # (upper bound of the optimum - min_k <g_k, d>) / |g_0|^2
    outside: float  # |d - g_0| / |g_0| - c
    rounding: float  # what rounding w to float64 alone moves min_k <g_k, d> by, over |g_0|^2
    mean_square: float  # |g_0|^2 over the mean diagonal


def cagrad_certificate(gram: Array, w: Array, c: float, *others: Array, noise: float = 0.0) -> CagradCertificate:
    """Weak duality: for every l on the simplex, F(l) = <g_0, g_l> + c |g_0| |g_l| bounds min_k <g_k, d> from above.

    The bound taken is the best of the w's own l and of the `others`. A squared norm |g_l|^2 that is below the error of
    the entries of G (their rounding, or `noise` relative to |g_i||g_j|) counts as zero, because its root is not below
    anything.
    """
    on = active(gram)
    k = on.size
    g = (_extended(gram) / mean_diagonal(gram))[np.ix_(on, on)]
    norms = np.sqrt(np.diagonal(g))
    u = _extended(np.full(k, 1.0)) / k
    x = _extended(w[on])
    v = x - u
    mean_square = u @ g @ u
    radius = c * np.sqrt(mean_square)

    def bound(mix: NDArray[np.longdouble]) -> float:
        square = mix @ g @ mix - max(4 * EPSILON, noise) * (mix @ norms) ** 2
        return float(u @ g @ mix + radius * np.sqrt(max(square, 0)))  # type: ignore[call-overload]

    bounds = [bound(_extended(other[on])) for other in others]
    if v.sum() > 0:
        bounds.append(bound(np.maximum(v, 0) / np.maximum(v, 0).sum()))
    return CagradCertificate(
        gap=float((min(bounds) - (g @ x).min()) / mean_square) if bounds else 0.0,
        outside=float(np.sqrt(max(v @ g @ v, 0)) / np.sqrt(mean_square) - c),
        rounding=float(EPSILON * (np.abs(x) @ norms) * norms.max() / mean_square),
        mean_square=float(mean_square),
    )


# ----------------------------------------------------------------------------------------------------------- tolerances


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def subnormal(dtype: torch.dtype) -> float:
    """Spacing of the smallest numbers."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def combination_error(rows: Array, coefficients: Array, dtype: torch.dtype) -> Array:
    """Bound on the error of each element of a combination that is accumulated and rounded as design.md has it.

    "Accumulate in float32 (float64 for float64), round once": with R rows read, each term carries the rounding of its
    coefficient and of its product, and at most R of the partial sums, so R + 2 roundings of the accumulator relative to
    Σ |c_r x_r| (an objective's share is part of the coefficient); then one rounding to the dtype. Twice that, for the
    second order and for G's and w's last bits when both are recomputed here.
    """
    accumulator = EPSILON / 2 if dtype == torch.float64 else unit_roundoff(torch.float32)
    on = coefficients != 0
    terms = np.abs(coefficients[on, None] * rows[on]).sum(0)
    value = np.abs(combine(rows, coefficients))
    rounding = accumulator * (on.sum() + 2) * terms + unit_roundoff(dtype) * value
    result: Array = 2 * rounding + subnormal(dtype)
    return result


def sum_error(rows: Array, coefficients: Array, dtype: torch.dtype) -> Array:
    """The same bound where every row is scaled, rounded to the dtype, and added to a sum that is rounded every time."""
    terms = np.abs(coefficients[:, None] * np.where(coefficients[:, None] == 0, 0.0, rows)).sum(0)
    roundings = unit_roundoff(dtype) * len(rows) * terms
    result: Array = combination_error(rows, coefficients, dtype) + 2 * roundings + len(rows) * subnormal(dtype)
    return result


def summed_error(sizes: Array, rows: Sequence[Array], dtype: torch.dtype) -> Array:
    """[K, K] what the Gramian's error grows by where rows are scaled and added up in their dtype, see sum_error()."""
    largest = float(np.sqrt(rows[0].size)) * subnormal(dtype)
    means = 2 * len(rows) * (unit_roundoff(dtype) * sizes + largest)
    error: Array = np.outer(means, sizes) + np.outer(sizes, means) + np.outer(means, means)
    return error


def gramian_error(sizes: Array, dtype: torch.dtype, averaged: int = 1) -> Array:
    """[K, K] bound on the error of the Gramian, from design.md section 6. `sizes`: |g_k|, or Σ share |row| if averaged.

    Sums of at most 1024 products in float32, then float64: a product and its sums carry at most 1025 roundings in the
    worst case, and about sqrt(1025) = 32 for random signs of the errors. We ask for no more than 32 for any length:
    32 * 2^-24 = 1.9e-6 relative to |g_i||g_j| (the design quotes 6e-7 measured). Averaging ranks in float32 before adds
    averaged + 1 for each of the two factors. float64 rows stay in float64, and so does the reference.
    """
    accumulator = EPSILON / 2 if dtype == torch.float64 else unit_roundoff(torch.float32)
    result: Array = accumulator * (32 + 2 * (averaged + 1)) * np.outer(sizes, sizes)
    return result
