"""What a rank brings back from a reduction, and its comparison with the reference."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import torch
from bucket_moo_ext import _C

from tests.support import reference as ref
from tests.support.reference import Array

# Whether this is the build whose CUDA kernels run on the CPU: CPU tensors take the way of CUDA tensors there.
ON_DEVICE = _C.reduces_on_device(torch.device("cpu"))


def draw(seed: int, key: Sequence[int], n: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """n normal numbers that depend on (seed, key) alone: ranks and the test draw the same ones."""
    values = np.random.default_rng([seed, *key]).standard_normal(n) * scale
    return torch.from_numpy(values).to(dtype)


def raw(tensor: torch.Tensor) -> bytes:
    """The bits."""
    packed = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return packed.view(torch.uint8).numpy().tobytes()


def unraw(data: bytes, dtype: torch.dtype) -> Array:
    """The numbers that raw() was given, in float64."""
    if not data:
        return np.zeros(0)
    return ref.float64(torch.frombuffer(bytearray(data), dtype=dtype))


@dataclass(frozen=True)
class Outcome:
    """A result and what the state reports of its bucket. Pickles without torch's shared memory."""

    result: bytes
    step: int
    objectives: tuple[str, ...]
    gramian: Array
    weights: Array
    status: str
    certificate: float
    fallbacks: int
    numel: int
    dtype: str
    width: int
    solved_step: int


def outcome(result: torch.Tensor, state: moo.BucketMOO) -> Outcome:
    """To be called on a rank after a collective."""
    report = state.report()
    (bucket,) = report.buckets
    return outcome_of(result, report, bucket)


def outcome_of(result: torch.Tensor, report: moo.Report, bucket: moo.BucketReport) -> Outcome:
    """The same for a bucket among others."""
    return Outcome(
        result=raw(result),
        step=report.step,
        objectives=bucket.objectives,
        gramian=bucket.gramian.numpy(),
        weights=bucket.weights.numpy(),
        status=bucket.status,
        certificate=bucket.certificate,
        fallbacks=report.fallbacks,
        numel=bucket.numel,
        dtype=bucket.dtype,
        width=bucket.width,
        solved_step=bucket.solved_step,
    )


