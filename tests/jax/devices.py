"""Functions on several devices, and arrays of both frameworks from the same numbers. Imports JAX when it is called."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")


def require_jax() -> tuple[Any, Any]:
    """The modules jax and bucket_moo_ext.jax; skips the test where they are not."""
    jax = pytest.importorskip("jax", reason="jax is not installed (make jax)")
    return jax, pytest.importorskip(
        "bucket_moo_ext.jax", reason="bucket_moo_ext was built without jaxlib (make jax)", exc_type=ImportError
    )


def on_devices(function: Callable[..., Any], *stacked: Any, check_vma: bool = True) -> Any:
    """``function`` on as many devices as the arrays have rows, a row each; its results in NumPy, stacked by device.

    It is called with the axis ``"x"``.
    """
    import jax

    world = len(jax.tree.leaves(stacked)[0])
    mesh = jax.make_mesh((world,), ("x",), devices=jax.devices()[:world])
    spec = jax.sharding.PartitionSpec("x")

    def one(*rows: Any) -> Any:
        result = function(*jax.tree.map(lambda row: row[0], rows))
        return jax.tree.map(lambda value: value[None], result)

    placed = jax.device_put(stacked, jax.sharding.NamedSharding(mesh, spec))
    mapped = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    return jax.device_get(jax.jit(mapped)(*placed))


def plain(array: Any) -> Any:
    """Any array as NumPy's float64, without rounding."""
    if isinstance(array, torch.Tensor):
        return array.double().numpy()
    return np.asarray(array).astype(np.float64)


def torch_of(values: Any, dtype: str) -> torch.Tensor:
    """Rounded as JAX's ``astype`` does."""
    return torch.tensor(values).to(getattr(torch, dtype))
