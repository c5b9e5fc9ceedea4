"""Where the reduction enters a module: DistributedDataParallel, FSDP2, FSDP1, or a plain one."""

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

import torch
import torch.distributed as dist
from torch import nn

from bucket_moo_ext import _C, private_torch
from bucket_moo_ext.adapters.ddp import check_module, find_ddp, find_flat, find_sharded, is_plain
from bucket_moo_ext.adapters.ddp_copies import watch_copies
from bucket_moo_ext.adapters.fsdp1 import FlatModel, FlatPasses
from bucket_moo_ext.adapters.fsdp2 import GroupPasses, ShardedModel
from bucket_moo_ext.adapters.hsdp import Scatter, check_replicas, find_scatter
from bucket_moo_ext.adapters.local import LocalBuckets
from bucket_moo_ext.adapters.parameters import check_whole
from bucket_moo_ext.gramian_source import Sketch
from bucket_moo_ext.method_options import refuse_method_options
from bucket_moo_ext.methods import Method
from bucket_moo_ext.process_group import is_alone, parent_group
from bucket_moo_ext.state import BucketMOO

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@refuse_method_options
def register(
    module: nn.Module | Callable[..., Any],
    method: str | Method = "mgda",
    *,
    objective: str | SupportsIndex | None = None,
    weight: SupportsFloat = 1.0,
    gramian: str | Sketch = "exact",
    layout: str = "ranks",
    scope: str | Callable[[str], str | int] = "bucket",
    support: bool = False,
    private_scale: str = "mean",
    row_norms: bool = False,
    mesh: "DeviceMesh | None" = None,
    objectives: str | tuple[str, ...] | None = None,
    process_group: dist.ProcessGroup | None = None,
    model_parallel_group: dist.ProcessGroup | None = None,
    replicated: Callable[[str], bool] | None = None,
    seed: SupportsIndex = 0,
    bucket_cap_mb: SupportsFloat | None = None,
) -> BucketMOO:
    """Makes a module reduce its gradients conflict-aware: of DDP, natively, of FSDP2, or in one process a plain one.

    To be called on every rank of the module's group, before its first backward pass.

    Of a model that ``fully_shard()`` (FSDP2) shards over one mesh dimension, every group of parameters is a bucket and
    every backward pass a pass: see docs/frameworks.md. ``module`` is the one whose whole is sharded. If there are
    replicas of it along the other dimension of a mesh (HSDP), give that as ``mesh``. The same holds for
    ``FullyShardedDataParallel`` (FSDP1) and its flat parameters, without a mesh. For what ``replicate()`` made, its DDP
    module is made.

    In one process (no process group, or one of a single rank) a plain module has as many objectives as a step has
    passes: see ``BucketMOO.backward()`` and ``BucketMOO.accumulate()``. Gradients are put aside bucket by bucket as
    they appear, a row for every objective, and ``.grad`` is freed until the last pass brings the answer. Call
    ``zero_grad()`` between steps. Activation checkpointing with ``use_reentrant=True`` is not supported there.

    A warning is raised, once, where gradients that were reduced are not zeroed before the next backward pass that is
    reduced, and where a copy of the module trains without a hook.

    Args:
        module: A DistributedDataParallel module, one that ``fully_shard()``, ``FullyShardedDataParallel()`` or
            ``replicate()`` made, or one compiled (``torch.compile``) or set up by Lightning Fabric that runs one of
            these; or any module in one process. What is reduced must be float32, bfloat16, float16 or float64, on the
            CPU or, in a build with CUDA kernels, on one GPU; parameters that the wrapper ignores or that are not
            trained may be anything.
        method, objective, weight, gramian, layout, scope: As for ``BucketMOO``.
        support, private_scale, row_norms, mesh, objectives, seed: As for ``BucketMOO``.
        model_parallel_group, replicated: As for ``BucketMOO``; of DDP modules.
        process_group: None, or the group that the DDP or FSDP1 module was made with, or of the mesh of a sharded one;
            with ``mesh`` that of all its ranks, None being the default group.
        bucket_cap_mb: Of a plain module: MiB of gradients from which on a bucket takes no more parameters, >= 0; None:
            25, as DDP. DDP and FSDP have their own.

    Returns:
        The state: set ``objective`` and ``weight`` on it for the next step, ask it for a ``report()``.

    Raises:
        TypeError: ``module`` is neither of these, or a parameter has an unsupported dtype.
        ValueError: A bad argument, a parameter on an unsupported device or of a model-parallel module, an option of DDP
            or FSDP1 that cannot be combined; a module that is sharded over several dimensions or over one rank, or not
            over a dimension of ``mesh``; replicas of it that differ.
        RuntimeError: The module has a hook already or has reduced a backward pass.
        NotImplementedError: ``mesh`` for a module of FSDP1.
    """
    new_state = functools.partial(
        BucketMOO,
        method,
        objective=objective,
        weight=weight,
        gramian=gramian,
        layout=layout,
        scope=scope,
        support=support,
        private_scale=private_scale,
        row_norms=row_norms,
        mesh=mesh,
        objectives=objectives,
        model_parallel_group=model_parallel_group,
        replicated=replicated,
        seed=seed,
    )
    if isinstance(module, nn.Module) and process_group is None and is_alone() and is_plain(module):
        state = new_state() if bucket_cap_mb is None else new_state(bucket_cap_mb=bucket_cap_mb)
        state._is_alone = True
        LocalBuckets(module, state, round(state._bucket_cap_mb * 2**20))
        return state
    if (root := find_sharded(module)) is not None:
        if bucket_cap_mb is not None:
            raise ValueError(f"bucket_cap_mb: FSDP2's groups of parameters are the buckets; got {bucket_cap_mb!r}")
        return _register_sharded(root, new_state, process_group, mesh, model_parallel_group is not None)
    if (root := find_flat(module)) is not None:
        if bucket_cap_mb is not None:
            raise ValueError(f"bucket_cap_mb: FSDP1's flat parameters are the buckets; got {bucket_cap_mb!r}")
        return _register_flat(root, new_state, process_group, mesh)
    ddp, named = find_ddp(module)
    if bucket_cap_mb is not None:
        raise ValueError(f"bucket_cap_mb is that of the DDP module, which was made with it; got {bucket_cap_mb!r}")
    group = ddp.process_group
    if process_group is not None and parent_group(process_group) is not group:
        raise ValueError("process_group must be None or the group that the DDP module was made with")
    device = check_module(ddp, named, may_be_pieces=model_parallel_group is not None)
    state = new_state(
        process_group=group,
        bucket_cap_mb=max([ddp.bucket_bytes_cap, *getattr(ddp, "bucket_bytes_cap_list", ())]) / 2**20,
    )
    state.name_parameters(named.named_parameters())
    _C.register_ddp_hook(ddp.reducer, state._bound_to_ddp(device))
    private_torch.note_comm_hook(ddp, bucket_moo_hook, state)
    return state


