"""DeepSpeed engines on the CPU, the batches that they train on, and float64 references."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

os.environ["DS_ACCELERATOR"] = "cpu"  # asked for in the import
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # else in the first backward pass, which takes seconds
    from deepspeed.utils import safe_get_full_grad

from tests.support.ddp import Batch, batch_of, gradients, loss_of, mlp

# The operator that DeepSpeed compiles for all-reduces on one machine is not used in training.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

SIZES = (8, 16, 12, 4)
SMALL = 200
"""``reduce_bucket_size`` in elements: the three layers of SIZES, 144, 204 and 52 elements, make several buckets."""
OBJECTIVES = "abc"

Gradients = dict[str, np.ndarray]


def model_of(seed: int) -> nn.Module:
    """The same on every rank, in float32."""
    return mlp(seed, torch.float32, SIZES)


def config_of(passes: int, more: dict[str, Any] | None = None, **zero: Any) -> dict[str, Any]:
    """``zero``: entries of ``zero_optimization``; ``more``: those beside it."""
    return {
        "train_micro_batch_size_per_gpu": 6,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": 0.0,  # the default is 1
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        **(more or {}),
    }


def engine_of(model: nn.Module, rate: float = 0.0, passes: int = 1, **config: Any) -> Any:
    """An engine with SGD."""
    os.environ.setdefault("LOCAL_RANK", "0")
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        config=config_of(passes, **config),
        dist_init_required=False,
    )
    return engine


def objective_of(rank: int, pass_: int) -> str:
    """Every rank has another one in every pass."""
    return OBJECTIVES[(rank + pass_) % len(OBJECTIVES)]


def seed_of(step: int, pass_: int) -> int:
    return 100 * step + pass_


def loss_on(engine: Any, batch: Batch) -> torch.Tensor:
    """In float32, whatever the parameters are."""
    x, y = batch
    dtype = next(engine.module.parameters()).dtype
    return (engine(x.to(dtype)).float() - y.float()).square().mean()


def whole_gradients(engine: Any) -> Gradients:
    """Those that the optimizer is about to take, over all ranks. Collective."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        gradient = safe_get_full_grad(parameter)
        found[name] = gradient.double().reshape(-1).numpy().copy()
    return found


def train_step(engine: Any, state: Any, rank: int, seed: int, step: int, passes: int) -> Gradients:
    """A step of several passes; the gradients that its optimizer gets."""
    found: Gradients = {}
    for number in range(passes):
        if state is not None:
            state.objective = objective_of(rank, number)
        engine.backward(loss_on(engine, batch_of(seed, rank, seed_of(step, number), sizes=SIZES)))
        if number == passes - 1:
            found = whole_gradients(engine)
        engine.step()
    return found


def objective_gradients(model: nn.Module, world: int, seed: int, step: int, passes: int) -> dict[str, Gradients]:
    """In float64: the mean of each objective's rows, over ranks and passes."""
    rows: dict[str, list[Gradients]] = {}
    for number in range(passes):
        for rank in range(world):
            batch = batch_of(seed, rank, seed_of(step, number), sizes=SIZES)
            row = gradients(model, lambda twin, batch=batch: loss_of(twin, batch))  # type: ignore[misc]
            rows.setdefault(objective_of(rank, number), []).append(row)
    return {
        objective: {name: np.mean([row[name] for row in several], axis=0) for name in several[0]}
        for objective, several in sorted(rows.items())
    }


def stack(by_objective: dict[str, Gradients], names: Sequence[str]) -> np.ndarray:
    """``[K, n]`` of the parameters of a bucket."""
    return np.stack([np.concatenate([found[name] for name in names]) for found in by_objective.values()])
