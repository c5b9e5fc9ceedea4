"""Which device stands for which objective, in every pass."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bucket_moo_ext.jax.functional import MAX_OBJECTIVES
from bucket_moo_ext.methods import Method
from bucket_moo_ext.methods.base import Options
from bucket_moo_ext.plain import integer, text


class Objectives(NamedTuple):
    """Objectives in the order in which they first come.

    Attributes:
        names: [K].
        numbers: [P W] the objective of each row, passes outermost.
    """

    names: tuple[str, ...]
    numbers: np.ndarray[Any, Any]

    @property
    def k(self) -> int:
        """How many there are."""
        return len(self.names)

    def in_order(self, method: Method) -> Options:
        """The method's options, with a preference by name in the order of these objectives."""
        options = method._options()
        named = dict(zip(method._objectives(), options.preference, strict=False))
        if not named:
            return options
        if set(named) != set(self.names):
            raise ValueError(
                f"method={method!r} names the objectives {', '.join(sorted(named))}; those of this call are "
                f"{', '.join(self.names)}"
            )
        return options._replace(preference=tuple(named[name] for name in self.names))


def read_objectives(given: Sequence[Any] | None, world: int, passes: object) -> Objectives:
    """Of W devices and P passes; None: one a device.

    Raises TypeError or ValueError for what is no such thing.
    """
    rows = integer(passes)
    if rows is None:
        raise TypeError(f"passes must be an integer >= 1 or None; got {type(passes).__name__} {passes!r}")
    if rows < 1:
        raise ValueError(f"passes must be an integer >= 1 or None; got {passes!r}")
    wanted = f"objectives must be {world} names, one a device"
    if given is None:
        devices: list[tuple[str, ...]] = [(str(device),) * rows for device in range(world)]
    else:
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
            raise TypeError(f"{wanted}; got {type(given).__name__} {given!r}")
        if len(given) != world:
            raise ValueError(f"{wanted}; got {len(given)}")
        devices = [_names_of(entry, rows, wanted) for entry in given]
    by_row = [devices[device][row] for row in range(rows) for device in range(world)]
    names = tuple(dict.fromkeys(by_row))
    if len(names) > MAX_OBJECTIVES:
        raise ValueError(
            f"bucket_moo_ext: at most {MAX_OBJECTIVES} objectives are supported, got {len(names)}; let several devices "
            "share an objective (objectives=...)"
        )
    return Objectives(names, np.array([names.index(name) for name in by_row], np.int64))


def _names_of(entry: Any, rows: int, wanted: str) -> tuple[str, ...]:
    """Of one device's passes."""
    if isinstance(entry, Sequence) and not isinstance(entry, str | bytes):
        if len(entry) != rows:
            raise ValueError(f"{wanted}, or for each one a name a pass ({rows}); got {len(entry)}: {entry!r}")
        return tuple(_name(name, wanted) for name in entry)
    return (_name(entry, wanted),) * rows


def _name(value: Any, wanted: str) -> str:
    if isinstance(value, str):
        return text(value)
    plain = integer(value)
    if plain is None:
        raise TypeError(f"{wanted}: strings or integers; got {type(value).__name__} {value!r}")
    return str(plain)
