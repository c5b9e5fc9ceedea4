"""What importing needs, and what it says where that is missing."""

import subprocess
import sys

import bucket_moo_ext as moo
import pytest
import torch

from tests.jax.devices import require_jax

jax, moo_jax = require_jax()


def _python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_the_package_alone_imports_no_jax() -> None:
    assert _python("import sys, bucket_moo_ext; print([m for m in sys.modules if m.startswith('jax')])") == "[]\n"


def test_a_gpu_is_told_that_there_is_no_path_for_it() -> None:
    """What is registered for a GPU, called here on the CPU, as a solve with operands, results and attributes."""
    said = _python(
        "import ctypes, jax, numpy as np\n"
        "from bucket_moo_ext.jax import handlers\n"
        "library = ctypes.CDLL(str(handlers._LIBRARY))\n"
        "handlers.jax.ffi.register_ffi_target(\n"
        "    'no_device', jax.ffi.pycapsule(library.bucket_moo_jax_no_device), platform='cpu')\n"
        "out = [jax.ShapeDtypeStruct((2,), np.float32)] * 2\n"
        "jax.block_until_ready(jax.ffi.ffi_call('no_device', out)(np.ones(3), np.ones(2), method='mgda', length=1))\n"
    )
    assert "UNIMPLEMENTED: bucket_moo_ext.jax is for the CPU, and was called with arrays on a GPU" in said


def test_it_is_an_attribute_of_the_package() -> None:
    assert _python("import bucket_moo_ext as moo; print(moo.jax.all_reduce.__module__)") == (
        "bucket_moo_ext.jax.collectives\n"
    )
    assert "has no attribute 'jaxx'" in _python("import bucket_moo_ext as moo; moo.jaxx")


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
