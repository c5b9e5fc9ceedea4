"""Where the reduction enters DistributedDataParallel."""

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bucket_moo_ext import _C
from bucket_moo_ext.gramian_source import Sketch
from bucket_moo_ext.methods import Method
from bucket_moo_ext.process_group import parent_group
from bucket_moo_ext.state import BucketMOO

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# A registered hook lives as long as its module, whether or not the caller keeps the state.
_registered: "weakref.WeakKeyDictionary[DistributedDataParallel, BucketMOO]" = weakref.WeakKeyDictionary()


def register(
    module: DistributedDataParallel,
    method: str | Method = "mgda",
    *,
    objective: str | int | None = None,
    weight: float = 1.0,
    gramian: str | Sketch = "exact",
    process_group: dist.ProcessGroup | None = None,
    seed: int = 0,
) -> BucketMOO:
    """Makes a DDP module reduce its gradients conflict-aware, with a native hook: no Python in the backward pass.

    To be called on every rank of the module's group, before its first backward pass.

    Args:
        module: A DistributedDataParallel module with parameters of dtype float32, bfloat16, float16 or float64, on
            the CPU or, in a build with CUDA kernels, on one GPU.
        method, objective, weight, gramian, seed: As for ``BucketMOO``.
        process_group: None, or the group that the module was made with.

    Returns:
        The state: set ``objective`` and ``weight`` on it for the next step, ask it for a ``report()``.

    Raises:
        TypeError: ``module`` is not DDP, or a parameter has an unsupported dtype.
        ValueError: A bad argument, a parameter on an unsupported device, or a DDP option that cannot be combined.
        RuntimeError: The module has a hook already or has gone through a backward pass.
    """
    if not isinstance(module, DistributedDataParallel):
        raise TypeError(
            f"module must be a DistributedDataParallel module; got {type(module).__name__} "
            "(wrap the model first: ddp = DistributedDataParallel(model))"
        )
    group = module.process_group
    if process_group is not None and parent_group(process_group) is not group:
        raise ValueError("process_group must be None or the group that the DDP module was made with")
    device = _check_parameters(module)
    _check_options(module)
    _check_unused(module)
    state = BucketMOO(
        method,
        objective=objective,
        weight=weight,
        gramian=gramian,
        process_group=group,
        seed=seed,
        bucket_cap_mb=max([module.bucket_bytes_cap, *getattr(module, "bucket_bytes_cap_list", ())]) / 2**20,
    )
    native = state._bound(device)
    state.name_parameters(module.module.named_parameters())
    _C.register_ddp_hook(module.reducer, native)
    logger: Any = module.logger
    logger._set_comm_hook_name("bucket_moo")  # the reducer does not tell DDP's logger by itself
    _registered[module] = state
    return state


def bucket_moo_hook(state: BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP communication hook: ``ddp.register_comm_hook(state, moo.bucket_moo_hook)``.

    Gives the same bits as ``register``; the difference is a short stay in Python for each bucket. If DDP works on a
    sub-group, give the state that group.

    Args:
        state: A BucketMOO.
        bucket: What DDP hands over. Its buffer is reduced in place.

    Returns:
        A Future of the bucket's buffer.

    Raises:
        TypeError, ValueError: From ``backward()``, for a bucket or a state that cannot be reduced, before anything is
            sent, or on every rank where the ranks' configurations differ.
        RuntimeError: From ``backward()``: a peer failed or the group's timeout passed.
    """
    if not isinstance(state, BucketMOO):
        raise TypeError(
            f"state must be a BucketMOO; got {type(state).__name__} "
            "(ddp.register_comm_hook(moo.BucketMOO(...), moo.bucket_moo_hook))"
        )
    if not isinstance(bucket, dist.GradBucket):
        raise RuntimeError(
            "bucket_moo_hook was called without a gradient bucket, as DDP's Python reducer does "
            '(torch._dynamo.config.optimize_ddp = "python_reducer"); choose another value'
        )
    return state._bound(bucket.buffer().device).run_bucket(bucket)


def _check_parameters(module: DistributedDataParallel) -> torch.device:
    """The device of the parameters that have gradients."""
    devices: dict[torch.device, str] = {}
    for name, parameter in module.module.named_parameters():
        if not parameter.requires_grad:
            continue
        device = parameter.device
        if device.type != "cpu" and not _C.reduces_on_device(device):
            raise ValueError(f"module: parameter {name!r} is on {device}; {_where()}")
        devices.setdefault(device, name)
        real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter
        if real.dtype not in _DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise TypeError(f"module: parameter {name!r} has dtype {parameter.dtype}; allowed: {allowed}")
    if len(devices) > 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise ValueError(f"module: all parameters must be on one device; got {places}")
    return next(iter(devices))


def _where() -> str:
    if _C.build_info()["cuda"]:
        return "gradients are reduced on the CPU and on CUDA devices"
    return (
        "this build reduces CPU gradients only (build_info()['cuda'] is False); rebuild it with nvcc on the PATH for "
        "CUDA"
    )


def _check_options(module: DistributedDataParallel) -> None:
    """Refuses what would bypass the hook or register another one behind it."""
    refused = {
        "mixed_precision": (module.mixed_precision is not None, "use torch.autocast"),
        "delay_all_reduce_named_params": (
            bool(module._delay_all_reduce_params),
            "those parameters would bypass the hook",
        ),
        "skip_all_reduce_unused_params": (
            bool(getattr(module, "skip_all_reduce_unused_params", False)),
            "ranks would reduce different buckets",
        ),
        "an optimizer in backward": (
            any(hasattr(p, "_in_backward_optimizers") for p in module._module_parameters),
            "it registers a hook of its own",
        ),
        'torch._dynamo.config.optimize_ddp = "python_reducer"': (
            bool(module._use_python_reducer),
            "it does not run hooks on buckets",
        ),
    }
    for option, (given, reason) in refused.items():
        if given:
            raise ValueError(f"module: DDP with {option} cannot be combined with bucket_moo_ext: {reason}")


def _check_unused(module: DistributedDataParallel) -> None:
    hook = module._get_ddp_logging_data().get("comm_hook")  # type: ignore[no-untyped-call]
    if hook:
        raise RuntimeError(f"module already has a communication hook ({hook}); a DDP module takes one, once")
    # Under no_sync() the reducer takes no notice of a backward pass; the gradients it left behind tell.
    accumulating = getattr(module, "_lazy_init_ran", False) and any(p.grad is not None for p in module.parameters())
    if accumulating or _C.backward_has_run(module.reducer):
        raise RuntimeError("module has already run a backward pass; register before the first one")
