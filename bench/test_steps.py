"""How much longer does a backward pass take that does nothing but hand over gradients? All of the reduction shows."""

import contextlib
from typing import Any, NamedTuple

import bucket_moo_ext as moo
import pytest
import torch
from ranks import Ways, in_turns
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from workloads import Gradient, all_gather_hook, shard, step_of


class Case(NamedTuple):
    """A wrapper, what its gradients are, and how they are reduced."""

    world: int
    wrapper: str = "ddp"
    megabytes: float = 40.0
    buckets: int = 4
    passes: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    hook: str = "ours"


CASES = {
    "ddp,W=4": Case(4),
    "ddp,W=2": Case(2),
    "ddp,W=4,sketch": Case(4, options=(("gramian", moo.Sketch()),)),
    "ddp,W=4,all-gather hook": Case(4, hook="all_gather"),
    "ddp,W=4,scope=parameter": Case(4, options=(("scope", "parameter"),)),
    "ddp,W=4,scope=model": Case(4, options=(("scope", "model"),)),
    "ddp,W=4,support": Case(4, options=(("support", True),)),
    "ddp,W=2,row_norms": Case(2, options=(("row_norms", True), ("objective", "one"))),
    "ddp,W=2,2 passes": Case(2, passes=2, options=(("layout", "passes"),)),
    "ddp,W=2,1 bucket of 4 kB": Case(2, megabytes=0.004, buckets=1),
    "ddp,W=2,100 buckets of 4 kB": Case(2, megabytes=0.4, buckets=100),
    "ddp,W=2,500 buckets of 4 kB": Case(2, megabytes=2.0, buckets=500),
    "fsdp2,W=4": Case(4, wrapper="fsdp2"),
    "fsdp2,W=2,4 passes": Case(2, wrapper="fsdp2", passes=4, options=(("layout", "passes"),)),
}


def build(rank: int, world: int, case: Case) -> Ways:
    """Of one rank."""
    ways: Ways = {}
    for way in ("ours", "reference"):
        generator = torch.Generator().manual_seed(rank)
        size = round(case.megabytes * 1e6 / 4 / case.buckets)
        model: Any = nn.Sequential(*(Gradient(size, generator) for _ in range(case.buckets)))
        if case.wrapper == "fsdp2":
            model = shard(model, init_device_mesh("cpu", (world,)))
        else:
            model = DistributedDataParallel(model, bucket_cap_mb=case.megabytes / case.buckets)
        state = None
        if way == "ours" and case.hook == "all_gather":
            model.register_comm_hook({"method": "mgda", "memory": torch.empty(0)}, all_gather_hook)
        elif way == "ours":
            state = moo.register(model, "mgda", **dict(case.options))
        ways[way] = step_of(model, state, case.passes)
    return ways


@pytest.mark.parametrize("name", CASES)
def test_backward(paired: Any, name: str) -> None:
    """Beside the wrapper alone; with several passes, beside its accumulation."""
    case = CASES[name]
    with contextlib.ExitStack() as stack:
        paired(f"backward[{name}]", f"plain {case.wrapper}", in_turns(stack, case.world, build, case))
