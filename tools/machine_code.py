"""The machine code of the CUDA kernels: their loads, their loops and what the hot ones cost.

Reads what `cuobjdump -sass` prints of the build's own objects; nothing is compiled for it.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
INSTRUCTION_BYTES = 16
DTYPES = ("float32", "bfloat16", "float16", "float64")  # as DType numbers them

FUNCTION = re.compile(r"^\s*Function : (?P<name>\S+)")
INSTRUCTION = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>.*?)\s*;"
)
TARGET = re.compile(r"\b0x([0-9a-f]+)$")
PREDICATE = re.compile(r"!?U?P\d\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a warp."""

    address: int
    guard: str | None  # the predicate that it is executed under
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where it jumps to, or says that others do."""
        found = TARGET.search(self.operands)
        return int(found[1], 16) if found else None

    @property
    def is_global_load(self) -> bool:
        """Whether it reads memory of which is known that it is global."""
        return self.opcode.startswith("LDG")

    @property
    def is_wide_load(self) -> bool:
        """Whether it reads 16 bytes a lane of global memory."""
        return self.is_global_load and ".128" in self.opcode

    @property
    def is_local(self) -> bool:
        """Whether it accesses the stack, where spilled registers are too."""
        return self.opcode.split(".")[0] in ("LDL", "STL")

    @property
    def is_generic(self) -> bool:
        """Whether it accesses memory that may be shared, local or global: the hardware looks which."""
        return self.opcode.split(".")[0] in ("LD", "ST", "ATOM")


class Cost(NamedTuple):
    """Of a way through code. In this order: the hot way loads most, goes round what is cold and leaves nothing out."""

    wide_loads: int = 0
    warmth: int = 0  # minus the narrow loads and the calls
    instructions: int = 0
    float32: int = 0  # of them: multiplications and additions

    def plus(self, other: "Cost") -> "Cost":
        """One after the other."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def without_loads(self) -> "Cost":
        """The same as a way that is avoided for its loads."""
        return self._replace(wide_loads=0, warmth=self.warmth - self.wide_loads)

    def times(self, count: float) -> "Cost":
        """The same, again and again; a fraction of a pass counts as one."""
        return Cost(*(round(count * x) for x in self))


