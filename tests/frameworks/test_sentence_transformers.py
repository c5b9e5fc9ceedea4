"""sentence-transformers' trainer with attach(), beside a plain loop on the same batches."""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("sentence_transformers", reason="needs requirements/frameworks.txt")

from bucket_moo_ext.contrib.transformers import attach
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from tests.frameworks import trainers

Runner = Callable[..., list[Any]]


class _Bag(torch.nn.Module):
    """The mean of the embeddings of a sentence's words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(trainers.VOCABULARY, 8)
        self.out = torch.nn.Linear(8, 6)
        self.tokenizer = trainers.tiny_tokenizer()
        self.modalities = ["text"]
        self.config_keys: list[str] = []

    def preprocess(self, texts: list[str], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    tokenize = preprocess

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        mask = features["attention_mask"][..., None].float()
        mean = (self.embedding(features["input_ids"]) * mask).sum(1) / mask.sum(1)
        features["sentence_embedding"] = self.out(mean)
        return features


def _pairs(per_language: int) -> Any:
    return Dataset.from_list(
        [
            {
                "anchor": trainers.words(number, language, 4),
                "positive": trainers.words(100 + number, language, 5),
                "language": language,
            }
            for language in trainers.LANGUAGES
            for number in range(per_language)
        ]
    )


def _embed(wrapped: torch.nn.Module, model: Any, texts: list[str]) -> torch.Tensor:
    return functional.normalize(wrapped(model.preprocess(texts))["sentence_embedding"], dim=1)


def _against_a_plain_loop(rank: int, world: int) -> Any:
    trainers.rank_environment(rank, world)
    gradients = trainers.gradient_recorder()
    model = SentenceTransformer(modules=[_Bag()], device="cpu")
    options = {**trainers.defaults(trainers.new_folder()), "max_steps": 3, "per_device_train_batch_size": 4}
    options["per_device_eval_batch_size"] = 2  # several ranks drop what is less than a batch
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**options, gradient_accumulation_steps=2),
        train_dataset=_pairs(16),
        eval_dataset=_pairs(4),
        loss=MultipleNegativesRankingLoss(model, scale=2.0),
        callbacks=[gradients],
    )
    seen: list[Any] = []
    collate = trainer.data_collator

    class Recorder:
        valid_label_columns = collate.valid_label_columns

        def __call__(self, examples: list[Any]) -> Any:
            seen.append([dict(example) for example in examples])
            return collate(examples)

    trainer.data_collator = Recorder()
    attached = attach(trainer, "mgda")
    trainer.train()
    losses = {name: value for name, value in trainer.evaluate().items() if name.endswith("_loss")}

    plain = SentenceTransformer(modules=[_Bag()], device="cpu")
    wrapped = DistributedDataParallel(plain, find_unused_parameters=True)
    state = moo.register(wrapped, "mgda")
    batches = iter(seen)
    for got in gradients.steps:
        for place in range(2):
            batch = next(batches)
            assert all(example.keys() == {"anchor", "positive"} for example in batch)
            (own,) = {(int(word[1:]) - 4) // trainers.OWN for example in batch for word in example["anchor"].split()}
            state.objective = trainers.LANGUAGES[own]
            with contextlib.nullcontext() if place == 1 else state.accumulate():
                anchors, positives = (
                    _embed(wrapped, plain, [e[name] for e in batch]) for name in ("anchor", "positive")
                )
                functional.cross_entropy(2.0 * anchors @ positives.T, torch.arange(len(batch))).backward()
        trainers.assert_equal_gradients(got, trainers.gradients_of(plain), 2e-5)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= 0.1 * parameter.grad
        plain.zero_grad()
    return attached.report().objectives, list(losses)


def test_gradients_are_those_of_a_plain_loop(run_ranks: Runner) -> None:
    every = tuple(sorted(trainers.LANGUAGES))
    for objectives, losses in run_ranks(2, _against_a_plain_loop):
        assert objectives == every
        assert {*losses} >= {"eval_loss", *(f"eval_{name}_loss" for name in every)}


def _other_batches(folder: str) -> None:
    trainers.no_hub()
    model = SentenceTransformer(modules=[_Bag()], device="cpu")
    options = {**trainers.defaults(folder), "max_steps": 1, "gradient_accumulation_steps": 4}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**options, batch_sampler="no_duplicates"),
        train_dataset=_pairs(16),
        loss=MultipleNegativesRankingLoss(model),
    )
    with pytest.raises(ValueError, match=r"batch_sampler=.*attach\(\) samples by objective itself"):
        attach(trainer, "mgda")


def test_other_batch_samplers_are_refused(alone: Callable[..., Any]) -> None:
    alone(_other_batches)


def _cached_gradients(folder: str) -> None:
    trainers.no_hub()
    model = SentenceTransformer(modules=[_Bag()], device="cpu")
    options = {**trainers.defaults(folder), "max_steps": 2, "gradient_accumulation_steps": 4}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**options),
        train_dataset=_pairs(16),
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=2),
    )
    with pytest.raises(
        NotImplementedError, match="CachedMultipleNegativesRankingLoss makes backward passes inside one"
    ):
        attach(trainer, "mgda")


def test_losses_that_cache_gradients_are_refused(alone: Callable[..., Any]) -> None:
    alone(_cached_gradients)
