"""How much memory does it take? What is held between steps, and the peak of a process that does nothing else."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest
from harness import Result
from ranks import Ways, ranks
from test_training import GRAMIANS
from workloads import CASES, Case, accumulation, one_process, step_of, transformer, wrapped

NAMES = (
    "ddp,W=2",
    "ddp,W=4",
    "ddp,W=4,sketch",
    "ddp,W=4,all-gather hook",
    "ddp,W=4,scope=model",
    "ddp,W=2,4 passes",
    "fsdp1,W=4",
    "fsdp2,W=4",
    "fsdp2,W=2,4 passes",
)
STEPS = 2


def peak() -> float:
    """Bytes. Not getrusage's figure, which a process inherits from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024.0


def ways_of(step: Callable[[], object], state: moo.BucketMOO | None) -> Ways:
    """Of a process that does nothing else: what is held after some steps, and the peak."""

    def held() -> float:
        for _ in range(STEPS):
            step()
        return 0.0 if state is None else float(state.memory())

    return {"held": held, "peak": peak}


def build(rank: int, world: int, case: Case, is_ours: bool) -> Ways:
    """Of a case, on one rank."""
    model, state = wrapped(rank, case, is_ours)
    return ways_of(step_of(model, state, case.passes), state)


def build_one_process(rank: int, world: int, k: int, gramian: Any) -> Ways:
    """Of a step of one process; no Gramian: accumulation of the mean."""
    return ways_of(*(accumulation(k, 512) if gramian is None else one_process(k, gramian, 512)))


@functools.cache
def bytes_of(world: int, make: Callable[..., Ways], *arguments: object) -> tuple[float, float]:
    """Held, and peak, of the rank that has most."""
    with ranks(world, make, *arguments) as run:
        return run("held"), run("peak")


def keep_both(
    keep: Callable[[Result], None],
    name: str,
    plain: str,
    gradient: float,
    ours: tuple[float, float],
    reference: tuple[float, float],
) -> None:
    """``gradient``: bytes of one, which what is held is compared with; peaks with that of the reference."""
    if held := ours[0]:
        keep(Result(f"memory[{name}]", "a gradient", "bytes", held / gradient, 0.0, 1, {"ours_mb": held / 1e6}))
    ours_mb, reference_mb = ours[1] / 1e6, reference[1] / 1e6
    detail = {"ours_mb": ours_mb, "reference_mb": reference_mb, "more_mb": ours_mb - reference_mb}
    keep(Result(f"peak[{name}]", plain, "peak", ours_mb / reference_mb, 0.0, 1, detail))


@pytest.mark.parametrize("name", NAMES)
def test_memory(keep: Callable[[Result], None], name: str) -> None:
    """Of a rank."""
    case = CASES[name]
    plain = case._replace(options=(), hook="ours")
    ours, reference = bytes_of(case.world, build, case, True), bytes_of(case.world, build, plain, False)
    keep_both(keep, name, f"plain {case.wrapper}", case.megabytes * 1e6, ours, reference)


@pytest.mark.parametrize("gramian", GRAMIANS)
@pytest.mark.parametrize("k", [2, 4, 8])
def test_memory_of_one_process(keep: Callable[[Result], None], k: int, gramian: str) -> None:
    """With 59 MB of gradients."""
    size = float(sum(parameter.nbytes for parameter in transformer(512).parameters()))
    ours, reference = (bytes_of(1, build_one_process, k, way) for way in (GRAMIANS[gramian], None))
    keep_both(keep, f"one process,{gramian},K={k}", "accumulation of the mean", size, ours, reference)
