"""What all methods share: their description and the checks of their parameters."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

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


_Self = TypeVar("_Self", bound="NativeMethod")


class NamedShares(Mapping[str, float]):
    """Shares by objective name, in the order of the names; equal ones look alike on every rank."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        """`shares`: checked."""
        self._shares = dict(sorted(shares.items()))

    def __getitem__(self, name: str) -> float:
        """Of one objective."""
        return self._shares[name]

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._shares)

    def __len__(self) -> int:
        """Objectives."""
        return len(self._shares)

    def __hash__(self) -> int:
        """Of what ``==`` compares."""
        return hash(tuple(self._shares.items()))

    def __repr__(self) -> str:
        """As a dict."""
        return repr(self._shares)


class NativeMethod:
    """What native code is told of a method."""

    no_preference: ClassVar[str] = ""
    """Why the method takes none, if so."""

    def __new__(cls: type[_Self], *args: object, **kwargs: object) -> _Self:
        """Raises TypeError for a preference where there is no place for one."""
        if "preference" in kwargs and cls.no_preference:
            raise TypeError(f"{cls.__name__} takes no preference: {cls.no_preference}")
        return super().__new__(cls)

    def _options(self) -> Options:
        raise NotImplementedError

    def _length(self) -> float:
        """Of the update, as native code takes it: -1 that of the mean, a number > 0 that, 0 as the method has it."""
        return 0.0

    def _adds_up(self) -> bool:
        """Whether its update is on a scale of its own (a sum's, or a length that is given).

        Else it is on that of the mean over the active objectives.
        """
        return False

    def _objectives(self) -> tuple[str, ...]:
        """The names of the objectives that the preference is for; none where it goes by their order."""
        return next((tuple(value) for value in vars(self).values() if isinstance(value, NamedShares)), ())

    def _native(self) -> _C.Method:
        return _C.Method(*self._options(), self._objectives())


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
    """Makes the parameter None, or floats >= 0 with a positive, finite sum: a tuple, or ``NamedShares``."""
    value = getattr(method, name)
    if value is None:
        return
    allowed = "numbers >= 0, not all zero, of a finite sum, one an objective: by order, or by name in a mapping"
    names: list[str] | None = None
    try:
        if isinstance(value, Mapping):
            names = [_objective_name(key) for key in value]
        given = tuple(value if names is None else value.values())
    except TypeError:
        raise fail(method, name, value, allowed) from None
    if names is not None and len(set(names)) != len(names):
        raise fail(method, name, value, f"{allowed}; it names an objective twice")
    if not all(is_finite(share) and share >= 0 for share in given):
        raise fail(method, name, given, allowed)
    floats = tuple(float(share) for share in given)
    if not 0 < sum(floats) < math.inf:
        raise fail(method, name, given, allowed)
    object.__setattr__(method, name, floats if names is None else NamedShares(dict(zip(names, floats, strict=True))))


def _objective_name(key: object) -> str:
    """As ranks exchange it: an int is its decimal text."""
    plain = text(key) if isinstance(key, str) else plain_integer(key)
    if plain is None:
        raise TypeError
    return str(plain)


def values(given: "Shares") -> tuple[float, ...]:
    """Checked shares without their names; nothing for None."""
    return tuple(given.values() if isinstance(given, Mapping) else given or ())


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


Shares = Sequence[float] | Mapping[str, float] | Mapping[int, float] | None
Permutation = Sequence[Sequence[int]] | None
