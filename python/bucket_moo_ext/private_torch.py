"""What is private in torch and needed here, in one place: what may change with a version of torch changes here.

Checked with torch 2.11 to 2.15, what is said of FSDP and replicate() with 2.13 and by reading 2.11 and 2.15.
"""

import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Function = TypeVar("Function", bound=Callable[..., Any])

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


def is_in_backward() -> bool:
    """Whether this thread is in a backward pass."""
    return torch._C._current_graph_task_id() != -1


def is_end_of_nested_backward() -> bool:
    """At the end of a backward pass: whether it went on inside a node of another one."""
    return torch._C._current_autograd_node() is not None


def not_compiled(function: Function) -> Function:
    """A function that torch.compile leaves alone; torch.compiler.disable would import the compiler for it."""
    from torch._compile import _disable_dynamo

    return cast(Function, _disable_dynamo(function))


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
    return any(steps_in_backward(parameter) for parameter in ddp._module_parameters)


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


def is_piece(parameter: torch.Tensor) -> bool:
    """Whether other ranks hold other pieces of it, as far as torch notes that."""
    spec = vars(parameter).get("_st_info") or getattr(parameter, "_spec", None)
    return spec is not None and any(not placement.is_replicate() for placement in spec.placements)


# --- fully_shard (FSDP2) ---
#
# A module's state has groups of parameters (FSDPParamGroup), one where all parameters have one mesh. A group's
# parameters are FSDPParam objects, which stay when the parameters themselves are replaced.

_SHARDED_VERSIONS = ((2, 11), (2, 15))  # first and last minor version that were looked at


def check_sharded_version(what: str = "fully_shard()") -> None:
    """Refuses versions of torch in which what follows, and what is of FSDP1, is not known. ``what``: for errors.

    Raises:
        RuntimeError: Another version.
    """
    major, minor = torch.__version__.split(".")[:2]
    first, last = _SHARDED_VERSIONS
    if not first <= (int(major), int(minor)) <= last:
        raise RuntimeError(
            f"{what} is supported with torch {first[0]}.{first[1]} to {last[0]}.{last[1]}, because of what is "
            f"private in it; got torch {torch.__version__}"
        )


def is_sharded(module: object) -> bool:
    """Whether fully_shard() made it; replicate() makes subclasses of what that makes."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    names = {cls.__name__ for cls in type(module).__mro__}
    return fsdp is not None and isinstance(module, fsdp.FSDPModule) and "ReplicateModule" not in names


def parameter_groups(module: Any) -> list[Any]:
    """The groups of parameters that a sharded module has."""
    state = module._get_fsdp_state()
    groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
    return [group for group in groups if group is not None and group.fsdp_params]


def sharded_parameters(group: Any) -> list[nn.Parameter]:
    """This rank's shards of a group's parameters."""
    return [parameter.sharded_param for parameter in group.fsdp_params]


def note_replaced(group: Any) -> None:
    """Has a group take the parameters that its modules have now, as it does itself before the first forward pass.

    They are others than those that were sharded where a checkpoint was loaded with ``assign=True``, say.
    """
    for parameter in group.fsdp_params if group.is_sharded else ():
        info = parameter._module_info
        if getattr(info.module, info.param_name) is not parameter.sharded_param:
            parameter.reset_sharded_param()


def whole_numel(group: Any, world: int) -> int:
    """Elements, padding included, that a group's reduce-scatter takes if every trained parameter has a gradient."""
    trained = [parameter for parameter in group.fsdp_params if parameter.sharded_param.requires_grad]
    return world * sum(int(parameter.padded_sharded_param_size.numel()) for parameter in trained)


def places_in_shard(group: Any) -> list[tuple[int, int]]:
    """Beginning and size of every trained parameter's piece, padding included, in what a group scatters to a rank."""
    places: list[tuple[int, int]] = []
    end = 0
    for parameter in group.fsdp_params:
        if parameter.sharded_param.requires_grad:
            size = int(parameter.padded_sharded_param_size.numel())
            places.append((end, size))
            end += size
    return places


def registered(group: Any) -> list[nn.Parameter]:
    """A group's parameters as their modules have them now: whole while they are gathered."""
    return [getattr(p, "_unsharded_param", None) if group.is_unsharded else p.sharded_param for p in group.fsdp_params]  # type: ignore[misc]


def mesh_of_group(group: Any) -> Any:
    """The device mesh over which a group's parameters are distributed, other parallelisms included."""
    meshes = [mesh_of(parameter) for parameter in sharded_parameters(group)]
    return max(meshes, key=lambda mesh: mesh.ndim)


def shard_mesh_of_group(group: Any) -> Any:
    """The device mesh that ``fully_shard()`` was given for a group."""
    return group.mesh_info.mesh


