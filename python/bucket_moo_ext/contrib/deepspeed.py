"""One line for a DeepSpeed engine, ZeRO stages 0 to 3.

    >>> from bucket_moo_ext.contrib.deepspeed import register
    >>> engine, *_ = deepspeed.initialize(model=model, config=config)  # doctest: +SKIP
    >>> state = register(engine, method="mgda", objective="sw")  # doctest: +SKIP

DeepSpeed has no hook for reductions: methods of its engine and its ZeRO optimizers that are listed in ``PRIVATE`` are
replaced on the engine at hand. Written for and tested with DeepSpeed 0.19.8; docs/frameworks.md says what was tested.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

import torch
import torch.distributed as dist

import bucket_moo_ext as moo
from bucket_moo_ext.contrib._deepspeed_checks import check_engine

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

try:
    import deepspeed
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
except ImportError as error:
    raise ImportError(
        f"bucket_moo_ext.contrib.deepspeed needs DeepSpeed ({error}): DS_BUILD_OPS=0 pip install deepspeed, or "
        "pip install 'bucket_moo_ext[deepspeed]'"
    ) from error

__all__ = ["PRIVATE", "register"]

PRIVATE: dict[str, dict[str, tuple[str, ...]]] = {
    "engine": {
        "allreduce_gradients": ("bucket_size",),
        "allreduce_bucket": ("bucket", "dp_group", "dp_world_size"),
        "buffered_allreduce_fallback": ("grads", "elements_per_buffer"),
        "sparse_allreduce_no_retain": ("bucket", "dp_group", "dp_world_size"),
        "step": ("lr_kwargs",),
    },
    "ZeRO-1 and 2": {
        "gradient_reduction_w_predivide": ("tensor", "communication_data_type"),
        "allreduce_bucket": ("bucket", "communication_data_type", "rank", "log", "divide", "process_group"),
        "reduce_gradients": ("pipeline_parallel",),
        "set_gradient_accumulation_boundary": ("is_boundary",),
    },
    "ZeRO-3": {
        "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads": ("params_to_reduce", "communication_data_type"),
    },
}
"""Methods of DeepSpeed that are replaced or called, with their parameters."""


def register(
    engine: Any,
    method: str | moo.Method = "mgda",
    *,
    objective: str | SupportsIndex | None = None,
    weight: SupportsFloat = 1.0,
    gramian: str | moo.Sketch = "exact",
    layout: str = "ranks",
    mesh: "DeviceMesh | None" = None,
    objectives: str | tuple[str, ...] | None = None,
    seed: SupportsIndex = 0,
) -> moo.BucketMOO:
    """Makes a DeepSpeed engine reduce its gradients conflict-aware.

    To be called on every rank, between steps. What DeepSpeed reduces at a time is a bucket and has weights of its own:
    up to ``reduce_bucket_size`` elements, in the order in which gradients come; a model that is smaller is one
    problem. ``state.report()`` is of the bucket that was reduced last.

    Every backward pass of a step is a pass with an objective of its own (``state.objective``), and the engine says
    which one closes the step: ``gradient_accumulation_steps``, or ``set_gradient_accumulation_boundary()``. Do not use
    ``state.accumulate()``. Passes under ``engine.no_sync()`` or ``engine.coalesce_grad_reduction()`` are added up
    into one row.

    The result is on the scale of DeepSpeed's own: where it divides losses by the number of passes, the update is
    multiplied by it.

    Args:
        engine: What ``deepspeed.initialize()`` returns, data parallel over all ranks.
        method, objective, weight, gramian, layout, mesh, objectives, seed: As for ``moo.BucketMOO``.

    Returns:
        The state: set ``objective`` and ``weight`` on it before a backward pass. Save ``state.state_dict()`` in
        ``engine.save_checkpoint(..., client_state=...)``.

    Raises:
        TypeError: ``engine`` is no DeepSpeed engine.
        ValueError: A bad argument.
        NotImplementedError: A feature of DeepSpeed under which gradients are reduced on another path.
        RuntimeError: The engine has a state already, or DeepSpeed lacks a method that is replaced.

    From ``engine.step()``, on every rank: RuntimeError where the passes of a step did not reduce the same buckets, or
    none was. From ``engine.backward()``, on every rank: ValueError where ranks reduce other buckets (CPU).
    """
    check_engine(engine, (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3))
    if any(name in vars(engine) for name in PRIVATE["engine"]):
        raise RuntimeError("engine: a state is registered already, or something else has replaced its methods")
    state = moo.BucketMOO(
        method,
        objective=objective,
        weight=weight,
        gramian=gramian,
        layout=layout,
        mesh=mesh,
        objectives=objectives,
        seed=seed,
    )
    _check_names(engine, "engine")
    steps = _Steps(engine, state)
    if type(engine.optimizer) is DeepSpeedZeroOptimizer_Stage3:
        _scatter_partitions(engine.optimizer, steps)
    elif type(engine.optimizer) is DeepSpeedZeroOptimizer:
        _reduce_partitions(engine, engine.optimizer, steps)
    else:
        _reduce_whole(engine, steps)
    _check_steps(engine, steps)
    return state


class _Steps:
    """Reduces buckets in the passes of a step, each under a name, and knows what was put aside."""

    def __init__(self, engine: Any, state: moo.BucketMOO) -> None:
        self._engine = engine
        self._state = state
        self._world = dist.get_world_size()
        self._is_mean = bool(engine.gradient_average)
        self._put_aside: dict[str, int] = {}  # in how many passes of the open step, by bucket
        self._closed: dict[str, int] = {}  # the same of the buckets that the closing pass has reduced

    @property
    def is_closing(self) -> bool:
        """Whether the pass that goes on closes its step."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def all_reduce(self, tensor: torch.Tensor, bucket: str) -> None:
        """In place: zeros, or the update where the pass closes its step."""
        self._reduce(bucket, tensor, lambda: moo.all_reduce(tensor, self._state, bucket=bucket))

    def reduce_scatter(self, shard: torch.Tensor, tensor: torch.Tensor, bucket: str) -> None:
        """The same of this rank's shard of ``tensor``."""
        self._reduce(bucket, shard, lambda: moo.reduce_scatter(shard, tensor, self._state, bucket=bucket))

    def _reduce(self, bucket: str, result: torch.Tensor, call: Callable[[], None]) -> None:
        if not self.is_closing:
            with self._state.accumulate():
                call()
            self._put_aside[bucket] = self._put_aside.get(bucket, 0) + 1
            return
        call()
        before = self._put_aside.pop(bucket, 0)
        self._closed[bucket] = before
        # A mean over ranks and passes, where DeepSpeed has a sum over passes, whose losses it has divided.
        scale = (before + 1) * (1 if self._is_mean else self._world)
        if scale != 1:
            result.mul_(scale)

    def end(self) -> None:
        """The optimizer is about to take its step.

        Raises:
            RuntimeError: What it would take is not the update.
        """
        closed, self._closed = self._closed, {}
        left, self._put_aside = self._put_aside, {}
        if left:
            self._state.discard()
        if not closed and not left:
            raise RuntimeError(
                "engine.step(): no gradient has come through bucket_moo_ext since the last step. Either no trained "
                f"parameter had one, or DeepSpeed {deepspeed.__version__} has reduced them on another path"
            )
        if left or len(set(closed.values())) > 1:
            bucket = next(iter(left), None) or min(closed, key=closed.__getitem__)
            raise RuntimeError(
                "engine.step(): the passes of this step did not all reduce the same buckets, so that gradients are "
                f"missing in the update ({bucket!r} was not in all of them, {len(closed)} buckets were reduced in the "
                "last one). All micro-batches of a step must give gradients to the same parameters, and the engine "
                "must know which backward pass is the last one before it runs: set_gradient_accumulation_boundary(True)"
            )
        try:
            self._state.state_dict()
        except RuntimeError as error:
            raise RuntimeError(
                f"engine.step(): {error}. Under DeepSpeed do not use state.accumulate(): the engine says which pass "
                "closes a step, by gradient_accumulation_steps or set_gradient_accumulation_boundary()"
            ) from error