@dataclass(frozen=True, eq=False)
class Loop:
    """Code that is gone through again and again."""

    kernel: "Kernel" = field(repr=False)
    header: int
    blocks: frozenset[int]
    inner: tuple["Loop", ...]

    @cached_property
    def own_code(self) -> tuple[Instruction, ...]:
        """Its instructions that are in no inner loop."""
        inner = {block for loop in self.inner for block in loop.blocks}
        return tuple(i for block in sorted(self.blocks - inner) for i in self.kernel.blocks[block])

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes a lane, inner loops aside."""
        return sum(i.is_wide_load for i in self.own_code)

    @property
    def narrow_loads(self) -> int:
        """Other loads from global memory, inner loops aside."""
        return sum(i.is_global_load and not i.is_wide_load for i in self.own_code)

    def hot_pass(self, cost_of_inner: "Callable[[Loop], Cost] | None" = None, own_loads: bool = True) -> Cost:
        """What the hot way once round costs.

        An inner loop counts as `cost_of_inner` says; by default as nothing if it reads global memory, for that is what
        an unrolled loop leaves over, else as one pass. Without `own_loads` the way goes round the loads outside them.
        """
        costs = cost_of_inner or Loop._cost_inside
        parts = {}
        for block in self.blocks:
            cost = self.kernel.cost_of(block)
            parts[block] = (frozenset({block}), cost if own_loads else cost.without_loads())
        for loop in self.inner:
            parts |= dict.fromkeys(loop.blocks, (loop.blocks, costs(loop)))
        best: dict[frozenset[int], Cost | None] = {}

        def from_here(block: int) -> Cost | None:
            """The hot way from here back to the header; None: there is none."""
            blocks, cost = parts[block]
            if blocks not in best:
                successors = {s for b in blocks for s in self.kernel.successors[b]}
                ways = [Cost()] if self.header in successors else []
                for successor in (successors & self.blocks) - blocks - {self.header}:
                    way = from_here(successor)
                    if way is not None:
                        ways.append(way)
                best[blocks] = cost.plus(max(ways)) if ways else None
            return best[blocks]

        return from_here(self.header) or Cost()

    def _cost_inside(self) -> Cost:
        return Cost() if self.wide_loads + self.narrow_loads > 0 else self.hot_pass()


@dataclass(frozen=True)
class Kernel:
    """A kernel, with the functions that it calls."""

    name: str  # readable: `small_gramian<4, float32>`
    architecture: str
    code: tuple[Instruction, ...]

    @cached_property
    def blocks(self) -> dict[int, tuple[Instruction, ...]]:
        """Its basic blocks by their first addresses."""
        starts = {0}
        for i in self.code:
            if i.opcode.split(".")[0] in ("BRA", "CALL", "BSSY", "BSYNC", "EXIT", "RET", "BREAK"):
                starts.add(i.address + INSTRUCTION_BYTES)
                if i.target is not None:
                    starts.add(i.target)
        blocks: dict[int, list[Instruction]] = {}
        for i in self.code:
            if i.address in starts:
                blocks[i.address] = []
                block = blocks[i.address]
            block.append(i)
        return {start: tuple(block) for start, block in blocks.items()}

    @cached_property
    def successors(self) -> dict[int, tuple[int, ...]]:
        """Where each block goes on. A call goes on behind itself."""
        joins: dict[str, set[int]] = {}
        for i in self.code:
            if i.opcode.startswith("BSSY") and i.target is not None:
                joins.setdefault(i.operands.split(",")[0], set()).add(i.target)
        return {
            start: tuple(s for s in self._next(block[-1], joins) if s in self.blocks)
            for start, block in self.blocks.items()
        }

    @staticmethod
    def _next(last: Instruction, joins: dict[str, set[int]]) -> Iterable[int]:
        behind = last.address + INSTRUCTION_BYTES
        kind = last.opcode.split(".")[0]
        if kind == "BRA" and not last.opcode.startswith("BRA.DIV"):  # taken by warps that have fallen apart: cold
            assert last.target is not None, last
            conditional = last.guard is not None or PREDICATE.search(last.operands)
            return (last.target, behind) if conditional else (last.target,)
        if kind in ("EXIT", "RET"):
            return (behind,) if last.guard is not None else ()
        if kind == "BSYNC":  # where the lanes of a branch meet: mostly the next instruction
            meet = joins.get(last.operands, set())
            return (behind,) if behind in meet else tuple(meet)
        return (behind,)

    def cost_of(self, block: int) -> Cost:
        """Of a block."""
        code = self.blocks[block]
        narrow = sum(i.is_global_load and not i.is_wide_load for i in code)
        calls = sum(i.opcode.startswith("CALL") for i in code)
        float32 = sum(i.opcode.split(".")[0] in ("FFMA", "FMUL", "FADD") for i in code)
        return Cost(sum(i.is_wide_load for i in code), -narrow - calls, len(code), float32)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """All loops, inner ones before those they are in."""
        found: list[Loop] = []
        self._find_loops(self._reached, None, found)
        return tuple(found)

    @cached_property
    def _entries(self) -> frozenset[int]:
        """The first addresses of the kernel and of the functions that it calls."""
        return frozenset({0} | {i.target for i in self.code if i.opcode.startswith("CALL") and i.target is not None})

    @cached_property
    def _reached(self) -> frozenset[int]:
        """The blocks that are not padding."""
        reached: set[int] = set()
        waiting = list(self._entries)
        while waiting:
            block = waiting.pop()
            if block not in reached:
                reached.add(block)
                waiting += self.successors[block]
        return frozenset(reached)

    def _find_loops(self, region: frozenset[int], cut: int | None, found: list[Loop]) -> tuple[Loop, ...]:
        """The outermost loops of a region, in which nothing jumps to `cut`."""
        outermost = []
        for component in _strong_components(region, self.successors, cut):
            first = min(component)
            if len(component) == 1 and (first == cut or first not in self.successors[first]):
                continue
            outside = self._reached - component
            entered = {s for b in outside for s in self.successors[b] if s != cut} | self._entries
            header = min(entered & component)
            inner = self._find_loops(component, header, found)
            outermost.append(Loop(self, header, component, inner))
            found.append(outermost[-1])
        return tuple(outermost)

    @cached_property
    def hot_loops(self) -> tuple[Loop, ...]:
        """The loops that read most vectors at a time, of those that read any."""
        reading = {loop: loop.hot_pass().wide_loads for loop in self.loops if loop.wide_loads > 0}
        return tuple(loop for loop, loads in reading.items() if loads == max(reading.values()))

    @property
    def per_vector(self) -> float | None:
        """Instructions on the hot way for every 16 bytes that a lane loads, of the worst hot loop."""
        passes = [loop.hot_pass() for loop in self.hot_loops]
        return max((cost.instructions / cost.wide_loads for cost in passes), default=None)

    @property
    def scalar_loops(self) -> tuple[Loop, ...]:
        """The loops that read global memory, and never 16 bytes at a time."""
        return tuple(loop for loop in self.loops if loop.narrow_loads > 0 and loop.wide_loads == 0)


def _strong_components(
    region: frozenset[int], successors: dict[int, tuple[int, ...]], cut: int | None
) -> list[frozenset[int]]:
    """Sets of blocks of a region that reach each other without a jump to `cut`: Tarjan's algorithm, not recursive."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()
    components = []
    for root in sorted(region):
        work = [(root, iter(()))] if root not in index else []
        while work:
            block, rest = work[-1]
            if block not in index:
                index[block] = low[block] = len(index)
                stack.append(block)
                waiting.add(block)
                rest = iter([s for s in successors[block] if s in region and s != cut])
                work[-1] = (block, rest)
            for successor in rest:
                if successor not in index:
                    work.append((successor, iter(())))
                    break
                if successor in waiting:
                    low[block] = min(low[block], index[successor])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[block])
                if low[block] == index[block]:
                    at = stack.index(block)
                    component = frozenset(stack[at:])
                    del stack[at:]
                    waiting -= component
                    components.append(component)
    return components


