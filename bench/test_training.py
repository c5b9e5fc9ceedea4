"""How much longer does a training step take, with a model that has to be computed, and what does it hold?"""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from harness import Result, timed
from ranks import Ways, in_turns
from torch.nn.parallel import DistributedDataParallel
from workloads import loss_of, transformer

GRAMIANS: dict[str, Any] = {"exact": "exact", "lagging sketch": moo.Sketch(lag=1)}


def build(rank: int, world: int) -> Ways:
    """A step of DDP with AdamW: forward, backward, optimizer."""
    ways: Ways = {}
    for way in ("ours", "reference"):
        ddp = DistributedDataParallel(transformer(), bucket_cap_mb=1)
        if way == "ours":
            moo.register(ddp, "mgda")
        optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-4, fused=True)

        def step(ddp: Any = ddp, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            loss_of(ddp, rank).backward()
            optimizer.step()

        ways[way] = step
    return ways


def test_step_of_ddp(paired: Any) -> None:
    """Two ranks, a language each."""
    with contextlib.ExitStack() as stack:
        paired("training[ddp,W=2]", "plain DDP", in_turns(stack, 2, build))


def one_process(k: int, gramian: str | moo.Sketch) -> tuple[Callable[[], None], moo.BucketMOO]:
    """A step of a pass for each of K objectives, and its state."""
    model = transformer()
    state = moo.register(model, "mgda", gramian=gramian)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    totals = dict.fromkeys(range(k), 1.0)

    def step() -> None:
        optimizer.zero_grad()
        for number in range(k):
            state.objective = number
            with contextlib.nullcontext() if number == k - 1 else state.accumulate(totals):
                loss_of(model, number).backward()
        optimizer.step()

    return step, state


def accumulation(k: int) -> Callable[[], None]:
    """The mean adds up in ``.grad``."""
    model = transformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        for number in range(k):
            (loss_of(model, number) / k).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("gramian", GRAMIANS)
@pytest.mark.parametrize("k", [2, 4])
def test_step_of_one_process(paired: Any, keep: Callable[[Result], None], k: int, gramian: str) -> None:
    """Beside accumulation of the mean; and the bytes that it holds beside those of a gradient."""
    held = []

    def make() -> tuple[Any, Any]:
        torch.set_num_threads(1)
        step, state = one_process(k, GRAMIANS[gramian])
        for _ in range(2):
            step()
        held.append(state.memory())
        return timed(step), timed(accumulation(k))

    paired(f"training[one process,{gramian},K={k}]", "accumulation of the mean", make, rounds=6)
    size = sum(parameter.nbytes for parameter in transformer().parameters())
    keep(Result(f"memory[one process,{gramian},K={k}]", "a gradient", "memory", held[0] / size, 0.0, 1))
