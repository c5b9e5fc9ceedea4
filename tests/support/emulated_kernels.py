"""How often each emulated CUDA kernel was launched in this process, by name."""

import ctypes
import functools
import re
import subprocess
from pathlib import Path

import bucket_moo_ext as moo

from tests.support.checks import ON_DEVICE

_CUDA = Path(__file__).resolve().parents[2] / "cuda"
# A name after the qualifiers and attributes: __global__ void __launch_bounds__(kThreads, kResident<K>) name(
_KERNEL = re.compile(r"__global__\s+void\s+(?:__\w+__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(")


def are_used() -> bool:
    """Whether CPU tensors are reduced by emulated kernels."""
    return ON_DEVICE


def in_source(source: str) -> list[str]:
    """The kernels that a source defines.

    Raises:
        ValueError: One is written in a way that is not understood.
    """
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    names = _KERNEL.findall(code)
    if len(names) != code.count("__global__"):
        raise ValueError(f"{code.count('__global__')} times __global__, but kernels {names}")
    return names


@functools.cache
def names() -> frozenset[str]:
    """The kernels of cuda/, without template arguments."""
    return frozenset(name for file in sorted(_CUDA.glob("*.cu*")) for name in in_source(file.read_text()))


@functools.cache
def _symbols() -> dict[str, int]:
    """Each kernel with its template arguments, and its symbol's value."""
    library = str(moo.build_info()["library"])
    table = subprocess.run(["nm", "--demangle", "--defined-only", library], capture_output=True, text=True, check=True)
    found: dict[str, int] = {}
    for line in table.stdout.splitlines():
        value, _, symbol = line.split(" ", 2)
        name = symbol.replace("(anonymous namespace)::", "").removeprefix("void ")
        match = re.match(r"bucket_moo::cuda::(\w+)[<(]", name)
        if match and match[1] in names():
            found[name[: name.rindex("(")].removeprefix("bucket_moo::cuda::")] = int(value, 16)
    return found


def launches() -> dict[str, int]:
    """Launches so far: of every kernel that was compiled, with its template arguments."""
    of_symbol = ctypes.CDLL(str(moo.build_info()["library"])).bucket_moo_emulated_launches
    of_symbol.argtypes, of_symbol.restype = [ctypes.c_size_t], ctypes.c_long
    return {name: of_symbol(value) for name, value in _symbols().items()}
