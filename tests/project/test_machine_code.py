"""The machine code of the kernels, as the build made it, is within cuda/machine_code.json; and how it is read.

The budget has an entry for every kernel, by a pattern of its name:
  instructions  of the kernel and all that it calls, at most
  per_vector    instructions of the hot loop for every 16 bytes that a lane loads, at most; without it the kernel must
                have no such loop, with it there must be one
  scalar_loops  loops that read global memory by less than 16 bytes at a time and not otherwise, at most; default 0
  generic       accesses to memory of which the compiler does not know whether it is global, at most; default 0
"""

import functools
import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import machine_code  # noqa: E402

ARCHITECTURES = ("sm_90", "sm_100")
SOURCES = sorted(path.name for path in (ROOT / "cuda").glob("*.cu"))
Entry = dict[str, float]
BUDGET: dict[str, Entry] = json.loads((ROOT / "cuda" / "machine_code.json").read_text())

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH: no machine code is built")


@functools.cache
def _kernels(source: str) -> list[machine_code.Kernel]:
    tool = machine_code.cuobjdump()
    assert tool is not None, "cuobjdump is missing: pip install -r requirements/dev.txt"
    compiled = machine_code.built_objects().get(source)
    assert compiled is not None, f"{source} was not built: make setup, where there is an nvcc"
    assert compiled.stat().st_mtime >= (ROOT / "cuda" / source).stat().st_mtime, f"{source} has changed since the build"
    with ThreadPoolExecutor() as pool:
        listings = pool.map(functools.partial(machine_code.disassemble, tool, compiled), ARCHITECTURES)
        return [kernel for kernels in listings for kernel in kernels]


def _entry_of(name: str, budget: dict[str, Entry]) -> Entry:
    entries = [entry for pattern, entry in budget.items() if re.fullmatch(pattern, name)]
    assert len(entries) == 1, f"{name} is in the budget {len(entries)} times"
    return entries[0]


def _over_budget(kernel: machine_code.Kernel, entry: Entry) -> list[str]:
    """What of a kernel is more than granted."""
    used = {
        "instructions": len(kernel.code),
        "per_vector": kernel.per_vector or 0,
        "scalar_loops": len(kernel.scalar_loops),
        "generic": sum(i.is_generic for i in kernel.code),
        "local": sum(i.is_local for i in kernel.code),
    }
    over = [
        f"{kernel.name} on {kernel.architecture}: {name} is {count:g}, {entry.get(name, 0):g} granted"
        for name, count in used.items()
        if count > entry.get(name, 0)
    ]
    if "per_vector" in entry and kernel.per_vector is None:
        over.append(f"{kernel.name} on {kernel.architecture}: no loop loads 16 bytes at a time")
    return over


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_keep_to_their_machine_code(source: str) -> None:
    kernels = _kernels(source)
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    over = [line for kernel in kernels for line in _over_budget(kernel, _entry_of(kernel.name, BUDGET))]
    assert not over, "\n".join(over)


@needs_nvcc
@pytest.mark.slow
def test_ends_of_rows_are_read_several_elements_at_a_time() -> None:
    """What is left of a row is few elements for one warp: one after the other they would take longer than a bucket."""
    small = [kernel for kernel in _kernels("gramian.cu") if kernel.name.startswith("small_gramian")]
    assert small
    for kernel in small:
        k = int(kernel.name.removeprefix("small_gramian<").split(",")[0])
        loads = [loop.narrow_loads for loop in kernel.scalar_loops if loop.hot_pass().float32 > 0]
        assert loads, kernel.name
        assert min(loads) >= 2 * k, f"{kernel.name} on {kernel.architecture}"


def test_the_budget_says_only_what_is_checked() -> None:
    for name, entry in BUDGET.items():
        assert entry.keys() <= {"instructions", "per_vector", "scalar_loops", "generic"}, name
        assert "instructions" in entry, name


# --- how it is read ---


def _listing(*lines: str, name: str = "_Z5smallPf") -> str:
    """A kernel as cuobjdump prints it, one instruction every 16 bytes."""
    code = (
        f"        /*{16 * i:04x}*/                   {line} ;                /* 0x00000a00ff017b82 */\n"
        f"                                                            /* 0x000fe20000000800 */"
        for i, line in enumerate(lines)
    )
    return "\n".join(("\tcode for sm_90", f"\t\tFunction : {name}", '\t.headerflags\t@"EF_CUDA_SM90"', *code))


def _kernel(*lines: str) -> machine_code.Kernel:
    (kernel,) = machine_code.parse(_listing(*lines), "sm_90")
    return kernel


VECTOR_LOOP = (
    "LDC R1, c[0x0][0x28]",
    "LDG.E.128 R4, desc[UR4][R2.64]",  # 0x10
    "FFMA R8, R4, R4, R8",
    "ISETP.GE.AND P0, PT, R2, R3, PT",
    "@!P0 BRA 0x10",
    "EXIT",
)
SCALAR_LOOP = tuple(line.replace(".128", "") for line in VECTOR_LOOP)


def test_a_vector_loop_is_seen() -> None:
    kernel = _kernel(*VECTOR_LOOP)
    assert kernel.name == "small"
    assert (len(kernel.code), kernel.per_vector, kernel.scalar_loops) == (6, 4, ())
    assert not _over_budget(kernel, {"instructions": 6, "per_vector": 4})


