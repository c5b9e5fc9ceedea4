"""Averaging of any method's weights over steps."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bucket_moo_ext import _C
from bucket_moo_ext.methods.base import MethodInfo, NativeMethod, Options, number
from bucket_moo_ext.plain import is_finite

if TYPE_CHECKING:
    from bucket_moo_ext.methods import PlainMethod


@dataclass(frozen=True)
class Smoothed(NativeMethod):
    """Any method, with an exponential average of its weights over the steps.

    w_k <- alpha w_k' + (1 - alpha) w_k, with w_k' the last smoothed weight of objective k in this bucket.

    Stateful: every bucket keeps its last weights, by objective names (see ``BucketMOO.state_dict``). An objective's
    first weight stays as it is; one that is inactive or absent gets 0 and keeps its past.

    Guarantees: what a method guarantees of one step's weights (no conflict, say) does not hold for the average. While
    the set of active objectives changes, weights that sum to 1 in every step may sum to something else.

    Args:
        method: A name of ``available_methods()`` or a method object, not smoothed itself.
        alpha: Share of the past, 0 <= alpha < 1; 0: no smoothing.

    Raises:
        TypeError: ``method`` is no method, or smoothed already.
        ValueError: An unknown name, or alpha outside [0, 1).

    Source: Zhou et al., "On the convergence of stochastic multi-objective gradient manipulation and beyond", NeurIPS
    2022, algorithm 1 (CR-MOGM).
    """

    method: "str | PlainMethod"
    alpha: float

    def __post_init__(self) -> None:
        from bucket_moo_ext.methods import Rescaled, resolve

        inner = resolve(self.method)
        if isinstance(inner, Rescaled):
            raise TypeError(
                f"Smoothed(method={inner!r}): weights are averaged before they are rescaled; write "
                f"Rescaled(Smoothed({inner.method!r}, {self.alpha!r}), {inner.to!r})"
            )
        if isinstance(inner, Smoothed):
            raise TypeError(f"Smoothed(method={inner!r}): method must not be smoothed itself")
        object.__setattr__(self, "method", inner)
        number(self, "alpha", "a number >= 0 and < 1", is_finite(self.alpha) and 0 <= self.alpha < 1)

    @property
    def info(self) -> MethodInfo:
        """That of the method, less the guarantees that an average does not keep."""
        inner = self._inner().info
        kept = tuple(guarantee for guarantee in inner.guarantees if guarantee.startswith("permutation"))
        stateful = inner.stateful or self.alpha > 0
        source = f"{inner.source}; Zhou et al., NeurIPS 2022"
        return replace(inner, name=f"smoothed {inner.name}", guarantees=kept, source=source, stateful=stateful)

    def _inner(self) -> "PlainMethod":
        assert not isinstance(self.method, str)  # __post_init__ made it an object
        return self.method

    def _options(self) -> Options:
        return self._inner()._options()  # operators remember nothing, so there is nothing to average

    def _adds_up(self) -> bool:
        return self._inner()._adds_up()

    def _objectives(self) -> tuple[str, ...]:
        return self._inner()._objectives()

    def _native(self) -> _C.Method:
        return self._inner()._native().smoothed(self.alpha)
