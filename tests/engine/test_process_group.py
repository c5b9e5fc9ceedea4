"""The group of its own that every state makes: made again and again, collected at different times, over sub-groups."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def _states_come_and_go(rank: int, world: int) -> list[float]:
    """Ranks drop their states at different times; every new state must still find its peers."""
    kept = []
    for round_ in range(6):
        module = DistributedDataParallel(torch.nn.Linear(3, 3))
        state = moo.register(module, "mgda")
        module(torch.randn(2, 3)).sum().backward()
        if (round_ + rank) % 2:
            kept.append((module, state))
        del module, state
        if rank == 0:
            gc.collect()
        moo.all_reduce(torch.ones(3), moo.BucketMOO("mean"))
    group = dist.new_group([0, 1])
    tensor = torch.full((3,), float(rank))
    if rank < 2:
        moo.all_reduce(tensor, moo.BucketMOO("mean", process_group=group))
    return tensor.tolist()


def test_states_come_and_go(run_ranks: Callable[..., list[Any]]) -> None:
    assert run_ranks(3, _states_come_and_go) == [[0.5] * 3, [0.5] * 3, [2.0] * 3]


def _initialise_again(rank: int, world: int, store: str) -> list[float]:
    """A second default group, after the first was destroyed, with a state of the first one still alive."""
    first = moo.BucketMOO("mean")
    tensor = torch.full((5,), float(rank))
    moo.all_reduce(tensor, first)
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    second = moo.BucketMOO("mean")
    tensor += rank
    moo.all_reduce(tensor, second)
    return tensor.tolist()


def test_initialise_again(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    assert run_ranks(3, _initialise_again, str(tmp_path / "store")) == [[2.0] * 5] * 3


def _slow_to_connect(rank: int, world: int) -> bool:
    """Rank 1 takes its time to connect; returns whether it had connected when this rank went on."""
    store = dist.distributed_c10d._get_process_group_store(dist.group.WORLD)  # type: ignore[arg-type]
    module = DistributedDataParallel(torch.nn.Linear(3, 3))
    connect = dist.ProcessGroupGloo

    def slow(*arguments: Any, **options: Any) -> dist.ProcessGroupGloo:
        group = connect(*arguments, **options)
        if rank == 1:
            time.sleep(1.0)  # ranks that do not wait for this one have gone on by then
            store.set("connected", "")
        return group

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "ProcessGroupGloo", slow)
        moo.register(module)
    return store.check(["connected"])


def test_no_rank_goes_on_before_all_are_connected(run_ranks: Callable[..., list[Any]]) -> None:
    # It might end or raise, and thereby close connections of ranks that still make theirs.
    assert run_ranks(3, _slow_to_connect) == [True] * 3
