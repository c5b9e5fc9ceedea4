"""Several ranks on one GPU: NCCL if it lets itself be talked into it, else Gloo with CUDA tensors.

For correctness only: kernels of the ranks take turns, and what they send goes over loopback.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist


def nccl(rank: int) -> str:
    """NCCL refuses two ranks on one GPU of one host (before 2.30), so that every rank claims a host of its own."""
    os.environ.update(
        NCCL_HOSTID=f"moo-rank-{rank}",
        NCCL_MULTI_RANK_GPU_ENABLE="1",
        NCCL_MNNVL_ENABLE="0",
        NCCL_IB_DISABLE="1",
        NCCL_NET="Socket",
        NCCL_SOCKET_IFNAME="lo",
        NCCL_MAX_CTAS="2",
        NCCL_CUMEM_ENABLE="0",
        CUDA_MODULE_LOADING="EAGER",
    )
    torch.cuda.set_device(0)
    return "nccl"


def gloo_cuda(rank: int) -> str:
    """CUDA tensors by way of the host."""
    torch.cuda.set_device(0)
    return "gloo"


def smoke(rank: int, world: int) -> bool:
    """Whether a group can do what the reductions ask of it."""
    one = torch.ones(1, device="cuda")
    dist.all_reduce(one)
    for size in (1 << 10, 1 << 20):
        sent = torch.full((size,), rank, dtype=torch.uint8, device="cuda")
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent)
        if got.view(world, -1)[:, 0].tolist() != list(range(world)):
            return False
    return bool(one.item() == world)


def note(kind: str, value: object) -> None:
    """Adds a line to what the check reports, if it is the check that runs the tests."""
    if path := os.environ.get("GPU_CHECK_NOTES"):
        with Path(path).open("a") as file:
            file.write(json.dumps({kind: value}) + "\n")


@functools.cache
def _backend(run: Callable[..., list[Any]]) -> Callable[[int], str]:
    try:
        if run(2, smoke, timeout=45, backend=nccl) == [True, True]:
            note("note", "Several ranks on one GPU: over NCCL.")
            return nccl
        why = "wrong results"
    except AssertionError as error:  # a rank failed or hung
        lines = str(error).strip().splitlines()
        why = lines[-1] if lines else "unknown"
    note("note", f"Several ranks on one GPU: over Gloo with CUDA tensors, because NCCL would not: {why}")
    return gloo_cuda


@pytest.fixture
def run_gpu_ranks(run_ranks: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """``run_ranks`` with all ranks on the one GPU."""
    return functools.partial(run_ranks, backend=_backend(run_ranks))
