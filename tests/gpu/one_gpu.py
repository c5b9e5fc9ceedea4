"""Several ranks on one GPU: NCCL if it lets itself be talked into it, else Gloo with CUDA tensors.

For correctness only: kernels of the ranks take turns, and what they send goes over loopback.
"""

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.gpu.device import DEVICE, note

# A rank that hangs must leave time for the other tests.
_TIMEOUT = {"timeout": 60.0, "group_timeout": timedelta(seconds=45)}


def nccl(rank: int) -> str:
    """NCCL, in a dry run Gloo.

    NCCL refuses a communicator in which two ranks have the same GPU of the same host. The host is what NCCL_HOSTID
    says, so every rank claims one of its own, and the ranks reach each other over sockets.
    """
    os.environ.update(
        NCCL_HOSTID=f"moo-rank-{rank}",
        NCCL_MNNVL_ENABLE="0",
        NCCL_IB_DISABLE="1",
        NCCL_NET="Socket",
        NCCL_SOCKET_IFNAME="lo",
        NCCL_MAX_CTAS="2",
        NCCL_CUMEM_ENABLE="0",
        TORCH_NCCL_ASYNC_ERROR_HANDLING="0",  # as torch's documentation has it for the capture of DDP
    )
    DEVICE.enter_rank()
    return DEVICE.nccl


def gloo_cuda(rank: int) -> str:
    """CUDA tensors by way of the host."""
    DEVICE.enter_rank()
    return "gloo"


def smoke(rank: int, world: int) -> bool:
    """Whether a group can do what the reductions ask of it."""
    one = torch.ones(1, device=DEVICE.name)
    dist.all_reduce(one)
    for size in (1 << 10, 1 << 20):
        sent = torch.full((size,), rank, dtype=torch.uint8, device=DEVICE.name)
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent)
        if got.view(world, -1)[:, 0].tolist() != list(range(world)):
            return False
        gathered = torch.empty(world * size, dtype=torch.uint8, device=DEVICE.name)
        dist.all_gather_into_tensor(gathered, sent)
        if gathered.view(world, -1)[:, 0].tolist() != list(range(world)):
            return False
    return bool(one.item() == world)


@functools.cache
def _backend(run: Callable[..., list[Any]]) -> Callable[[int], str]:
    if DEVICE.lacks("NCCL"):
        return nccl
    try:
        if run(2, smoke, timeout=40.0, backend=nccl) == [True, True]:
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
    return functools.partial(run_ranks, backend=_backend(run_ranks), **_TIMEOUT)


@pytest.fixture
def run_nccl_rank(run_ranks: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """``run_nccl_rank(function, *arguments)``: one rank alone, over NCCL, which takes that on any GPU."""
    return functools.partial(run_ranks, 1, backend=nccl, **_TIMEOUT)
