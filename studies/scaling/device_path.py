"""What the device path does for a bucket: room for rows, kernels, copies."""

import math
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Rows for which cpp/c10d_collective/device_step.cpp makes room.
FEW_OBJECTIVES, ROOM, MAX_OBJECTIVES = 8, 16, 64
LEAST_SKETCHES = 4
# Objective, weight and call of a rank, once a pass.
_TABLE = (ROOT / "cpp" / "include" / "bucket_moo" / "objective_table.hpp").read_text(encoding="utf-8")
RECORD_BYTES = int(re.findall(r"sizeof\(StepRecord\) == (\d+)", _TABLE)[0])
SHARD_ALIGNMENT = 16  # bytes: kShardAlignment of cpp/collective/shard_layout.hpp
# A tail of which a thread would form more products than this has a Gramian's kernel: longest_tail() of cuda/solve.cu.
SOLVE_THREADS, SOLVE_PRODUCTS = 256, 256
# Kernels as cuda/operations.json counts them, without the solve, whose time is a constant of its own. The solve adds up
# the ranks' messages. Weights are kept by the solve and used by what scales: neither takes a kernel.
RECORD_KERNELS = 2  # record, table
EXACT_KERNELS = 2  # Gramian, combination of shard and tail
TAIL_COPIES = 1  # into the message; taken to cost what a kernel does
SKETCH_KERNELS = 2  # sketches of parts, their sum
SKETCHED_SOLVE_KERNELS = 1  # Gramian
SCALE_KERNELS = 1  # of the bucket, or of the factor of a pre-multiplied sum
GATHER_KERNELS = 2  # Gramian, combination
# Planned: the device path for several passes, and for layouts other than "ranks", is being written.
ADD_KERNELS = 1  # adds a pass's rows to the tile, and the own tail to the rows of tails
ZERO_FILLS = 1  # of the gradient, in a pass that leaves the step open; taken to cost what a kernel does


def room(objectives: int, most: int) -> int:
    """Rows for which messages have room, since the host does not learn a later step's number: `most` or fewer."""
    return min(ROOM if objectives <= FEW_OBJECTIVES else MAX_OBJECTIVES, most)


def solve_takes_tail(rows: int, elements: int) -> bool:
    """Whether the solve forms the Gramian of a tail of `elements`, which needs no kernel then."""
    of_a_thread = math.ceil(rows * (rows + 1) // 2 / SOLVE_THREADS)
    return elements <= SOLVE_PRODUCTS // of_a_thread
