"""What a DeepSpeed engine must not do for its gradients to be reduced by us."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

_REFUSED: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (
        lambda engine: bool(engine.pipeline_parallelism),
        "pipeline parallelism: a stage holds a part of the model, and would solve for weights of its own",
    ),
    (
        lambda engine: bool(engine.has_moe_layers),
        "mixture of experts: gradients of experts are reduced over groups of their own. Ranks that hold different "
        "experts would need one problem across groups",
    ),
    (
        lambda engine: engine.mp_world_size > 1 or engine.autotp_size() > 1,
        "tensor or model parallelism: every rank of a model would solve for weights of its own, from its piece",
    ),
    (
        lambda engine: engine.sequence_parallel_size > 1,
        "sequence parallelism: a rank holds a part of a sum, which has to be added up first",
    ),
    (
        lambda engine: engine.dp_world_size != dist.get_world_size(),
        "data parallelism over a part of the ranks",
    ),
    (
        lambda engine: not engine.managed_gradient_accumulation(),
        '"managed_gradient_accumulation": false: a pass does not know whether it is the last one. Use '
        "engine.set_gradient_accumulation_boundary()",
    ),
    (
        lambda engine: bool(engine.zero_quantized_gradients()),
        '"zero_quantized_gradients" (ZeRO++): gradients are sent quantised, by an exchange of its own',
    ),
    (
        lambda engine: bool(engine.is_deepcompile_enabled()),
        '"compile": {"deepcompile": true}: the compiled graph reduces gradients itself',
    ),
    (
        lambda engine: bool(engine.zenflow),
        '"zenflow": its optimizer reduces and updates parts of the gradients at other times',
    ),
    (
        lambda engine: not engine.enable_backward_allreduce,
        "an optimizer that communicates itself (1-bit Adam and the like)",
    ),
    (
        lambda engine: engine.zero_optimization_stage() == 1 and _offload(engine) != "none",
        '"offload_optimizer" with ZeRO-1, which keeps gradients of earlier passes on the CPU: use ZeRO-2 or 3',
    ),
    (
        lambda engine: _offload(engine) not in ("none", "cpu"),
        '"offload_optimizer" to another device than "cpu"',
    ),
)


def _offload(engine: Any) -> str:
    """Where ZeRO keeps the optimizer."""
    config = engine.zero_offload_optimizer()
    return "none" if config is None else str(getattr(config.device, "value", config.device))


def check_engine(engine: Any, zero: tuple[type, ...]) -> None:
    """Refuses what would reduce gradients elsewhere. ``zero``: ZeRO optimizers that can be had.

    Raises:
        TypeError: It is no engine.
        NotImplementedError: A feature, named, with the reason.
    """
    if not all(
        hasattr(engine, name) for name in ("backward", "is_gradient_accumulation_boundary", "zero_optimization")
    ):
        raise TypeError(f"engine must be what deepspeed.initialize() returns first; got {type(engine).__name__}")
    for is_there, reason in _REFUSED:
        if is_there(engine):
            raise NotImplementedError(f"engine: bucket_moo_ext does not support {reason}")
    if engine.zero_optimization() and type(engine.optimizer) not in zero and hasattr(engine.optimizer, "ipg_buckets"):
        raise NotImplementedError(
            f"engine: bucket_moo_ext does not support {type(engine.optimizer).__name__}; supported are "
            f"{' and '.join(kind.__name__ for kind in zero)}"
        )
