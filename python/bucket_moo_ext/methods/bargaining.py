"""Equilibria between the objectives: NashMTL, FairGrad."""

import math
from dataclasses import dataclass
from typing import ClassVar

from bucket_moo_ext.methods.base import (
    EQUIVARIANT,
    NON_CONFLICTING,
    PARETO_STATIONARY,
    MethodInfo,
    NativeMethod,
    Options,
    number,
)
from bucket_moo_ext.plain import is_finite


@dataclass(frozen=True)
class NashMTL(NativeMethod):
    """Nash-MTL: the bargaining solution, in which every objective's relative gain is traded off equally.

    ``(Gw)_k = 1 / w_k``, then w is shortened so that ``|d| <= max_norm``. Stateless: unlike the authors' code, which
    re-solves every few steps from the last answer, w depends on G alone.

    Guarantees: conflicts with no objective. Before the clip ``|d| = sqrt(K)`` whatever the gradients: d is a direction,
    and the learning rate or ``max_norm`` sets its length.

    Scale: g -> t g gives w / t and the same d. Not for loss-scaled gradients (AMP): unscaling would shorten d.

    Edge cases: K = 1 gives ``1/|g|`` before the clip. With 0 in the convex hull of the gradients, to rounding, there is
    no solution: w is MGDA's, ``|d| <= max_norm`` too (status "fallback").

    Args:
        max_norm: Longest update, > 0; math.inf: no bound.

    Raises:
        ValueError: max_norm is not positive.

    Source: Navon et al., "Multi-task learning as a bargaining game", ICML 2022; solved by Newton's method on the
    strictly convex w'Gw / 2 - sum log w.
    """

    max_norm: float = 1.0
    no_preference: ClassVar[str] = "not supported yet"
    info: ClassVar[MethodInfo] = MethodInfo(
        "nashmtl",
        "w / t (the same update)",
        (NON_CONFLICTING, PARETO_STATIONARY, EQUIVARIANT),
        "Navon et al., ICML 2022",
        "max_k |w_k (Gw)_k - 1|, before the clip",
    )

    def __post_init__(self) -> None:
        unbounded = isinstance(self.max_norm, float) and self.max_norm == math.inf
        number(self, "max_norm", "a number > 0", unbounded or (is_finite(self.max_norm) and self.max_norm > 0))

    def _adds_up(self) -> bool:
        return True

    def _options(self) -> Options:
        return Options("nashmtl", (0.0 if self.max_norm == math.inf else self.max_norm,))


@dataclass(frozen=True)
class FairGrad(NativeMethod):
    """Alpha-fair allocation of progress between the objectives.

    (Gw)_k = w_k^(-1/alpha): alpha -> 0 is the sum of the gradients, 1 the bargaining solution of ``NashMTL`` without
    its clip, alpha -> infinity max-min fairness.

    Guarantees: conflicts with no objective.

    Scale: g -> t g gives w t^(-2 alpha/(1+alpha)) and d t^((1-alpha)/(1+alpha)). Not for loss-scaled
    gradients (AMP).

    Edge cases: with 0 in the convex hull of the gradients, to rounding, there is no solution: w is MGDA's (status
    "fallback").

    Args:
        alpha: Fairness, finite and > 0.

    Raises:
        ValueError: alpha is not positive and finite.

    Source: Ban & Ji, "Fair resource allocation in multi-task learning", ICML 2024, eq. 5.
    """

    alpha: float = 1.0
    no_preference: ClassVar[str] = "not supported yet"
    info: ClassVar[MethodInfo] = MethodInfo(
        "fairgrad",
        "w t^(-2 alpha/(1+alpha))",
        (NON_CONFLICTING, PARETO_STATIONARY, EQUIVARIANT),
        "Ban & Ji, ICML 2024",
        "max_k |(Gw)_k w_k^(1/alpha) - 1|",
    )

    def __post_init__(self) -> None:
        number(self, "alpha", "a finite number > 0", is_finite(self.alpha) and self.alpha > 0)

    def _adds_up(self) -> bool:
        return True

    def _options(self) -> Options:
        return Options("fairgrad", (self.alpha,))
