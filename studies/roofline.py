"""What bounds the kernels on a GPU, derived from their machine code: nothing here is measured.

Writes its tables into docs/gpu.md. `python studies/roofline.py --check` says whether those there are still right.

A multiprocessor issues four instructions of a warp in a cycle. The hot way through a kernel's loops says how many it
issues for every byte of memory; times the bytes that a multiprocessor gets in a cycle from memory, that is the share of
its issue slots which full bandwidth takes. Over 100 % the kernel is bound by issuing. FFMA is the share of the float32
units, which take as many instructions as can be issued.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import machine_code
from machine_code import Cost, Kernel, Loop

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu.md"
BEGIN = "<!-- derived by studies/roofline.py: begin -->\n"
END = "<!-- derived by studies/roofline.py: end -->"

ISSUED = 4  # instructions of warps that a multiprocessor issues in a cycle, and float32 ones that it executes
VECTORS = 32 * 16  # bytes that a load of 16 bytes a lane reads
BUCKET = 25 * 2**20  # bytes, as DDP has them
OBJECTIVES = (2, 4, 8, 16)
DTYPES = {"float32": 4, "bfloat16": 2}
LONGEST_SUM = 1024  # elements in float32
LATENCY = 700e-9  # seconds from a load to its data, of memory under load; assumed


@dataclass(frozen=True)
class Gpu:
    """What data sheets say."""

    name: str
    architecture: str
    multiprocessors: int
    hertz: float
    bytes_a_second: float

    def share(self, instructions: int, moved: int) -> float:
        """Of the slots of its multiprocessors, for so many instructions in so many bytes at full bandwidth."""
        cycles = moved / (self.bytes_a_second / self.multiprocessors / self.hertz)
        return instructions / (ISSUED * cycles)


GPUS = (
    Gpu("H100", "sm_90", 132, 1.755e9, 3.35e12),
    Gpu("B200", "sm_100", 148, 1.98e9, 8e12),  # the clock by its 75 TFLOPS of float32
)


@dataclass(frozen=True)
class Row:
    """Of the table: a kernel, and how many vectors a lane loads and stores once round its outermost loop."""

    label: str
    source: str
    kernel: str
    vectors: int
    wide_stores: int = 0


def rows() -> list[Row]:
    """The kernels that read or write whole buckets."""
    table = []
    for dtype, size in DTYPES.items():
        for k in OBJECTIVES:
            vectors = LONGEST_SUM * size * k // VECTORS
            table.append(Row(f"Gramian, K = {k}, {dtype}", "gramian.cu", f"small_gramian<{k}, {dtype}>", vectors))
    for dtype in DTYPES:
        table.append(Row(f"combination, K = 8, {dtype}", "combine.cu", f"combine_kernel<{dtype}>", 8, 1))
    for dtype in DTYPES:
        table.append(Row(f"scaling, {dtype}", "scale.cu", f"scale_kernel<{dtype}>", 4, 4))
    for dtype, size in DTYPES.items():
        sections = 32 // (32 * 16 // size // 64)  # that a warp draws its signs for together
        table.append(Row(f"sketch, {dtype}", "sketch.cu", f"sum_runs<{dtype}>", sections))
    return table


def hot_cost(kernel: Kernel, vectors: float) -> Cost:
    """Of once round the outermost loop over a row, in which a lane loads so many vectors."""
    hot = min(kernel.hot_loops, key=lambda loop: loop.hot_pass().instructions)

    def cost_of(loop: Loop) -> Cost:
        if loop is hot:
            return hot.hot_pass().times(vectors / hot.hot_pass().wide_loads)
        if hot.blocks < loop.blocks:
            return loop.hot_pass(cost_of, own_loads=False)
        reads_rows = loop.wide_loads + loop.narrow_loads > 0
        return Cost() if reads_rows else loop.hot_pass()  # of ends of rows; of a warp's lanes

    around = [loop for loop in kernel.loops if hot.blocks <= loop.blocks]
    return cost_of(max(around, key=lambda loop: len(loop.blocks)))


def bandwidth_table(kernels: dict[tuple[str, str], Kernel]) -> str:
    """What full bandwidth takes of each kernel's multiprocessors. Kernels go by name and architecture."""
    head = "| kernel | " + " | ".join(f"{gpu.name}: instructions a kB | issue | FFMA | bound" for gpu in GPUS) + " |"
    lines = [head, "|---" * (1 + 4 * len(GPUS)) + "|"]
    for row in rows():
        cells = [row.label]
        for gpu in GPUS:
            cost = hot_cost(kernels[row.kernel, gpu.architecture], row.vectors)
            moved = (cost.wide_loads + row.wide_stores) * VECTORS
            issue = gpu.share(cost.instructions, moved)
            bound = "memory" if issue <= 1 else f"issue, {1 / issue:.0%}"
            cells += [f"{1000 * cost.instructions / moved:.0f}", f"{issue:.0%}"]
            cells += [f"{gpu.share(cost.float32, moved):.0%}", bound]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


