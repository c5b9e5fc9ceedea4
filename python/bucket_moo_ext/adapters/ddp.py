"""What a module given to ``register`` is, and whether its reducer's buckets can be reduced."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bucket_moo_ext import _C, private_torch
from bucket_moo_ext.adapters.parameters import check_parameters

# Wrappers that run another module, by the name they have for it: Lightning Fabric's, torch.compile's. In this order: a
# Fabric module passes on what it does not have to the model inside the DDP module.
_INSIDE = ("_forward_module", "_orig_mod")

_OTHER_WRAPPERS = {
    ("torch.distributed._composable", "ReplicateModule"): "FSDP2's replicate() made it, which takes no hook",
    ("torch.nn.parallel", "DataParallel"): "it has one process for all devices",
    ("deepspeed", "DeepSpeedEngine"): "it is DeepSpeed's, for which there is bucket_moo_ext.contrib.deepspeed",
    ("megatron", "DistributedDataParallel"): "it is Megatron's, for which there is bucket_moo_ext.contrib.megatron",
    ("apex", "DistributedDataParallel"): "it is Apex's",
}


class DdpModel(NamedTuple):
    """A DDP module and the module by whose names its parameters are known."""

    ddp: DistributedDataParallel
    named: nn.Module


def find_ddp(module: object) -> DdpModel:
    """The DDP module that ``module`` is, or runs. For what ``replicate()`` made it is made now: collective.

    Raises:
        TypeError: There is none.
    """
    found = _find(module, _has_ddp)
    if isinstance(found, DistributedDataParallel):
        return DdpModel(found, found.module)
    if found is not None:
        return DdpModel(private_torch.ddp_of_replicated(found), found)
    raise TypeError(_what_else(module))


def _has_ddp(module: object) -> bool:
    return isinstance(module, DistributedDataParallel) or private_torch.is_replicated(module)


def find_sharded(module: object) -> nn.Module | None:
    """The module that ``module`` is, or runs, which fully_shard() made; None if there is no such."""
    return _find(module, private_torch.is_sharded)


def find_flat(module: object) -> nn.Module | None:
    """The module that ``module`` is, or runs, which FullyShardedDataParallel wraps; None if there is no such."""
    return _find(module, private_torch.is_flat)


def _find(module: object, is_wanted: Callable[[object], bool]) -> nn.Module | None:
    for inner in _layers(module):
        if is_wanted(inner):
            assert isinstance(inner, nn.Module)
            return inner
    return None


def _layers(module: object) -> Iterator[object]:
    """The module, and what it runs."""
    inner: object | None = module
    while inner is not None:
        yield inner
        modules = getattr(inner, "_modules", {})
        inner = next((modules[name] for name in _INSIDE if name in modules and modules[name] is not inner), None)


def is_plain(module: nn.Module) -> bool:
    """Whether the module neither is nor has in it a wrapper that reduces gradients."""
    return not any(_reduces(part) or _wrapper_of(part) for part in module.modules())


def _reduces(module: object) -> bool:
    """Whether it is a wrapper whose reduction can be replaced."""
    return _has_ddp(module) or private_torch.is_sharded(module) or private_torch.is_flat(module)


def _wrapper_of(module: object) -> str:
    """What wrapper a module is, of those that are known but not supported; empty: none."""
    for cls in type(module).__mro__:
        for (package, name), what in _OTHER_WRAPPERS.items():
            if cls.__name__ == name and cls.__module__.startswith(package):
                return what
    return ""


def _what_else(module: object) -> str:
    *_, inner = _layers(module)
    got = (
        "module must be a DistributedDataParallel module, one that fully_shard() (FSDP2), FullyShardedDataParallel "
        f"(FSDP1) or replicate() made, or in one process a plain one; got {type(module).__name__}"
    )
    if inner is not module:
        got += f" around {type(inner).__name__}"
    if what := _wrapper_of(inner):
        return (
            f"{got}: {what}, and that is not supported here; use DistributedDataParallel(model) or fully_shard(model)"
        )
    if isinstance(inner, nn.Module):
        for path, part in inner.named_modules():
            if _has_ddp(part):
                kind = "replicate()" if private_torch.is_replicated(part) else "DistributedDataParallel"
                return f"{got}: register the {kind} module in it, {path!r}"
            if _reduces(part):
                return (
                    f"{got}, in which {path!r} is sharded: register the module whose whole is sharded. fully_shard() "
                    "or FullyShardedDataParallel() is called on the parts first, and then on the whole model, which "
                    "keeps the rest"
                )
    return f"{got} (wrap the model first: ddp = DistributedDataParallel(model))"


def check_module(ddp: DistributedDataParallel, named: nn.Module, may_be_pieces: bool = False) -> torch.device:
    """The device on which the module's gradients are reduced.

    Args:
        ddp, named: See ``DdpModel``.
        may_be_pieces: Whether it is known which ranks hold the other pieces of parameters.

    Raises:
        TypeError: A parameter of an unsupported dtype.
        ValueError: A parameter on an unsupported device or with other pieces elsewhere, or an option that cannot be
            combined.
        RuntimeError: There is a hook already, or a backward pass has been reduced.
    """
    _check_options(ddp)
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in named.named_parameters()}
    # What the reducer has is not what the module has: some are ignored, some were frozen later.
    reduced = [(names.get(p, f"of shape {tuple(p.shape)}"), p) for p in _C.parameters_of(ddp.reducer)]
    device = check_parameters(reduced, "DDP", may_be_pieces)
    _check_unused(ddp)
    return device


def _check_options(ddp: DistributedDataParallel) -> None:
    """Refuses what would bypass the hook or register another one behind it."""
    refused = {
        "mixed_precision": (ddp.mixed_precision is not None, "use torch.autocast"),
        "delay_all_reduce_named_params": (
            private_torch.delays_parameters(ddp),
            "those parameters would bypass the hook",
        ),
        "skip_all_reduce_unused_params": (
            bool(getattr(ddp, "skip_all_reduce_unused_params", False)),
            "ranks would reduce different buckets",
        ),
        "an optimizer in backward": (
            private_torch.has_optimizer_in_backward(ddp),
            "it registers a hook of its own",
        ),
        'torch._dynamo.config.optimize_ddp = "python_reducer"': (
            private_torch.has_python_reducer(ddp),
            "it does not run hooks on buckets",
        ),
    }
    for option, (given, reason) in refused.items():
        if given:
            raise ValueError(f"module: DDP with {option} cannot be combined with bucket_moo_ext: {reason}")


def _check_unused(ddp: DistributedDataParallel) -> None:
    """Gradients in ``.grad`` say nothing: they may be older than the module, or come from a pass under no_sync()."""
    hook = private_torch.comm_hook(ddp)
    if hook:
        raise RuntimeError(f"module already has a communication hook ({hook}); a DDP module takes one, once")
    if _C.backward_has_run(ddp.reducer):
        raise RuntimeError("module has already run a backward pass; register before the first one")
