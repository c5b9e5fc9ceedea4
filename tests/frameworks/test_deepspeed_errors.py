"""What register() refuses of DeepSpeed, and what a step refuses."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("deepspeed", reason="needs requirements/frameworks.txt")

from tests.frameworks import deepspeed_engines as engines  # first: it sets up DeepSpeed

# isort: split
from bucket_moo_ext.contrib import deepspeed as ours
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from tests.support.ddp import batch_of
from tests.support.errors import error_of

Runner = Callable[..., list[Any]]


def message(call: Callable[[], Any]) -> str:
    kind, text = error_of(call)
    return f"{kind.__name__}: {text}"


def refuse_engines(rank: int, world: int) -> dict[str, str]:
    found = {}

    def refused(name: str, engine: Any) -> None:
        found[name] = message(lambda: ours.register(engine, "mgda"))

    refused("no engine", nn.Linear(2, 2))
    refused("unmanaged", engines.engine_of(engines.model_of(0), stage=2, more={"managed_gradient_accumulation": False}))
    refused("offload", engines.engine_of(engines.model_of(0), stage=1, offload_optimizer={"device": "cpu"}))
    for flag, value in (
        ("pipeline_parallelism", True),
        ("has_moe_layers", True),
        ("mp_world_size", 2),
        ("sequence_parallel_size", 2),
        ("dp_world_size", 1),
        ("zenflow", True),
        ("enable_backward_allreduce", False),
    ):  # what DeepSpeed sets where it has these
        engine = engines.engine_of(engines.model_of(0), stage=2)
        setattr(engine, flag, value)
        refused(flag, engine)
    for flag in ("zero_quantized_gradients", "is_deepcompile_enabled"):
        engine = engines.engine_of(engines.model_of(0), stage=2)
        setattr(engine, flag, lambda: True)
        refused(flag, engine)
    engine = engines.engine_of(engines.model_of(0), stage=2)
    found["method"] = message(lambda: ours.register(engine, "none"))
    ours.register(engine, "mgda")  # as it was
    refused("twice", engine)
    return found


def test_register_refuses_what_reduces_on_another_path(run_ranks: Runner) -> None:
    found = run_ranks(2, refuse_engines)[0]
    for name, expected in {
        "no engine": "TypeError: engine must be what deepspeed.initialize() returns first; got Linear",
        "unmanaged": "managed_gradient_accumulation",
        "offload": "use ZeRO-2 or 3",
        "pipeline_parallelism": "pipeline parallelism",
        "has_moe_layers": "mixture of experts",
        "mp_world_size": "tensor or model parallelism",
        "sequence_parallel_size": "sequence parallelism",
        "dp_world_size": "a part of the ranks",
        "zenflow": "zenflow",
        "enable_backward_allreduce": "1-bit Adam",
        "zero_quantized_gradients": "quantised",
        "is_deepcompile_enabled": "deepcompile",
        "method": "ValueError: method",
        "twice": "RuntimeError: engine: a state is registered already",
    }.items():
        assert expected in found.pop(name), name
    assert not found


def lose_names(rank: int, world: int) -> list[str]:
    found = []
    for stage, owner, name in (
        (0, DeepSpeedEngine, "allreduce_bucket"),
        (1, DeepSpeedZeroOptimizer, "gradient_reduction_w_predivide"),
        (3, DeepSpeedZeroOptimizer_Stage3, "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads"),
    ):
        engine = engines.engine_of(engines.model_of(0), stage=stage)
        method = getattr(owner, name)
        delattr(owner, name)
        found.append(message(lambda engine=engine: ours.register(engine)))  # type: ignore[misc]
        setattr(owner, name, lambda self, tensor: None)
        found.append(message(lambda engine=engine: ours.register(engine)))  # type: ignore[misc]
        setattr(owner, name, method)
        assert "step" not in vars(engine)  # nothing was replaced
    return found


def test_register_says_which_private_name_has_gone(run_ranks: Runner) -> None:
    found = run_ranks(2, lose_names)[0]
    for gone, changed in zip(found[::2], found[1::2], strict=True):
        assert "any more, which bucket_moo_ext.contrib.deepspeed replaces" in gone
        assert "(tensor), where" in changed


class Branches(nn.Module):
    """One of two layers of one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(8, 4) for _ in range(2))
        self.chosen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.branches[self.chosen](x)
        return out


def lose_steps(rank: int, world: int) -> dict[str, str]:
    found = {}

    def backward(engine: Any) -> None:
        engine.backward(engines.loss_on(engine, batch_of(1, rank, 0, sizes=engines.SIZES)))

    model = Branches()
    engine = engines.engine_of(model, passes=2, stage=2)
    ours.register(engine)
    backward(engine)
    engine.step()
    model.chosen = 1
    backward(engine)
    found["passes"] = message(engine.step)

    model = Branches()
    engine = engines.engine_of(model, stage=2)
    ours.register(engine)
    model.chosen = rank
    found["ranks"] = message(lambda: backward(engine))

    for stage in (0, 1, 2, 3):
        engine = engines.engine_of(engines.model_of(0), stage=stage)
        state = ours.register(engine)
        with state.accumulate():
            backward(engine)
        found[f"accumulate {stage}"] = message(engine.step)

    engine = engines.engine_of(engines.model_of(0), stage=0)
    ours.register(engine)
    engine.set_gradient_accumulation_boundary(False)
    backward(engine)
    engine.set_gradient_accumulation_boundary(True)
    found["boundary"] = message(engine.step)

    engine = engines.engine_of(engines.model_of(0), stage=2)
    ours.register(engine)
    del engine.optimizer.gradient_reduction_w_predivide
    backward(engine)
    found["elsewhere"] = message(engine.step)

    engine = engines.engine_of(nn.Embedding(5, 4, sparse=True), stage=0)
    ours.register(engine)
    found["sparse"] = message(lambda: engine.backward(engine(torch.tensor([1, 2])).sum()))
    return found


def test_a_step_that_would_lose_gradients_is_refused_on_every_rank(run_ranks: Runner) -> None:
    for found in run_ranks(2, lose_steps):
        assert "RuntimeError: engine.step(): the passes of this step did not all reduce the same" in found["passes"]
        assert "ValueError" in found["ranks"]
        assert "the names of their buckets differ" in found["ranks"]
        for stage in range(4):
            assert "do not use state.accumulate()" in found[f"accumulate {stage}"]
        assert "which backward pass is the last one before it runs" in found["boundary"]
        assert "has reduced them on another path" in found["elsewhere"]
        assert "does not support sparse gradients" in found["sparse"]


def test_without_deepspeed_the_import_says_what_to_install() -> None:
    code = (
        "import sys, bucket_moo_ext; assert 'deepspeed' not in sys.modules; sys.modules['deepspeed'] = None\n"
        "try:\n    import bucket_moo_ext.contrib.deepspeed\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bucket_moo_ext[deepspeed]'" in done.stdout
