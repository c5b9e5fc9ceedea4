"""Functions that have no derivative say so."""

from collections.abc import Callable
from typing import Any

import jax


def without_derivative(name: str, why: str, function: Callable[..., Any], *operands: Any) -> Any:
    """``function(*operands)``; whoever differentiates it gets a TypeError that says what to do."""
    wrapped = jax.custom_jvp(function)

    def refuse(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
        raise TypeError(f"bucket_moo_ext.jax.{name} has no derivative: {why}")

    wrapped.defjvp(refuse)
    return wrapped(*operands)