def _bucket_name(parameters: Sequence[tuple[str, int]]) -> str:
    """The same for the same parameters in the same order; for a report, too. Names and elements of each."""
    digest = hashlib.sha256(repr(parameters).encode()).hexdigest()[:12]
    first, last = parameters[0][0], parameters[-1][0]
    title = first if len(parameters) == 1 else f"{first} to {last} ({len(parameters)} parameters)"
    return f"{title} {digest}"


def _check_names(owner: Any, kind: str) -> None:
    """Raises RuntimeError where DeepSpeed has changed what is replaced."""
    for name, parameters in PRIVATE[kind].items():
        method = getattr(owner, name, None)
        if method is None:
            what = f"has no {name}() any more"
        # DeepSpeed's decorators show (*args, **kwargs) alone.
        elif (found := tuple(inspect.signature(method).parameters)) not in (parameters, ("args", "kwargs")):
            what = f"has {name}({', '.join(found)}), where {name}({', '.join(parameters)}) is expected"
        else:
            continue
        raise RuntimeError(
            f"DeepSpeed {deepspeed.__version__}: {type(owner).__name__} ({kind}) {what}, which "
            "bucket_moo_ext.contrib.deepspeed replaces (it was written for DeepSpeed 0.19.8). Use that version"
        )


def _reduce_partitions(engine: Any, optimizer: Any, steps: _Steps) -> None:
    """ZeRO-1 and 2: every bucket is reduced whole, on every rank, and DeepSpeed takes its partition of it."""
    _check_names(optimizer, "ZeRO-1 and 2")
    optimizer.reduce_scatter = False  # or the bucket is cut up and its pieces are reduced

    def reduce(tensor: torch.Tensor, communication_data_type: torch.dtype) -> torch.Tensor:
        if tensor.numel() == 0:
            return tensor
        members = optimizer.ipg_buckets[communication_data_type].params
        parameters = [optimizer.bit16_groups[group][index] for group, index, _ in members]
        sent = tensor.to(communication_data_type)
        steps.all_reduce(sent, _bucket_name([(optimizer.param_names[p], p.numel()) for p in parameters]))
        if sent is not tensor:
            tensor.copy_(sent)
        return sent

    def reduce_list(bucket: list[torch.Tensor], communication_data_type: torch.dtype, **_: Any) -> torch.Tensor:
        return reduce(optimizer.flatten(bucket), communication_data_type)

    optimizer.gradient_reduction_w_predivide = reduce
    optimizer.allreduce_bucket = reduce_list  # of gradients that are not contiguous
    if optimizer.partition_gradients:
        return
    # ZeRO-1 adds up gradients on their ranks until the last pass, and one rank's passes may have several objectives.
    # So the optimizer is told that every pass is the last: it reduces, and puts the result, zeros, where the last
    # pass's will be.
    tell = optimizer.set_gradient_accumulation_boundary
    optimizer.set_gradient_accumulation_boundary = lambda is_boundary: tell(
        is_boundary or not engine.inside_no_sync_ctxt
    )
    _reduce_every_pass(engine, steps, optimizer.reduce_gradients)