PLAN = r"""
#include <cstdio>
#include <cstdlib>
#include "gramian_plan.cuh"
int main(int, char** argv) {
  using namespace bucket_moo::cuda;
  const int element = std::atoi(argv[2]), k = std::atoi(argv[3]), count = std::atoi(argv[4]);
  const SmallPlan plan = plan_small(std::atoll(argv[1]), element, k, count * small_resident(k));
  const int under_way = small_resident(k) * kGramianWarps * 512 * k * small_unroll(k);
  std::printf("%d %d %d\n", plan.blocks, static_cast<int>(plan.units) + (plan.more > 0), under_way);
}
"""


def bucket_table() -> str:
    """How a bucket's Gramian fills the devices, as the launch's own arithmetic says."""
    head = "| K, dtype | " + " | ".join(
        f"{gpu.name}: read, µs | blocks | loads of a warp after each other | kB under way, of those needed"
        for gpu in GPUS
    )
    lines = [head + " |", "|---" * (1 + 4 * len(GPUS)) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "plan.cpp", Path(folder) / "plan"
        source.write_text(PLAN)
        includes = [f"-I{ROOT / 'cuda'}", f"-I{ROOT / 'cpp' / 'include'}"]
        subprocess.run(["g++", "-std=c++20", *includes, str(source), "-o", str(program)], check=True)
        for dtype, size in DTYPES.items():
            for k in OBJECTIVES:
                cells = [f"{k}, {dtype}"]
                for gpu in GPUS:
                    n = BUCKET // (k * size)
                    arguments = [str(x) for x in (n, size, k, gpu.multiprocessors)]
                    out = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True).stdout
                    blocks, rounds, under_way = (int(word) for word in out.split())
                    needed = LATENCY * gpu.bytes_a_second / gpu.multiprocessors
                    cells += [f"{1e6 * BUCKET / gpu.bytes_a_second:.1f}", str(blocks), str(rounds)]
                    cells += [f"{under_way / 1000:.0f} of {needed / 1000:.0f}"]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def derived() -> str:
    """What stands between the marks."""
    tool = machine_code.cuobjdump()
    if tool is None:
        raise SystemExit("error: cuobjdump is missing; pip install -r requirements/dev.txt")
    objects = machine_code.built_objects()
    missing = {row.source for row in rows()} - objects.keys()
    if missing:
        raise SystemExit(f"error: not built: {', '.join(sorted(missing))}; make setup, where there is an nvcc")
    kernels = {
        (kernel.name, gpu.architecture): kernel
        for source in sorted({row.source for row in rows()})
        for gpu in GPUS
        for kernel in machine_code.disassemble(tool, objects[source], gpu.architecture)
    }
    return (
        f"Derived, not measured; from the code of nvcc {compiler()}.\n\n{bandwidth_table(kernels)}\n\n"
        f"A bucket of 25 MiB, Gramian:\n\n{bucket_table()}\n"
    )


def compiler() -> str:
    """The version of the nvcc on the PATH."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", said)
    assert found is not None, said
    return found[1]


def replaced(page: str, text: str) -> str:
    """The page with other text between the marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + text + END + after


def main() -> None:
    """Writes the tables into the page, or says that they are stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is stale")
    options = parser.parse_args()
    page = PAGE.read_text()
    new = replaced(page, derived())
    if options.check:
        sys.exit(0 if new == page else f"error: {PAGE.relative_to(ROOT)} is stale; run python studies/roofline.py")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
