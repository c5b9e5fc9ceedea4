"""One line for training loops of one's own with Hugging Face Accelerate.

    >>> from bucket_moo_ext.contrib.accelerate import register
    >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)  # doctest: +SKIP
    >>> state = register(accelerator, model, method="mgda", objective="sw")  # doctest: +SKIP

Only public methods of the accelerator at hand are replaced, ``accumulate()`` and ``backward()``. Tested with Accelerate
1.15.0; docs/frameworks.md says how.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import bucket_moo_ext as moo

try:
    from accelerate import Accelerator, DistributedType
except ImportError as error:
    raise ImportError(
        f"bucket_moo_ext.contrib.accelerate needs Accelerate ({error}): pip install accelerate, or "
        "pip install 'bucket_moo_ext[accelerate]'"
    ) from error

__all__ = ["register"]

_REDUCED_ELSEWHERE = {
    DistributedType.MEGATRON_LM: "Megatron-LM reduces gradients itself",
    DistributedType.XLA: "XLA reduces gradients itself",
}


def register(
    accelerator: Accelerator,
    model: nn.Module,
    method: str | moo.Method = "mgda",
    **options: Any,
) -> moo.BucketMOO:
    """Makes a prepared model reduce its gradients conflict-aware, and its accumulated passes passes of one step.

    To be called on every rank, behind ``accelerator.prepare()`` and before the first backward pass.

    Every backward pass in ``with accelerator.accumulate(model):`` is a pass with an objective of its own
    (``state.objective``), where Accelerate alone would add up all passes of a rank; the step is closed where
    ``accelerator.sync_gradients`` is true. The update is a mean over ranks and passes:
    ``gradient_accumulation_steps`` does not divide losses there, and a last step of fewer passes is as long as
    others. ``accelerator.no_sync(model)`` keeps its meaning: what it adds up is one row.

    The state is saved and loaded with ``accelerator.save_state()`` and ``load_state()``.

    Args:
        accelerator: Runs the loop.
        model: What ``accelerator.prepare()`` has returned for it: DistributedDataParallel, a module that FSDP has
            sharded, a DeepSpeed engine, one of these compiled, or in one process the module.
        method: As for ``moo.BucketMOO``.
        **options: What ``moo.register()`` takes beside (for an engine ``contrib.deepspeed.register()``): ``objective``,
            ``weight``, ``gramian``, ``layout``, ``scope``, ``seed`` and others.

    Returns:
        The state: set ``objective`` and ``weight`` on it before ``accelerator.backward()``.

    Raises:
        TypeError: ``accelerator`` is none.
        NotImplementedError: Megatron-LM and XLA, which reduce gradients themselves.
        TypeError, ValueError, RuntimeError: As ``moo.register()``.

    From ``accelerator.accumulate()``: ValueError where the model is given together with others, whose passes are not of
    the same step.

    A warning is raised where FSDP or DeepSpeed was asked for and Accelerate has made the model DDP, as on the CPU.
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator must be an accelerate.Accelerator; got {type(accelerator).__name__}")
    kind = accelerator.distributed_type
    if kind in _REDUCED_ELSEWHERE:
        raise NotImplementedError(f"accelerator: {_REDUCED_ELSEWHERE[kind]}")
    if kind == DistributedType.DEEPSPEED:
        from bucket_moo_ext.contrib import deepspeed

        state = deepspeed.register(model, method, **options)
    else:
        _warn_of_lost_sharding(kind)
        state = moo.register(model, method, **options)
    _make_passes(accelerator, model, state, is_engine=kind == DistributedType.DEEPSPEED)
    accelerator.register_for_checkpointing(state)
    return state


def _warn_of_lost_sharding(kind: DistributedType) -> None:
    for name, asked in (("FSDP", DistributedType.FSDP), ("DeepSpeed", DistributedType.DEEPSPEED)):
        if kind != asked and os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true":
            warnings.warn(
                f"bucket_moo_ext: {name} was asked for, but Accelerate made it {kind.value} without a word, as it does "
                "with cpu=True: nothing is sharded, and gradients are reduced as under DistributedDataParallel. Call "
                "fully_shard() and moo.register(), or deepspeed.initialize() and contrib.deepspeed.register() yourself",
                stacklevel=3,
            )


def _make_passes(accelerator: Accelerator, model: nn.Module, state: moo.BucketMOO, *, is_engine: bool) -> None:
    original_accumulate, original_backward = accelerator.accumulate, accelerator.backward
    is_inside = False

    @contextlib.contextmanager
    def accumulate(*models: nn.Module) -> Iterator[None]:
        nonlocal is_inside
        if not any(given is model for given in models):
            with original_accumulate(*models):
                yield
            return
        if len(models) > 1:
            raise ValueError(
                "accelerator.accumulate(): the model that bucket_moo_ext reduces must be given alone; got "
                f"{len(models)} models. Register and train the others in a loop of their own"
            )
        with original_accumulate():  # without the model: it counts passes, and leaves no_sync() out
            leaves_open = not accelerator.sync_gradients and not is_engine  # which knows by itself
            is_inside = True
            try:
                with state.accumulate() if leaves_open else contextlib.nullcontext():
                    yield
            finally:
                is_inside = False

    def backward(loss: torch.Tensor, **kwargs: Any) -> None:
        # The update is a mean over passes: divided losses would make it one of gradients that are divided already.
        scale = accelerator.gradient_accumulation_steps if is_inside and not is_engine else 1
        original_backward(loss * scale if scale != 1 else loss, **kwargs)

    accelerator.accumulate, accelerator.backward = accumulate, backward