def _scatter_partitions(optimizer: Any, steps: _Steps) -> None:
    """ZeRO-3: every parameter is cut into a partition for each rank, and so is its gradient."""
    _check_names(optimizer, "ZeRO-3")
    optimizer.reduce_scatter = True  # or whole buckets are all-reduced
    names = {parameter: name for name, parameter in optimizer.module.named_parameters()}
    world, rank = dist.get_world_size(), dist.get_rank()

    def scatter(params_to_reduce: list[torch.Tensor], communication_data_type: torch.dtype) -> list[torch.Tensor]:
        sizes = [-(-p.grad.numel() // world) for p in params_to_reduce]  # type: ignore[union-attr]
        shards = params_to_reduce[0].new_zeros(world, sum(sizes), dtype=communication_data_type)
        offset = 0
        for parameter, size in zip(params_to_reduce, sizes, strict=True):
            assert parameter.grad is not None
            for shard, piece in zip(shards, torch.split(parameter.grad.flatten(), size), strict=False):
                shard[offset : offset + piece.numel()].copy_(piece)
            offset += size
        output = torch.empty_like(shards[rank])
        bucket = _bucket_name([(names[p], p.grad.numel()) for p in params_to_reduce])  # type: ignore[union-attr]
        steps.reduce_scatter(output, shards.view(-1), bucket)
        output = output.to(optimizer.gradient_accumulation_dtype)
        pieces = []
        for parameter, partition, size in zip(params_to_reduce, torch.split(output, sizes), sizes, strict=True):
            assert parameter.grad is not None
            pieces.append(partition[: max(0, min(size, parameter.grad.numel() - rank * size))])
        return pieces

    optimizer._DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads = scatter


def _reduce_whole(engine: Any, steps: _Steps) -> None:
    """ZeRO-0, and ZeRO-1 with bf16 parameters and fp32 gradients: the engine all-reduces all of them, in one order."""
    number = 0

    def reduce(bucket: list[torch.Tensor], dp_group: Any, dp_world_size: float | None = None) -> torch.Tensor:
        nonlocal number
        flat: torch.Tensor = engine.flatten(bucket)
        sent = flat.to(engine.communication_data_type)
        steps.all_reduce(sent, f"gradients {number} ({len(bucket)} tensors)")
        number += 1
        if sent is not flat:
            flat.copy_(sent)
        return flat

    def reduce_all(*args: Any, **kwargs: Any) -> None:
        nonlocal number
        number = 0
        original(*args, **kwargs)

    def refuse_sparse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "bucket_moo_ext does not support sparse gradients under DeepSpeed: they are gathered, not reduced. Use "
            "nn.Embedding(sparse=False)"
        )

    original = engine.buffered_allreduce_fallback
    engine.buffered_allreduce_fallback = reduce_all
    engine.allreduce_bucket = reduce
    engine.sparse_allreduce_no_retain = refuse_sparse
    _reduce_every_pass(engine, steps, engine.buffered_allreduce_fallback)


def _reduce_every_pass(engine: Any, steps: _Steps, reduce: Callable[[], None]) -> None:
    """Where the engine reduces in the pass that closes a step alone: in the others ``reduce()`` is called."""
    original = engine.allreduce_gradients

    def allreduce_gradients(*args: Any, **kwargs: Any) -> None:
        if steps.is_closing:
            original(*args, **kwargs)
        else:
            reduce()

    engine.allreduce_gradients = allreduce_gradients


def _check_steps(engine: Any, steps: _Steps) -> None:
    """Has ``engine.step()`` refuse what is not an update."""
    original = engine.step

    def step(lr_kwargs: Any = None) -> Any:
        if steps.is_closing:
            steps.end()
        return original(lr_kwargs)

    engine.step = step
