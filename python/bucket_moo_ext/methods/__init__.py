"""The methods: how weights come out of a Gramian.

What ``__all__`` names is part of the package's public names.
"""

from dataclasses import fields
from typing import TypeAlias, get_args

from bucket_moo_ext.methods.angles import IMTLG, AlignedMTL, ConFIG
from bucket_moo_ext.methods.averages import Adasum, Krum, Mean, NormalizedMean
from bucket_moo_ext.methods.bargaining import FairGrad, NashMTL
from bucket_moo_ext.methods.base import MethodInfo
from bucket_moo_ext.methods.cone import DualProj, UPGrad
from bucket_moo_ext.methods.hull import MGDA, CAGrad
from bucket_moo_ext.methods.rescaled import Rescaled
from bucket_moo_ext.methods.smoothed import Smoothed
from bucket_moo_ext.methods.surgery import GradVac, PCGrad

PlainMethod: TypeAlias = (
    Mean
    | MGDA
    | CAGrad
    | PCGrad
    | UPGrad
    | DualProj
    | IMTLG
    | AlignedMTL
    | NashMTL
    | FairGrad
    | ConFIG
    | GradVac
    | Krum
    | Adasum
    | NormalizedMean
)
Method: TypeAlias = PlainMethod | Smoothed | Rescaled

METHODS: tuple[type[PlainMethod], ...] = get_args(PlainMethod)
"""The table of methods, in the order of the native list. Names, errors, tests and the check of the docs go by it."""

_DEFAULTS: dict[str, PlainMethod] = {cls.info.name: cls() for cls in METHODS}


def available_methods() -> dict[str, MethodInfo]:
    """The methods that ``method=`` takes by name, with what each promises.

    A name is that of the class in small letters; case, hyphens and underscores do not matter. ``Smoothed`` and
    ``Rescaled`` wrap any of them.
    """
    return {cls.info.name: cls.info for cls in METHODS}


def resolve(method: "str | Method") -> Method:
    """The method object for a name or a method object.

    Raises:
        ValueError: No method has that name.
        TypeError: Neither a name nor a method object.
    """
    if isinstance(method, str):
        found = _DEFAULTS.get(method.lower().replace("-", "").replace("_", ""))
        if found is not None:
            return found
        raise ValueError(f"method={method!r} is unknown; available: {', '.join(available_methods())}")
    if isinstance(method, (*METHODS, Smoothed, Rescaled)):
        return method
    raise TypeError(
        "method must be a name or an object of one of the method classes "
        f"({', '.join(cls.__name__ for cls in METHODS)}, Smoothed, Rescaled), such as moo.MGDA(); got {method!r}"
    )


def describe(method: Method) -> str:
    """A method with all its parameters on one line; equal for equal methods on every rank."""
    parameters = ", ".join(f"{field.name}={getattr(method, field.name)!r}" for field in fields(method))
    return f"{type(method).__name__}({parameters})"


__all__ = [
    "IMTLG",
    "MGDA",
    "Adasum",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "FairGrad",
    "GradVac",
    "Krum",
    "Mean",
    "Method",
    "MethodInfo",
    "NashMTL",
    "NormalizedMean",
    "PCGrad",
    "Rescaled",
    "Smoothed",
    "UPGrad",
    "available_methods",
]
