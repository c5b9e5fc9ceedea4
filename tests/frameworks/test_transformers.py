"""transformers' Trainer with attach(), beside plain loops on the same batches."""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("transformers", reason="needs requirements/frameworks.txt")
pytest.importorskip("accelerate", reason="needs requirements/frameworks.txt")

from bucket_moo_ext.contrib.transformers import attach
from bucket_moo_ext.data import ObjectiveSampler
from datasets import Dataset
from transformers import Trainer

from tests.frameworks import trainers

Runner = Callable[..., list[Any]]
SMALL_BUCKETS = {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": 0.004}
TOLERANCE = 2e-5  # float32: a sum divided by tokens, against a mean


def _trainer(recorder: Any, gradients: Any, model: nn.Module | None = None, **options: Any) -> Any:
    return Trainer(
        model=trainers.tiny_llama() if model is None else model,
        args=trainers.arguments_of(trainers.new_folder(), **{"max_steps": 3, **options}),
        train_dataset=Dataset.from_list(trainers.sentences(0, 12)),
        data_collator=recorder,
        callbacks=[gradients],
    )


def _mean_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def _tokens(batch: dict[str, torch.Tensor]) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


# --- the gradients that the optimizer gets ---


def _against_a_plain_loop(rank: int, world: int, passes: int, layout: str, options: dict[str, Any]) -> Any:
    trainers.rank_environment(rank, world)
    recorder, gradients = trainers.Recorder(), trainers.gradient_recorder()
    trainer = _trainer(recorder, gradients, gradient_accumulation_steps=passes, **options)
    attach(trainer, "mgda", layout=layout)
    trainer.train()
    model = trainers.tiny_llama()
    ddp = {name.removeprefix("ddp_"): value for name, value in options.items() if name.startswith("ddp_")}
    wrapped = DistributedDataParallel(model, **{"find_unused_parameters": True, **ddp})
    state = moo.register(wrapped, "mgda", layout=layout)
    batches = iter(recorder.batches)
    for got in gradients.steps:
        for number in range(passes):
            batch = next(batches)
            state.objective, state.weight = trainers.language_of(batch), _tokens(batch)
            with contextlib.nullcontext() if number == passes - 1 else state.accumulate():
                _mean_loss(wrapped, batch).backward()
        trainers.assert_equal_gradients(got, trainers.gradients_of(model), TOLERANCE)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        model.zero_grad()
    assert len(state.report().buckets) == (1 if not options else 5)
    return len(gradients.steps), [trainers.language_of(batch) for batch in recorder.batches[: 3 * passes]]


@pytest.mark.parametrize(("passes", "layout"), [(1, "ranks"), (2, "ranks"), (4, "passes")])
def test_gradients_are_those_of_a_plain_loop(run_ranks: Runner, passes: int, layout: str) -> None:
    results = run_ranks(2, _against_a_plain_loop, passes, layout, {})
    assert [steps for steps, _ in results] == [3, 3]
    first, second = (languages for _, languages in results)
    if layout == "passes":
        assert first == second
    else:
        assert all(a != b for a, b in zip(first, second, strict=True))
    assert {*first, *second} == {*trainers.LANGUAGES}


def test_gradients_in_small_buckets_which_ddp_rebuilds(run_ranks: Runner) -> None:
    run_ranks(2, _against_a_plain_loop, 2, "ranks", SMALL_BUCKETS)


def _under_autocast(rank: int, world: int) -> None:
    trainers.rank_environment(rank, world)
    recorder, gradients = trainers.Recorder(), trainers.gradient_recorder()
    trainer = _trainer(recorder, gradients, gradient_accumulation_steps=2, max_steps=1, bf16=True)
    attach(trainer, "mgda")
    trainer.train()
    model = trainers.tiny_llama()
    wrapped = DistributedDataParallel(model)
    state = moo.register(wrapped, "mgda")
    for number, batch in enumerate(recorder.batches[:2]):
        state.objective, state.weight = trainers.language_of(batch), _tokens(batch)
        with contextlib.nullcontext() if number else state.accumulate():
            with torch.autocast("cpu", torch.bfloat16):
                logits = wrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten())
            losses.backward()
    trainers.assert_equal_gradients(gradients.steps[0], trainers.gradients_of(model), 0.02)  # of 8 bits