def break_if_left_out(row: torch.Tensor, weight: float) -> torch.Tensor:
    """`row`, with NaN and Inf in it if its rank is left out, so that nothing may come of it."""
    if weight == 0:
        row[:: row.numel() // 5] = torch.nan
        row[1] = torch.inf
    return row


def _close(what: str, got: Array, expected: Array, bound: Array | float) -> None:
    excess = np.abs(got - expected) - bound
    if excess.size and not (excess <= 0).all():
        at = np.unravel_index(np.nanargmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
        limit = np.broadcast_to(bound, excess.shape)[at]
        raise AssertionError(
            f"{what} {tuple(int(i) for i in at)}: got {got[at]!r}, expected {expected[at]!r}, error "
            f"{abs(got[at] - expected[at]):.3e}, allowed {limit:.3e}"
        )


@dataclass(frozen=True)
class Gradients:
    """The rows of one bucket, in float64, and what each counts for."""

    rows: list[Array]  # one a rank
    dtype: torch.dtype
    names: list[Hashable]  # of the objectives
    place: list[int]  # of each rank's objective in `names`
    share: Array  # of each rank in its objective; 0: left out
    means: Array  # of the objectives
    is_summed: bool = False  # whether rows are averaged by the process group, in their dtype

    def through(self, linear: Callable[[Array], Array]) -> "Gradients":
        """The images of rows and means under a linear map."""
        return replace(
            self, rows=[linear(row) for row in self.rows], means=np.stack([linear(mean) for mean in self.means])
        )

    def sizes(self) -> Array:
        """Σ share |row| of each objective."""
        sizes = np.zeros(len(self.names))
        for row, place, share in zip(self.rows, self.place, self.share, strict=True):
            sizes[place] += share * np.linalg.norm(row) if share else 0.0
        return sizes

    def gramian_error(self) -> Array:
        """[K, K] bound on the error of their Gramian."""
        averaged = 0 if len(self.names) == len(self.rows) else len(self.rows)
        error = ref.gramian_error(self.sizes(), self.dtype, averaged)
        return error + ref.summed_error(self.sizes(), self.rows, self.dtype) if self.is_summed else error


def gradients(
    rows: Sequence[torch.Tensor],
    objective: Sequence[Hashable] | None = None,
    weight: Sequence[float] | None = None,
    is_summed: bool = False,
) -> Gradients:
    """By default every rank is an objective of its own, of weight 1."""
    world = len(rows)
    inputs = [ref.float64(row.reshape(-1)) for row in rows]
    objective = list(range(world)) if objective is None else objective
    weight = [1.0] * world if weight is None else weight
    names, means = ref.objective_means(inputs, objective, weight)
    total = {name: sum(weight[r] for r in range(world) if objective[r] == name) for name in objective}
    share = np.array([weight[r] / total[objective[r]] if weight[r] else 0.0 for r in range(world)])
    return Gradients(inputs, rows[0].dtype, names, [names.index(name) for name in objective], share, means, is_summed)


def verify(
    label: str,
    rows: Sequence[torch.Tensor],
    got: Outcome,
    method: str,
    options: dict[str, Any] | None = None,
    *,
    objective: Sequence[Hashable] | None = None,
    weight: Sequence[float] | None = None,
    shard: slice = slice(None),
    generic: bool = False,
    is_summed: bool = False,
) -> None:
    """Checks an outcome for finite rows, in three links and then as a whole.

    The reported Gramian is that of the rows, the reported weights are optimal for the reported Gramian, and the result
    is the rows combined by the reported weights: each to rounding, however ill-conditioned the bucket. Then the result
    is compared with the reference's: for MGDA with the bound that holds for every bucket, for the others where the rows
    are in general position (`generic`).
    """
    options = options or {}
    given = gradients(rows, objective, weight, is_summed)
    verify_solution(label, given, got, method, options, given.gramian_error(), generic)
    result, bound = verify_combination(label, given, got, shard)

    # The whole.
    largest = float(given.sizes().max(initial=0.0))
    delta = float(given.gramian_error().max(initial=0.0)) / largest**2 if largest else 0.0
    if method == "mgda" and options.get("normalize", "none") == "none":
        # A w that is optimal for G up to `gap` has |d - d*|^2 <= gap, and an error of delta |g_i||g_j| in G makes a gap
        # of at most 2 delta max |g_k|^2; certificates are allowed 1e-9.
        allowed = float(np.sqrt(1e-9 + 2 * delta)) * largest
    elif method == "mean":
        allowed = 0.0
    elif generic:
        allowed = 1000 * delta * largest  # a condition number that random rows stay far below
    else:
        return
    update = ref.combine(given.means, ref.weights(given.means, method, **options))
    distance = float(np.linalg.norm(result - update[shard]))
    allowed += float(np.linalg.norm(bound))
    assert distance <= allowed, f"{label}: |d - d_reference| = {distance:.3e} > {allowed:.3e}"


def verify_solution(
    label: str,
    given: Gradients,
    got: Outcome,
    method: str,
    options: dict[str, Any],
    error: Array,
    generic: bool,
) -> None:
    """The reported Gramian is that of the gradients up to `error`, the weights are optimal for it."""
    k = len(given.names)
    assert got.objectives == tuple(str(name) for name in given.names), f"{label}: {got.objectives}"
    _close(f"{label}: Gramian", got.gramian, ref.gramian(given.means), error)
    assert np.array_equal(got.gramian, got.gramian.T), f"{label}: Gramian is not symmetric"

    on = ref.active(got.gramian)
    assert set(on) == set(np.flatnonzero(given.means.any(axis=1))), f"{label}: active objectives"
    if method == "mean":
        assert got.status == "ok", f"{label}: {got.status}"
        _close(f"{label}: weights", got.weights, np.full(k, 1 / k), ref.EPSILON)
    elif not on.size:
        assert got.status == "inactive", f"{label}: {got.status}"
        assert not got.weights.any(), f"{label}: {got.weights}"
    else:
        assert (np.delete(got.weights, on) == 0).all(), f"{label}: inactive objectives weigh nothing"
        # In a bucket of few elements the rows are dependent, and only the rounding of G decides by how much: G may have
        # negative eigenvalues, for which no weights are optimal.
        noise = 0.0 if generic else float(error.max() / given.sizes().max() ** 2)
        check_weights(label, got, method, options, noise)


def combination_error(rows: Array, coefficients: Array, dtype: torch.dtype, width: int) -> Array:
    """Bound on the error of a combination. With a sketch a device leaves the sum to the process group."""
    return (ref.sum_error if ON_DEVICE and width else ref.combination_error)(rows, coefficients, dtype)


def verify_combination(label: str, given: Gradients, got: Outcome, shard: slice = slice(None)) -> tuple[Array, Array]:
    """The result is the gradients combined by the reported weights; returns it and the bound on its errors."""
    assert got.numel == given.rows[0].size, f"{label}: {got.numel}"
    assert got.dtype == str(given.dtype).removeprefix("torch."), f"{label}: {got.dtype}"
    matrix = np.stack(given.rows)[:, shard]
    coefficients = got.weights[given.place] * given.share
    result = unraw(got.result, given.dtype)
    if given.is_summed:
        bound = ref.sum_error(matrix, coefficients, given.dtype)
    else:
        bound = combination_error(matrix, coefficients, given.dtype, got.width)
    combined = ref.combine(matrix, coefficients)
    assert result.shape == combined.shape, f"{label}: {result.shape}"
    _close(f"{label}: result", result, combined, bound)
    return result, bound


def check_weights(label: str, got: Outcome, method: str, options: dict[str, Any], noise: float) -> None:
    """Optimality of the reported weights for the reported Gramian; at least one objective is active.

    `noise`: by how much, relative to |g_i||g_j|, the Gramian may be off that of any rows.
    """
    gram, w = got.gramian, got.weights
    k = int(ref.active(gram).size)
    if method == "mgda":
        assert got.status == "ok", f"{label}: {got.status}"
        assert (w >= 0).all(), f"{label}: {w}"
        assert abs(w.sum() - 1) <= 1e-14, f"{label}: {w}"
        if options.get("normalize") == "l2":
            norms = np.sqrt(np.diagonal(gram))
            inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
            gram, w = gram * np.outer(inverse, inverse), w * norms
            w = w / w.sum()
        assert (gap := ref.mgda_gap(gram, w)) <= 1e-9, f"{label}: gap {gap:.2e}"
    elif method == "cagrad":
        c, rescale = options.get("c", 0.4), options.get("rescale", False)
        full = w * (1 + c) if rescale else w
        shortest = np.zeros_like(w)
        on = ref.active(gram)
        values, vectors = np.linalg.eigh(gram[np.ix_(on, on)])
        shortest[on] = ref.min_norm_point(vectors * np.sqrt(np.maximum(values, 0)))
        certificate = ref.cagrad_certificate(gram, full, c, shortest, noise=noise)
        if certificate.mean_square < 1e-9:
            return  # the mean vanishes up to rounding, and what is relative to it has no meaning
        slack = (32 + k + noise / ref.EPSILON) * certificate.rounding
        assert certificate.outside <= 1e-9 + slack, f"{label}: {certificate}"
        assert certificate.gap <= 1e-9 + slack, f"{label}: {certificate}"
        converged = got.certificate <= 1e-9
        assert got.status == ("ok" if converged else "not_converged"), f"{label}: {got.status}"
        assert got.certificate <= 1e-9 + slack, f"{label}: {got.certificate}"
    else:
        assert got.status == "ok", f"{label}: {got.status}"
