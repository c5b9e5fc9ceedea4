"""What `--method` takes: "ddp", or a method of bucket_moo_ext, at its own length or not, from Gramians or sketches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

PLAIN_DDP = "ddp"
"""Name of the baseline: DistributedDataParallel without any hook."""
SKETCH = "sketch"
OPTIONS = ("width", "seed", "refresh_every", "lag")
"""Settings of `bucket_moo_ext.Sketch`."""
LENGTHS = ("mean", "unit")
"""Of `bucket_moo_ext.Rescaled`."""
FORM = (
    f"NAME, NAME@{' or NAME@'.join(LENGTHS)}, or one of these and :{SKETCH} with any of "
    f"{', '.join(f'{x}=N' for x in OPTIONS)} after it, separated by commas"
)


class BadArgument(ValueError):
    """An argument that cannot work; the message names it, what was given and what is allowed."""

    def __init__(self, argument: str, given: object, allowed: str) -> None:
        """The three parts of the message."""
        super().__init__(f"{argument}: got {given}, allowed: {allowed}")


class MethodSpec(NamedTuple):
    """One method of a run.

    Attributes:
        name: "ddp" or a name of `bucket_moo_ext.available_methods()`.
        length: Empty: the method's own; else one of LENGTHS.
        sketch: None: exact Gramians, or none at all; else the `bucket_moo_ext.Sketch` they are from.
    """

    name: str
    length: str
    sketch: Any

    @property
    def method(self) -> Any:
        """What `bucket_moo_ext.register` takes as `method`."""
        if not self.length:
            return self.name
        from bucket_moo_ext import Rescaled

        return Rescaled(self.name, to=self.length)

    @property
    def gramian(self) -> Any:
        """What `bucket_moo_ext.register` takes as `gramian`."""
        return "exact" if self.sketch is None else self.sketch


def parse_method(text: str, available: Sequence[str]) -> MethodSpec:
    """The method that `text` means, for example "mgda:sketch,lag=1". Raises BadArgument."""
    direction, colon, source = text.partition(":")
    name, at, length = direction.partition("@")
    if at and (length not in LENGTHS or name == PLAIN_DDP):
        raise BadArgument("--method", repr(text), FORM)
    if name not in (PLAIN_DDP, *available):
        names = ", ".join((PLAIN_DDP, *available))
        raise BadArgument("--method", repr(text if not colon else name), f"{names}; as {FORM}")
    if not colon:
        return MethodSpec(name, length, None)
    kind, *settings = source.split(",")
    if kind != SKETCH:
        raise BadArgument("--method", repr(text), FORM)
    if name == PLAIN_DDP:
        raise BadArgument("--method", repr(text), f"{PLAIN_DDP} alone: it solves for no weights")
    options: dict[str, int | float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in OPTIONS or key in options or not re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII):
            raise BadArgument("--method", f"{setting!r} in {text!r}", f"{FORM}, each once")
        options[key] = float(value) if "." in value else int(value)
    from bucket_moo_ext import Sketch  # not at the top: what is wrong with it, train.py says

    try:
        return MethodSpec(name, length, Sketch(**options))
    except (TypeError, ValueError) as error:
        raise BadArgument("--method", repr(text), f"{FORM} ({error})") from error


def file_name(text: str) -> str:
    """`text` in letters that every file system takes: "mgda:sketch,lag=1" becomes "mgda-sketch-lag1"."""
    return text.replace("@", "-at-").replace(":", "-").replace(",", "-").replace("=", "")


def in_lines(text: str) -> str:
    """`text` for a narrow place: a line for every setting."""
    return text.replace(",", ",\n")