def test_gradients_under_autocast(run_ranks: Runner) -> None:
    run_ranks(2, _under_autocast)


def _with_the_mean(rank: int, world: int, averages: bool) -> Any:
    trainers.rank_environment(rank, world)
    recorder, gradients = trainers.Recorder(), trainers.gradient_recorder()
    trainer = _trainer(
        recorder, gradients, gradient_accumulation_steps=3, max_steps=1, average_tokens_across_devices=averages
    )
    attach(trainer, "mean")
    trainer.train()
    mine = [{name: value.tolist() for name, value in batch.items()} for batch in recorder.batches[:3]]
    of_all: list[Any] = [None] * world
    dist.all_gather_object(of_all, mine)
    batches = [{name: torch.tensor(value) for name, value in batch.items()} for rank in of_all for batch in rank]
    model = trainers.tiny_llama()
    languages = sorted({trainers.language_of(batch) for batch in batches})
    for language in languages:
        own = [batch for batch in batches if trainers.language_of(batch) == language]
        total = sum(map(_tokens, own))
        for batch in own:
            (_mean_loss(model, batch) * _tokens(batch) / total / len(languages)).backward()
    trainers.assert_equal_gradients(gradients.steps[0], trainers.gradients_of(model), TOLERANCE)
    return len(languages)


@pytest.mark.parametrize("averages", [True, False])
def test_the_mean_counts_each_language_once_and_each_of_its_tokens(run_ranks: Runner, averages: bool) -> None:
    """Whatever average_tokens_across_devices says, and where some languages have two passes and others one."""
    assert run_ranks(2, _with_the_mean, averages) == [4, 4]


def _alone(folder: str) -> None:
    trainers.no_hub()
    recorder, gradients = trainers.Recorder(), trainers.gradient_recorder()
    trainer = _trainer(recorder, gradients, gradient_accumulation_steps=4, ddp_bucket_cap_mb=0.004)
    attached = attach(trainer, "upgrad")
    trainer.train()
    assert not isinstance(trainer.model_wrapped, DistributedDataParallel)
    model = trainers.tiny_llama()
    state = moo.register(model, "upgrad", bucket_cap_mb=0.004)
    batches = iter(recorder.batches)
    for got in gradients.steps:
        step = [next(batches) for _ in range(4)]
        state.backward({trainers.language_of(batch): _mean_loss(model, batch) for batch in step})
        trainers.assert_equal_gradients(got, trainers.gradients_of(model), TOLERANCE)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        model.zero_grad()
    assert attached.report().objectives == tuple(sorted(trainers.LANGUAGES))
    assert attached.report().passes == 4
    assert len(attached.report().buckets) > 1


def test_one_process(alone: Callable[..., None]) -> None:
    alone(_alone)


def _a_pass_without_tokens(folder: str) -> None:
    trainers.no_hub()
    rows = trainers.sentences(0, 12, ("de", "sw", "tr"))
    for row in rows:
        if row["language"] == "tr":
            row["labels"] = [-100] * len(row["labels"])
    gradients = trainers.gradient_recorder()
    trainer = _trainer(trainers.Recorder(), gradients, gradient_accumulation_steps=3)
    trainer.train_dataset = Dataset.from_list(rows)
    attached = attach(trainer, "mgda")
    trainer.train()
    assert all(np.isfinite(gradient).all() for step in gradients.steps for gradient in step.values())
    assert attached.report().fallbacks == 0
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_a_pass_without_target_tokens_has_no_part(alone: Callable[..., None]) -> None:
    alone(_a_pass_without_tokens)


