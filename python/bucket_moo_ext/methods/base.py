"""What all methods share: their description and the checks of their parameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bucket_moo_ext import _C
from bucket_moo_ext.plain import integer as plain_integer
from bucket_moo_ext.plain import is_finite, text


@dataclass(frozen=True)
class MethodInfo:
    """What a method promises.

    Attributes:
        name: The name that ``method=`` takes.
        scale: What happens to the weights when all gradients are multiplied by t > 0.
        guarantees: What holds for the update of one bucket.
        source: The paper.
        certificate: What the number that comes with the weights bounds, relative; 0 up to rounding at a solution.
        stateful: Whether the weights of a step depend on the steps before it.
    """

    name: str
    scale: str
    guarantees: tuple[str, ...]
    source: str
    certificate: str = "0: nothing is solved"
    stateful: bool = False


class Options(NamedTuple):
    """A method as native code takes it; ``visit_options()`` in its C++ file says what it has.

    Attributes:
        name: As in ``MethodInfo``.
        numbers: All parameters that are numbers, in their order.
        mode: The parameter that is a word.
        preference: One number an objective, or nothing.
        permutation: K rows of K, one after the other, or nothing.
    """

    name: str
    numbers: tuple[float, ...] = ()
    mode: str = ""
    preference: tuple[float, ...] = ()
    permutation: tuple[int, ...] = ()


class NativeMethod:
    """What native code is told of a method."""

    def _options(self) -> Options:
        raise NotImplementedError

    def _native(self) -> _C.Method:
        return _C.Method(*self._options())


NON_CONFLICTING = "non-conflicting"
PARETO_STATIONARY = "Pareto-stationary fixed points"
EQUIVARIANT = "permutation equivariant"
UNCHANGED = "unchanged"


def fail(method: object, name: str, value: object, allowed: str) -> ValueError:
    """The error for a parameter with a wrong value."""
    return ValueError(f"{type(method).__name__}({name}={value!r}): {name} must be {allowed}")


def number(method: object, name: str, allowed: str, ok: bool) -> None:
    """Makes the parameter a float, if it is a finite number and `ok`."""
    value = getattr(method, name)
    if not ok:
        raise fail(method, name, value, allowed)
    object.__setattr__(method, name, float(value))


def integer(method: object, name: str, least: int) -> None:
    """Makes the parameter an int, if it is one from `least` up to what fits in 32 bits."""
    value = getattr(method, name)
    plain = plain_integer(value)
    if plain is None or not least <= plain < 2**31:
        raise fail(method, name, value, f"an integer >= {least} and < 2**31")
    object.__setattr__(method, name, plain)


def choice(method: object, name: str, allowed: tuple[str, ...]) -> None:
    """Makes the parameter a plain string, if it is one of some."""
    value = getattr(method, name)
    if not isinstance(value, str) or value not in allowed:
        raise fail(method, name, value, " or ".join(repr(word) for word in allowed))
    object.__setattr__(method, name, text(value))


def shares(method: object, name: str) -> None:
    """Makes the parameter None or a tuple of floats >= 0 with a positive, finite sum."""
    value = getattr(method, name)
    if value is None:
        return
    allowed = "numbers >= 0, not all zero, of a finite sum, one an objective"
    try:
        given = tuple(value)
    except TypeError:
        raise fail(method, name, value, allowed) from None
    if not all(is_finite(share) and share >= 0 for share in given):
        raise fail(method, name, given, allowed)
    floats = tuple(float(share) for share in given)
    if not 0 < sum(floats) < math.inf:
        raise fail(method, name, given, allowed)
    object.__setattr__(method, name, floats)


def permutation(method: object) -> None:
    """Makes the parameter `permutation` None or K tuples, each a permutation of 0..K-1."""
    value = getattr(method, "permutation", None)
    if value is None:
        return
    allowed = "K rows, each a permutation of 0..K-1"
    try:
        rows = tuple(tuple(plain_integer(j) for j in row) for row in value)
    except TypeError:
        raise fail(method, "permutation", value, allowed) from None
    if not rows or any(set(row) != set(range(len(rows))) or len(row) != len(rows) for row in rows):
        raise fail(method, "permutation", value, allowed)
    object.__setattr__(method, "permutation", rows)


def flat(rows: "Permutation") -> tuple[int, ...]:
    """The rows of a permutation one after the other; nothing for None."""
    return () if rows is None else tuple(j for row in rows for j in row)


Shares = Sequence[float] | None
Permutation = Sequence[Sequence[int]] | None
