"""The methods: how weights come out of a Gramian."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeAlias

from bucket_moo_ext import _C


@dataclass(frozen=True)
class MethodInfo:
    """What a method promises.

    Attributes:
        name: The name that ``method=`` takes.
        scale: What happens to the weights when all gradients are multiplied by t > 0.
        guarantees: What holds for the update of one bucket.
        source: The paper.
    """

    name: str
    scale: str
    guarantees: tuple[str, ...]
    source: str


def _check_number(method: str, name: str, value: float, allowed: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"{method}({name}={value!r}): {name} must be {allowed}")


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Mean:
    """The mean of the objectives' gradients: what DDP computes.

    Counts every objective, active or not, so that with one rank an objective it is DDP's result.

    Args:
        weights: One weight >= 0 an objective, in the order of the objectives, not all zero; made to sum to 1. None: all
            equal.

    Raises:
        ValueError: A weight is negative or not finite, or all are zero.
    """

    weights: Sequence[float] | None = None
    info: ClassVar[MethodInfo] = MethodInfo("mean", "unchanged", ("permutation equivariant",), "plain data parallelism")

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        weights = tuple(self.weights)
        ok = all(_is_finite_number(w) and w >= 0 for w in weights) and sum(weights) > 0
        allowed = "numbers >= 0, not all zero"
        _check_number("Mean", "weights", weights, allowed, ok)  # type: ignore[arg-type]
        object.__setattr__(self, "weights", tuple(float(w) for w in weights))

    def _native(self) -> _C.Method:
        return _C.Method.mean(self.weights or ())


@dataclass(frozen=True)
class MGDA:
    """The shortest vector in the convex hull of the gradients: argmin over the simplex of w'Gw.

    Its update conflicts with no objective, lowers each at the rate ||d||^2 or faster, and is zero exactly at the
    Pareto-stationary points.

    Args:
        normalize: "none", or "l2" to divide every gradient by its norm first.

    Source: Desideri, "Multiple-gradient descent algorithm", C. R. Math. 2012; Sener & Koltun, NeurIPS 2018, eq. 3;
    solved exactly by an active-set method (Wolfe, Math. Programming 1976).
    """

    normalize: Literal["none", "l2"] = "none"
    info: ClassVar[MethodInfo] = MethodInfo(
        "mgda",
        "unchanged",
        ("non-conflicting", "Pareto-stationary fixed points", "permutation equivariant"),
        "Desideri 2012; Sener & Koltun, NeurIPS 2018",
    )

    def __post_init__(self) -> None:
        if self.normalize not in ("none", "l2"):
            raise ValueError(f"MGDA(normalize={self.normalize!r}): normalize must be 'none' or 'l2'")

    def _native(self) -> _C.Method:
        return _C.Method.mgda(self.normalize == "l2")


@dataclass(frozen=True)
class CAGrad:
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
    info: ClassVar[MethodInfo] = MethodInfo(
        "cagrad",
        "unchanged",
        ("non-conflicting for c >= 1", "permutation equivariant"),
        "Liu et al., NeurIPS 2021",
    )

    def __post_init__(self) -> None:
        ok = _is_finite_number(self.c) and self.c >= 0
        _check_number("CAGrad", "c", self.c, "a finite number >= 0", ok)
        if not isinstance(self.rescale, bool):
            raise ValueError(f"CAGrad(rescale={self.rescale!r}): rescale must be True or False")

    def _native(self) -> _C.Method:
        return _C.Method.cagrad(float(self.c), self.rescale)


@dataclass(frozen=True)
class PCGrad:
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
    permutation: Sequence[Sequence[int]] | None = None
    info: ClassVar[MethodInfo] = MethodInfo(
        "pcgrad",
        "unchanged",
        ("non-conflicting for K <= 2", "permutation equivariant with the permutation"),
        "Yu et al., NeurIPS 2020",
    )

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"PCGrad(reduction={self.reduction!r}): reduction must be 'mean' or 'sum'")
        if self.permutation is None:
            return
        rows = tuple(tuple(int(j) for j in row) for row in self.permutation)
        if not rows or any(sorted(row) != list(range(len(rows))) for row in rows):
            raise ValueError(
                f"PCGrad(permutation={self.permutation!r}): permutation must be K rows, each a permutation of 0..K-1"
            )
        object.__setattr__(self, "permutation", rows)

    def _native(self) -> _C.Method:
        rows = self.permutation or ()
        return _C.Method.pcgrad(self.reduction == "sum", [j for row in rows for j in row], len(rows))


Method: TypeAlias = Mean | MGDA | CAGrad | PCGrad

_METHODS: tuple[type[Mean] | type[MGDA] | type[CAGrad] | type[PCGrad], ...] = (
    Mean,
    MGDA,
    CAGrad,
    PCGrad,
)


def available_methods() -> dict[str, MethodInfo]:
    """The methods that ``method=`` takes by name, with what each promises."""
    return {cls.info.name: cls.info for cls in _METHODS}


def resolve(method: "str | Method") -> Method:
    """The method object for a name or a method object.

    Raises:
        ValueError: No method has that name.
        TypeError: Neither a name nor a method object.
    """
    if isinstance(method, str):
        for cls in _METHODS:
            if cls.info.name == method.lower():
                return cls()
        raise ValueError(f"method={method!r} is unknown; available: {', '.join(available_methods())}")
    if isinstance(method, _METHODS):
        return method
    raise TypeError(
        "method must be a name or one of the method classes "
        f"({', '.join(cls.__name__ for cls in _METHODS)}); got {method!r}"
    )


def describe(method: Method) -> str:
    """A method with all its parameters on one line; equal for equal methods on every rank."""
    parameters = ", ".join(f"{field.name}={getattr(method, field.name)!r}" for field in fields(method))
    return f"{type(method).__name__}({parameters})"
