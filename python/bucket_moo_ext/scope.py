"""Which parameters share weights: the scope of a problem, and the objectives that it is solved for."""

import hashlib
from collections.abc import Callable, Collection
from typing import TypeAlias

from bucket_moo_ext import _C
from bucket_moo_ext.plain import choice, flag, integer, text

GroupOf: TypeAlias = Callable[[str], str | int]
"""From a parameter's name to the group that it shares weights with."""


class Scope:
    """``scope``, ``support`` and ``private_scale`` as ``BucketMOO`` takes them, and what group each parameter is in."""

    def __init__(self, scope: object, support: object, private_scale: object) -> None:
        """Raises TypeError or ValueError for a bad argument, which it names."""
        self.given: str | GroupOf
        if callable(scope):
            self.given = scope
        else:
            self.given = choice("scope", scope, ("bucket", "model", "parameter"), "a function of a parameter's name")
        self.support = flag("support", support)
        self.private_scale = choice("private_scale", private_scale, ("mean", "active"))
        self._groups: dict[str, str] = {}
        self._names: list[str] = []  # of parameters, in order

    @property
    def name(self) -> str:
        """For reports and saved states."""
        return self.given if isinstance(self.given, str) else "groups"

    @property
    def has_parts(self) -> bool:
        """Whether a bucket may have parts with weights of their own."""
        return self.support or self.name in ("parameter", "groups")

    @property
    def spans_buckets(self) -> bool:
        """Whether a bucket may wait for others."""
        return self.name in ("model", "groups")

    def add(self, name: str) -> None:
        """A parameter of this name will be reduced.

        Raises:
            TypeError, ValueError: The function gives no group for it.
        """
        self._names.append(name)
        if isinstance(self.given, str):
            return
        try:
            group = self.given(name)
        except Exception as error:
            raise ValueError(f"scope: the function raised {type(error).__name__} for parameter {name!r}") from error
        plain = text(group) if isinstance(group, str) else integer(group)
        if plain is None:
            raise TypeError(
                f"scope: the function must give a string or an int for a parameter's name; got "
                f"{type(group).__name__} {group!r} for {name!r}"
            )
        if plain == "":
            raise ValueError(f"scope: the function must give a group that is not empty; got '' for {name!r}")
        self._groups[name] = str(plain)

    def grouping(self, keeps_mean_scale: bool, has_pieces: bool, replicated: Collection[str]) -> _C.Grouping:
        """For the native engine.

        Args:
            keeps_mean_scale: Where ``private_scale`` is "mean".
            has_pieces: Whether other ranks hold other pieces of the model.
            replicated: Names of parameters of which they all have copies.
        """
        keeps = keeps_mean_scale and self.private_scale == "mean"
        return _C.Grouping(self.name, self._groups, self.support, keeps, has_pieces, sorted(replicated))

    def __str__(self) -> str:
        """One line, the same on all ranks whose parameters are in the same groups."""
        split = f", by support with private_scale {self.private_scale!r}" if self.support else ""
        if self.name == "parameter":  # whose names are keys
            return f"parameter, of {len(self._names)} names ({digest(self._names)}){split}"
        if isinstance(self.given, str):
            return self.given + split
        groups = digest(sorted(self._groups.items()))
        return f"{len(set(self._groups.values()))} groups of {len(self._groups)} parameters ({groups}){split}"


def digest(names: object) -> str:
    """A few letters that are the same for the same names."""
    return hashlib.blake2b(repr(names).encode(), digest_size=8).hexdigest()
