"""Models whose backward pass costs next to nothing, and small ones that cost something."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

# torch 2.13 renamed it and warns about the old name.
ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Gradient(nn.Module):
    """A parameter whose gradient is a given vector."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(size))
        self.gradient = torch.randn(size, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        return x + self.parameter @ self.gradient


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Its children are groups of FSDP2; the root has no parameters of its own."""
    for part in model.children():
        fully_shard(part, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def step_of(model: nn.Module, state: moo.BucketMOO | None, passes: int) -> Callable[[], float]:
    """A step, which returns the seconds of its backward passes on this rank."""

    def left_open(number: int) -> contextlib.AbstractContextManager[Any]:
        """Around a pass of a step."""
        if number == passes - 1:
            return contextlib.nullcontext()
        if state is not None:
            return state.accumulate()
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def step() -> float:
        model.zero_grad()
        seconds = 0.0
        for number in range(passes):
            if state is not None and passes > 1:
                state.objective = number
            if isinstance(model, FSDPModule):
                model.set_requires_all_reduce(number == passes - 1)  # plain HSDP's
            with left_open(number):
                loss = model(torch.ones((), requires_grad=True))
                dist.barrier()
                start = time.perf_counter()
                loss.backward()
                seconds += time.perf_counter() - start
        return seconds

    return step


def all_gather_hook(state: dict[str, Any], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The textbook way: bring all K gradients of the bucket to every rank, then solve and combine there.

    Its memory is kept between buckets like ours, and it uses our kernels; it does not overlap with the backward pass.
    """
    buffer = bucket.buffer()
    world = dist.get_world_size()
    if state["memory"].numel() < world * buffer.numel():
        state["memory"] = torch.empty(world * buffer.numel(), dtype=buffer.dtype)
    gathered = state["memory"][: world * buffer.numel()]
    ALL_GATHER(gathered, buffer)
    buffer.copy_(moo.aggregate(gathered.view(world, -1), state["method"]))
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(buffer)
    return future


VOCABULARY = 2048


def transformer(width: int = 128, layers: int = 4) -> nn.Module:
    """From tokens to logits, the same in every call."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, width), nn.TransformerEncoder(layer, layers), nn.Linear(width, VOCABULARY)
    )


def loss_of(model: nn.Module, seed: int, batch: int = 4, length: int = 64) -> torch.Tensor:
    """Cross entropy of the tokens themselves."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (batch, length), generator=generator)
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
