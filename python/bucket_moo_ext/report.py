"""What was solved: a readable table and plain numbers."""

from __future__ import annotations  # BucketRecord exists in the stub only

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bucket_moo_ext import _C, drawing
from bucket_moo_ext.functional import weights

_SINGLE = 1e-9  # below it all of an objective's weight is one row's
MOST_DRAWN = 40
_STATUS = ("ok", "nonfinite", "inactive", "not_converged", "fallback")


@dataclass(frozen=True)
class BucketReport:
    """One bucket of one step, or a part of it that has weights of its own.

    Attributes:
        index: The bucket's index in the step.
        group: What its parameters share weights with, as ``scope`` says: their name for "parameter", what the function
            gives, "model"; empty: the bucket.
        support: Those of ``objectives`` whose gradient is not zero here. With ``support=True`` parts of a group with
            different supports have weights of their own.
        parameters: Names of the parameters whose gradients it holds.
        numel: Elements.
        dtype: Their type.
        objectives: K names, in the order of every K below.
        rows: K numbers: how many gradients (of a rank, in a pass) each objective's is the mean of, those of weight 0
            among them.
        width: Columns of the sketches that the Gramian is from; 0: it is exact.
        solved_step: The step whose gradients Gramian and weights are from: the report's, or an earlier one where a
            ``Sketch`` keeps weights (``refresh_every``, ``lag``).
        gramian: ``[K, K]`` float64, inner products of the objectives' gradients.
        signal: ``[K, K]`` float64, an unbiased estimate of the Gramian that the objectives' gradients would have
            without the noise of their rows, which are taken for independent. Its diagonal is that of ``gramian`` less
            what the rows' norms say of noise, and may be below 0; NaN for an objective of a single row, and without
            ``row_norms=True``.
        cosines: ``[K, K]`` float64; NaN where a gradient is zero.
        cosine_errors: ``[K, K]`` float64, estimated standard error of each cosine, ``(1 - cos**2) / sqrt(width)``; 0
            where the Gramian is exact. docs/sketch.md derives it.
        weights: ``[K]`` float64.
        status: "ok"; "nonfinite": NaN or Inf in the gradients, so the mean was taken; "inactive": all gradients were
            zero; "not_converged": the certificate is above its tolerance; "fallback": what the method asks for does not
            exist for these gradients, and the weights are the substitute that the method's documentation names.
        certificate: The method's relative optimality residual.
        iterations: Of the solver.
        residual: Distance from Pareto stationarity: norm of the shortest vector in the convex hull of the active
            objectives' gradients, over their root mean square norm; 0 (stationary) to 1. NaN if not finite.
        conflicts: Pairs of active objectives with a negative inner product.
        pairs: Pairs of active objectives.
    """

    index: int
    group: str
    support: tuple[str, ...]
    parameters: tuple[str, ...]
    numel: int
    dtype: str
    objectives: tuple[str, ...]
    rows: tuple[int, ...]
    width: int
    solved_step: int
    gramian: torch.Tensor
    signal: torch.Tensor
    cosines: torch.Tensor
    cosine_errors: torch.Tensor
    weights: torch.Tensor
    status: str
    certificate: float
    iterations: int
    residual: float
    conflicts: int
    pairs: int