def is_piece_beside(parameter: torch.Tensor, mesh: Any) -> bool:
    """Whether a parameter that ``fully_shard()`` has sharded over ``mesh`` is cut along other dimensions too."""
    spec: Any = parameter._spec  # type: ignore[attr-defined]
    own = mesh.mesh_dim_names or ()
    return any(
        name not in own and not placement.is_replicate()
        for name, placement in zip(spec.mesh.mesh_dim_names or (), spec.placements, strict=False)
    )


def other_dimensions(mesh: Any) -> str:
    """Names of the dimensions of the mesh that this one is a part of; empty if it is a whole, or torch does not say."""
    whole = mesh._get_root_mesh() if hasattr(mesh, "_get_root_mesh") else mesh
    names = whole.mesh_dim_names or ()
    return ", ".join(name for name in names if name not in (mesh.mesh_dim_names or ())) if whole.ndim > 1 else ""


def reduce_scatter_interface() -> type:
    """What a custom reduce-scatter is to be derived from."""
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

    return ReduceScatter


def reduce_scatter_of(group: Any) -> str:
    """What reduces a group's gradients."""
    return type(group._reduce_scatter_comm).__name__


def has_own_reduce_scatter(group: Any) -> bool:
    """Whether that is torch's."""
    return type(group._reduce_scatter_comm).__module__.startswith("torch.")


def has_all_reduce_hook(group: Any) -> bool:
    """Whether a function is called with a group's reduced shards."""
    return getattr(group, "_all_reduce_hook", None) is not None


def has_divide_factor(group: Any) -> bool:
    """Whether ``set_gradient_divide_factor()`` has given what the sum of a group's gradients is divided by."""
    return getattr(group, "gradient_divide_factor", None) is not None


def scale_of(op: Any, world: int) -> float:
    """By what the mean over ``world`` ranks is to be multiplied to be what a reduction gives.

    Raises:
        ValueError: Neither AVG, SUM nor PREMUL_SUM.
    """
    if op == dist.ReduceOp.AVG:
        return 1.0
    if op == dist.ReduceOp.SUM:
        return float(world)
    if op == dist.ReduceOp.PREMUL_SUM:
        return world * float(op.__getstate__()[1])
    raise ValueError(f"bucket_moo_ext: fully_shard() asks for the reduction {op}; AVG, SUM and PREMUL_SUM are known")


def divisors_of(group: Any, dtype: torch.dtype) -> tuple[float, float]:
    """By what FSDP2 divides the gradients of a group before and behind a reduction in ``dtype``."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import _get_gradient_divide_factors

    before, behind, *_ = _get_gradient_divide_factors(
        group._reduce_scatter_process_group,
        None,
        dtype,
        group.device.type,
        group.gradient_divide_factor,
        group.force_sum_reduction_for_comms,
    )
    return before or 1.0, behind or 1.0


def has_gradient_hook(parameter: torch.Tensor) -> bool:
    """Whether a function is called when a gradient was added to ``.grad``."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def add_to_sharded_gradients(group: Any, shard: torch.Tensor) -> None:
    """Adds what a reduce-scatter of a whole group gave to gradients that are there, in their dtype and on their device.

    A parameter's part begins behind the padded ones of those before it.
    """
    start = 0
    for parameter in group.fsdp_params:
        if not parameter.sharded_param.requires_grad:
            continue
        piece = torch.as_strided(shard, parameter.sharded_size, parameter.contiguous_sharded_stride, start)
        gradient = parameter.sharded_param.grad._local_tensor
        gradient.add_(piece.to(gradient))
        start += parameter.padded_sharded_param_size.numel()


def sharding_states(modules: Iterable[Any]) -> list[Any]:
    """The states of sharded modules, for what follows."""
    return [module._get_fsdp_state() for module in modules]


def is_in_sharded_backward(states: Iterable[Any]) -> bool:
    """Whether a backward pass of sharded modules has begun and is not over."""
    return any(state._state_ctx.post_backward_final_callback_queued for state in states)


def drop_gathered_gradients(groups: Iterable[Any]) -> None:
    """Frees gradients of whole parameters that were not reduced; ``reset_iter_state()`` leaves them in torch 2.13."""
    for group in groups:
        for parameter in group.fsdp_params:
            if "unsharded_accumulated_grad" in vars(parameter):  # later a property
                parameter.unsharded_accumulated_grad = None
            if hasattr(parameter, "_unsharded_param"):
                parameter._unsharded_param.grad = None


def check_backward_ends_itself(states: Iterable[Any]) -> None:
    """Refuses gradients that are reduced outside of the backward pass.

    Raises:
        RuntimeError: They are.
    """
    manual = any(getattr(state._state_ctx, "manual_backward_finalization", False) for state in states)
    if manual or not is_in_backward():
        raise RuntimeError(
            "bucket_moo_ext: fully_shard() reduces gradients outside of a backward pass, as "
            "set_manual_backward_finalization(True) makes it; that is not supported"
        )


