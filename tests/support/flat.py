"""The transformer of sharded.py wrapped by FSDP1."""

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from tests.support.sharded import Block

FULL_SHARD, SHARD_GRAD_OP = ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP
NO_SHARD = ShardingStrategy.NO_SHARD


def wrap(model: nn.Module, strategy: ShardingStrategy = FULL_SHARD, **options: Any) -> FullyShardedDataParallel:
    """A flat parameter for each block, one for the rest."""
    options = {"auto_wrap_policy": ModuleWrapPolicy({Block}), "use_orig_params": True, **options}
    return FullyShardedDataParallel(model, sharding_strategy=strategy, device_id=torch.device("cpu"), **options)


def whole_parameters(model: FullyShardedDataParallel) -> dict[str, torch.Tensor]:
    """By their names in the model without FSDP1, in float64. Collective."""
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return {
            name.replace("_fsdp_wrapped_module.", ""): parameter.detach().double().clone()
            for name, parameter in model.named_parameters()
        }


def assert_same_parameters(
    model: FullyShardedDataParallel, expected: dict[str, torch.Tensor], tolerance: float
) -> None:
    """All parameters, relative to their own norm."""
    got = whole_parameters(model)
    assert got.keys() == expected.keys()
    for name, parameter in expected.items():
        error = (got[name] - parameter).norm()
        assert error <= tolerance * parameter.norm(), f"{name}: {error:.3e}"
