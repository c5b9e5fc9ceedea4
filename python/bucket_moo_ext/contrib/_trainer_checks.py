"""What a Trainer must have and must not do for its gradients to be reduced by us."""

import warnings
from typing import Any

import torch

PRIVATE = ("_get_train_sampler", "_set_signature_columns_if_needed", "_signature_columns")
"""Names of transformers' Trainer that are overridden though they are private."""

_REDUCED_ELSEWHERE = {
    "DEEPSPEED": "DeepSpeed reduces gradients itself and takes no hook; train without deepspeed=",
    "MEGATRON_LM": "Megatron-LM reduces gradients itself; train without it",
    "XLA": "XLA reduces gradients itself; train on CPUs or CUDA devices",
}


def check_names(trainer: Any, version: str) -> None:
    """Raises RuntimeError where a private name is gone."""
    missing = [name for name in PRIVATE if not hasattr(trainer, name)]
    if missing:
        raise RuntimeError(
            f"transformers {version}: Trainer has no {', '.join(missing)} any more, which "
            "bucket_moo_ext.contrib.transformers overrides (it was written for transformers 5.24). Use that "
            "version, or wrap the model yourself and call moo.register on it"
        )


def check_trainer(trainer: Any, column: str) -> None:
    """Refuses what would reduce gradients elsewhere or mix objectives in a batch.

    Raises:
        ValueError: An option that cannot be combined, named.
        NotImplementedError: A wrapper or a data set that is not supported.
    """
    args = trainer.args
    _check_wrapper(trainer)
    if args.auto_find_batch_size:
        raise ValueError("auto_find_batch_size=True cannot be combined with attach(): it breaks off backward passes")
    if any(word in str(args.optim).lower() for word in ("lomo", "layerwise")):
        raise ValueError(
            f"optim={str(args.optim)!r}: an optimizer in the backward pass sees gradients before they are reduced"
        )
    config = args.accelerator_config
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name):
            raise ValueError(
                f"accelerator_config: {name}=True mixes ranks' batches; every batch must be one rank's own"
            )
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r}: attach() samples by objective itself; leave it "
            "at 'random'"
        )
    if trainer.train_dataset is None:
        raise ValueError("trainer has no train_dataset")
    if isinstance(trainer.train_dataset, dict):
        raise NotImplementedError(
            "train_dataset is a dict of data sets, which the trainer samples itself; join them to one with the column "
            f"{column!r}"
        )
    if str(getattr(args, "batch_sampler", "batch_sampler")).rsplit(".", 1)[-1].lower() != "batch_sampler":
        raise ValueError(
            f"batch_sampler={args.batch_sampler!r}: attach() samples by objective itself; leave it at 'batch_sampler'"
        )
    if any("Cached" in kind.__name__ for kind in type(getattr(trainer, "loss", None)).__mro__):
        raise NotImplementedError(
            f"loss={type(trainer.loss).__name__} makes backward passes inside one (it caches gradients), of which each "
            "would be a pass of a step; use the loss that does not cache"
        )
    if getattr(args, "packing", False):
        raise ValueError(
            "packing=True joins examples of different objectives into one and drops the column; give packing=False"
        )


def check_room(trainer: Any, layout: str, objectives: int) -> None:
    """Whether a step has room for several objectives, and with a warning whether for all.

    Raises:
        ValueError: For one alone.
    """
    passes = int(trainer.args.gradient_accumulation_steps)
    ranks = 1 if layout == "passes" else int(trainer.args.world_size)
    room = passes * ranks
    for_all = max(2, -(-objectives // ranks))
    if room < 2:
        raise ValueError(
            "a step has one pass of one objective only, so there is no conflict to resolve: give "
            f"gradient_accumulation_steps (now {passes}) of at least 2, {for_all} for all objectives in every step"
            + (", or train with several processes" if layout == "ranks" else "")
        )
    if room < objectives and trainer.args.process_index == 0:
        warnings.warn(
            f"bucket_moo_ext: a step has room for {room} of {objectives} objectives, so they take turns; give "
            f"gradient_accumulation_steps={for_all} (now {passes}) for all of them in every step",
            stacklevel=3,
        )


def _check_wrapper(trainer: Any) -> None:
    args, kind = trainer.args, str(trainer.accelerator.distributed_type).rsplit(".", 1)[-1]
    if trainer.is_deepspeed_enabled:
        kind = "DEEPSPEED"
    if kind in _REDUCED_ELSEWHERE:
        raise NotImplementedError(f"trainer: {_REDUCED_ELSEWHERE[kind]}")
    if args.n_gpu > 1:
        raise NotImplementedError(
            f"trainer: one process with {args.n_gpu} GPUs runs DataParallel, which has no reduction to replace; start "
            "one process a GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one"
        )
    if (trainer.is_fsdp_enabled or args.fsdp) and args.device.type == "cpu":
        raise NotImplementedError(
            "trainer: on the CPU Accelerate turns fsdp= into DDP without a word; leave fsdp= out, or shard the model "
            "as it is loaded: from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=...))"
        )
    for name in ("tp", "cp", "sp"):
        if (size := getattr(trainer, f"get_{name}_size")()) > 1:
            raise NotImplementedError(f"trainer: {name}_size={size}; data parallelism alone is supported here")
    if trainer.is_distributed_loading_by_transformers:
        _check_all_sharded(trainer.model)


def _check_all_sharded(model: torch.nn.Module) -> None:
    from torch.distributed.tensor import DTensor

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not isinstance(parameter.data, DTensor):
            raise NotImplementedError(
                f"trainer: parameter {name!r} was added after the model was sharded (an adapter), and Trainer averages "
                "it itself, past the reduction; train all of the model, or adapters under DDP"
            )
