"""Plain values for arguments that are given as something like one: NumPy's numbers, enumerations."""

import operator


def text(value: str) -> str:
    """The characters of ``value``: the plain string that it equals.

    ``str()`` of an enumeration's member that is a string gives its name instead.
    """
    return str.__str__(value)


def integer(value: object) -> int | None:
    """``value`` as an int if it is an integer (Python's, NumPy's, a tensor's or array's single one); else None.

    A bool is none, whoever's it is.
    """
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        return None
