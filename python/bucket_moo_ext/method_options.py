"""Options that are given beside what they belong to: a method, a sketch."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

from bucket_moo_ext.gramian_source import Sketch
from bucket_moo_ext.methods import METHODS, Rescaled, Smoothed, resolve

P = ParamSpec("P")
R = TypeVar("R")
Options = Mapping[str, object]

_METHODS: tuple[type[Any], ...] = (*METHODS, Smoothed, Rescaled)


def _has(cls: type[Any], options: Options) -> bool:
    return options.keys() <= {field.name for field in fields(cls)}


def _call(cls: type[Any], options: Options) -> str:
    values = [f"{name}={value!r}" for name, value in options.items()]
    return f"moo.{cls.__name__}({', '.join([*(['method'] if cls in (Smoothed, Rescaled) else []), *values])})"


def _place(method: object, options: Options) -> str | None:
    """Where options of a method belong; None if no method has them all."""
    owners = [cls for cls in _METHODS if _has(cls, options)]
    if not owners:
        return None
    try:
        given = type(resolve(method))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        given = None
    if given in owners:
        owners = [given]
    calls = " or ".join(_call(cls, options) for cls in owners)
    others = ""
    if given is not None and given not in owners:
        reason = f": {given.no_preference}" if "preference" in options and given.no_preference else ""
        others = f" (not of {given.__name__}{reason})"
    return f"an option of the method{others}: method={calls}"


def _explain(signature: inspect.Signature, function: str, method: object, strange: Options) -> str:
    """What to say of arguments that the function does not have."""
    methods = {name: value for name, value in strange.items() if any(_has(cls, {name: value}) for cls in _METHODS)}
    hints = []
    if methods:
        together = _place(method, methods)
        hints += [together] if together else [f"{_place(method, {n: v})}" for n, v in methods.items()]
    rest = {name: value for name, value in strange.items() if name not in methods}
    if rest and "process_group" in signature.parameters and _has(Sketch, rest):
        hints.append(f"an option of the Gramian: gramian={_call(Sketch, rest)}")
    elif rest:
        hints.append(f"allowed: {', '.join(name for name in signature.parameters if name != 'self')}")
    return f"{function}() has no argument {', '.join(map(repr, strange))}; {'; '.join(hints)}"


def refuse_method_options(function: Callable[P, R]) -> Callable[P, R]:
    """Makes ``function``, which has a parameter ``method``, say where an option of a method belongs."""
    signature = inspect.signature(function)
    place = list(signature.parameters).index("method")
    known = frozenset(signature.parameters)
    name = "BucketMOO" if function.__name__ == "__init__" else function.__name__

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for argument in kwargs:
            if argument not in known:
                method = kwargs.get("method", args[place] if len(args) > place else None)
                strange = {key: value for key, value in kwargs.items() if key not in known}
                raise TypeError(_explain(signature, name, method, strange))
        return function(*args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked
