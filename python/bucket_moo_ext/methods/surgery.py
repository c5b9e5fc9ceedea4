"""Methods that change pairs of gradients in random order: PCGrad, GradVac."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bucket_moo_ext.methods.base import (
    UNCHANGED,
    MethodInfo,
    NativeMethod,
    Options,
    Permutation,
    choice,
    flat,
    number,
    permutation,
)
from bucket_moo_ext.plain import is_finite


@dataclass(frozen=True)
class PCGrad(NativeMethod):
    """Every gradient loses its component against each conflicting one, in random order; then their mean.

    The order is drawn from (seed, step, bucket, objective), the same on every rank. With three objectives or more the
    update may still conflict with some.

    Args:
        reduction: "mean" or "sum" of the projected gradients.
        permutation: K rows of K; row i is the order in which objective i meets the others. None: random.

    Raises:
        ValueError: Another reduction, or rows that are not permutations of 0, ..., K-1.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """

    reduction: Literal["mean", "sum"] = "mean"
    permutation: Permutation = None
    no_preference: ClassVar[str] = "it compares directions alone, so that multiplying an objective's loss is one"
    info: ClassVar[MethodInfo] = MethodInfo(
        "pcgrad",
        UNCHANGED,
        ("non-conflicting for K <= 2", "permutation equivariant with the permutation"),
        "Yu et al., NeurIPS 2020",
    )

    def __post_init__(self) -> None:
        choice(self, "reduction", ("mean", "sum"))
        permutation(self)

    def _adds_up(self) -> bool:
        return self.reduction == "sum"

    def _options(self) -> Options:
        return Options("pcgrad", mode=self.reduction, permutation=flat(self.permutation))


@dataclass(frozen=True)
class GradVac(NativeMethod):
    """PCGrad towards a moving target: pairs of gradients are brought to the cosine they usually have.

    ``c_i`` starts as ``e_i``; for every other j, in random order, with rho the cosine of ``sum_l c_il g_l`` and ``g_j``
    and ``phi_ij`` the target: where ``rho < phi``, ``c_ij`` grows by
    ``|c_i| (phi sqrt(1-rho^2) - rho sqrt(1-phi^2)) / (|g_j| sqrt(1-phi^2))``, which makes the cosine phi; then
    ``phi_ij <- (1-beta) phi_ij + beta rho``. w is the mean of the ``c_i``.

    Stateful: every bucket keeps its targets phi from step to step, by objective names (see ``BucketMOO.state_dict``).
    Fresh targets are 0, and a first step is PCGrad's.

    Guarantees: none against conflict. The order is drawn from (seed, step, bucket, objective), the same on every rank.

    Edge cases: beta = 0 keeps the targets at 0: PCGrad. K = 1 gives 1. Targets of an objective that is inactive or
    absent in a step stay as they are, and so do all where a gradient has a NaN or an Inf.

    Args:
        beta: Share of this step's cosine in its moving average, 0 to 1.
        permutation: As for ``PCGrad``.

    Raises:
        ValueError: beta outside [0, 1], or rows that are not permutations of 0, ..., K-1.

    Source: Wang, Tsvetkov, Firat, Cao, "Gradient vaccine", ICLR 2021, algorithm 1.
    """

    beta: float = 0.5
    permutation: Permutation = None
    no_preference: ClassVar[str] = "it compares directions alone, so that multiplying an objective's loss is one"
    info: ClassVar[MethodInfo] = MethodInfo(
        "gradvac",
        UNCHANGED,
        ("permutation equivariant with the permutation",),
        "Wang et al., ICLR 2021",
        stateful=True,
    )

    def __post_init__(self) -> None:
        number(self, "beta", "a number from 0 to 1", is_finite(self.beta) and 0 <= self.beta <= 1)
        permutation(self)

    def _options(self) -> Options:
        return Options("gradvac", (self.beta,), permutation=flat(self.permutation))
