"""Arms: a way to combine the objectives' gradients, with all that it is tuned by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from conflicts import group_of

SCOPES: dict[str, str | Callable[[str], str]] = {"bucket": "bucket", "model": "model", "layer part": group_of}
"""Of the weights, by name."""


@dataclass(frozen=True)
class Arm:
    """How the gradients of a step become the optimizer's."""

    name: str
    method: str
    """A name of `bucket_moo_ext.available_methods()`; "mean" is plain accumulation."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the method."""
    scope: str = "bucket"
    length: str | float | None = None
    """What `bucket_moo_ext.Rescaled` makes of the method: "mean", "unit" or a number; None: its own length."""
    clip: float | None = 1.0
    """Length that the whole gradient is clipped to; None: not at all."""
    focus_weights: tuple[float, ...] = ()
    """Weights to be tried for the scenario's focus, 1 beside them; those of the other objectives are 1."""
    rival: bool = False
    """Whether it knows nothing of conflicts: the ways to beat."""

    def __post_init__(self) -> None:
        """Raises ValueError with the field at fault."""
        if self.scope not in SCOPES:
            raise ValueError(f"arm {self.name}: scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"arm {self.name}: clip must be > 0, got {self.clip!r}")
        if self.focus_weights and self.method != "mean":
            raise ValueError(f"arm {self.name}: focus_weights are for the mean, got method {self.method!r}")
        self.build()

    def build(self) -> Any:
        """The method, as `bucket_moo_ext.register` takes it. Raises ValueError."""
        import bucket_moo_ext as moo

        kinds = {kind.info.name: kind for kind in moo.methods.METHODS}
        if self.method not in kinds:
            raise ValueError(f"arm {self.name}: method must be one of {', '.join(kinds)}; got {self.method!r}")
        try:
            method = kinds[self.method](**self.options)
            return method if self.length is None else moo.Rescaled(method, to=self.length)
        except (TypeError, ValueError) as error:
            raise ValueError(f"arm {self.name}: {error}") from error
