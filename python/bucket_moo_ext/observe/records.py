"""What is kept of a report."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from bucket_moo_ext.report import BucketReport, Report


class PartKey(NamedTuple):
    """What a part of the gradients is known by from step to step.

    Attributes:
        group: As ``BucketReport.group``.
        parameters: As ``BucketReport.parameters``; of the whole gradients all names, sorted.
        numel: Elements, where there are no parameters (direct calls of the collectives without a name); else 0.
        number: Which of several that are the same in all of these, in the order of the report: parameters without names
            are known by their shapes.
        is_whole: Whether it is all of the gradients.
    """

    group: str
    parameters: tuple[str, ...]
    numel: int = 0
    number: int = 0
    is_whole: bool = False

    @property
    def title(self) -> str:
        """A short name: the group, or the first parameter and how many there are."""
        if self.is_whole:
            return "whole gradients"
        of_group = self.group if self.group not in ("", "model", *self.parameters) else ""
        names = self.parameters[0] if self.parameters else f"{self.numel} elements"
        more = f" (of {len(self.parameters)})" if len(self.parameters) > 1 else ""
        number = f" #{self.number + 1}" if self.number else ""
        return f"[{of_group}] {names}{more}{number}" if of_group else f"{names}{more}{number}"


@dataclass(frozen=True, eq=False)
class PartRecord:
    """A bucket, a part of one that has weights of its own, or the whole gradients, in one step.

    Attributes:
        key: Which.
        objectives: K names, in the order of every K below.
        weights: ``[K]`` float64; NaN for the whole gradients, unless there is one problem for the model.
        norms: ``[K]`` float64, of the objectives' gradients.
        cosines: ``[K, K]`` float64; NaN where a gradient is zero.
        noise: ``[K, K]`` float64, the standard deviation of each cosine over the records up to this one, with the
            estimator of docs/observe.md; NaN before the second.
        residual: As ``BucketReport.residual``.
        conflicts, pairs: Of objectives whose gradients are not zero: pairs with a negative inner product; all pairs.
        status: As ``BucketReport.status``; of the whole gradients the worst of all parts: "ok" if all are.
        certificate: As ``BucketReport.certificate``; of the whole gradients the largest.
        solved_step: The step whose gradients this is of: the record's, or an earlier one where a ``Sketch`` keeps
            weights.
    """

    key: PartKey
    objectives: tuple[str, ...]
    weights: torch.Tensor
    norms: torch.Tensor
    cosines: torch.Tensor
    noise: torch.Tensor
    residual: float
    conflicts: int
    pairs: int
    status: str
    certificate: float
    solved_step: int

    def cosine(self, first: str, second: str) -> float:
        """Of two objectives.

        Raises:
            ValueError: The part has no such objective.
        """
        return float(self.cosines[self._place(first), self._place(second)])

    def weight(self, objective: str) -> float:
        """Of one objective.

        Raises:
            ValueError: The part has no such objective.
        """
        return float(self.weights[self._place(objective)])

    def _place(self, objective: str) -> int:
        if objective not in self.objectives:
            raise ValueError(f"objective must be one of {', '.join(self.objectives)}; got {objective!r}")
        return self.objectives.index(objective)


@dataclass(frozen=True, eq=False)
class Record:
    """One recorded step.

    Attributes:
        index: Its number among all records, from 0, those that are not kept any more among them.
        step: The state's number of the step.
        passes: Backward passes of the step.
        whole: The whole gradients.
        parts: The buckets, or the parts of them that have weights of their own, in the order of the report.
        conflict_share, global_conflict_share, fallbacks: As in ``Report``.
        losses: By objective: the mean of what ``Recorder.log`` was given since the record before; empty: nothing.
        seconds: Mean time of a step, likewise; NaN: none was given.
    """

    index: int
    step: int
    passes: int
    whole: PartRecord
    parts: tuple[PartRecord, ...]
    conflict_share: float
    global_conflict_share: float
    fallbacks: int
    losses: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan


def keyed_parts(report: Report) -> Iterator[tuple[PartKey, BucketReport]]:
    """The report's parts with what they are known by."""
    numbers: Counter[PartKey] = Counter()
    for bucket in report.buckets:
        key = PartKey(bucket.group, bucket.parameters, 0 if bucket.parameters else bucket.numel)
        yield key._replace(number=numbers[key]), bucket
        numbers[key] += 1


def whole_key(report: Report) -> PartKey:
    """What the whole gradients are known by: the same in whatever buckets they lie."""
    names = tuple(sorted(name for bucket in report.buckets for name in bucket.parameters))
    numel = 0 if names else sum(bucket.numel for bucket in report.buckets)
    return PartKey("", names, numel, is_whole=True)


def part_record(key: PartKey, bucket: BucketReport, noise: torch.Tensor) -> PartRecord:
    """Of one of the report's parts."""
    return PartRecord(
        key=key,
        objectives=bucket.objectives,
        weights=bucket.weights,
        norms=bucket.gramian.diagonal().sqrt(),
        cosines=bucket.cosines,
        noise=noise,
        residual=bucket.residual,
        conflicts=bucket.conflicts,
        pairs=bucket.pairs,
        status=bucket.status,
        certificate=bucket.certificate,
        solved_step=bucket.solved_step,
    )


def whole_cosines(report: Report) -> torch.Tensor:
    """``[K, K]``, of the whole gradients; NaN where one is zero."""
    norms = report.gramian.diagonal().sqrt()
    return report.gramian / norms.outer(norms)


_WORST_LAST = ("ok", "inactive", "fallback", "not_converged", "nonfinite")


def whole_record(key: PartKey, report: Report, noise: torch.Tensor) -> PartRecord:
    """Of the report's whole gradients."""
    k = len(report.objectives)
    norms = report.gramian.diagonal().sqrt()
    upper = tuple(torch.triu_indices(k, k, offset=1))
    active = norms > 0
    both = active.outer(active)[upper]
    one_problem = report.scope == "model" and not report.split_by_support
    return PartRecord(
        key=key,
        objectives=report.objectives,
        weights=report.buckets[0].weights if one_problem else torch.full((k,), torch.nan, dtype=torch.float64),
        norms=norms,
        cosines=whole_cosines(report),
        noise=noise,
        residual=report.residual,
        conflicts=int(((report.gramian[upper] < 0) & both).sum()),
        pairs=int(both.sum()),
        status=max((bucket.status for bucket in report.buckets), key=_WORST_LAST.index),
        certificate=max(bucket.certificate for bucket in report.buckets),
        solved_step=max(bucket.solved_step for bucket in report.buckets),
    )
