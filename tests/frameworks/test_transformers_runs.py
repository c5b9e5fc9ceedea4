"""What surrounds the steps of a Trainer with attach(): resuming, evaluation, logs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs requirements/frameworks.txt")
pytest.importorskip("accelerate", reason="needs requirements/frameworks.txt")

from bucket_moo_ext.contrib.transformers import Attached, attach
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import Trainer

from tests.frameworks import trainers

Runner = Callable[..., list[Any]]

# Which DDP rebuilds behind its first backward pass, so that a step of one pass is where it counts.
SMALL_BUCKETS = {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": 0.004, "gradient_accumulation_steps": 1}


def _trainer(folder: str, eval_dataset: Any = None, rows: int = 12, **options: Any) -> Any:
    """With dropout, so that the order of random numbers counts."""
    model = trainers.tiny_llama()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    return Trainer(
        model=model,
        args=trainers.arguments_of(folder, **{"gradient_accumulation_steps": 2, **options}),
        train_dataset=Dataset.from_list(trainers.sentences(0, rows)),
        eval_dataset=eval_dataset,
        data_collator=trainers.pad,
    )


# --- resuming ---


def _resumed(rank: int, world: int, folder: str, method: moo.Method, options: dict[str, Any]) -> Any:
    trainers.rank_environment(rank, world)

    passes = options.get("gradient_accumulation_steps", 2)

    def train(name: str, **more: Any) -> tuple[Any, Attached]:
        trainer = _trainer(
            f"{folder}/{name}", max_steps=9, rows=3 * passes, **{"save_strategy": "steps", **options, **more}
        )
        attached = attach(trainer, method)
        return trainer, attached

    whole, _ = train("whole", save_steps=5)
    whole.train()
    expected = trainers.parameters_of(whole.model)
    checkpoint = f"{folder}/whole/checkpoint-5"
    assert (Path(checkpoint) / "bucket_moo.json").exists()
    resumed, attached = train("resumed", save_steps=100)
    resumed.train(resume_from_checkpoint=checkpoint)
    got = trainers.parameters_of(resumed.model)
    different = [name for name in expected if got[name].tobytes() != expected[name].tobytes()]
    steps = len(attached.report().buckets), attached.state.step
    return different, steps


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (moo.Smoothed(moo.MGDA(), alpha=0.5), SMALL_BUCKETS),
        (moo.PCGrad(), {"optim": "adamw_torch"}),
    ],
    ids=["smoothed in rebuilt buckets", "pcgrad"],
)
def test_a_resumed_run_has_the_same_bits(
    run_ranks: Runner, tmp_path: Path, method: moo.Method, options: dict[str, Any]
) -> None:
    """In the midst of the second epoch, whose order is its own."""
    results = run_ranks(2, _resumed, str(tmp_path), method, options)
    buckets = 5 if "ddp_bucket_cap_mb" in options else 1
    assert results == [([], (buckets, 9))] * 2


def _resumed_alone(folder: str, streams: bool) -> None:
    trainers.no_hub()
    options: dict[str, Any] = {"max_steps": 6, "gradient_accumulation_steps": 4, "save_strategy": "steps"}

    def trainer_of() -> tuple[Any, Attached]:
        trainer = _trainer(folder, save_steps=3, **options)
        if streams:
            trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
        return trainer, attach(trainer, moo.GradVac(), objectives=trainers.LANGUAGES)

    whole, _ = trainer_of()
    whole.train()
    resumed, attached = trainer_of()
    (Path(folder) / "checkpoint-6").rename(Path(folder) / "done")
    resumed.train(resume_from_checkpoint=True)
    assert attached.state.step == 6
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("streams", [False, True])
def test_a_resumed_run_of_one_process_has_the_same_bits(alone: Callable[..., Any], streams: bool) -> None:
    alone(_resumed_alone, streams)


def _resumed_without_state(folder: str) -> None:
    trainers.no_hub()
    plain = _trainer(folder, max_steps=2, save_strategy="steps", save_steps=2)
    plain.train()
    resumed = _trainer(folder, max_steps=4)
    attach(resumed, "mgda")
    with pytest.warns(UserWarning, match="the checkpoint was saved without attach"):
        resumed.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_a_state_begins_anew(alone: Callable[..., Any]) -> None:
    alone(_resumed_without_state)


def _trained_twice(folder: str) -> None:
    trainers.no_hub()
    trainer = _trainer(folder, max_steps=2)
    attached = attach(trainer, "mgda")
    with pytest.raises(RuntimeError, match="there is no state yet"):
        _ = attached.state
    trainer.train()
    state = attached.state
    trainer.train()
    assert attached.state is state
    assert state.step == 4


def test_training_again_goes_on_with_the_state(alone: Callable[..., Any]) -> None:
    alone(_trained_twice)


# --- evaluation ---


def _evaluated(rank: int, world: int) -> Any:
    trainers.rank_environment(rank, world)
    rows = trainers.sentences(1, 4)
    options: dict[str, Any] = {
        "per_device_eval_batch_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_sw_loss",
    }
    trainer = _trainer(trainers.new_folder(), Dataset.from_list(rows), max_steps=2, **options)
    attach(trainer, "mgda")
    trainer.train()
    given = trainer.evaluate(Dataset.from_list(rows), metric_key_prefix="test")
    metrics = trainer.evaluate()
    assert trainer.eval_dataset.num_rows == len(rows)
    trainer.model.eval()
    expected = {}
    for language in trainers.LANGUAGES:
        own = [{k: v for k, v in row.items() if k != "language"} for row in rows if row["language"] == language]
        with torch.no_grad():  # a batch of 2 sentences for each rank, of which the Trainer takes the mean over tokens
            expected[language] = float(trainer.model(**trainers.pad(own)).loss)
    logged = [entry for entry in trainer.state.log_history if "eval_sw_loss" in entry]
    return {name: metrics[f"eval_{name}_loss"] for name in expected}, expected, len(logged), metrics, given


def test_evaluation_gives_the_loss_of_each_objective(run_ranks: Runner) -> None:
    for got, expected, logged, metrics, given in run_ranks(2, _evaluated):
        assert got == pytest.approx(expected, rel=1e-4)
        assert logged == 3  # two in training, one behind it
        assert metrics["eval_loss"] == pytest.approx(np.mean([*expected.values()]), rel=0.05)
        assert given["test_tr_loss"] == metrics["eval_tr_loss"]


def _evaluated_by_the_user(folder: str, evaluates: bool) -> list[str]:
    trainers.no_hub()
    rows = Dataset.from_list(trainers.sentences(1, 4))
    parts = {name: rows.filter(lambda row, name=name: row["language"] == name) for name in ("de", "sw")}
    trainer = _trainer(folder, parts if evaluates else rows, max_steps=1)
    attach(trainer, "mgda", evaluate_objectives=evaluates)
    return sorted(key for key in trainer.evaluate() if key.endswith("loss"))


def test_a_dict_of_eval_data_sets_stays_as_it_is(alone: Callable[..., Any]) -> None:
    assert alone(_evaluated_by_the_user, True) == ["eval_de_loss", "eval_sw_loss"]


def test_evaluation_by_objective_can_be_left_out(alone: Callable[..., Any]) -> None:
    assert alone(_evaluated_by_the_user, False) == ["eval_loss"]


# --- logs ---


def _logged(folder: str, log_every: int) -> list[dict[str, float]]:
    trainers.no_hub()
    trainer = _trainer(folder, max_steps=6, logging_steps=2, gradient_accumulation_steps=4)
    attached = attach(trainer, "mgda", log_every=log_every)
    trainer.train()
    last = trainer.state.log_history[-2]
    if log_every == 1:
        report = attached.report()
        assert last["moo/residual"] == report.residual
        assert last["moo/weight_sw"] == float(report.buckets[0].weights[report.objectives.index("sw")])
        assert last["moo/norm_sw"] == float(report.gramian[2, 2].sqrt())
    return trainer.state.log_history


def test_metrics_are_logged_at_the_logging_steps_only(alone: Callable[..., Any]) -> None:
    history = alone(_logged, 1)
    assert [entry["step"] for entry in history if "moo/conflict_share" in entry] == [2, 4, 6]
    first = history[0]
    assert {key for key in first if key.startswith("moo/")} == {
        "moo/conflict_share", "moo/global_conflict_share", "moo/residual", "moo/fallbacks",
        *(f"moo/{what}_{language}" for what in ("weight", "norm") for language in trainers.LANGUAGES),
    }  # fmt: skip
    assert sum(first[f"moo/weight_{language}"] for language in trainers.LANGUAGES) == pytest.approx(1)
    assert first["loss"] == pytest.approx(np.log(trainers.VOCABULARY), rel=0.1)  # the mean of a token, not a sum


def test_metrics_can_be_logged_less_often_or_never(alone: Callable[..., Any]) -> None:
    assert [entry["step"] for entry in alone(_logged, 2) if "moo/residual" in entry] == [4]
    assert not [entry for entry in alone(_logged, 0) if "moo/residual" in entry]


# --- names of objectives ---


def _class_labels(folder: str) -> tuple[str, ...]:
    trainers.no_hub()
    rows = [{**row, "language": trainers.LANGUAGES.index(row["language"])} for row in trainers.sentences(0, 12)]
    features = Features(
        input_ids=List(Value("int64")), labels=List(Value("int64")), language=ClassLabel(names=list(trainers.LANGUAGES))
    )
    trainer = _trainer(folder, max_steps=1, gradient_accumulation_steps=4)
    trainer.train_dataset = Dataset.from_list(rows, features=features)
    attached = attach(trainer, "mgda")
    trainer.train()
    return attached.report().objectives


def test_class_labels_have_their_names(alone: Callable[..., Any]) -> None:
    assert alone(_class_labels) == tuple(sorted(trainers.LANGUAGES))


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Nothing of Hugging Face's."""

    def __init__(self) -> None:
        self._rows = [{**row, "language": len(row["language"])} for row in trainers.sentences(0, 12, ("de", "sw"))]
        for place, row in enumerate(self._rows):
            row["language"] = place % 3

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._rows[place]


def _plain_data_set(folder: str) -> tuple[str, ...]:
    trainers.no_hub()
    trainer = _trainer(folder, max_steps=2, gradient_accumulation_steps=3, dataloader_num_workers=1)
    trainer.train_dataset = _Rows()
    attached = attach(trainer, "mgda", weight=lambda batch: float(batch["input_ids"].shape[0]))
    trainer.train()
    assert attached.state.weight == 2.0
    return attached.report().objectives


def test_a_torch_data_set_with_ints_and_a_worker(alone: Callable[..., Any]) -> None:
    assert alone(_plain_data_set) == ("0", "1", "2")