@dataclass(frozen=True)
class Report:
    """One step, over all buckets.

    Attributes:
        step: Number of the step.
        method: The method with its parameters.
        estimator: How Gramians are found: "exact" or the ``Sketch``, and for "auto" why.
        layout: "ranks" or "passes", as for ``BucketMOO``.
        scope: "bucket", "model": the weights are the same in all buckets, "parameter", or "groups" for a function.
        split_by_support: Whether parameters that other objectives depend on have weights of their own.
        mesh: The dimensions of the mesh, with those along which objectives differ; empty without a mesh.
        passes: Backward passes of the step.
        objectives: K names.
        buckets: The buckets, by index; where parts of a bucket have weights of their own, these.
        gramian: ``[K, K]`` float64, the sum over buckets: inner products of the objectives' whole gradients.
        signal: ``[K, K]`` float64, as ``BucketReport.signal`` for the whole gradients.
        residual: Distance of the whole gradients from Pareto stationarity, as in ``BucketReport.residual``. Where every
            objective touches every bucket, all buckets can be stationary (residual 0) while this is not 0: resolving
            conflicts bucket by bucket does not imply Pareto stationarity.
        conflict_share: Share of active pairs, over all buckets, that conflict.
        global_conflict_share: The same for the whole gradients.
        reduced, fallbacks, sparse: Since the state was made: buckets reduced; buckets that fell back to the mean for a
            NaN or an Inf; sparse buckets, which are averaged.
    """

    step: int
    method: str
    estimator: str
    layout: str
    scope: str
    split_by_support: bool
    mesh: str
    passes: int
    objectives: tuple[str, ...]
    buckets: tuple[BucketReport, ...]
    gramian: torch.Tensor
    signal: torch.Tensor
    residual: float
    conflict_share: float
    global_conflict_share: float
    reduced: int
    fallbacks: int
    sparse: int

    def to_dict(self) -> dict[str, Any]:
        """Strings, numbers, lists and dicts only, ready for JSON: what is undefined (NaN, Inf) becomes None."""
        plain = {name: _plain(value) for name, value in vars(self).items() if name != "buckets"}
        plain["buckets"] = [{name: _plain(value) for name, value in vars(bucket).items()} for bucket in self.buckets]
        return plain

    def plot(self, path: str | Path) -> None:
        """Draws the cosines: of the whole gradients and of each bucket, with the weights beside the rows.

        Args:
            path: The image; its ending says the format (.png, .pdf, .svg, ...). At most 40 buckets are drawn, those
                with the lowest cosines, and the title says so.

        Raises:
            ImportError: matplotlib is not installed (optional dependency ``[plot]``).
        """
        norms = self.gramian.diagonal().sqrt()
        whole = drawing.Matrix("whole gradients", self.objectives, (self.gramian / norms.outer(norms)).tolist())
        buckets = [
            drawing.Matrix(self._title(bucket), bucket.objectives, bucket.cosines.tolist(), bucket.weights.tolist())
            for bucket in self.buckets
        ]
        shown = drawing.lowest(buckets, MOST_DRAWN)
        some = f", {len(shown)} of {len(buckets)} buckets, those with the lowest cosines" * (len(shown) < len(buckets))
        title = f"Cosines at step {self.step}: {self.method}{some}; weights on the right"
        drawing.save(drawing.matrices([whole, *shown], title), path)

    def __str__(self) -> str:
        """A table, one line a bucket."""
        width = max(8, *(len(name) for name in self.objectives))
        head = (
            f"step {self.step}: {self.method}, {len(self.objectives)} objectives, {len(self.buckets)} buckets"
            f"{self._passes()}\n"
            f"{self._conflicts()}; stationarity residual of the whole gradients: {self.residual:.3e}\n"
            f"Gramians: {self.estimator}{self._accuracy()}\n"
            f"{self._signal_shares()}"
            f"since the start: {self.reduced} buckets, {self.fallbacks} fell back to the mean (NaN or Inf), "
            f"{self.sparse} sparse\n"
        )
        names = " ".join(f"{name:>{width}}" for name in self.objectives)
        lines = [
            f"{'bucket':>6} {'elements':>10} {'min cos':>8} {'confl.':>7} {'residual':>9} {'certif.':>8} "
            f"{'status':<13} {names}  parameters"
        ]
        for bucket in self.buckets:
            weights = " ".join(f"{w:>{width}.4f}" for w in bucket.weights.tolist())
            lines.append(
                f"{bucket.index:>6} {bucket.numel:>10} {_min_cosine(bucket.cosines):>8} "
                f"{bucket.conflicts:>3}/{bucket.pairs:<3} {bucket.residual:>9.2e} {bucket.certificate:>8.1e} "
                f"{bucket.status:<13} {weights}  {self._title(bucket)}"
            )
        return head + "\n".join(lines)

    def _signal_shares(self) -> str:
        """How much of the gradients' squared lengths is no noise, where that is known."""
        shares = (self.signal.diagonal() / self.gramian.diagonal()).tolist()
        known = [
            f"{name} {_percent(share)}"
            for name, share in zip(self.objectives, shares, strict=True)
            if math.isfinite(share)
        ]
        return f"signal in the squared length of whole gradients: {', '.join(known)}\n" if known else ""

    def _conflicts(self) -> str:
        if len(self.objectives) == 1:
            return f"one objective ({self.objectives[0]}), so there was nothing to resolve"
        return (
            f"conflicting pairs: {_percent(self.conflict_share)} in buckets, "
            f"{_percent(self.global_conflict_share)} in whole gradients"
        )

    def _passes(self) -> str:
        """What is not as it is by default."""
        rows = max((bucket.rows for bucket in self.buckets), key=sum)
        counted = ", ".join(f"{name} {n}" for name, n in zip(self.objectives, rows, strict=False))
        return (
            (f", {self.passes} passes (rows: {counted})" if self.passes > 1 else "")
            + (f", layout {self.layout}" if self.layout != "ranks" else "")
            + self._scope()
            + (f", mesh {self.mesh}" if self.mesh else "")
        )

    def _title(self, bucket: BucketReport) -> str:
        """Which parameters: by their group, too, where its name is none of theirs."""
        group = f"[{bucket.group}] " if self.scope == "groups" and bucket.group else ""
        return group + _shorten(bucket.parameters)

    def _scope(self) -> str:
        """What weights are solved for, where that is not the bucket."""
        by = {"model": "the model", "parameter": "each parameter", "groups": "each group of parameters"}
        whole = f", one problem for {by[self.scope]}" if self.scope in by else ""
        if not self.split_by_support:
            return whole
        supports = sorted({" ".join(bucket.support) for bucket in self.buckets})
        shown = "; ".join(text or "none" for text in supports[:4]) + ("; ..." if len(supports) > 4 else "")
        return f"{whole}, split by support ({shown})"

    def _accuracy(self) -> str:
        """How far the cosines may be off, and whether weights are older than the step."""
        sketched = [bucket for bucket in self.buckets if bucket.width > 0]
        if not sketched:
            return ""
        errors = torch.stack([bucket.cosine_errors for bucket in sketched])
        worst = float(errors.nan_to_num(0.0).max())
        exact = len(self.buckets) - len(sketched)
        oldest = min(bucket.solved_step for bucket in sketched)
        return (
            f"; standard error of cosines up to {worst:.4f}"
            + (f"; {exact} small bucket{'s'[: exact > 1]} exact" if exact else "")
            + (f"; oldest weights of step {oldest}" if oldest < self.step else "")
        )


