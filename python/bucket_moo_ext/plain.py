"""Plain values for arguments that are given as something like one: NumPy's numbers, enumerations, tensors of one.

All checks of integers and numbers start here.
"""

import math
import numbers
import operator
from typing import Any, TypeGuard


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


def integer_within(name: str, value: object, least: int, most: int) -> int:
    """``value`` as an int from ``least`` to ``most``.

    Raises:
        TypeError: It is no integer.
        ValueError: It is another one.
    """
    plain = integer(value)
    if plain is None:
        raise TypeError(f"{name} must be an integer; got {type(value).__name__} {value!r}")
    if not least <= plain <= most:
        raise ValueError(f"{name} must be from {least} to {most}; got {value!r}")
    return plain


def word(name: str, value: object) -> int:
    """``value`` as an unsigned 64-bit integer: a part of the key of random choices.

    Raises:
        ValueError: It is none.
    """
    # An int is taken as it is: torch.compile traces one that changes from call to call as a symbol.
    plain = value if isinstance(value, int) and not isinstance(value, bool) else integer(value)
    if plain is None or not 0 <= plain < 2**64:
        raise ValueError(f"{name} must be an integer from 0 to 2**64 - 1; got {value!r}")
    return plain


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


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a finite real number, Python's or NumPy's, and no bool."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond all floats
        return False


def flag(name: str, value: object) -> bool:
    """``value``, which must be a bool.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {type(value).__name__} {value!r}")
    return value


def choice(name: str, value: object, allowed: tuple[str, ...], otherwise: str = "") -> str:
    """``value`` as one of the ``allowed`` strings. ``otherwise``: what else the argument may be, for the message.

    Raises:
        TypeError: It is no string.
        ValueError: It is another one.
    """
    expected = f"{name} must be {' or '.join([*map(repr, allowed), *filter(None, [otherwise])])}"
    if not isinstance(value, str):
        raise TypeError(f"{expected}; got {type(value).__name__} {value!r}")
    plain = text(value)
    if plain not in allowed:
        raise ValueError(f"{expected}; got {value!r}")
    return plain
