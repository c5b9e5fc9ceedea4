"""The native handlers, and how they are called.

Numbers that must stay float64 between two handlers are uint32 pairs on the way, the low word first: JAX has no float64
unless ``jax_enable_x64`` is set.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bucket_moo_ext import _C
from bucket_moo_ext.methods.base import Options
from bucket_moo_ext.plain import word

_HANDLERS = ("combine", "gramian", "shares", "sketch", "solve")
_LIBRARY = Path(_C.__file__).with_name("libbucket_moo_jax.so")


def _register() -> None:
    if not _LIBRARY.exists():
        raise ImportError(
            f"bucket_moo_ext was built without its handlers for JAX ({_LIBRARY.name} is not there), because jaxlib was "
            "not; with jax installed, build it again: pip install --no-build-isolation --force-reinstall --no-deps . "
            "(in its source folder)"
        )
    library = ctypes.CDLL(str(_LIBRARY))
    no_device = library.bucket_moo_jax_no_device  # says that there is none
    for name in _HANDLERS:
        symbol = f"bucket_moo_jax_{name}"
        on = {
            "cpu": getattr(library, symbol),
            "CUDA": getattr(library, f"bucket_moo_jax_cuda_{name}", no_device),  # where it was built with CUDA kernels
            "ROCM": no_device,
        }
        for platform, handler in on.items():
            jax.ffi.register_ffi_target(symbol, jax.ffi.pycapsule(handler), platform=platform)


_register()


class Words(NamedTuple):
    """How float64 is kept: ``[..., 2]`` uint32."""

    shape: tuple[int, ...]


class Floats(NamedTuple):
    """Numbers for the caller, in ``float_dtype()``."""

    shape: tuple[int, ...]


Numbers = np.ndarray[Any, np.dtype[np.int64]]
Result = Words | Floats | tuple[tuple[int, ...], Any]


def float_dtype() -> Any:
    """Float64 with ``jax_enable_x64``, else float32."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def axes_of(array: Any) -> frozenset[Any]:
    """The axes of a ``shard_map`` over which an array may differ, as far as JAX checks that (``check_vma``)."""
    return frozenset(jax.typeof(array).mat.varying)


def varying(array: Any, axes: frozenset[Any]) -> Any:
    """The array as one that may differ over these axes."""
    missing = tuple(sorted(axes - axes_of(array), key=str))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def call(name: str, results: Sequence[Result], *operands: Any, **attributes: Any) -> list[Any]:
    """Calls a handler. All its operands and results may differ over the same axes."""
    axes = frozenset().union(*map(axes_of, operands))
    given = [varying(operand, axes) for operand in operands]
    within: dict[str, Any] = {}
    if axes:
        whole = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), jax.sharding.PartitionSpec())
        within = {"sharding": whole, "manual_axis_type": jax.sharding.ManualAxisType(varying=axes)}
    structs = []
    for result in results:
        if isinstance(result, Words):
            shape, dtype = (*result.shape, 2), np.uint32
        elif isinstance(result, Floats):
            shape, dtype = result.shape, float_dtype()
        else:
            shape, dtype = result
        structs.append(jax.ShapeDtypeStruct(shape, dtype, **within))
    function = jax.ffi.ffi_call(f"bucket_moo_jax_{name}", structs, vmap_method="broadcast_all")
    return list(function(*given, **attributes))


def key(seed: Any, step: Any, bucket: Any) -> Any:
    """``[6]`` uint32: three 64-bit words. Integers, or integer arrays (traced ones too) of shape ``[]``."""
    halves = [_halves(name, value) for name, value in (("seed", seed), ("step", step), ("bucket", bucket))]
    return jnp.concatenate(halves) if any(isinstance(half, jax.Array) for half in halves) else np.concatenate(halves)


def _halves(name: str, value: Any) -> Any:
    if not isinstance(value, jax.core.Tracer):
        plain = word(name, value)
        return np.array([plain & 0xFFFFFFFF, plain >> 32], np.uint32)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f"{name} must be an integer from 0 to 2**64 - 1; got {value.dtype} {value.shape}")
    if value.dtype.itemsize == 8:
        return jnp.stack([value.astype(np.uint32), (value >> 32).astype(np.uint32)])
    return jnp.stack([value.astype(np.uint32), jnp.zeros_like(value, np.uint32)])


def options_of(options: Options, length: float) -> dict[str, Any]:
    """A method as the handler takes it."""
    return {
        "method": options.name,
        "numbers": np.array(options.numbers, np.float64),
        "mode": options.mode,
        "preference": np.array(options.preference, np.float64),
        "permutation": np.array(options.permutation, np.int64),
        "length": np.float64(length),
    }


class Solved(NamedTuple):
    """What ``solve`` gives: coefficients of the rows in ``Words``, and what was solved."""

    coefficients: Any
    gramian: Any
    weights: Any
    status: Any
    iterations: Any
    residual: Any


def gramian(
    shares: Any,
    pieces: Sequence[Any],
    objective: Numbers,
    result: type[Words] | type[Floats],
    replicated: bool = False,
) -> Any:
    """The Gramian ``[K, K]`` of objectives whose gradients are sums of rows ``[R, n]``, in pieces.

    `replicated`: every device computes it, and all must get the same bits.
    """
    k = int(objective.max()) + 1
    return call("gramian", [result((k, k))], shares, *pieces, objective=objective, replicated=replicated)[0]


def solve(keys: Any, parts: Any, shares: Any, objective: Numbers, method: dict[str, Any]) -> Solved:
    """The solution for the sum of ``parts``, ``[..., P, K, K]``. `keys`: ``[..., 6]``; `shares`: ``[..., R]``."""
    k, batch = int(objective.max()) + 1, keys.shape[:-1]
    rows = (*batch, len(objective))
    results: list[Result] = [Words(rows), Floats((*batch, k, k)), Floats((*batch, k))]
    results += [(batch, np.int32), (batch, np.int32), Floats(batch)]
    return Solved(*call("solve", results, keys, parts, shares, objective=objective, **method))


def combine(coefficients: Any, rows: Any) -> Any:
    """``[n]`` of rows ``[R, n]``; coefficients in any form."""
    return call("combine", [(rows.shape[1:], rows.dtype)], coefficients, rows)[0]


def sketch(keys: Any, rows: Any, width: int) -> Any:
    """``[R, width]`` of rows ``[R, n]``."""
    dtype = np.float64 if rows.dtype == np.float64 else np.float32
    return call("sketch", [((rows.shape[0], width), dtype)], keys, rows)[0]
