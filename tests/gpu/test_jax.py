"""bucket_moo_ext.jax on GPUs, where there is a JAX for them: beside torch's functions, which have the same kernels."""

import importlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, IS_DRY_RUN
from tests.support.checks import raw

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants memory too

METHODS = ["mgda", "cagrad", "pcgrad", moo.UPGrad([1.0, 2.0, 3.0]), moo.PCGrad(permutation=[[2, 1, 0]] * 3)]


def _devices(jax: Any) -> list[Any]:
    """JAX's GPUs; in a dry run what stands in for one.

    Raises:
        RuntimeError: There are none.
    """
    return list(jax.devices("cpu" if DEVICE.lacks("GPUs of JAX") else "gpu"))


@pytest.fixture
def jax() -> Iterator[Any]:
    """The module, whose default device is a GPU."""
    try:
        import jax

        importlib.import_module("bucket_moo_ext.jax")
        device = _devices(jax)[0]
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{'dry run: ' if IS_DRY_RUN else ''}no JAX for GPUs, or the extension was built without: {error}")
    with jax.default_device(device):
        yield jax


def on_mesh(jax: Any, function: Any, *stacked: Any) -> Any:
    """``function`` on all devices, a row each; results stacked by device."""
    mesh = jax.make_mesh((len(stacked[0]),), ("x",), devices=_devices(jax))
    spec = jax.sharding.PartitionSpec("x")

    def one(*rows: Any) -> Any:
        return jax.tree.map(lambda value: value[None], function(*(row[0] for row in rows)))

    placed = jax.device_put(stacked, jax.sharding.NamedSharding(mesh, spec))
    return jax.device_get(jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec))(*placed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("k", [2, 17, 64])
def test_updates_have_torchs_bits(rng: np.random.Generator, jax: Any, dtype: str, k: int) -> None:
    values = rng.standard_normal((k, 5003)).astype(np.float32)
    rows = torch.tensor(values).to(getattr(torch, dtype)).to(DEVICE.name)
    update = jax.jit(partial(moo.jax.aggregate, method="dualproj"))(jax.numpy.asarray(values).astype(dtype))
    expected = moo.aggregate(rows, "dualproj").cpu()
    assert (np.asarray(update).astype(np.float64) == expected.double().numpy()).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_steps_of_a_loop_are_calls_of_their_own(rng: np.random.Generator, jax: Any, method: Any) -> None:
    """In a program that XLA may run as a CUDA graph."""
    rows = rng.standard_normal((3, 700)).astype(np.float32)
    looped = jax.jit(
        lambda rows: jax.lax.map(lambda step: moo.jax.aggregate(rows, method, step=step), jax.numpy.arange(20))
    )
    for _ in range(3):
        updates = np.asarray(looped(rows))
        for step in range(20):
            expected = moo.aggregate(torch.tensor(rows).to(DEVICE.name), method, step=step)
            assert updates[step].tobytes() == raw(expected.cpu())


def test_sketches_have_torchs_bits(rng: np.random.Generator, jax: Any) -> None:
    rows = rng.standard_normal((3, 70_001)).astype(np.float32)
    sketched = jax.jit(lambda rows, step: moo.jax.sketch(rows, 1024, seed=3, step=step))
    for step in range(3):
        expected = moo.sketch(torch.tensor(rows).to(DEVICE.name), 1024, seed=3, step=step)
        assert np.asarray(sketched(rows, step)).tobytes() == raw(expected.cpu())


@pytest.mark.parametrize("gramian", ["exact", moo.Sketch(64)], ids=["exact", "sketch"])
def test_a_collective_over_all_gpus(rng: np.random.Generator, jax: Any, gramian: Any) -> None:
    world = len(_devices(jax))
    rows = rng.standard_normal((world, 1001)).astype(np.float32)
    reduce = partial(moo.jax.all_reduce, axis_name="x", gramian=gramian, return_solution=True)
    update, solution = on_mesh(jax, reduce, rows)
    assert all(one.tobytes() == update[0].tobytes() for one in update)
    expected = solution.weights[0].astype(np.float64) @ rows
    assert np.allclose(update[0], expected, atol=1e-5)
    if gramian == "exact":
        assert np.allclose(solution.gramian[0], rows.astype(np.float64) @ rows.T, rtol=1e-5, atol=1e-3)


def test_a_wrong_weight_makes_the_update_nan(rng: np.random.Generator, jax: Any) -> None:
    rows = rng.standard_normal((len(_devices(jax)), 100)).astype(np.float32)
    weight = np.full(len(rows), -1.0, np.float32)
    update = on_mesh(jax, lambda row, weight: moo.jax.all_reduce(row, axis_name="x", weight=weight), rows, weight)
    assert np.isnan(update).all()
