"""How much longer does a backward pass take that does nothing but hand over gradients? All of the reduction shows."""

import contextlib
from typing import Any

import bucket_moo_ext as moo
import pytest
from ranks import Ways, in_turns
from workloads import Case, step_of, wrapped

PASSES = (("layout", "passes"),)

CASES = {
    # ranks
    "ddp,W=1": Case(1),
    "ddp,W=2": Case(2),
    "ddp,W=3": Case(3),
    "ddp,W=4": Case(4),
    "ddp,W=4,all-gather hook": Case(4, hook="all_gather"),
    # ways to the Gramian, and what shares weights
    "ddp,W=2,sketch": Case(2, options=(("gramian", moo.Sketch()),)),
    "ddp,W=4,sketch": Case(4, options=(("gramian", moo.Sketch()),)),
    "ddp,W=4,sketch,lag": Case(4, options=(("gramian", moo.Sketch(lag=1)),)),
    "ddp,W=4,scope=parameter": Case(4, parameters=25, options=(("scope", "parameter"),)),
    "ddp,W=4,scope=model": Case(4, parameters=25, options=(("scope", "model"),)),
    "ddp,W=4,support": Case(4, parameters=25, options=(("support", True),)),
    "ddp,W=2,row_norms": Case(2, options=(("row_norms", True), ("objective", "one"))),
    "ddp,W=4,2 nodes": Case(4, nodes=2),
    # buckets
    "ddp,W=2,1 bucket of 4 kB": Case(2, megabytes=0.004, buckets=1),
    "ddp,W=2,100 buckets of 4 kB": Case(2, megabytes=0.4, buckets=100),
    "ddp,W=2,500 buckets of 4 kB": Case(2, megabytes=2.0, buckets=500),
    # wrappers, and passes
    "ddp,W=2,4 passes": Case(2, passes=4, options=PASSES),
    "fsdp1,W=4": Case(4, wrapper="fsdp1"),
    "fsdp2,W=4": Case(4, wrapper="fsdp2"),
    "fsdp2,W=2,4 passes": Case(2, wrapper="fsdp2", passes=4, options=PASSES),
    "hsdp,W=4": Case(4, wrapper="hsdp"),
    "hsdp,W=4,4 passes": Case(4, wrapper="hsdp", passes=4, options=PASSES),
}


def build(rank: int, world: int, case: Case) -> Ways:
    """Of one rank."""
    return {way: step_of(*wrapped(rank, case, is_ours=way == "ours"), case.passes) for way in ("ours", "reference")}


@pytest.mark.parametrize("name", CASES)
def test_backward(paired: Any, name: str) -> None:
    """Beside the wrapper alone; with several passes, beside its accumulation."""
    case = CASES[name]
    rounds = 8 if (case.wrapper, case.passes, case.hook) == ("ddp", 1, "ours") else 3  # others take longer
    if case.megabytes < 1:
        rounds = 40
    with contextlib.ExitStack() as stack:
        paired(f"backward[{name}]", f"plain {case.wrapper}", in_turns(stack, case.world, build, case), rounds=rounds)
