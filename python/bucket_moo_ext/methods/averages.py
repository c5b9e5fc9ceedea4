"""Averages: Mean, NormalizedMean, Krum, Adasum. They look at no conflict."""

from dataclasses import dataclass
from typing import ClassVar

from bucket_moo_ext.methods.base import (
    EQUIVARIANT,
    UNCHANGED,
    MethodInfo,
    NativeMethod,
    Options,
    Shares,
    integer,
    shares,
    values,
)


@dataclass(frozen=True)
class Mean(NativeMethod):
    """The mean of the objectives' gradients: what DDP computes.

    Counts every objective, active or not, so that with one rank an objective it is DDP's result.

    Args:
        weights: One weight >= 0 an objective, not all zero: in the order of the objectives, or by name as ``UPGrad``'s
            preference; made to sum to 1. None: all equal.

    Raises:
        ValueError: A weight is negative or not finite, or all are zero.
    """

    weights: Shares = None
    info: ClassVar[MethodInfo] = MethodInfo("mean", UNCHANGED, (EQUIVARIANT,), "plain data parallelism")

    def __post_init__(self) -> None:
        shares(self, "weights")

    def _options(self) -> Options:
        return Options("mean", preference=values(self.weights))


@dataclass(frozen=True)
class NormalizedMean(NativeMethod):
    """The mean of the gradients' directions, as long as the mean of the gradients.

    ``w_k = s / |g_k|`` over the active objectives, with s such that d is as long as the mean of their gradients. All
    are heard alike, however long their gradients are, at the mean's learning rate.

    The rival of methods that resolve conflicts: blind to them, it balances lengths, which those do too. May conflict
    with any objective.

    Edge cases: where the directions cancel, ``|sum_k g_k / |g_k|| <= 1e-6 K``, no such s exists; then ``w_k = (1 /
    |g_k|) / (sum_j 1 / |g_j|)`` (status "fallback"). Where the mean vanishes, so does the update.

    Cost: it needs the norms and the length of the mean alone, and takes the Gramian, as all methods do.

    Source: no paper's; normalised gradients as a baseline are in Chen et al., "GradNorm", ICML 2018, and others, each
    with another length.
    """

    no_preference: ClassVar[str] = "it hears all objectives alike; Mean(weights=...) does not"
    info: ClassVar[MethodInfo] = MethodInfo(
        "normalizedmean", UNCHANGED, (EQUIVARIANT,), "a mean of directions at the mean's length"
    )

    def _options(self) -> Options:
        return Options("normalizedmean")


@dataclass(frozen=True)
class Krum(NativeMethod):
    """(Multi-)Krum: the mean of the gradients that lie closest to their neighbours.

    w = 1/m on the m = ``n_selected`` gradients with the lowest sum of squared distances to their K - f - 2 nearest
    others, f = ``n_byzantine``. Distances come from G. For gradients that may be arbitrarily wrong, not for conflict:
    an objective unlike the others is left out.

    Edge cases: with K < f + 3 there are no neighbours to count and the weights are equal (status "fallback"). Ties go
    to the objective that comes first, so that copies of a gradient need not share alike. ``n_selected`` above K is K.

    Args:
        n_byzantine: Objectives that may be arbitrary, >= 0. The paper's resilience needs K >= 2 f + 3.
        n_selected: How many gradients to average, >= 1.

    Raises:
        ValueError: A parameter is no such integer.

    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient
    descent", NeurIPS 2017, sec. 3 and 4.
    """

    n_byzantine: int = 0
    n_selected: int = 1
    no_preference: ClassVar[str] = "it chooses gradients by their distances"
    info: ClassVar[MethodInfo] = MethodInfo(
        "krum",
        UNCHANGED,
        ("permutation equivariant up to ties", "on the simplex"),
        "Blanchard et al., NeurIPS 2017",
    )

    def __post_init__(self) -> None:
        integer(self, "n_byzantine", 0)
        integer(self, "n_selected", 1)

    def _options(self) -> Options:
        return Options("krum", (self.n_byzantine, self.n_selected))


@dataclass(frozen=True)
class Adasum(NativeMethod):
    """The mean of parallel gradients, the sum of orthogonal ones, and in between for others.

    adasum(a, b) = (1 - <a,b> / 2|a|^2) a + (1 - <a,b> / 2|b|^2) b, up a binary tree over the active objectives in their
    order; a level joins first with second, third with fourth, and one left over moves up as it is.

    May conflict. Gradients of different objectives are nearly orthogonal, so the update is up to K times a mean.

    Edge cases: any K; for K >= 3 the result depends on the order of the objectives. Opposite gradients of one length
    give 1.5 (a + b) = 0; a node that has cancelled to rounding counts as zero.

    Source: Maleki et al., "Scaling distributed training with adaptive summation", 2020, eq. 2 and sec. 3.
    """

    no_preference: ClassVar[str] = "its tree knows sums of pairs alone"
    info: ClassVar[MethodInfo] = MethodInfo(
        "adasum", UNCHANGED, ("permutation equivariant for K <= 2",), "Maleki et al. 2020"
    )

    def _adds_up(self) -> bool:
        return True

    def _options(self) -> Options:
        return Options("adasum")
