"""Methods that even out angles and lengths: IMTLG, AlignedMTL, ConFIG."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bucket_moo_ext.methods.base import (
    EQUIVARIANT,
    UNCHANGED,
    MethodInfo,
    NativeMethod,
    Options,
    Shares,
    choice,
    shares,
    values,
)


@dataclass(frozen=True)
class IMTLG(NativeMethod):
    """IMTL-G: the update whose projections onto all gradients are equally long.

    ``w = v / sum(v), v = D^-1 C^+ 1``, with D the gradients' norms and C their cosines.

    Guarantees: equal cosines ``<g_k, d> / (|g_k| |d|)``. Not a guarantee against conflict: where sum(v) < 0 all of them
    are negative alike.

    Edge cases: where ``|sum(v)| <= 1e-6 sum|v|`` the weights are equal; where no combination has equal projections, as
    between opposite gradients, w is the nearest in least squares. Both have status "fallback". K = 1 gives 1. Weights
    may be negative.

    Source: Liu et al., "Towards impartial multi-task learning", ICLR 2021, sec. 3.1.
    """

    no_preference: ClassVar[str] = "it makes all projections equally long by definition; ConFIG is its like with one"
    info: ClassVar[MethodInfo] = MethodInfo(
        "imtlg",
        UNCHANGED,
        ("equal projections", EQUIVARIANT),
        "Liu et al., ICLR 2021",
        "largest difference between the cosines with the update",
    )

    def _options(self) -> Options:
        return Options("imtlg")


@dataclass(frozen=True)
class AlignedMTL(NativeMethod):
    """The gradients are made orthogonal and equally long, as near to what they were as that allows, then added.

    w = sqrt(scale) G^(+1/2) p, with p the preference and scale the smallest, median or mean eigenvalue of G of those
    above K 2^-23 of the largest (a smaller one is rounding noise of float32 gradients).

    Guarantees: the aligned gradients all have norm sqrt(scale) in the span that is kept. May conflict.

    Edge cases: K = 1 gives 1; orthogonal gradients of one length give p. Weights may be negative. With "min" the
    update is short where the gradients are nearly dependent.

    Args:
        preference: As for ``UPGrad``.
        scale_mode: "min", "median" or "mean" of the eigenvalues; median: the lower one of two in the middle.

    Raises:
        ValueError: A bad preference or another ``scale_mode``.

    Source: Senushkin, Patakin, Kuznetsov, Konushin, "Independent component alignment for multi-task learning", CVPR
    2023, algorithm 1.
    """

    preference: Shares = None
    scale_mode: Literal["min", "median", "mean"] = "min"
    info: ClassVar[MethodInfo] = MethodInfo(
        "alignedmtl",
        UNCHANGED,
        (EQUIVARIANT,),
        "Senushkin et al., CVPR 2023",
        "how far the aligned gradients' norms are from sqrt(scale), as seen from the preference",
    )

    def __post_init__(self) -> None:
        shares(self, "preference")
        choice(self, "scale_mode", ("min", "median", "mean"))

    def _options(self) -> Options:
        return Options("alignedmtl", mode=self.scale_mode, preference=values(self.preference))


@dataclass(frozen=True)
class ConFIG(NativeMethod):
    """The update that has the same cosine with every gradient, as long as the gradients agree with it.

    w = (n'Cv / v'Cv) D^-1 v, v = C^+ p, with n (on the diagonal of D) the gradients' norms, C their cosines and p the
    preference: the projection of the *sum* of the gradients onto the direction whose cosines with them are in
    proportion to p. So it is about K times as long as a mean.

    Guarantees: conflicts with no objective, but where the status is "fallback".

    Edge cases: where no direction has these cosines (0 in the hull of the unit gradients, say) w is the formula's,
    the nearest in least squares, which may conflict (status "fallback"); 0 where that vanishes. K = 1 gives 1.

    Args:
        preference: As for ``UPGrad``.

    Raises:
        ValueError: A weight is negative or not finite, or all are zero.

    Source: Liu, Chu, Thuerey, "ConFIG: towards conflict-free training of physics informed neural networks", ICLR 2025,
    eq. 2-4.
    """

    preference: Shares = None
    info: ClassVar[MethodInfo] = MethodInfo(
        "config",
        UNCHANGED,
        ("non-conflicting unless the status is fallback", "equal cosines", EQUIVARIANT),
        "Liu, Chu, Thuerey, ICLR 2025",
        "largest error of a cosine with the update",
    )

    def __post_init__(self) -> None:
        shares(self, "preference")

    def _adds_up(self) -> bool:
        return True

    def _options(self) -> Options:
        return Options("config", preference=values(self.preference))
