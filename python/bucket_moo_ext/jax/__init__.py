"""The same numbers in JAX: Gramians, weights and updates by XLA's foreign function interface, on the CPU.

    >>> import bucket_moo_ext.jax as moo_jax  # doctest: +SKIP
    >>> update = moo_jax.aggregate(jacobian, "cagrad")  # doctest: +SKIP

Needs jax 0.10.2 or newer (``pip install 'bucket_moo_ext[jax]'``), which must be there when bucket_moo_ext is built. The
functions work under ``jit``, ``vmap`` and ``shard_map``; ``all_reduce`` and ``reduce_scatter`` are called inside
``shard_map``. Methods are those of ``bucket_moo_ext``.
"""

try:
    import jax.ffi as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"bucket_moo_ext.jax needs jax 0.10.2 or newer ({error}): pip install 'bucket_moo_ext[jax]'"
    ) from error

from bucket_moo_ext.jax.collectives import Solution, all_reduce, reduce_scatter
from bucket_moo_ext.jax.functional import aggregate, combine, gramian, sketch, weights

__all__ = ["Solution", "aggregate", "all_reduce", "combine", "gramian", "reduce_scatter", "sketch", "weights"]
