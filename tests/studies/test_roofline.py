"""The tables of docs/gpu.md that are derived from the machine code: right arithmetic, and not stale."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "studies"), str(ROOT / "tools")]

import machine_code  # noqa: E402
import roofline  # noqa: E402

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH: no machine code is built")


def test_shares_are_what_a_calculation_by_hand_says() -> None:
    """A multiprocessor with 8 bytes a cycle, of which a load of a warp is 512: 64 cycles, so 256 instructions."""
    gpu = roofline.Gpu("toy", "sm_90", multiprocessors=10, hertz=1e9, bytes_a_second=80e9)
    assert gpu.share(256, 512) == pytest.approx(1.0)
    assert gpu.share(64, 1024) == pytest.approx(0.125)


def test_the_hot_loop_goes_round_as_often_as_there_are_vectors() -> None:
    text = "\n".join(
        f"        /*{16 * i:04x}*/  {line} ;  /* 0x0 */"
        for i, line in enumerate(
            (
                "MOV R8, RZ",  # 0x0: once for eight vectors
                "LDG.E.128 R4, [R2.64]",  # 0x10
                "LDG.E.128 R4, [R2.64]",
                "FFMA R8, R4, R4, R8",
                "@!P0 BRA 0x10",
                "@P1 BRA 0x70",
                "LDG.E.128 R4, [R2.64]",  # 0x60: what is left of them
                "@!P2 BRA 0x0",  # 0x70
                "EXIT",
            )
        )
    )
    (kernel,) = machine_code.parse(f"\t\tFunction : _Z5smallPf\n{text}", "sm_90")
    assert roofline.hot_cost(kernel, 8) == (8, 0, 4 * 4 + 3, 4)


def test_only_what_is_between_the_marks_is_replaced() -> None:
    page = f"before\n{roofline.BEGIN}old\n{roofline.END}\nafter\n"
    assert roofline.replaced(page, "new\n") == f"before\n{roofline.BEGIN}new\n{roofline.END}\nafter\n"


@needs_nvcc
@pytest.mark.build
@pytest.mark.slow
def test_the_page_is_not_stale() -> None:
    page = roofline.PAGE.read_text()
    if f"nvcc {roofline.compiler()}" not in page:
        pytest.skip("the tables are of another nvcc, whose code is another")
    assert roofline.replaced(page, roofline.derived()) == page, "run python studies/roofline.py"
