"""The direction of any method at a length that does not depend on the method."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bucket_moo_ext import _C
from bucket_moo_ext.methods.base import NON_CONFLICTING, MethodInfo, NativeMethod, Options, fail
from bucket_moo_ext.methods.smoothed import Smoothed
from bucket_moo_ext.plain import is_finite, text

if TYPE_CHECKING:
    from bucket_moo_ext.methods import PlainMethod

_AS_NUMBER = {"mean": -1.0, "unit": 1.0}


@dataclass(frozen=True)
class Rescaled(NativeMethod):
    """Any method, with its update brought to another length: another method without another learning rate.

    ``d <- d t / |d|`` with the length t, for every bucket, or for whatever a problem is solved for (``scope``). Signs
    of inner products stay, so an update that conflicts with no objective still does not. The certificate is that of the
    method's own weights.

    Guarantees: where the method's own update gets small, near a stationary point, this one does not; so a point where
    it vanishes is reached in steps of the target's length, and averages of weights (the simplex) are none any more.

    Edge cases: where the update vanishes, ``|d| <= 1e-6 sum |w_k| |g_k|``, it has no direction; its weights stay as
    they are, with status "fallback".

    Args:
        method: A name of ``available_methods()``, a method object, or a ``Smoothed`` one, whose average is taken first.
        to: "mean": the length of the mean of the active objectives' gradients, DDP's where all are active; "unit": 1;
            or a finite number > 0.

    Raises:
        TypeError: ``method`` is no method, or rescaled already.
        ValueError: An unknown name, or another ``to``.

    Source: none; it separates the direction of an update from its length, which papers on methods compare together.
    """

    method: "str | PlainMethod | Smoothed"
    to: str | float = "mean"

    def __post_init__(self) -> None:
        from bucket_moo_ext.methods import resolve

        inner = resolve(self.method)
        if isinstance(inner, Rescaled):
            raise TypeError(f"Rescaled(method={inner!r}): method must not be rescaled itself")
        object.__setattr__(self, "method", inner)
        if isinstance(self.to, str) and self.to in _AS_NUMBER:
            object.__setattr__(self, "to", text(self.to))
        elif is_finite(self.to) and self.to > 0:
            object.__setattr__(self, "to", float(self.to))
        else:
            raise fail(self, "to", self.to, "'mean', 'unit' or a finite number > 0")

    @property
    def info(self) -> MethodInfo:
        """That of the method, less the guarantees that another length does not keep."""
        inner = self._inner().info
        kept = tuple(
            guarantee for guarantee in inner.guarantees if guarantee.startswith(("permutation", NON_CONFLICTING))
        )
        scale = inner.scale if self.to == "mean" else "divided by t: the update keeps its length"
        return replace(inner, name=f"rescaled {inner.name}", guarantees=kept, scale=scale)

    def _inner(self) -> "PlainMethod | Smoothed":
        assert not isinstance(self.method, str)  # __post_init__ made it an object
        return self.method

    def _length(self) -> float:
        return _AS_NUMBER[self.to] if isinstance(self.to, str) else self.to

    def _options(self) -> Options:
        return self._inner()._options()

    def _adds_up(self) -> bool:
        return self.to != "mean"

    def _objectives(self) -> tuple[str, ...]:
        return self._inner()._objectives()

    def _native(self) -> _C.Method:
        return self._inner()._native().rescaled(self._length())