# --- FullyShardedDataParallel (FSDP1) ---
#
# A module has one flat parameter at most (of its handle), in which the parameters lie that no such module inside has.


class FlatPiece(NamedTuple):
    """A parameter in a flat one."""

    name: str
    start: int  # in the whole flat parameter
    numel: int
    parameter: nn.Parameter  # what it is trained as: itself (use_orig_params=True) or the flat one


def is_flat(module: object) -> bool:
    """Whether FullyShardedDataParallel wraps it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def flat_units(root: nn.Module) -> list[tuple[str, Any]]:
    """The FSDP1 modules in the whole, itself among them, that have a flat parameter, with their paths."""
    return [(path, module) for path, module in root.named_modules() if is_flat(module) and module._handle is not None]


def is_part_of_flat(module: Any) -> bool:
    """Whether an FSDP1 module has run as a part of another one."""
    return module._is_root is False


def device_of_flat(module: Any) -> torch.device:
    """Where an FSDP1 module's gradients are reduced."""
    return torch.device(module.compute_device)


def group_of_flat(module: Any) -> dist.ProcessGroup:
    """The ranks that an FSDP1 module reduces over; for hybrid strategies those that share one copy."""
    return cast(dist.ProcessGroup, module.process_group)


def strategy_of(module: Any) -> str:
    """The name of an FSDP1 module's sharding strategy."""
    return str(module.sharding_strategy.name)


def flat_pieces(module: Any, path: str) -> list[FlatPiece]:
    """What a flat parameter is made of, with names as the model without FSDP1 has them."""
    flat = module._handle.flat_param
    offsets = zip(module._handle._get_flat_param_offsets(), flat._is_padding_mask, strict=True)
    spans = [(start, last + 1 - start) for (start, last), is_padding in offsets if not is_padding]
    names = [_without_flat_wrappers(f"{path}.{fqn}" if path else fqn) for fqn in flat._fqns]
    parameters = flat._params or [flat] * len(names)
    return [FlatPiece(name, *span, p) for name, span, p in zip(names, spans, parameters, strict=True)]


def _without_flat_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_fsdp_wrapped_module")


def dtypes_of_flat(module: Any) -> tuple[torch.dtype, torch.dtype]:
    """Those of an FSDP1 module's parameters, and in which their gradients are reduced."""
    return module._handle.flat_param.dtype, module._handle._reduce_dtype


def has_tensor_parallelism(module: Any) -> bool:
    """Whether parameters of an FSDP1 module are pieces of DTensors."""
    return any(extension is not None for extension in module._handle.flat_param._param_extensions)


def steps_in_backward(parameter: torch.Tensor) -> bool:
    """Whether an optimizer takes its steps with a parameter during the backward pass."""
    return hasattr(parameter, "_in_backward_optimizers")


def comm_hook_of_flat(module: Any) -> str:
    """The name of the communication hook that an FSDP1 module has, or an empty string."""
    hook = module._comm_hook
    return "" if hook is None else str(getattr(hook, "__qualname__", hook))


def register_flat_hook(root: Any, hook: Callable[..., None], states: dict[Any, Any]) -> None:
    """Registers a hook for a whole FSDP1 model, with a state for each module in it that has a flat parameter.

    ``register_comm_hook()`` has one state for all, and the hook is not told whose gradient it is given.
    """
    root.register_comm_hook(None, hook)
    for module, state in states.items():
        module._comm_hook_state = state


def is_in_flat_backward(root: Any) -> bool:
    """Whether a backward pass of an FSDP1 model has begun and is not over."""
    return bool(root._post_backward_callback_queued)


def add_to_flat_gradient(module: Any, result: torch.Tensor) -> None:
    """Adds a reduced shard, or whole, to the gradient that a flat parameter has behind a backward pass."""
    gradient = module._handle.flat_param.grad
    gradient.add_(result.to(gradient))


# --- replicate() ---


def is_replicated(module: object) -> bool:
    """Whether torch.distributed._composable.replicate() made it, which runs a DDP module behind it."""
    composable = sys.modules.get("torch.distributed._composable.replicate")
    return composable is not None and isinstance(module, composable.DDP)


def ddp_of_replicated(module: Any) -> DistributedDataParallel:
    """The DDP module of a replicated one, made now if it has not run yet. Collective over its group."""
    composable = sys.modules["torch.distributed._composable.replicate"]
    state = composable.replicate.state(module)
    if not state.has_initialized:
        state.lazy_init()
    return cast(DistributedDataParallel, state._ddp)
