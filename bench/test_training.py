"""How much longer does a training step take, with a model that has to be computed?"""

import contextlib
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from harness import timed
from ranks import Ways, in_turns
from torch.nn.parallel import DistributedDataParallel
from workloads import accumulation, loss_of, one_process, transformer

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


@pytest.mark.parametrize("gramian", GRAMIANS)
@pytest.mark.parametrize(("k", "width"), [(2, 128), (4, 128), (8, 128), (4, 512)])
def test_step_of_one_process(paired: Any, k: int, width: int, gramian: str) -> None:
    """Beside accumulation of the mean."""
    size = sum(parameter.nbytes for parameter in transformer(width).parameters())

    def make() -> tuple[Any, Any]:
        torch.set_num_threads(1)
        ours, reference = one_process(k, GRAMIANS[gramian], width), accumulation(k, width)
        return timed(ours.step), timed(reference.step)

    name = f"training[one process,{gramian},K={k}" + (",wide]" if width > 128 else "]")
    paired(name, "accumulation of the mean", make, rounds=2 if width > 128 else 4, gradient_mb=size / 1e6)
