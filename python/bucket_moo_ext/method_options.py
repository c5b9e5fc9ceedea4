"""Options of a method that are given to what takes the method."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar, get_args

from bucket_moo_ext.methods import PlainMethod, resolve

P = ParamSpec("P")
R = TypeVar("R")


def _owners(options: Mapping[str, object]) -> list[type[PlainMethod]]:
    """The methods that have all these options."""
    return [cls for cls in get_args(PlainMethod) if options.keys() <= {field.name for field in fields(cls)}]


def _explain(function: str, method: object, options: Mapping[str, object], allowed: list[str]) -> str:
    names = ", ".join(map(repr, options))
    owners = _owners(options)
    if not owners:
        return f"{function}() has no argument {names}; allowed: {', '.join(allowed)}"
    try:
        given = type(resolve(method))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        given = None
    values = ", ".join(f"{name}={value!r}" for name, value in options.items())
    calls = [f"moo.{cls.__name__}({values})" for cls in ([given] if given in owners else owners)]
    return f"{function}() has no argument {names}, which is an option of the method: give method={' or '.join(calls)}"


def refuse_method_options(function: Callable[P, R]) -> Callable[P, R]:
    """Makes ``function``, which has a parameter ``method``, say where an option of a method belongs."""
    parameters = list(inspect.signature(function).parameters)
    place = parameters.index("method")
    known = frozenset(parameters)
    name = "BucketMOO" if function.__name__ == "__init__" else function.__name__

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for argument in kwargs:
            if argument not in known:
                method: Any = kwargs.get("method", args[place] if len(args) > place else None)
                strange = {key: value for key, value in kwargs.items() if key not in known}
                allowed = [parameter for parameter in parameters if parameter != "self"]
                raise TypeError(_explain(name, method, strange, allowed))
        return function(*args, **kwargs)

    return checked
