"""The Python blocks of the pages that need a trainer: of docs/frameworks.md, docs/trl.md and docs/observe.md."""

import os
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.frameworks import trainers
from tests.support import documented
from tests.support.ddp import batch_of, loss_of, mlp

Alone = Callable[..., Any]
Namespace = dict[str, Any]
FRAMEWORKS, TRL, OBSERVE = "docs/frameworks.md", "docs/trl.md", "docs/observe.md"
TWO = trainers.LANGUAGES[:2]


def block_of(page: str, words: str) -> documented.Block:
    """The only one with these words."""
    (block,) = (block for block in documented.blocks_of(page) if words in block.source)
    return block


def run(block: documented.Block, names: Namespace) -> Namespace:
    """The names behind it."""
    for program in block.programs():
        exec(program, names)
    return names


def assert_reported(report: Any, objectives: tuple[str, ...], passes: int) -> None:
    assert (report.objectives, report.passes) == (objectives, passes)
    for bucket in report.buckets:
        assert torch.isfinite(bucket.weights).all()
        assert float(bucket.weights.sum()) == pytest.approx(1.0)


# --- docs/frameworks.md ---


def transformers_names(folder: str, steps: int = 2) -> Namespace:
    """A trainer that takes so many steps of two passes."""
    from datasets import Dataset
    from transformers import Trainer

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return trainers.pad(examples)

    args = trainers.arguments_of(folder, max_steps=steps, gradient_accumulation_steps=2)
    return {
        "Trainer": lambda *given, **more: Trainer(*given, data_collator=collate, **more),
        "model": trainers.tiny_llama(),
        "args": args,
        "rows": Dataset.from_list(trainers.sentences(1, 8, TWO)),
    }


def lightning_names(folder: str) -> Namespace:
    """What the page leaves out of its module."""
    import lightning
    from datasets import Dataset
    from torch.utils.data import DataLoader

    warnings.simplefilter("ignore")  # Lightning's, of few workers and no GPU
    generator = np.random.default_rng(0)
    rows = [
        {"x": generator.normal(size=8).tolist(), "language": language, "tokens": 5.0}
        for language in TWO
        for _ in range(16)
    ]

    class Base(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows = Dataset.from_list(rows).with_format("torch")
            self.net = torch.nn.Linear(8, 1)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            sign = 1.0 if batch["language"][0] == TWO[0] else -1.0
            return (self.net(batch["x"]) - sign).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trainer(**given: Any) -> Any:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        here = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "enable_checkpointing": False}
        return lightning.Trainer(max_steps=2, **here, **quiet, **given)

    return {"LightningModule": Base, "Trainer": trainer, "DataLoader": DataLoader}


class Loss(torch.nn.Module):
    """Called as models of transformers are: its output has a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(0, torch.float32)

    def forward(self, number: int) -> Any:
        return SimpleNamespace(loss=loss_of(self.net, batch_of(0, 0, number, torch.float32)))


def deepspeed_names(folder: str) -> Namespace:
    """Two passes of one step, with two languages in turn."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    from tests.frameworks import deepspeed_engines  # first: it sets up DeepSpeed

    # isort: split

    import deepspeed

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    model = Loss()
    languages = iter(TWO)

    class Batches:
        def __iter__(self) -> Iterator[dict[str, int]]:
            for number, language in enumerate(languages):
                names["language"] = language
                yield {"number": number}

    names: Namespace = {
        "deepspeed": deepspeed,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "config": deepspeed_engines.config_of(2, stage=2),
        "batches": Batches(),
    }
    return names


def accelerate_names(folder: str) -> Namespace:
    """Two passes of one step."""
    from accelerate import Accelerator
    from datasets import Dataset
    from torch.utils.data import DataLoader

    model = Loss()
    return {
        "accelerator": Accelerator(cpu=True, gradient_accumulation_steps=2),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": DataLoader(Dataset.from_list([{"number": 0}, {"number": 1}])),
        "batches": [(language, {"number": number}) for number, language in enumerate(TWO)],
    }


