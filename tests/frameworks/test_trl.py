"""TRL's trainers with attach(), beside plain loops on the same batches."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("trl", reason="needs requirements/frameworks.txt")
pytest.importorskip("peft", reason="needs requirements/frameworks.txt")

from bucket_moo_ext.contrib.transformers import attach
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.frameworks import trainers

Runner = Callable[..., list[Any]]
TOLERANCE = 2e-5


class _Recorder:
    """Around the trainer's own collator."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.batches: list[dict[str, torch.Tensor]] = []

    def __call__(self, examples: list[Any]) -> Any:
        assert all("language" not in example for example in examples)
        batch = self._collator(examples)
        self.batches.append({k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)})
        return batch


def _texts(per_language: int) -> Any:
    return Dataset.from_list(
        [
            {"text": trainers.words(number, language, 3 + number % 5), "language": language}
            for language in trainers.LANGUAGES
            for number in range(per_language)
        ]
    )


def _follow(
    model: nn.Module, batches: list[Any], steps: list[Any], loss_of: Any, weight_of: Any, passes: int, rate: float = 0.1
) -> list[str]:
    """Trains ``model`` in a plain loop and compares the gradients of each step."""
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    state = moo.register(wrapped, "mgda")
    languages = []
    for number, got in enumerate(steps):
        for place, batch in enumerate(batches[number * passes : (number + 1) * passes]):
            state.objective, state.weight = trainers.language_of(batch), weight_of(batch)
            languages.append(trainers.language_of(batch))
            with contextlib.nullcontext() if place == passes - 1 else state.accumulate():
                loss_of(wrapped, batch).backward()
        trainers.assert_equal_gradients(got, trainers.gradients_of(model), TOLERANCE)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=rate)
        model.zero_grad()
    return languages


# --- supervised fine-tuning ---


def _sft_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def _sft(rank: int, world: int) -> Any:
    trainers.rank_environment(rank, world)
    gradients = trainers.gradient_recorder()
    config = SFTConfig(
        **{**trainers.defaults(trainers.new_folder()), "max_steps": 3, "logging_steps": 1, "save_strategy": "steps"},
        save_steps=3, gradient_accumulation_steps=2, max_length=16, bf16=False, activation_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=trainers.tiny_llama(),
        args=config,
        train_dataset=_texts(12),
        eval_dataset=_texts(2),
        processing_class=trainers.tiny_tokenizer(),
        callbacks=[gradients],
    )
    recorder = trainer.data_collator = _Recorder(trainer.data_collator)
    attached = attach(trainer, "mgda", objective="language")
    assert type(trainer).__name__ == "SFTTrainer"
    trainer.train()
    batches = list(recorder.batches)
    languages = _follow(
        trainers.tiny_llama(), batches, gradients.steps, _sft_loss, lambda b: int((b["labels"][:, 1:] != -100).sum()), 2
    )
    if trainer.is_world_process_zero():
        assert (Path(config.output_dir) / "checkpoint-3" / "bucket_moo.json").exists()
    metrics = trainer.evaluate()
    return languages, len(gradients.steps), attached.report().objectives, metrics, trainer.state.log_history[0]


def test_sft(run_ranks: Runner) -> None:
    results = run_ranks(2, _sft)
    every = tuple(sorted(trainers.LANGUAGES))
    for languages, steps, objectives, metrics, log in results:
        assert steps == 3
        assert objectives == every
        assert len(languages) == 6
        assert {f"eval_{name}_loss" for name in every} | {"eval_loss"} <= metrics.keys()
        assert {"moo/residual", "mean_token_accuracy"} <= log.keys()
    assert {*results[0][0][:2], *results[1][0][:2]} == {*every}  # all of them in each step


def _packed(folder: str) -> None:
    trainers.no_hub()
    config = SFTConfig(
        **{**trainers.defaults(folder), "max_steps": 1, "gradient_accumulation_steps": 4},
        max_length=16, bf16=False, packing=True, packing_strategy="wrapped",
    )  # fmt: skip
    tokenizer = trainers.tiny_tokenizer()
    trainer = SFTTrainer(model=trainers.tiny_llama(), args=config, train_dataset=_texts(8), processing_class=tokenizer)
    with pytest.raises(ValueError, match="packing=True joins examples"):
        attach(trainer, "mgda")


def test_packing_is_refused(alone: Callable[..., Any]) -> None:
    alone(_packed)


def _lora(rank: int, world: int) -> Any:
    trainers.rank_environment(rank, world)
    config = SFTConfig(
        **{**trainers.defaults(trainers.new_folder()), "max_steps": 2, "gradient_accumulation_steps": 2},
        max_length=16, bf16=False, activation_checkpointing=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=trainers.tiny_llama(),
        args=config,
        train_dataset=_texts(12),
        processing_class=trainers.tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    attached = attach(trainer, "mgda")
    trainer.train()
    (bucket,) = attached.report().buckets
    return bucket.parameters, attached.report().objectives


def test_adapters_with_activation_checkpointing(run_ranks: Runner) -> None:
    (parameters, objectives), _ = run_ranks(2, _lora)
    assert len(parameters) == 8  # two matrices for each of two projections in two layers
    assert all("lora_" in name for name in parameters)
    assert objectives == tuple(sorted(trainers.LANGUAGES))


# --- preferences ---


def _log_likelihood(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[examples] of the completions."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    likelihood: torch.Tensor = (chosen * batch["completion_mask"][:, 1:]).sum(1)
    return likelihood


def _dpo_loss(reference: nn.Module, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        before = _log_likelihood(reference, batch)
    chosen, rejected = (_log_likelihood(model, batch) - before).chunk(2)
    return -functional.logsigmoid(0.1 * (chosen - rejected)).mean()


def _dpo(rank: int, world: int) -> Any:
    trainers.rank_environment(rank, world)
    gradients = trainers.gradient_recorder()
    rows = [
        {
            "prompt": trainers.words(number, language, 3),
            "chosen": " " + trainers.words(100 + number, language, 4),
            "rejected": " " + trainers.words(200 + number, language, 5),
            "language": language,
        }
        for language in trainers.LANGUAGES
        for number in range(12)
    ]
    config = DPOConfig(
        **{**trainers.defaults(trainers.new_folder()), "max_steps": 3, "gradient_accumulation_steps": 2},
        max_length=16, bf16=False, activation_checkpointing=False, beta=0.1,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=trainers.tiny_llama(),
        ref_model=trainers.tiny_llama(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[::4]),
        processing_class=trainers.tiny_tokenizer(),
        callbacks=[gradients],
    )
    recorder = trainer.data_collator = _Recorder(trainer.data_collator)
    attached = attach(trainer, "mgda")
    trainer.train()
    reference = trainers.tiny_llama()
    languages = _follow(
        trainers.tiny_llama(),
        list(recorder.batches),
        gradients.steps,
        lambda model, batch: _dpo_loss(reference, model, batch),
        lambda batch: 1.0,
        2,
    )
    return languages, attached.report().passes, sorted(k for k in trainer.evaluate() if k.endswith("_loss"))


def test_dpo(run_ranks: Runner) -> None:
    results = run_ranks(2, _dpo)
    for languages, passes, losses in results:
        assert len(languages) == 6
        assert passes == 2
        assert losses == sorted(["eval_loss", *(f"eval_{name}_loss" for name in trainers.LANGUAGES)])
    assert {*results[0][0][:2], *results[1][0][:2]} == {*trainers.LANGUAGES}
