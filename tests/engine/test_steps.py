"""Steps that other calls come between, and calls of which one rank alone knows that they are refused."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.checks import draw, raw

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]


def network(seed: int) -> DDP:
    torch.manual_seed(seed)
    layers = [nn.Linear(40, 40) for _ in range(4)]
    return DDP(nn.Sequential(*layers), bucket_cap_mb=0.01)  # several buckets from the second pass on


def gradients(ddp: DDP) -> list[bytes]:
    return [raw(parameter.grad) for parameter in ddp.parameters() if parameter.grad is not None]


def rank_call_between_buckets(rank: int, world: int, seed: int) -> None:
    alone, between = network(seed), network(seed)
    moo.register(alone, "mgda")
    state = moo.BucketMOO("mgda")
    buckets = 0

    def hook(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal buckets
        buckets += 1
        done = moo.bucket_moo_hook(state, bucket)
        moo.all_reduce(torch.full((10,), 1.0 + rank), state, async_op=True)
        return done

    between.register_comm_hook(state, hook)
    for step in range(3):
        x = draw(seed, (step, rank), 200, torch.float32).view(5, 40)
        for ddp in (alone, between):
            ddp.zero_grad()
            ddp(x).square().mean().backward()
        assert gradients(between) == gradients(alone)
    assert buckets > 3
    assert state.step == 3 + buckets


def test_a_direct_call_may_come_between_the_buckets_of_a_pass(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_call_between_buckets, random_seed % 2**31)


class NoSize(torch.Tensor):
    """Does not say how many elements it has."""

    @staticmethod
    def __new__(cls, size: int) -> "NoSize":
        return torch.Tensor._make_wrapper_subclass(cls, (size,), dispatch_sizes_strides_policy="sizes")

    def __init__(self, size: int) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"{func} of a tensor without a size")


def rank_without_a_size(rank: int, world: int) -> None:
    state = moo.BucketMOO("mgda")
    row = torch.ones(20)
    if rank == 1:
        with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
            moo.all_reduce(NoSize(20), state)
    else:
        with pytest.raises(ValueError, match="rank 1 refused the arguments of its call"):
            moo.all_reduce(row, state)
    moo.all_reduce(row, state)


@pytest.mark.host
def test_a_tensor_without_a_size_leaves_no_rank_waiting(run_ranks: Runner) -> None:
    run_ranks(2, rank_without_a_size)
