"""Plain values for arguments that are given as something like one: NumPy's numbers, enumerations, tensors of one."""

import math
import numbers
import operator
from typing import Any


def text(value: str) -> str:
    """The characters of ``value``: the plain string that it equals.

    ``str()`` of an enumeration's member that is a string gives its name instead.
    """
    return str.__str__(value)


def integer(value: Any) -> int | None:
    """``value`` as an int if it is an integer (Python's, NumPy's, a tensor's or array's single one); else None.

    A bool is none, whoever's it is.
    """
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return int(operator.index(value))
    except (TypeError, RuntimeError):  # no integer; a tensor that has no elements to read
        return None


def number(value: Any) -> float | None:
    """``value`` as a float if it is a real number (Python's, NumPy's, a tensor's or array's single one); else None.

    One that is too large for a float is infinite.
    """
    is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    if isinstance(value, str | bytes) or is_complex or not hasattr(value, "__float__"):
        return None
    if getattr(value, "ndim", 0) > 0:  # NumPy's and torch's arrays of one element
        return number(value.reshape(())) if math.prod(value.shape) == 1 else None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, RuntimeError):  # a tensor of complex numbers, or one that has no elements to read
        return None