def parse(text: str, architecture: str) -> list[Kernel]:
    """The kernels of a listing. Names are demangled all at once."""
    code: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if function := FUNCTION.match(line):
            code[function["name"]] = []
        elif instruction := INSTRUCTION.match(line):
            code[list(code)[-1]].append(
                Instruction(
                    int(instruction["address"], 16),
                    instruction["guard"],
                    instruction["opcode"],
                    instruction["operands"],
                )
            )
    names = readable(list(code))
    return [Kernel(name, architecture, tuple(c)) for name, c in zip(names, code.values(), strict=True)]


def readable(names: list[str]) -> list[str]:
    """Kernel names as the sources have them, with the names of the dtypes and without parameters."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = []
    for name in done.stdout.splitlines():
        plain = re.sub(r"\(anonymous namespace\)::|bucket_moo::(cuda::)?", "", name).removeprefix("void ")
        plain = re.sub(r"\(DType\)(\d)", lambda number: DTYPES[int(number[1])], plain)
        short.append(re.sub(r"\(.*", "", plain))
    return short


def cuobjdump() -> Path | None:
    """The disassembler of the pinned packages, else that of a toolkit on the PATH; None: there is none."""
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        tool = Path(folder) / "cu13" / "bin" / "cuobjdump"
        if tool.exists():
            return tool
    on_path = shutil.which("cuobjdump")
    return Path(on_path) if on_path else None


def disassemble(tool: Path, compiled: Path, architecture: str) -> list[Kernel]:
    """The kernels of an object for an architecture (`sm_90`)."""
    beside = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}  # it calls nvdisasm
    done = subprocess.run(
        [tool, "-sass", "-arch", architecture, compiled], capture_output=True, text=True, check=True, env=beside
    )
    return parse(done.stdout, architecture)


def built_objects() -> dict[str, Path]:
    """The objects of the newest build by the names of their sources; empty: there is none."""
    objects: dict[str, Path] = {}
    for path in ROOT.glob("build/*/cuda/CMakeFiles/bucket_moo_cuda.dir/*.cu.o"):
        source = path.name.removesuffix(".o")
        if source not in objects or path.stat().st_mtime > objects[source].stat().st_mtime:
            objects[source] = path
    return objects
