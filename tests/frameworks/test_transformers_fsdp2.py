"""Models that transformers shards as it loads them (FSDP2), trained by its Trainer with attach()."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("transformers", reason="needs requirements/frameworks.txt")
pytest.importorskip("accelerate", reason="needs requirements/frameworks.txt")

from bucket_moo_ext.contrib.transformers import attach
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, Trainer
from transformers.distributed import DistributedConfig

from tests.frameworks import trainers

Runner = Callable[..., list[Any]]


def _sharded(model: Any, folder: str, world: int) -> Any:
    """The same parameters, in shards."""
    model.save_pretrained(folder)  # by rank 0 alone
    dist.barrier()
    config = DistributedConfig(fsdp_size=world)
    return LlamaForCausalLM.from_pretrained(folder, distributed_config=config, attn_implementation="eager")


def _trained(model: torch.nn.Module, layout: str, passes: int, scope: str) -> tuple[dict[str, np.ndarray], Any]:
    """Parameters, whole, and the report of the last step."""
    options: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": passes}
    trainer = Trainer(
        model=model,
        args=trainers.arguments_of(trainers.new_folder(), **options),
        train_dataset=Dataset.from_list(trainers.sentences(0, 12)),
        data_collator=trainers.pad,
    )
    attached = attach(trainer, "mgda", layout=layout, scope=scope)
    trainer.train()
    whole = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().double().numpy().copy()
        for name, p in model.named_parameters()
    }
    return whole, attached.report()


def _beside_ddp(rank: int, world: int, folder: str, layout: str, passes: int) -> Any:
    trainers.rank_environment(rank, world)
    plain = trainers.tiny_llama()
    sharded = _sharded(plain, folder, world)
    assert any(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    got, report = _trained(sharded, layout, passes, "model")
    expected, of_ddp = _trained(plain, layout, passes, "model")
    assert report.passes == of_ddp.passes == passes
    trainers.assert_equal_gradients(got, expected, 1e-5)
    np.testing.assert_allclose(report.buckets[0].weights.numpy(), of_ddp.buckets[0].weights.numpy(), atol=1e-5)
    return len(report.buckets)


@pytest.mark.parametrize(("layout", "passes"), [("ranks", 1), ("ranks", 2), ("passes", 4)])
def test_a_sharded_model_trains_as_under_ddp(run_ranks: Runner, tmp_path: Path, layout: str, passes: int) -> None:
    """One problem for the model, whose answer does not depend on how it is cut; every pass is reduced."""
    run_ranks(2, _beside_ddp, str(tmp_path), layout, passes)


def _groups(rank: int, world: int, folder: str) -> Any:
    trainers.rank_environment(rank, world)
    sharded = _sharded(trainers.tiny_llama(), folder, world)
    _, report = _trained(sharded, "ranks", 2, "bucket")
    return [bucket.parameters[0] for bucket in report.buckets], report.objectives


def test_each_sharded_layer_has_weights_of_its_own(run_ranks: Runner, tmp_path: Path) -> None:
    (groups, objectives), _ = run_ranks(2, _groups, str(tmp_path))
    assert any(name.startswith("model.layers.0.") for name in groups)
    assert any(name.startswith("model.layers.1.") for name in groups)
    assert objectives == tuple(sorted(trainers.LANGUAGES))


def _with_an_adapter(rank: int, world: int, folder: str) -> None:
    trainers.rank_environment(rank, world)
    sharded = _sharded(trainers.tiny_llama(), folder, world)
    sharded.lm_head.register_parameter("adapter", torch.nn.Parameter(torch.zeros(2)))
    trainer = Trainer(
        model=sharded,
        args=trainers.arguments_of(trainers.new_folder(), max_steps=1, gradient_accumulation_steps=2),
        train_dataset=Dataset.from_list(trainers.sentences(0, 12)),
        data_collator=trainers.pad,
    )
    with pytest.raises(NotImplementedError, match=r"'lm_head\.adapter' was added after the model was sharded"):
        attach(trainer, "mgda")


def test_an_adapter_on_a_sharded_model_is_refused(run_ranks: Runner, tmp_path: Path) -> None:
    run_ranks(2, _with_an_adapter, str(tmp_path))