def batches_names(folder: str) -> Namespace:
    """A state that remembers what it was told."""
    from accelerate import Accelerator
    from bucket_moo_ext.data import ObjectiveSampler
    from datasets import Dataset
    from torch.utils.data import DataLoader

    class State:
        def __init__(self) -> None:
            self.__dict__["told"] = []

        def __setattr__(self, name: str, value: str) -> None:
            assert name == "objective"
            self.__dict__["told"].append(value)

    return {
        "Accelerator": lambda **given: Accelerator(cpu=True, **given),
        "ObjectiveSampler": ObjectiveSampler,
        "DataLoader": DataLoader,
        "rows": Dataset.from_list([{"language": language} for language in TWO for _ in range(16)]),
        "model": Loss(),
        "state": State(),
    }


# By words of a block: what it finds, and what must be true behind it.
PREAMBLES: dict[str, tuple[Callable[[str], Namespace], Callable[[Namespace], None]]] = {
    "contrib.transformers": (
        transformers_names,
        lambda names: assert_reported(names["attached"].report(), TWO, 2),
    ),
    "contrib.lightning": (
        lightning_names,
        lambda names: assert_reported(names["moo_callback"].report(), TWO, 2),
    ),
    "contrib.deepspeed": (deepspeed_names, lambda names: assert_reported(names["state"].report(), TWO, 2)),
    "contrib.accelerate": (accelerate_names, lambda names: assert_reported(names["state"].report(), TWO, 2)),
    "accelerator = Accelerator(": (
        batches_names,
        lambda names: np.testing.assert_array_equal(sorted(names["state"].told), sorted(TWO * 6)),
    ),
}


def run_block(folder: str, words: str) -> None:
    trainers.no_hub()
    os.chdir(folder)
    names, check = PREAMBLES[words]
    check(run(block_of(FRAMEWORKS, words), names(folder)))


@pytest.mark.parametrize("words", PREAMBLES)
def test_the_blocks_of_frameworks_run(alone: Alone, words: str) -> None:
    alone(run_block, words)


def run_megatron(rank: int, world: int) -> tuple[str, ...]:
    from tests.frameworks import test_megatron as megatron

    megatron.on_cpu(world)
    ddp = megatron.wrap(mlp(1, torch.float32, megatron.SIZES), use_distributed_optimizer=True)
    state = run(block_of(FRAMEWORKS, "contrib.megatron"), {"ddp": ddp})["state"]
    state.objective = TWO[rank]
    megatron.train_step(ddp, rank, 0, 0)
    return tuple(state.report().objectives)


def test_the_block_of_megatron_runs(run_ranks: Callable[..., list[Any]]) -> None:
    assert run_ranks(2, run_megatron) == [TWO, TWO]


def test_every_block_of_frameworks_that_needs_a_trainer_runs() -> None:
    found = [block for block in documented.blocks_of(FRAMEWORKS) if "contrib." in block.source]
    assert len(found) == sum(words.startswith("contrib.") for words in PREAMBLES) + 1  # and Megatron's


# --- docs/trl.md ---


def run_trl(folder: str) -> None:
    trainers.no_hub()
    os.chdir(folder)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows, trainer = documented.blocks_of(TRL)
    names = run(rows, {"Dataset": Dataset})
    assert names["train"].column_names == ["text", "language"]
    texts = [
        {"text": trainers.words(number, language, 6), "language": language} for language in TWO for number in range(8)
    ]
    defaults = {**trainers.defaults(folder), "bf16": False, "max_steps": 2}
    names = run(
        trainer,
        {
            "SFTConfig": lambda **given: SFTConfig(**{**defaults, **given}),
            "SFTTrainer": SFTTrainer,
            "model": trainers.tiny_llama(),
            "tokenizer": trainers.tiny_tokenizer(),
            "train": Dataset.from_list(texts),
            "test": Dataset.from_list(texts[:4]),
        },
    )
    assert_reported(names["attached"].report(), TWO, 2)


def test_the_blocks_of_trl_run(alone: Alone) -> None:
    alone(run_trl)


# --- docs/observe.md ---


def run_observe(folder: str) -> None:
    trainers.no_hub()
    os.chdir(folder)
    before, _, after = block_of(FRAMEWORKS, "contrib.transformers").source.partition("trainer.train()\n")
    names = transformers_names(folder, steps=20) | {"moo": moo}
    exec(before, names)
    run(block_of(OBSERVE, "TrainerCallback"), names)
    record = names["Record"]()
    names["trainer"].add_callback(record)
    exec("trainer.train()\n" + after, names)
    first, second = record.recorder.history
    assert second.step - first.step == 10


def test_the_callback_of_observe_records(alone: Alone) -> None:
    alone(run_observe)
