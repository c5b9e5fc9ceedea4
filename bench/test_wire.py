"""How many bytes are sent in a backward pass? By the kernel's counters of the network interfaces, with all headers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from harness import Result
from ranks import Ways, ranks
from workloads import CASES, Case, step_of, wrapped

NAMES = (
    "ddp,W=2",
    "ddp,W=4",
    "ddp,W=4,sketch",
    "ddp,W=4,2 nodes",
    "ddp,W=4,all-gather hook",
    "ddp,W=2,4 passes",
    "fsdp2,W=4",
)
STEPS = 2


def bytes_sent() -> int:
    """By this machine over all its network interfaces, the loopback among them."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


def build(rank: int, world: int, case: Case) -> Ways:
    """Bytes that a rank sends in a step, the mean over ranks and steps."""

    def sent_by(is_ours: bool) -> Callable[[], float]:
        step = step_of(*wrapped(rank, case, is_ours), case.passes)

        def sent() -> float:
            step()
            dist.barrier()
            before = bytes_sent()
            dist.barrier()
            for _ in range(STEPS):
                step()
            dist.barrier()
            return (bytes_sent() - before) / STEPS / world

        return sent

    return {"ours": sent_by(True), "reference": sent_by(False)}


@pytest.mark.parametrize("name", NAMES)
def test_bytes_sent(keep: Callable[[Result], None], name: str) -> None:
    """Beside the wrapper alone."""
    case = CASES[name]
    with ranks(case.world, build, case) as run:
        ours, reference = run("ours") / 1e6, run("reference") / 1e6
    detail = {"ours_mb": ours, "reference_mb": reference}
    keep(Result(f"wire[{name}]", f"plain {case.wrapper}", "bytes", ours / reference, 0.0, 1, detail))
