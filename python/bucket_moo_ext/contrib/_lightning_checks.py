"""What a Lightning Trainer must have and must not do for its gradients to be reduced by us."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, SingleDeviceXLAStrategy, XLAStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from bucket_moo_ext.data import ObjectiveBatchSampler, ObjectiveSampler, ObjectiveStream

PRIVATE = ("_should_accumulate", "_data_fetcher")
"""Names of Lightning's fit loop that are used though they are private."""


def check_names(fit_loop: Any, version: str) -> None:
    """Raises RuntimeError where a private name is gone."""
    missing = [name for name in PRIVATE if not hasattr(fit_loop, name)]
    if missing:
        raise RuntimeError(
            f"lightning {version}: Trainer.fit_loop has no {', '.join(missing)} any more, which "
            "bucket_moo_ext.contrib.lightning uses (it was written for lightning 2.6). Use that version, or call "
            "moo.register on trainer.model yourself"
        )


def check_strategy(strategy: Any) -> None:
    """Refuses strategies that reduce gradients elsewhere.

    Raises:
        NotImplementedError: A strategy that is not supported.
        ValueError: An option of one that cannot be combined.
    """
    name = type(strategy).__name__
    if isinstance(strategy, DeepSpeedStrategy):
        raise NotImplementedError(
            f"trainer: {name}: DeepSpeed reduces gradients itself and takes no hook. Train with its engine and "
            "bucket_moo_ext.contrib.deepspeed, or with DDPStrategy or ModelParallelStrategy"
        )
    if isinstance(strategy, XLAStrategy | SingleDeviceXLAStrategy):
        raise NotImplementedError(f"trainer: {name}: XLA reduces gradients itself; train on CPUs or CUDA devices")
    if strategy.handles_gradient_accumulation:
        raise NotImplementedError(
            f"trainer: {name} accumulates gradients itself, past the reduction; use DDPStrategy or "
            "ModelParallelStrategy"
        )
    if getattr(strategy, "_ddp_comm_hook", None) is not None:
        raise ValueError(
            f"trainer: {name} has a ddp_comm_hook, and a module takes one (on the CPU Lightning drops it without a "
            "word); leave it out, MooCallback installs its own"
        )
    if isinstance(strategy, ModelParallelStrategy) and (size := strategy.device_mesh["tensor_parallel"].size()) > 1:
        raise NotImplementedError(
            f"trainer: {name} has tensor_parallel_size {size}; data parallelism alone is supported here: give "
            "data_parallel_size the number of processes and tensor_parallel_size=1"
        )


def check_optimizers(trainer: Any, automatic: bool) -> None:
    """Raises NotImplementedError for optimizers whose backward passes are not those of a step.

    A pass of one of several would close a step of all.
    """
    if len(trainer.optimizers) > 1:
        raise NotImplementedError(
            f"automatic_optimization={automatic} with {len(trainer.optimizers)} optimizers: a backward pass is reduced "
            "as one, and MooCallback cannot tell which of them closes a step; use one optimizer (with parameter groups)"
        )
    if trainer.accumulate_grad_batches > 1 and any(isinstance(one, torch.optim.LBFGS) for one in trainer.optimizers):
        raise NotImplementedError(
            f"LBFGS with accumulate_grad_batches={trainer.accumulate_grad_batches} repeats the last pass of a step "
            "without those before; use accumulate_grad_batches=1 or another optimizer"
        )


def sources_of(trainer: Any) -> list[tuple[Any, ObjectiveBatchSampler | ObjectiveStream]]:
    """The train data loaders that read from what this package deals, and that.

    Raises:
        ValueError: A sampler that does not fit the trainer.
    """
    found: list[tuple[Any, ObjectiveBatchSampler | ObjectiveStream]] = []
    for loader in CombinedLoader(trainer.train_dataloader).flattened:
        if isinstance(getattr(loader, "sampler", None), ObjectiveSampler):
            raise ValueError(
                "train data loader: ObjectiveSampler leaves dealing batches to ranks to others, and Lightning deals "
                "examples; use DataLoader(..., batch_sampler=ObjectiveBatchSampler(...)) and "
                "Trainer(use_distributed_sampler=False)"
            )
        for source in (getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)):
            if isinstance(source, ObjectiveBatchSampler | ObjectiveStream):
                found.append((loader, source))
    return found


def check_source(trainer: Any, source: ObjectiveBatchSampler | ObjectiveStream) -> None:
    """Raises ValueError for a schedule of other ranks or passes than the trainer has."""
    name, schedule = type(source).__name__, source.schedule
    if (source.rank, schedule.world_size) != (trainer.global_rank, trainer.world_size):
        raise ValueError(
            f"{name} deals to rank {source.rank} of {schedule.world_size}, but this is rank {trainer.global_rank} of "
            f"{trainer.world_size}: it was made before Lightning started the processes. Make it in train_dataloader() "
            "of the module or the data module, or give it rank= and world_size="
        )
    passes = trainer.accumulate_grad_batches
    if trainer.lightning_module.automatic_optimization and schedule.passes != passes:
        raise ValueError(
            f"{name} has passes={schedule.passes}, and the trainer accumulate_grad_batches={passes}: a step is as many "
            "passes; give both the same number"
        )
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler) and len({*callback.scheduling.values()}) > 1:
            raise ValueError(
                f"GradientAccumulationScheduler({callback.scheduling}) changes the passes of a step, and {name} has "
                f"{schedule.passes} in all epochs; leave the scheduler out"
            )


def value_in(batch: Any, what: str, key: str | Callable[[Any], Any]) -> Any:
    """What ``key`` finds in a batch.

    Raises:
        TypeError, ValueError: A batch without such a key.
    """
    if callable(key):
        return key(batch)
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{what}={key!r} is a key of a batch, and this one is a {type(batch).__name__}, no mapping; give a "
            "function of the batch"
        )
    if key not in batch:
        raise ValueError(f"{what}={key!r}: the batch has {', '.join(map(repr, batch))}")
    return batch[key]


def label_in(batch: Any, key: str | Callable[[Any], Any]) -> Any:
    """The objective of a batch: one label, or that of all of its examples.

    Raises:
        TypeError, ValueError: None, or several.
    """
    value = value_in(batch, "objective", key)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return value
    labels = sorted({str(label): label for label in value}.items())
    if len(labels) != 1:
        raise ValueError(
            f"a batch must have one objective; got {', '.join(repr(label) for _, label in labels) or 'none'}. Its "
            "sampler mixes them: use DataLoader(..., batch_sampler=bucket_moo_ext.data.ObjectiveBatchSampler(...)) and "
            "Trainer(use_distributed_sampler=False)"
        )
    return labels[0][1]
