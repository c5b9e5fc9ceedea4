"""What importing needs, and what it says where that is missing."""

import ctypes
import subprocess
import sys
from pathlib import Path

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.jax.devices import require_jax

jax, moo_jax = require_jax()


def _python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_the_package_imports_jax_when_it_is_asked_for() -> None:
    said = _python(
        "import sys, bucket_moo_ext as moo\n"
        "print([name for name in sys.modules if name.startswith('jax')])\n"
        "print(moo.jax.all_reduce.__module__)\n"
        "moo.jaxx"
    )
    assert said.startswith("[]\nbucket_moo_ext.jax.collectives\n")
    assert "AttributeError: module 'bucket_moo_ext' has no attribute 'jaxx'" in said


def test_a_gpu_without_handlers_is_told_so() -> None:
    """What is registered for a GPU, called on the CPU with operands, results and attributes of any kind."""
    handler = ctypes.CDLL(str(Path(str(moo.build_info()["library"])).with_name("libbucket_moo_jax.so")))
    jax.ffi.register_ffi_target("no_device", jax.ffi.pycapsule(handler.bucket_moo_jax_no_device), platform="cpu")
    results = [jax.ShapeDtypeStruct((2,), np.float32)] * 2
    call = jax.ffi.ffi_call("no_device", results)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"UNIMPLEMENTED: bucket_moo_ext.jax was built without CUDA"):
        jax.block_until_ready(call(np.ones(3, np.float32), np.ones(2, np.int32), method="mgda", length=np.float64(1)))


def test_without_jax_it_says_what_to_install() -> None:
    said = _python("import sys; sys.modules['jax'] = None; import bucket_moo_ext.jax")
    assert "ImportError: bucket_moo_ext.jax needs jax 0.10.2 or newer" in said
    assert "pip install 'bucket_moo_ext[jax]'" in said


def test_without_its_library_it_says_how_to_build_it() -> None:
    said = _python(
        "import pathlib; exists = pathlib.Path.exists\n"
        "pathlib.Path.exists = lambda path: path.name != 'libbucket_moo_jax.so' and exists(path)\n"
        "import bucket_moo_ext.jax"
    )
    assert "ImportError: bucket_moo_ext was built without its handlers for JAX" in said
    assert "pip install --no-build-isolation --force-reinstall --no-deps ." in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torchs_functions_take_jax_arrays_where_they_lie(dtype: str) -> None:
    """By DLPack, there and back."""
    rows = jax.random.normal(jax.random.key(0), (3, 50)).astype(dtype)
    assert torch.from_dlpack(rows).data_ptr() == rows.unsafe_buffer_pointer()
    update = moo.aggregate(rows, "cagrad")
    back = jax.dlpack.from_dlpack(update)
    assert back.unsafe_buffer_pointer() == update.data_ptr()
    assert (back == moo_jax.aggregate(rows, "cagrad")).all()
