"""Methods that look for the best common decrease: MGDA, CAGrad."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bucket_moo_ext.methods.base import (
    EQUIVARIANT,
    NON_CONFLICTING,
    PARETO_STATIONARY,
    UNCHANGED,
    MethodInfo,
    NativeMethod,
    Options,
    choice,
    fail,
    number,
)
from bucket_moo_ext.plain import is_finite


@dataclass(frozen=True)
class MGDA(NativeMethod):
    """The shortest vector in the convex hull of the gradients: argmin over the simplex of w'Gw.

    Its update conflicts with no objective, lowers each at the rate ||d||^2 or faster, and is zero exactly at the
    Pareto-stationary points.

    Args:
        normalize: "none", or "l2" to divide every gradient by its norm first.

    Raises:
        ValueError: Another ``normalize``.

    Source: Desideri, "Multiple-gradient descent algorithm", C. R. Math. 2012; Sener & Koltun, NeurIPS 2018, eq. 3;
    solved exactly by an active-set method (Wolfe, Math. Programming 1976).
    """

    normalize: Literal["none", "l2"] = "none"
    no_preference: ClassVar[str] = "its update lowers all objectives, whatever they are worth"
    info: ClassVar[MethodInfo] = MethodInfo(
        "mgda",
        UNCHANGED,
        (NON_CONFLICTING, PARETO_STATIONARY, EQUIVARIANT),
        "Desideri 2012; Sener & Koltun, NeurIPS 2018",
        "duality gap w'Gw - min_k (Gw)_k over the mean diagonal",
    )

    def __post_init__(self) -> None:
        choice(self, "normalize", ("none", "l2"))

    def _options(self) -> Options:
        return Options("mgda", mode=self.normalize)


@dataclass(frozen=True)
class CAGrad(NativeMethod):
    """The update that helps the worst objective most within a ball around the mean.

    Args:
        c: Radius of the ball relative to the norm of the mean, >= 0. 0 is the mean; from 1 on no objective conflicts.
        rescale: Divide the update by 1 + c, so that agreeing gradients give the mean.

    Raises:
        ValueError: c is negative or not finite.

    Source: Liu et al., "Conflict-Averse Gradient Descent", NeurIPS 2021, eq. 3 and algorithm 1.
    """

    c: float = 0.4
    rescale: bool = False
    no_preference: ClassVar[str] = "not supported yet"
    info: ClassVar[MethodInfo] = MethodInfo(
        "cagrad",
        UNCHANGED,
        ("non-conflicting for c >= 1", EQUIVARIANT),
        "Liu et al., NeurIPS 2021",
        "primal-dual gap over the squared norm of the mean",
    )

    def __post_init__(self) -> None:
        number(self, "c", "a finite number >= 0", is_finite(self.c) and self.c >= 0)
        if not isinstance(self.rescale, bool):
            raise fail(self, "rescale", self.rescale, "True or False")

    def _options(self) -> Options:
        return Options("cagrad", (self.c, float(self.rescale)))