# --- what a run without attach() sees of one with it ---


def _beside(rank: int, world: int) -> None:
    trainers.rank_environment(rank, world)

    def plain() -> Any:
        trainer = _trainer(trainers.pad, trainers.gradient_recorder(), gradient_accumulation_steps=2)
        trainer.train()
        return trainer

    before = plain()
    attached = _trainer(trainers.pad, trainers.gradient_recorder(), gradient_accumulation_steps=2)
    settings = dict(attached.accelerator.gradient_state.plugin_kwargs)
    attach(attached, "mgda")
    attached.train()
    assert attached.accelerator.gradient_state.plugin_kwargs == settings
    after = plain()
    assert type(after) is Trainer
    for (name, a), (_, b) in zip(before.model.named_parameters(), after.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not any(key.startswith("moo/") for entry in after.state.log_history for key in entry)


def test_a_trainer_without_attach_is_untouched(run_ranks: Runner) -> None:
    run_ranks(2, _beside)


# --- data ---


def _dealing(rank: int, world: int, passes: int) -> Any:
    trainers.rank_environment(rank, world)
    recorder = trainers.Recorder()
    trainer = _trainer(recorder, trainers.gradient_recorder(), gradient_accumulation_steps=passes)
    attached = attach(trainer, "mgda")
    assert isinstance(attached._sampling, ObjectiveSampler)
    expected = list(attached._sampling)  # flat: batch i is for rank i mod world
    trainer.train()
    rows = trainers.sentences(0, 12)
    size = trainer.args.per_device_train_batch_size
    for number, batch in enumerate(recorder.batches[: 3 * passes]):
        start = (number * world + rank) * size
        examples = [rows[place]["input_ids"] for place in expected[start : start + size]]
        got = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert got == examples, number
        step, pass_ = divmod(number, passes)
        assert attached._sampling.objective(step, pass_, rank) == trainers.language_of(batch)


def _streaming(rank: int, world: int, passes: int, layout: str) -> Any:
    trainers.rank_environment(rank, world)
    recorder, gradients = trainers.Recorder(), trainers.gradient_recorder()
    trainer = _trainer(recorder, gradients, gradient_accumulation_steps=passes)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset().map(lambda row: {**row, "other": "text"})
    attached = attach(trainer, "mgda", layout=layout, objectives=trainers.LANGUAGES)
    trainer.train()
    batches = [[tuple(ids[ids > 0].tolist()) for ids in batch["input_ids"]] for batch in recorder.batches]
    languages = [trainers.language_of(batch) for batch in recorder.batches[: 3 * passes]]
    assert len(gradients.steps) == 3
    return languages, batches[: 3 * passes], attached.report().objectives


@pytest.mark.parametrize(("passes", "layout"), [(2, "ranks"), (4, "passes")])
def test_a_stream_is_dealt_by_objective(run_ranks: Runner, passes: int, layout: str) -> None:
    (first, mine, objectives), (second, other, _) = run_ranks(2, _streaming, passes, layout)
    assert {*objectives} == {*trainers.LANGUAGES}
    for step in range(3):
        of_step = slice(step * passes, (step + 1) * passes)
        assert {*first[of_step], *second[of_step]} == {*trainers.LANGUAGES}
    assert (first == second) == (layout == "passes")
    seen = [example for batch in (*mine, *other) for example in batch]
    assert len(seen) == 3 * passes * 2 * 2  # steps, passes, ranks, examples of a batch
    known = {tuple(row["input_ids"]) for row in trainers.sentences(0, 12)}
    assert known >= {*seen}
    if passes == 2:
        assert len({*seen}) == len(seen)  # of 12 a language, which two ranks share, 6 are read


def test_accelerate_deals_batches_as_the_sampler_assumes(run_ranks: Runner) -> None:
    run_ranks(2, _dealing, 2)
