"""How long does a reduction take beside an ordinary all-reduce of the same tensor? Gloo over the loopback."""

import contextlib
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from ranks import Ways, in_turns

GRAMIANS = {"exact": "exact", "sketch": moo.Sketch()}


def build(rank: int, world: int, n: int, gramian: str, repeat: int) -> Ways:
    """Of one rank."""
    state = moo.BucketMOO("mgda", gramian=GRAMIANS[gramian])
    own = torch.randn(n, generator=torch.Generator().manual_seed(rank))
    tensor = own.clone()

    def ours() -> None:
        for _ in range(repeat):
            tensor.copy_(own)
            moo.all_reduce(tensor, state, bucket="b")

    def reference() -> None:
        for _ in range(repeat):
            tensor.copy_(own)
            dist.all_reduce(tensor)

    return {"ours": ours, "reference": reference}


@pytest.mark.parametrize(
    ("world", "n", "gramian"),
    [
        *((world, n, "exact") for world in (2, 4) for n in (1_000, 100_000, 10_000_000)),
        (1, 1_000_000, "exact"),
        (3, 1_000_000, "exact"),
        (2, 100_000_000, "exact"),
        (4, 10_000_000, "sketch"),
    ],
)
def test_all_reduce(paired: Any, world: int, n: int, gramian: str) -> None:
    """Float32."""
    repeat = max(1, 100_000 // n)
    with contextlib.ExitStack() as stack:
        make = in_turns(stack, world, build, n, gramian, repeat)
        rounds = 3 if n >= 100_000_000 else 5 if n <= 1_000 else None  # those of one round take as long
        paired(f"all_reduce[{gramian},W={world},n={n}]", "all-reduce (sum)", make, rounds=rounds)
