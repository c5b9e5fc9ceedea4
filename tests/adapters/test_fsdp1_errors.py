"""FSDP1: what cannot be reduced, and passes that ranks do not run alike."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.checkpoint import checkpoint

from tests.support.errors import error_of, expect
from tests.support.flat import NO_SHARD, SHARD_GRAD_OP, wrap
from tests.support.sharded import Transformer, loss_of, tokens_of

Runner = Callable[..., list[Any]]

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]


def _refusals(rank: int, world: int, seed: int) -> None:
    def refused(module: Any, kind: type[BaseException], *words: str, **options: Any) -> None:
        expect(error_of(lambda: moo.register(module, **options)), kind, *words)

    def linear(**options: Any) -> FullyShardedDataParallel:
        return wrap(nn.Linear(4, 4), **options)

    everybody = dist.group.WORLD
    alone = [dist.new_group([r]) for r in range(world)][rank]
    for strategy in (ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2):
        hybrid = linear(strategy=strategy, process_group=(everybody, alone))
        refused(hybrid, ValueError, strategy.name, r"FSDP2: fully_shard\(\)")
    refused(linear(process_group=alone), ValueError, "one rank", "plain module")
    refused(wrap(nn.Tanh()), ValueError, "no parameter")
    refused(linear(mixed_precision=MixedPrecision(reduce_dtype=torch.float8_e5m2)), TypeError, "float8_e5m2")
    parts = nn.Sequential(linear(process_group=dist.new_group()), nn.Linear(4, 4))
    refused(parts, TypeError, "'0' is sharded", "whole")
    mixed = nn.Sequential(linear(process_group=alone), nn.Linear(4, 4))
    refused(wrap(mixed, auto_wrap_policy=None), ValueError, "different ranks", "weight")
    stepping = linear()
    for parameter in stepping.parameters():
        parameter._in_backward_optimizers = []  # type: ignore[attr-defined]
    refused(stepping, ValueError, "optimizer in backward")

    model = wrap(Transformer(seed))
    refused(model, ValueError, "process_group", process_group=dist.new_group())
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicate", "shard"))
    refused(model, NotImplementedError, "mesh= is not supported", "FSDP2", mesh=mesh, objectives="replicate")
    refused(model, ValueError, "bucket_cap_mb", "flat parameters", bucket_cap_mb=1)
    moo.register(model)
    refused(model, RuntimeError, "FlatPasses.reduce", "once")
    refused(model.blocks[0], RuntimeError, "part of an FSDP model", "outermost")


def test_refusals(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _refusals, random_seed)


class _Branches(nn.Module):
    """Modules of one size, of which all run and only some have a part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor, used: tuple[int, ...]) -> torch.Tensor:
        outputs = [part(x) for part in self.parts]
        return torch.stack([outputs[i].square().sum() for i in used]).sum()


def _unreached(rank: int, world: int) -> None:
    x = torch.ones(2, 4)
    for strategy in (SHARD_GRAD_OP, NO_SHARD):  # under FULL_SHARD ranks would wait in FSDP1's own all-gathers

        def branches(strategy: ShardingStrategy = strategy, **options: Any) -> tuple[Any, moo.BucketMOO]:
            model = wrap(_Branches(), strategy, auto_wrap_policy=ModuleWrapPolicy({nn.Linear}))
            return model, moo.register(model, "mgda", **options)

        model, state = branches(layout="passes", objective="de")
        with state.accumulate():
            model(x, (0, 1)).backward()
        state.objective = "sw"
        words = error_of(lambda: model(x, (1, 2)).backward())  # noqa: B023
        expect(words, RuntimeError, "did not reach the flat parameter", r"parts\.0\.weight", "FSDP2")
        model(x, (1, 2)).backward()  # goes on

        for used in [((0, 1, 2), (0, 1)), ((0, 1), (0, 2)), ((0, 1, 2), (1, 2))]:
            model, state = branches()
            words = error_of(lambda: model(x, used[rank]).backward())  # noqa: B023
            expect(words, ValueError, "the same calls in the same order", "use every flat parameter", "FSDP2")


def test_flat_parameters_that_a_pass_does_not_reach(run_ranks: Runner) -> None:
    run_ranks(2, _unreached, group_timeout=timedelta(seconds=20))


class _Reentrant(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> Any:
        return checkpoint(self.block, x, use_reentrant=True)


def _broken_passes(rank: int, world: int, seed: int) -> None:
    def backward(model: nn.Module) -> None:
        loss_of(model, tokens_of(seed, rank, 0)).backward()

    model = wrap(Transformer(seed))
    state = moo.register(model, "mgda", layout="passes", objective=rank)
    expect(error_of(lambda: backward(model)), ValueError, "layout='passes'", "rank 1 '1'")
    state.objective = "both"
    for _ in range(2):
        expect(error_of(lambda: backward(model)), RuntimeError, "earlier backward pass", "make the model anew")

    reentrant: Any = Transformer(seed)
    reentrant.blocks[1] = _Reentrant(reentrant.blocks[1])
    model = wrap(reentrant)
    moo.register(model, "mgda")
    expect(error_of(lambda: backward(model)), RuntimeError, "use_reentrant=False")


def test_broken_passes(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _broken_passes, random_seed)