@pytest.mark.parametrize(
    ("lines", "entry", "wrong"),
    [
        (VECTOR_LOOP, {"instructions": 5, "per_vector": 4}, "instructions is 6, 5 granted"),
        (VECTOR_LOOP, {"instructions": 6, "per_vector": 3}, "per_vector is 4, 3 granted"),
        (VECTOR_LOOP, {"instructions": 6}, "per_vector is 4, 0 granted"),
        (SCALAR_LOOP, {"instructions": 6}, "scalar_loops is 1, 0 granted"),
        (SCALAR_LOOP, {"instructions": 6, "per_vector": 4, "scalar_loops": 1}, "no loop loads 16 bytes"),
        (("LDL R4, [R1+0x8]", "EXIT"), {"instructions": 2}, "local is 1"),
        (("STL.64 [R1], R4", "EXIT"), {"instructions": 2}, "local is 1"),
        (("LD.E.64 R4, desc[UR4][R2.64]", "EXIT"), {"instructions": 2}, "generic is 1"),
        (("@P0 ST.E desc[UR4][R2.64], R4", "EXIT"), {"instructions": 2}, "generic is 1"),
    ],
)
def test_what_is_over_the_budget_is_found(lines: tuple[str, ...], entry: Entry, wrong: str) -> None:
    over = _over_budget(_kernel(*lines), entry)
    assert len(over) == 1
    assert wrong in over[0]


def test_a_kernel_is_in_the_budget_once() -> None:
    budget: dict[str, Entry] = {"small<[12]>": {"instructions": 1}, "small<[23]>": {"instructions": 2}}
    assert _entry_of("small<1>", budget) == {"instructions": 1}
    for name in ("small<2>", "small<4>", "not_small<1>"):
        with pytest.raises(AssertionError, match="times"):
            _entry_of(name, budget)


def test_shared_memory_and_parameters_are_neither_generic_nor_local() -> None:
    kernel = _kernel("LDS.128 R4, [R2]", "STS [R2], R4", "LDC.64 R4, c[0x0][0x210]", "STG.E [R2], R4", "EXIT")
    assert not _over_budget(kernel, {"instructions": 5})


def test_the_hot_way_goes_round_what_is_cold() -> None:
    """Elements one by one where a vector crosses the end, and a call where numbers are extreme."""
    kernel = _kernel(
        "@P1 BRA 0x30",
        "LDG.E.128 R4, desc[UR4][R2.64]",  # 0x10
        "BRA 0x60",
        "LDG.E R4, desc[UR4][R2.64]",  # 0x30
        "LDG.E R5, desc[UR4][R2.64+0x4]",
        "NOP",
        "@P2 BRA 0xb0",  # 0x60
        "FFMA R8, R4, R4, R8",
        "@!P0 BRA 0x0",
        "EXIT",
        "NOP",
        "CALL.REL.NOINC 0xe0",  # 0xb0
        "BRA 0x70",
        "NOP",
        "RET.REL.NODEC R20 0x0",  # 0xe0
    )
    (loop,) = kernel.loops
    assert (loop.wide_loads, loop.narrow_loads) == (1, 2)
    assert loop.hot_pass() == (1, 0, 6, 1)
    assert kernel.per_vector == 6


def test_loops_are_found_in_loops() -> None:
    kernel = _kernel(
        "MOV R0, RZ",
        "MOV R8, RZ",  # 0x10
        "LDG.E.128 R4, desc[UR4][R2.64]",  # 0x20
        "@!P0 BRA 0x20",
        "LDG.E R4, desc[UR4][R2.64]",  # 0x40
        "BSSY B0, 0x90",
        "@P1 BRA 0x80",
        "FADD R4, R4, R4",
        "BSYNC B0",  # 0x80
        "@!P1 BRA 0x40",  # 0x90
        "SHFL.BFLY PT, R4, R8, 0x10, 0x1f",
        "@!P2 BRA 0x10",
        "EXIT",
    )
    inner, scalar, outer = sorted(kernel.loops, key=lambda loop: len(loop.blocks))
    assert (inner.header, scalar.header, outer.header) == (0x20, 0x40, 0x10)
    assert outer.inner == (inner, scalar) or outer.inner == (scalar, inner)
    assert (outer.wide_loads, outer.narrow_loads) == (0, 0)
    assert kernel.hot_loops == (inner,)
    assert kernel.scalar_loops == (scalar,)
    eight = outer.hot_pass(lambda loop: loop.hot_pass().times(8 if loop.wide_loads else 0))
    assert eight == (8, 0, 8 * 2 + 3, 0)


def test_a_jump_back_over_code_that_does_not_return_is_no_loop() -> None:
    """Compilers put rare code behind the end, from where it jumps back."""
    kernel = _kernel("@P0 BRA 0x40", "LDG.E R4, [R2.64]", "EXIT", "NOP", "MUFU.RCP R4, R4", "BRA 0x10")
    assert kernel.loops == ()


def test_names_are_readable() -> None:
    names = [
        "_ZN10bucket_moo4cuda13small_gramianILi16ELNS_5DTypeE1EEEvNS0_11GramianPassE",
        "_ZN10bucket_moo4cuda15float64_gramianENS0_11GramianPassE",
    ]
    assert machine_code.readable(names) == ["small_gramian<16, bfloat16>", "float64_gramian"]


def test_dtypes_are_numbered_as_in_the_sources() -> None:
    enum = re.search(r"enum class DType : int \{(.*?)\}", (ROOT / "cpp" / "kernels" / "rows.hpp").read_text())
    assert enum is not None
    assert tuple(enum[1].strip().split(", ")) == machine_code.DTYPES