def _register_sharded(
    root: nn.Module,
    new_state: Callable[..., BucketMOO],
    process_group: dist.ProcessGroup | None,
    mesh: "DeviceMesh | None",
    has_pieces: bool,
) -> BucketMOO:
    model = ShardedModel(root, has_pieces)
    group = model.shard_group
    if mesh is not None:
        group = parent_group(process_group)
    elif process_group is not None and parent_group(process_group) is not group:
        raise ValueError("process_group must be None or the group of the mesh that the module is sharded over")
    state = new_state(process_group=group)
    state.name_parameters(model.named_parameters())
    if has_pieces:
        state._pieces.note(model.pieces())
    scatter = Scatter()
    if mesh is None and not has_pieces and (others := private_torch.other_dimensions(model.mesh)):
        warnings.warn(
            f"bucket_moo_ext: module is sharded over one dimension of a mesh that has others too ({others}), and mesh= "
            "was not given: replicas along them are not reduced here and drift apart unless something else joins them. "
            "For HSDP give the whole mesh: moo.register(module, method, mesh=mesh, objectives=...)",
            stacklevel=3,
        )
    if mesh is not None and state._levels is not None:
        scatter = find_scatter(model.shard_group, mesh, state._levels, group, model.device)
        model.check_not_reduced_elsewhere()
        state._bound(model.device)  # or refuses to, before replicas are compared
        check_replicas(model, scatter, group)
    GroupPasses(model, state, scatter)
    return state


def _refuse_pieces(state: BucketMOO, wrapper: str) -> None:
    """Raises NotImplementedError for models of which other ranks hold other pieces."""
    if state._pieces.is_given:
        raise NotImplementedError(
            f"model_parallel_group is not supported with {wrapper}; it is for DDP, fully_shard() and direct calls"
        )


def _register_flat(
    root: nn.Module,
    new_state: Callable[..., BucketMOO],
    process_group: dist.ProcessGroup | None,
    mesh: "DeviceMesh | None",
) -> BucketMOO:
    model = FlatModel(root)
    group = model.process_group
    if mesh is not None:
        raise NotImplementedError(
            "mesh= is not supported with FullyShardedDataParallel (FSDP1); use FSDP2, fully_shard()"
        )
    if process_group is not None and parent_group(process_group) is not group:
        raise ValueError("process_group must be None or the group that the FSDP module was made with")
    state = new_state(process_group=group)
    _refuse_pieces(state, "FullyShardedDataParallel")
    state.name_parameters(model.named_parameters())
    FlatPasses(model, state)
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
    if not state._pieces.is_given:
        check_whole(enumerate(bucket.parameters()))
    return state._bound_to_ddp(bucket.buffer().device).run(bucket)


watch_copies(lambda hook, state: hook is bucket_moo_hook or isinstance(state, BucketMOO))
