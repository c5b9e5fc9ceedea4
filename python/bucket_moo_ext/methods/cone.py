"""Methods that project onto the cone of updates without conflict: UPGrad, DualProj."""

from dataclasses import dataclass
from typing import ClassVar

from bucket_moo_ext.methods.base import (
    EQUIVARIANT,
    NON_CONFLICTING,
    PARETO_STATIONARY,
    UNCHANGED,
    MethodInfo,
    NativeMethod,
    Options,
    Shares,
    shares,
    values,
)


@dataclass(frozen=True)
class UPGrad(NativeMethod):
    """Every gradient is projected onto the cone of updates that conflict with none; then their (weighted) mean.

    w = sum_i argmin {v'Gv : v >= p_i e_i}, with p the preference.

    Guarantees: conflicts with no objective; without conflicting pairs w = p; an update of zero means that the bucket is
    Pareto-stationary. An objective's own part grows in proportion to its gradient.

    Edge cases: K = 1 gives 1; K = 2 is PCGrad; identical objectives share alike. The weights sum to 1 or more: w >= p.

    Args:
        preference: One weight >= 0 an objective, not all zero: in the order of the objectives, or by name, as in
            ``{"sw": 2.0, "de": 1.0}``, for all objectives of a step and no others (on the CPU; functions of a Gramian
            know no names). Made to sum to 1 over the active ones, equal where those have none. None: all equal.

    Raises:
        ValueError: A weight is negative or not finite, or all are zero.

    Source: Quinton & Rey, "Jacobian descent for multi-objective optimization", 2024, sec. 3.2; solved exactly by
    active-set non-negative least squares.
    """

    preference: Shares = None
    info: ClassVar[MethodInfo] = MethodInfo(
        "upgrad",
        UNCHANGED,
        (NON_CONFLICTING, PARETO_STATIONARY, EQUIVARIANT),
        "Quinton & Rey 2024",
        "largest violation of feasibility or complementarity over the K programmes",
    )

    def __post_init__(self) -> None:
        shares(self, "preference")

    def _options(self) -> Options:
        return Options("upgrad", preference=values(self.preference))


@dataclass(frozen=True)
class DualProj(NativeMethod):
    """The (weighted) mean gradient, projected onto the cone of updates that conflict with no objective.

    w = argmin {v'Gv : v >= p}, with p the preference: the update without conflict that is nearest to sum_k p_k g_k.

    Guarantees: conflicts with no objective; where the mean does not either, w = p; an update of zero means that the
    bucket is Pareto-stationary.

    Edge cases: K = 1 gives 1; identical objectives share alike. The weights sum to 1 or more: w >= p.

    Args:
        preference: As for ``UPGrad``.

    Raises:
        ValueError: A weight is negative or not finite, or all are zero.

    Source: Lopez-Paz & Ranzato, "Gradient episodic memory for continual learning", NeurIPS 2017, eq. 11.
    """

    preference: Shares = None
    info: ClassVar[MethodInfo] = MethodInfo(
        "dualproj",
        UNCHANGED,
        (NON_CONFLICTING, PARETO_STATIONARY, EQUIVARIANT),
        "Lopez-Paz & Ranzato, NeurIPS 2017",
        "largest violation of feasibility or complementarity",
    )

    def __post_init__(self) -> None:
        shares(self, "preference")

    def _options(self) -> Options:
        return Options("dualproj", preference=values(self.preference))
