"""What is different on a GPU, over emulated kernels, and what a library has for one."""

import ctypes
from functools import partial
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.jax.devices import on_devices, plain, require_jax, torch_of
from tests.support.checks import ON_DEVICE

jax, moo_jax = require_jax()
pytestmark = pytest.mark.device
on_device = pytest.mark.skipif(not ON_DEVICE, reason="needs the build with emulated CUDA kernels")


@on_device
@pytest.mark.parametrize("wrong", [-2.0, np.nan, np.inf])
@pytest.mark.parametrize("gramian", ["exact", moo.Sketch(64)], ids=["exact", "sketch"])
def test_a_wrong_weight_makes_the_update_nan(rng: np.random.Generator, wrong: float, gramian: Any) -> None:
    """Of every device, all of it: nobody trains on without noticing."""
    rows = rng.standard_normal((4, 200)).astype(np.float32)
    update, solution = on_devices(
        lambda row, weight: moo_jax.all_reduce(
            row, axis_name="x", objectives=["a", "b", "a", "c"], weight=weight, gramian=gramian, return_solution=True
        ),
        rows,
        np.array([1.0, 1.0, wrong, 1.0], np.float32),
    )
    assert np.isnan(update).all()
    assert (solution.status == 1).all()


@on_device
def test_every_call_frees_its_workspace_and_others_may_run_beside_it(rng: np.random.Generator) -> None:
    """Four devices at a time, with problems of other sizes."""
    rows = rng.standard_normal((4, 6, 700)).astype(np.float32)
    reduce = partial(moo_jax.aggregate, method=moo.UPGrad(preference=[1, 2, 3, 4, 5, 6]))
    expected = np.stack([moo.aggregate(torch.tensor(row), moo.UPGrad(preference=[1, 2, 3, 4, 5, 6])) for row in rows])
    for _ in range(3):
        assert (on_devices(reduce, rows) == expected).all()


@on_device
@pytest.mark.parametrize("k", [16, 17, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_those_of_torch_on_a_device(rng: np.random.Generator, dtype: str, k: int) -> None:
    """Few objectives and many have kernels of their own."""
    values = rng.standard_normal((k, 3001)).astype(np.float32)
    rows = torch_of(values, dtype)
    update = moo_jax.aggregate(jax.numpy.asarray(values).astype(dtype), "dualproj")
    assert (plain(update) == plain(moo.aggregate(rows, "dualproj"))).all()


@pytest.mark.host
def test_a_library_has_handlers_for_the_devices_that_it_was_built_for() -> None:
    info = moo.build_info()
    library = ctypes.CDLL(str(Path(str(info["library"])).with_name("libbucket_moo_jax.so")))
    for name in ("combine", "gramian", "shares", "sketch", "solve"):
        assert hasattr(library, f"bucket_moo_jax_{name}")
        assert hasattr(library, f"bucket_moo_jax_cuda_{name}") == info["cuda"]
