"""One line for Megatron-LM's DistributedDataParallel with the distributed optimizer, data parallelism alone.

    >>> from bucket_moo_ext.contrib.megatron import register
    >>> state = register(ddp, method="mgda", objective="sw")  # doctest: +SKIP

Megatron has no hook for reductions, but swaps the function that reduces and scatters a bucket itself
(``dist_reduce_scatter_func``, for ``reduce_scatter_with_fp32_accumulation``); so does this, for the buckets of the
module at hand and while these are reduced. Read in megatron-core 0.16.1 and 0.19.0; docs/frameworks.md says what was
tested.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, SupportsFloat, SupportsIndex

import torch
import torch.distributed as dist
from torch import nn

import bucket_moo_ext as moo

try:
    import megatron.core as megatron_core
    from megatron.core.distributed import DistributedDataParallel, param_and_grad_buffer
except ImportError as error:
    raise ImportError(
        f"bucket_moo_ext.contrib.megatron needs megatron-core ({error}): pip install megatron-core, or "
        "pip install 'bucket_moo_ext[megatron]'"
    ) from error

__all__ = ["PRIVATE", "register"]

PRIVATE = ("dist_reduce_scatter_func", "_coalescing_manager")
"""Names of ``megatron.core.distributed.param_and_grad_buffer`` that are replaced while a bucket is reduced."""


def register(
    module: nn.Module,
    method: str | moo.Method = "mgda",
    *,
    objective: str | SupportsIndex | None = None,
    weight: SupportsFloat = 1.0,
    gramian: str | moo.Sketch = "exact",
    layout: str = "ranks",
    seed: SupportsIndex = 0,
) -> moo.BucketMOO:
    """Makes Megatron's DistributedDataParallel reduce its gradients conflict-aware.

    To be called on every rank of the data-parallel group, before the first backward pass. What Megatron reduces at a
    time is a bucket and has weights of its own: with ``overlap_grad_reduce`` ``bucket_size`` elements, else all of one
    dtype. The same parameters are in it in every step.

    Megatron adds up the micro-batches of a step on their rank and reduces the sum: a row, with the rank's objective of
    that step. For more objectives than ranks run ``zero_grad_buffer()`` and forward and backward passes once for each,
    all but the last under ``state.accumulate()``.

    The result is on the scale of Megatron's own: of the mean, or of the sum where losses are per token.

    Args:
        module: ``megatron.core.distributed.DistributedDataParallel``, with ``use_distributed_optimizer``. In
            Megatron-Bridge a post-wrap hook gets a list with it.
        method, objective, weight, gramian, layout, seed: As for ``moo.BucketMOO``.

    Returns:
        The state: set ``objective`` and ``weight`` on it before a step. ``state.report()`` is of the bucket that was
        reduced last.

    Raises:
        TypeError: ``module`` is another.
        ValueError: A bad argument.
        NotImplementedError: Parallelism beside data parallelism, or no distributed optimizer.
        RuntimeError: The module has a state already, or Megatron lacks a name that is replaced.
    """
    if type(module) is not DistributedDataParallel:
        raise TypeError(
            "module must be megatron.core.distributed.DistributedDataParallel (of one model chunk); got "
            f"{type(module).__name__}"
        )
    ddp: Any = module
    _check_parallelism(ddp)
    _check_names(ddp)
    groups = list(ddp.bucket_groups)
    if any("start_grad_sync" in vars(group) for group in groups):
        raise RuntimeError("module: a state is registered already")
    state = moo.BucketMOO(
        method,
        objective=objective,
        weight=weight,
        gramian=gramian,
        layout=layout,
        process_group=ddp.intra_dp_cp_group,
        seed=seed,
    )
    names = {parameter: name for name, parameter in ddp.module.named_parameters()}
    for group in groups:
        buckets = [(bucket.grad_data, _bucket_name([names[p] for p in bucket.params_list])) for bucket in group.buckets]
        group.start_grad_sync = _conflict_aware(group.start_grad_sync, buckets, state)
    return state


def _check_parallelism(module: Any) -> None:
    """Raises NotImplementedError for what is not data parallelism alone, or is reduced elsewhere."""
    config = module.ddp_config
    pipeline = module.pp_group if isinstance(module.pp_group, list) else [module.pp_group]
    for is_there, reason in (
        (
            not config.use_distributed_optimizer,
            "use_distributed_optimizer=False: Megatron then calls torch.distributed.all_reduce by name, which nothing "
            "can take the place of",
        ),
        (
            config.num_distributed_optimizer_instances > 1,
            "num_distributed_optimizer_instances > 1: instances are joined by such an all-reduce",
        ),
        (
            module.tp_group.size() > 1,
            "tensor parallelism: a bucket holds pieces of some parameters and copies of others, and a direct call of "
            "a collective does not say which",
        ),
        (
            module.dp_cp_group.size() != module.dp_group.size(),
            "context parallelism: a rank holds a part of a sum, which has to be added up first",
        ),
        (
            any(group.size() > 1 for group in pipeline),
            "pipeline parallelism: embeddings that stages share would get updates of different weights",
        ),
        (
            len(module.expert_parallel_bucket_groups) > 0,
            "expert parallelism: ranks hold different experts",
        ),
    ):
        if is_there:
            raise NotImplementedError(f"module: bucket_moo_ext does not support {reason}")


def _check_names(module: Any) -> None:
    """Raises RuntimeError where Megatron has changed what is replaced."""
    missing = [name for name in PRIVATE if not hasattr(param_and_grad_buffer, name)]
    kinds = {type(group) for group in module.bucket_groups}
    missing += [
        "start_grad_sync(force_all_reduce)"
        for kind in kinds
        if tuple(inspect.signature(getattr(kind, "start_grad_sync", lambda: 0)).parameters)
        != ("self", "force_all_reduce")
    ]
    if missing:
        raise RuntimeError(
            f"megatron-core {megatron_core.__version__}: param_and_grad_buffer has no {', '.join(missing)} any more, "
            "which bucket_moo_ext.contrib.megatron replaces (it was written for 0.16.1 and 0.19.0). Use one of these"
        )


def _bucket_name(names: list[str]) -> str:
    """The same on all ranks and in all steps; for a report, too."""
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return f"{names[0]} to {names[-1]} ({len(names)} parameters) {digest}"


class _Pending:
    """What Megatron waits for."""

    def __init__(self) -> None:
        self.finish: list[Callable[[], object]] = []

    def wait(self) -> None:
        for finish in self.finish:
            finish()
        self.finish.clear()


def _conflict_aware(
    start_grad_sync: Callable[..., None], buckets: list[tuple[torch.Tensor, str]], state: moo.BucketMOO
) -> Callable[..., None]:
    """Megatron's own method with another reduction. ``buckets``: the gradients of each and its name."""

    def start(force_all_reduce: bool | None = False) -> None:
        if force_all_reduce:
            raise RuntimeError(
                "start_grad_sync(force_all_reduce=True): Megatron calls torch.distributed.all_reduce by name there, "
                "which would average; bucket_moo_ext cannot take its place"
            )
        pending = _Pending()
        reduced: list[str] = []

        def reduce_scatter(
            output: torch.Tensor, input: torch.Tensor, op: Any, group: dist.ProcessGroup, async_op: bool = False
        ) -> _Pending | None:
            name = next(name for gradients, name in buckets if gradients is input)
            scale = dist.get_world_size(group) if op == dist.ReduceOp.SUM else 1
            future = moo.reduce_scatter(output, input, state, bucket=name, async_op=True)
            pending.finish += [future.wait, lambda: output.mul_(scale)]
            reduced.append(name)
            if not async_op:
                pending.wait()
            return pending if async_op else None

        @contextlib.contextmanager
        def together(*_: Any, **__: Any) -> Iterator[_Pending]:
            # Not torch's: that would hold back collectives whose results the next ones need.
            yield pending

        replaced = [getattr(param_and_grad_buffer, name) for name in PRIVATE]
        for name, replacement in zip(PRIVATE, (reduce_scatter, together), strict=True):
            setattr(param_and_grad_buffer, name, replacement)
        try:
            start_grad_sync(force_all_reduce=force_all_reduce)
        finally:
            for name, original in zip(PRIVATE, replaced, strict=True):
                setattr(param_and_grad_buffer, name, original)
        # A first step starts every group a second time, in vain.
        if reduced and len(reduced) != len(buckets):
            raise RuntimeError(
                f"megatron-core {megatron_core.__version__} has reduced some gradients on another path than "
                "bucket_moo_ext's"
            )

    return start
