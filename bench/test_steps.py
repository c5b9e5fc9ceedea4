"""How much longer does a backward pass take that does nothing but hand over gradients? All of the reduction shows."""

import contextlib
from typing import Any

import pytest
from ranks import Ways, in_turns
from workloads import CASES, Case, step_of, wrapped


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
