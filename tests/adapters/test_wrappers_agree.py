"""Wrappers whose buckets are cut alike give the same training."""

import itertools
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from tests.support.flat import whole_parameters, wrap
from tests.support.sharded import full, mesh_of

WIDTHS = (5, 7, 11, 3)
TINY = 1e-6  # MiB: every parameter has a bucket of its own


def _model(seed: int) -> nn.Sequential:
    """Layers of one parameter each."""
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in itertools.pairwise(WIDTHS)))


def _sharded(model: nn.Sequential, world: int) -> Any:
    for layer in model:
        fully_shard(layer, mesh=mesh_of(world))
    return fully_shard(model, mesh=mesh_of(world))


_WRAPPERS: dict[str, Callable[[nn.Sequential, int], nn.Module]] = {
    "ddp": lambda model, world: DistributedDataParallel(model, bucket_cap_mb=TINY),
    "replicate": lambda model, world: replicate(model, bucket_cap_mb=TINY),
    "fsdp2": _sharded,
    "fsdp1": lambda model, world: wrap(model, auto_wrap_policy=ModuleWrapPolicy({nn.Linear})),
}


def _trained(rank: int, world: int, seed: int, wrapper: str) -> list[torch.Tensor]:
    plain = _model(seed)
    model: Any = _WRAPPERS[wrapper](plain, world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def backward(step: int) -> None:
        generator = np.random.default_rng([seed, rank, step])
        x, y = (torch.from_numpy(generator.normal(size=(4, width))) for width in (WIDTHS[0], WIDTHS[-1]))
        (model(x).tanh() - y).square().sum().backward()

    # DDP has all gradients in one bucket before its first step, and makes its buckets behind the first pass.
    state = moo.register(model, "mgda")
    backward(0)
    optimizer.zero_grad()
    for step in range(20):
        optimizer.zero_grad()
        backward(step)
        optimizer.step()
        assert sorted(len(bucket.parameters) for bucket in state.report().buckets) == [1, 1, 1]
    if wrapper == "fsdp1":
        return list(whole_parameters(model).values())
    return [full(p) if wrapper == "fsdp2" else p.detach() for p in model.parameters()]


def _agree(rank: int, world: int, seed: int) -> None:
    expected = _trained(rank, world, seed, "ddp")
    moved = [(a - b.detach()).norm() for a, b in zip(expected, _model(seed).parameters(), strict=True)]
    for wrapper in _WRAPPERS:
        for got, parameter, change in zip(_trained(rank, world, seed, wrapper), expected, moved, strict=True):
            assert (got - parameter).norm() <= 1e-7 * change, wrapper


@pytest.mark.host
@pytest.mark.filterwarnings("ignore")
def test_wrappers_with_the_same_buckets_agree(run_ranks: Callable[..., list[Any]], random_seed: int) -> None:
    run_ranks(3, _agree, random_seed)
