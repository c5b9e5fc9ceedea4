"""Several DDP modules, several groups, and modules that are wrapped again."""

import gc
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import (
    CAP_MB,
    TOLERANCE,
    batch_of,
    check_buckets,
    digest,
    gradient_digest,
    gradients,
    local_gradients,
    loss_of,
    mlp,
    same_on_all_ranks,
)

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]


def _several_modules(rank: int, world: int, seed: int) -> list[str]:
    first, second = mlp(seed, sizes=(40, 120, 30)), mlp(seed + 1, sizes=(30, 120, 5))
    ddps = [DDP(m, bucket_cap_mb=CAP_MB) for m in (first, second)]
    states = [moo.register(ddps[0]), moo.BucketMOO(bucket_cap_mb=CAP_MB)]
    ddps[1].register_comm_hook(states[1], moo.bucket_moo_hook)
    states[1].name_parameters(second.named_parameters())
    chain = nn.Sequential(first, second)
    digests = []
    for step in range(3):
        # One backward pass through both modules.
        local = local_gradients(chain, world, seed, step)
        chain.zero_grad()
        x, y = batch_of(seed, rank, step)
        (ddps[1](ddps[0](x)) - y).square().mean().backward()
        for i in (0, 1):
            own = [{n[2:]: g for n, g in grads.items() if n[0] == f"{i}"} for grads in local]
            check_buckets(ddps[i], states[i], own, TOLERANCE[torch.float64])
        digests.append(gradient_digest(chain))
    for step in range(3, 5):
        # Forward passes in one order, backward passes in the other.
        sizes = ((40, 30), (30, 5))
        batches = [[batch_of(seed, r, step, sizes=s) for r in range(world)] for s in sizes]
        local_of = [
            [gradients(m, lambda model, b=b: loss_of(model, b)) for b in batches[i]]  # type: ignore[misc]
            for i, m in enumerate((first, second))
        ]
        chain.zero_grad()
        losses = [loss_of(ddp, batches[i][rank]) for i, ddp in enumerate(ddps)]
        for loss in losses[:: 1 if step == 3 else -1]:
            loss.backward()
        for i in (0, 1):
            check_buckets(ddps[i], states[i], local_of[i], TOLERANCE[torch.float64])
        digests.append(gradient_digest(chain))
    return digests


def test_several_modules_each_with_its_own_state(run_ranks: RunRanks, seed: int) -> None:
    same_on_all_ranks(run_ranks(3, _several_modules, seed))


def _sub_groups(rank: int, world: int, seed: int) -> str:
    pairs = [[0, 2], [1, 3]]
    groups = [dist.new_group(pair) for pair in pairs]
    members = pairs[rank % 2]
    group = groups[rank % 2]
    for way in ("register", "register with the group", "hook"):
        model = mlp(seed + rank % 2)
        ddp = DDP(model, process_group=group, bucket_cap_mb=CAP_MB)
        if way == "hook":
            state = moo.BucketMOO(process_group=group, bucket_cap_mb=CAP_MB)
            ddp.register_comm_hook(state, moo.bucket_moo_hook)
            state.name_parameters(model.named_parameters())
        else:
            state = moo.register(ddp, process_group=group if "with" in way else None)
        for step in range(2):
            everybody = local_gradients(model, world, seed, step)
            ddp.zero_grad()
            loss_of(ddp, batch_of(seed, rank, step)).backward()
            local = [everybody[r] for r in members]
            check_buckets(ddp, state, local, TOLERANCE[torch.float64])
            assert state.report().objectives == ("0", "1")  # ranks in the group
    return gradient_digest(ddp)


def test_sub_groups(run_ranks: RunRanks, seed: int) -> None:
    by_rank = run_ranks(4, _sub_groups, seed)
    assert by_rank[0] == by_rank[2]
    assert by_rank[1] == by_rank[3]
    assert by_rank[0] != by_rank[1]


def _overlapping_groups(rank: int, world: int, seed: int) -> str:
    """Ranks that are in different numbers of groups must still agree on a new state's own group."""
    groups = [dist.new_group([0, 1]), dist.new_group([1, 2])]
    kept = []
    for group, members in zip(groups, ([0, 1], [1, 2]), strict=True):
        if rank in members:
            state = moo.BucketMOO("mean", process_group=group)
            x = torch.full((5,), float(rank))
            moo.all_reduce(x, state)
            assert x.tolist() == [sum(members) / 2] * 5
            kept.append(state)
    everybody = moo.BucketMOO("mean")
    x = torch.full((5,), float(rank))
    moo.all_reduce(x, everybody)
    return digest([x])


def test_states_over_groups_that_overlap(run_ranks: RunRanks, seed: int) -> None:
    same_on_all_ranks(run_ranks(3, _overlapping_groups, seed, timeout=60.0))


def _wrap_again(rank: int, world: int, seed: int) -> list[str]:
    model = mlp(seed)
    digests = []
    for step in range(3):
        ddp = DDP(model, bucket_cap_mb=CAP_MB)
        state = moo.register(ddp)
        local = local_gradients(model, world, seed, step)
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        check_buckets(ddp, state, local, TOLERANCE[torch.float64])
        digests.append(gradient_digest(ddp))
        del ddp, state
        gc.collect()  # DDP's hooks on the parameters go with it
    return digests


def test_a_module_that_is_wrapped_again(run_ranks: RunRanks, seed: int) -> None:
    same_on_all_ranks(run_ranks(2, _wrap_again, seed))
