"""What the caller says of a training beside the reports: losses, step times, configuration."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from bucket_moo_ext.plain import number, text

Plain = str | int | float | bool | None
"""A value of a configuration; a sequence of these is one too."""


class Logged:
    """Means of what was logged since they were last taken."""

    def __init__(self) -> None:
        self._losses: dict[str, tuple[Any, int]] = {}  # by objective: sum and count
        self._seconds: tuple[float, int] = (0.0, 0)

    def add(self, losses: Mapping[str, float | torch.Tensor] | None, seconds: object) -> None:
        """Counts one value of each. Losses that are tensors are not read before ``take()``.

        Raises:
            TypeError, ValueError: As for ``Recorder.log``, and then nothing was counted.
        """
        plain = _checked_losses({} if losses is None else losses)
        took = None if seconds is None else _checked_seconds(seconds)
        for name, value in plain.items():
            total, count = self._losses.get(name, (0.0, 0))
            self._losses[name] = (total + value, count + 1)
        if took is not None:
            self._seconds = (self._seconds[0] + took, self._seconds[1] + 1)

    def take(self) -> tuple[dict[str, float], float]:
        """Mean loss by objective, and mean seconds (NaN: none); begins anew."""
        losses = {name: float(total) / count for name, (total, count) in self._losses.items()}
        total, count = self._seconds
        self._losses, self._seconds = {}, (0.0, 0)
        return losses, total / count if count else math.nan


def _checked_losses(losses: object) -> dict[str, Any]:
    if not isinstance(losses, Mapping):
        raise TypeError(f"losses must be a mapping from names of objectives to numbers; got {type(losses).__name__}")
    plain: dict[str, Any] = {}
    for name, value in losses.items():
        if not isinstance(name, str):
            raise TypeError(f"losses must have names of objectives; got {type(name).__name__} {name!r}")
        if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point():
            plain[text(name)] = value.detach().reshape(()).float()  # not read: that would wait for a GPU
            continue
        found = None if isinstance(value, bool) else number(value)
        if found is None:
            raise TypeError(f"losses must be real numbers; got {type(value).__name__} for {name!r}")
        plain[text(name)] = found
    return plain


def _checked_seconds(seconds: object) -> float:
    took = None if isinstance(seconds, bool) else number(seconds)
    if took is None:
        raise TypeError(f"seconds must be a number; got {type(seconds).__name__} {seconds!r}")
    if not 0 <= took < math.inf:
        raise ValueError(f"seconds must be finite and >= 0; got {seconds!r}")
    return took


def checked_configuration(configuration: object, taken: Collection[str]) -> dict[str, Any]:
    """A copy in plain values.

    Raises:
        TypeError: It is no mapping from strings to plain values.
        ValueError: A name is one of those ``taken``.
    """
    if not isinstance(configuration, Mapping):
        raise TypeError(f"configuration must be a mapping from names to values; got {type(configuration).__name__}")
    plain = {}
    for name, value in configuration.items():
        if not isinstance(name, str):
            raise TypeError(f"configuration must have strings as names; got {type(name).__name__} {name!r}")
        if text(name) in taken:
            raise ValueError(f"configuration must not have {', '.join(taken)}, which the state says; got {name!r}")
        plain[text(name)] = _plain(name, value)
    return plain


def _plain(name: str, value: object) -> Plain | list[Any]:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(name, item) for item in value]
    if isinstance(value, int):
        return int(value)
    found = number(value)
    if found is None:
        raise TypeError(
            f"configuration must have strings, numbers, bools, None or sequences of these as values; got "
            f"{type(value).__name__} for {name!r}"
        )
    return found
