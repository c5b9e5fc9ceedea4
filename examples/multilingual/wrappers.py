"""What a lane's model trains in: DDP, FSDP2, HSDP or FSDP1; nothing for a process that has all languages to itself."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from world import World

WRAPPERS = ("ddp", "fsdp2", "hsdp", "fsdp1")  # another one: a name here, and a line in each of _shard and no_sync
REPLICAS = 2
"""Of each shard with HSDP."""

_WHOLE = StateDictOptions(full_state_dict=True)


class Wrapped:
    """A model in training. The sharded ones give every decoder layer a bucket of its own, and one to the rest."""

    def __init__(
        self, model: nn.Module, wrapper: str, world: World, *, alone: bool, plain: bool, bucket_cap_mb: float
    ) -> None:
        """`model`: becomes part of this; `alone`: without a wrapper; `plain`: without a reduction of ours."""
        self._is_sharded = not alone and wrapper != "ddp"
        self._copy = copy.deepcopy(model) if self._is_sharded else model
        self.module: nn.Module = model
        self.replicated: dict[str, Any] = {}
        """What `moo.register` is told where there are replicas of shards: every rank may have another language."""
        if self._is_sharded and wrapper == "hsdp":
            mesh = init_device_mesh(
                world.device.type, (REPLICAS, world.size // REPLICAS), mesh_dim_names=("replicate", "shard")
            )
            _fully_shard(model, mesh if plain else mesh["shard"])
            self.replicated = {"mesh": mesh, "objectives": mesh.mesh_dim_names}
        elif self._is_sharded:
            self.module = _shard(model, wrapper, world)
        elif not alone:
            self.module = DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb)

    def whole(self) -> nn.Module:
        """The model as it is now, without the wrapper. Collective."""
        if self._is_sharded:
            self._copy.load_state_dict(get_model_state_dict(self.module, options=_WHOLE))
        return self._copy

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Backward passes inside add up and send nothing."""
        module: Any = self.module
        if hasattr(module, "no_sync"):
            inside: contextlib.AbstractContextManager[Any] = module.no_sync()
            return inside
        if hasattr(module, "set_requires_gradient_sync"):
            stack = contextlib.ExitStack()
            module.set_requires_gradient_sync(False)
            stack.callback(module.set_requires_gradient_sync, True)
            return stack
        return contextlib.nullcontext()

    def clip(self, length: float) -> None:
        """Shortens the whole gradient to `length` where it is longer. Collective."""
        if isinstance(self.module, FullyShardedDataParallel):
            self.module.clip_grad_norm_(length)
        else:
            nn.utils.clip_grad_norm_(self.module.parameters(), length)

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """Whole states of model and optimizer, on every rank. Collective."""
        if self._is_sharded:
            model, moments = get_state_dict(self.module, optimizer, options=_WHOLE)
            return model, moments
        return self._copy.state_dict(), optimizer.state_dict()

    def load(self, model: dict[str, Any], moments: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Restores `state()`. Collective."""
        if self._is_sharded:
            set_state_dict(self.module, optimizer, model_state_dict=model, optim_state_dict=moments, options=_WHOLE)
        else:
            self._copy.load_state_dict(model)
            optimizer.load_state_dict(moments)


def _layers(model: nn.Module) -> list[nn.Module]:
    return [layer for part in model.modules() if isinstance(part, nn.ModuleList) for layer in part]


def _shard(model: nn.Module, wrapper: str, world: World) -> nn.Module:
    if wrapper == "fsdp1":
        layers = _layers(model)
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=lambda module, recurse, **_: recurse or module in layers,
            device_id=world.device,
            use_orig_params=True,
        )
    _fully_shard(model, init_device_mesh(world.device.type, (world.size,)))
    return model


def _fully_shard(model: nn.Module, mesh: DeviceMesh) -> None:
    for part in (*_layers(model), model):
        fully_shard(part, mesh=mesh)
