"""What is private in torch and needed here, in one place: what may change with a version of torch changes here.

Checked with torch 2.11 to 2.15.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

# --- process groups ---


def all_groups() -> list[dist.ProcessGroup]:
    """The groups of this process."""
    return list(dist.distributed_c10d._world.pg_map)


def store_of(group: dist.ProcessGroup) -> dist.Store:
    """The store that the ranks of a group share."""
    return dist.distributed_c10d._get_process_group_store(group)


def backend_of(group: dist.ProcessGroup, device_type: str) -> Any:
    """The group's native backend for tensors on such devices.

    Raises:
        RuntimeError: It has none.
    """
    return group._get_backend(torch.device(device_type))


def timeout_of(backend: Any) -> timedelta:
    """How long a backend waits for a peer."""
    timeout = backend.options._timeout
    assert isinstance(timeout, timedelta)
    return timeout


def gloo_group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
    """A group that torch's list of groups does not hold, with a Gloo backend for CPU tensors."""
    kind = dist.ProcessGroup.BackendType.GLOO
    backend = dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
    group = dist.ProcessGroup(store, rank, size)
    group._set_default_backend(kind)
    group._register_backend(torch.device("cpu"), kind, backend)
    group._set_group_desc("bucket_moo")
    return group


# --- autograd ---


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Has a function called when the backward pass is over in which this is called."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


# --- DistributedDataParallel ---


def comm_hook(ddp: DistributedDataParallel) -> str:
    """The name of the communication hook that a module has, or an empty string."""
    return str(ddp._get_ddp_logging_data().get("comm_hook") or "")  # type: ignore[no-untyped-call]


def note_comm_hook(ddp: DistributedDataParallel, hook: Callable[..., Any], state: object) -> None:
    """What ``register_comm_hook`` notes of a hook, for one that is the reducer's already.

    The reducer tells nobody. The list keeps the state alive and goes into copies of the module.
    """
    logger: Any = ddp.logger
    logger._set_comm_hook_name("bucket_moo")
    ddp._comm_hooks[:] = [(hook, state)]  # and none that a copy has inherited


def comm_hooks(ddp: DistributedDataParallel) -> list[tuple[object, object]]:
    """Hooks with their states, as a module or a copy of it has noted them."""
    return list(getattr(ddp, "_comm_hooks", ()))


def delays_parameters(ddp: DistributedDataParallel) -> bool:
    """Whether some parameters' gradients are reduced by themselves (``delay_all_reduce_named_params``)."""
    return bool(ddp._delay_all_reduce_params)


def has_optimizer_in_backward(ddp: DistributedDataParallel) -> bool:
    """Whether an optimizer takes its steps during the backward pass."""
    return any(hasattr(parameter, "_in_backward_optimizers") for parameter in ddp._module_parameters)


def has_python_reducer(ddp: DistributedDataParallel) -> bool:
    """Whether gradients are reduced by compiled autograd instead of the reducer."""
    return bool(ddp._use_python_reducer)


# --- distributed tensors ---


def mesh_of(parameter: torch.Tensor) -> Any:
    """The device mesh over which a parameter is distributed, or None.

    For DDP torch makes the DTensors of a mesh local, and notes beside them what they were.
    """
    spec = vars(parameter).get("_st_info")
    if hasattr(type(parameter), "_spec"):
        spec = getattr(parameter, "_spec", None)
    return None if spec is None else spec.mesh