class Setup(NamedTuple):
    """How a state reduces, as ``Report`` says it."""

    method: str
    estimator: str
    layout: str
    scope: str
    split_by_support: bool
    mesh: str


def make_report(setup: Setup, records: list[_C.BucketRecord], counters: dict[str, int]) -> Report:
    """The report of one step's records, of which there is at least one."""
    buckets = tuple(_bucket(record) for record in records)
    total = torch.stack([bucket.gramian for bucket in buckets]).sum(0)
    conflicts, pairs = _count_conflicts(total)
    return Report(
        step=records[0]["step"],
        **setup._asdict(),
        passes=records[0]["passes"],
        objectives=buckets[0].objectives,
        buckets=buckets,
        gramian=total,
        signal=torch.stack([bucket.signal for bucket in buckets]).sum(0),
        residual=_residual(total),
        conflict_share=_share(sum(b.conflicts for b in buckets), sum(b.pairs for b in buckets)),
        global_conflict_share=_share(conflicts, pairs),
        reduced=counters["buckets"],
        fallbacks=counters["nonfinite"],
        sparse=counters["sparse"],
    )


def _bucket(record: _C.BucketRecord) -> BucketReport:
    k = len(record["objectives"])
    gramian = torch.tensor(record["gramian"], dtype=torch.float64).reshape(k, k)
    norms = gramian.diagonal().sqrt()
    cosines = gramian / norms.outer(norms)
    width = record["width"]
    conflicts, pairs = _count_conflicts(gramian)
    return BucketReport(
        index=record["index"],
        group=record["group"],
        support=tuple(name for name, norm in zip(record["objectives"], norms.tolist(), strict=True) if norm != 0),
        parameters=tuple(record["parameters"]),
        numel=record["numel"],
        dtype=record["dtype"],
        objectives=tuple(record["objectives"]),
        rows=tuple(record["rows"]),
        width=width,
        solved_step=record["solved_step"],
        gramian=gramian,
        signal=_signal(gramian, record["row_squares"], record["row_shares"]),
        cosines=cosines,
        cosine_errors=(1 - cosines.square()).clamp(min=0.0) / math.sqrt(width) if width else torch.zeros_like(gramian),
        weights=torch.tensor(record["weights"], dtype=torch.float64),
        status=_STATUS[record["status"]],
        certificate=record["certificate"],
        iterations=record["iterations"],
        residual=_residual(gramian),
        conflicts=conflicts,
        pairs=pairs,
    )


def _signal(gramian: torch.Tensor, squares: list[float], shares: list[float]) -> torch.Tensor:
    """``BucketReport.signal``, from what the objectives' rows add up to: sums of |share row|^2 and of share^2.

    For rows x_r of mean s, with independent errors and shares a_r that add up to 1, the mean of |sum a_r x_r|^2 is
    |s|^2 and the errors' sum of a_r^2 |e_r|^2, and that of sum |a_r x_r|^2 is |s|^2 sum a_r^2 and the same.
    """
    signal = gramian.clone()
    diagonal = signal.diagonal()
    if not squares:
        diagonal.fill_(math.nan)
        return signal
    single = 1 - torch.tensor(shares, dtype=torch.float64)
    diagonal.sub_(torch.tensor(squares, dtype=torch.float64)).div_(single)
    diagonal[single < _SINGLE] = math.nan
    return signal


def _count_conflicts(gramian: torch.Tensor) -> tuple[int, int]:
    active = gramian.diagonal() > 0
    rows = gramian[active][:, active]
    upper = rows[tuple(torch.triu_indices(len(rows), len(rows), offset=1))]
    return int((upper < 0).sum()), upper.numel()


def _residual(gramian: torch.Tensor) -> float:
    if not gramian.isfinite().all():
        return math.nan
    active = gramian.diagonal() > 0
    if not active.any():
        return 0.0
    w = weights(gramian, "mgda")
    shortest = float(w @ gramian @ w)
    return math.sqrt(max(shortest, 0.0) / float(gramian.diagonal()[active].mean()))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _min_cosine(cosines: torch.Tensor) -> str:
    finite = cosines[cosines.isfinite()]
    return f"{float(finite.min()):.3f}" if finite.numel() else "-"


def _shorten(names: Iterable[str], most: int = 3) -> str:
    names = tuple(names)
    rest = f", ... ({len(names)})" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
