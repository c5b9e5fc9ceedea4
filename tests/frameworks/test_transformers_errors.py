"""What attach() refuses, and how it says so."""

import importlib
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch

pytest.importorskip("transformers", reason="needs requirements/frameworks.txt")
pytest.importorskip("accelerate", reason="needs requirements/frameworks.txt")

from bucket_moo_ext.contrib import _trainer_checks as checks
from bucket_moo_ext.contrib.transformers import PRIVATE, attach
from datasets import Dataset, DatasetDict
from transformers import Trainer, TrainerCallback

from tests.frameworks import trainers

Refusal = tuple[type[Exception], str]


def _trainer(folder: str, **options: Any) -> Any:
    return Trainer(
        model=trainers.tiny_llama(),
        args=trainers.arguments_of(folder, **{"max_steps": 1, "gradient_accumulation_steps": 4, **options}),
        train_dataset=Dataset.from_list(trainers.sentences(0, 4)),
        data_collator=trainers.pad,
    )


def _refused(trainer: Any, expected: type[Exception], message: str, **arguments: Any) -> None:
    with pytest.raises(expected, match=message):
        attach(trainer, **arguments)


# --- arguments ---


def _bad_arguments(folder: str) -> None:
    trainers.no_hub()
    trainer = _trainer(folder)
    for expected, message, arguments in (
        (ValueError, "method='nothing' is unknown", {"method": "nothing"}),
        (TypeError, "objective must be the name of a column", {"objective": 3}),
        (
            ValueError,
            "train_dataset has no column 'lang'; it has 'input_ids', 'labels', 'language'",
            {"objective": "lang"},
        ),
        (ValueError, "Did you mean objective='language'", {"objective": "languages"}),
        (ValueError, "Give every row a string or an int there", {"objective": "task"}),
        (
            TypeError,
            "column 'labels' of train_dataset, row 0: objectives must be strings or ints",
            {"objective": "labels"},
        ),
        (ValueError, "weight must be finite and >= 0; got -1", {"weight": -1}),
        (ValueError, "layout", {"layout": "rows"}),
        (TypeError, "gramian", {"gramian": 3}),
        (ValueError, "log_every must be an int >= 0; got -1", {"log_every": -1}),
        (TypeError, "evaluate_objectives must be a bool; got 1", {"evaluate_objectives": 1}),
        (NotImplementedError, "Sketch", {"gramian": moo.Sketch(), "scope": "parameter"}),
    ):
        _refused(trainer, expected, message, **arguments)
        assert type(trainer) is Trainer, "a refused trainer stays as it was"
    _refused(torch.nn.Linear(1, 1), TypeError, "trainer must be a transformers.Trainer; got Linear")
    attach(trainer, "mgda")
    _refused(trainer, RuntimeError, r"attach\(\) was called for it before")
    trainer.train()  # with what the first one made


def test_bad_arguments_are_named(alone: Callable[..., Any]) -> None:
    alone(_bad_arguments)


# --- the trainer's own options ---


def _bad_trainers(folder: str) -> None:
    trainers.no_hub()
    for expected, message, options in (
        (ValueError, "auto_find_batch_size=True", {"auto_find_batch_size": True}),
        (ValueError, "split_batches=True", {"accelerator_config": {"split_batches": True}}),
        (ValueError, "dispatch_batches=True", {"accelerator_config": {"dispatch_batches": True}}),
        (ValueError, "train_sampling_strategy=", {"train_sampling_strategy": "group_by_length"}),
        (
            ValueError,
            "gradient_accumulation_steps .now 1. of at least 2, 4 for all .*, or train with several",
            {"gradient_accumulation_steps": 1},
        ),
    ):
        _refused(_trainer(folder, **options), expected, message)
    trainer = _trainer(folder, gradient_accumulation_steps=1)
    _refused(trainer, ValueError, "of at least 2, 4 for all objectives in every step$", layout="passes")
    trainer = _trainer(folder)
    trainer.train_dataset = None
    _refused(trainer, ValueError, "no train_dataset")
    rows = Dataset.from_list(trainers.sentences(0, 4))
    trainer.train_dataset = rows.to_iterable_dataset()
    _refused(trainer, ValueError, "objectives must name what occurs in column 'language'")
    trainer.train_dataset = DatasetDict(de=rows, sw=rows)
    _refused(trainer, NotImplementedError, "join them to one with the column 'language'")
    unlabelled = Dataset.from_list(
        [{**row, "language": row["language"] if n != 3 else None} for n, row in enumerate(rows)]
    )
    trainer.train_dataset = unlabelled
    _refused(trainer, TypeError, "'language' of train_dataset, row 3: objectives must be strings or ints; got NoneType")
    with pytest.warns(UserWarning, match="room for 2 of 4 objectives, so they take turns; give grad.*=4 .now 2."):
        attach(_trainer(folder, gradient_accumulation_steps=2), "mgda")
    trainer = _trainer(folder)
    attach(trainer, "mgda")
    with pytest.raises(TypeError, match="column 'language' of eval_dataset, row 3"):
        trainer.evaluate(unlabelled)


def test_options_that_cannot_be_combined(alone: Callable[..., Any]) -> None:
    alone(_bad_trainers)


def test_one_rank_warns_of_turns() -> None:
    def trainer(rank: int) -> Any:
        return SimpleNamespace(args=SimpleNamespace(gradient_accumulation_steps=1, world_size=2, process_index=rank))

    with pytest.warns(UserWarning, match="room for 2 of 4 objectives"):
        checks.check_room(trainer(0), "ranks", 4)
    checks.check_room(trainer(1), "ranks", 4)  # a warning would be an error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_deepspeed_enabled": True}, "DeepSpeed reduces gradients itself"),
        ({"kind": "DistributedType.MEGATRON_LM"}, "Megatron-LM reduces gradients itself"),
        ({"kind": "DistributedType.XLA"}, "XLA reduces gradients itself"),
        ({"n_gpu": 2}, "one process with 2 GPUs runs DataParallel"),
        ({"is_fsdp_enabled": True}, "on the CPU Accelerate turns fsdp= into DDP"),
        ({"tp": 2}, "tp_size=2"),
        ({"cp": 4}, "cp_size=4"),
    ],
)
def test_wrappers_that_reduce_elsewhere(changes: dict[str, Any], message: str) -> None:
    """Which need other packages or devices to be made: here something with the attributes of such a trainer."""
    sizes = {f"get_{name}_size": (lambda name=name: changes.get(name, 1)) for name in ("tp", "cp", "sp")}
    trainer = SimpleNamespace(
        args=SimpleNamespace(n_gpu=changes.get("n_gpu", 1), fsdp=False, device=torch.device("cpu")),
        accelerator=SimpleNamespace(distributed_type=changes.get("kind", "DistributedType.MULTI_CPU")),
        is_deepspeed_enabled=changes.get("is_deepspeed_enabled", False),
        is_fsdp_enabled=changes.get("is_fsdp_enabled", False),
        is_distributed_loading_by_transformers=False,
        **sizes,
    )
    with pytest.raises(NotImplementedError, match=message):
        checks.check_trainer(trainer, "language")


def _fsdp_on_the_cpu(rank: int, world: int) -> None:
    trainers.rank_environment(rank, world)
    trainer = _trainer(trainers.new_folder(), fsdp=True)
    _refused(trainer, NotImplementedError, "on the CPU Accelerate turns fsdp= into DDP")


def test_fsdp_of_accelerate_on_the_cpu_is_refused(run_ranks: Callable[..., list[Any]]) -> None:
    run_ranks(2, _fsdp_on_the_cpu)


# --- batches ---


class _OwnLoader(Trainer):  # type: ignore[misc]
    """Shuffles by itself."""

    def get_train_dataloader(self) -> Any:
        rows = [row for row in self.train_dataset]
        return torch.utils.data.DataLoader(Dataset.from_list(rows[::-2]), batch_size=3, collate_fn=self.data_collator)


class _OwnCollator(Trainer):  # type: ignore[misc]
    """And collates."""

    def get_train_dataloader(self) -> Any:
        rows = [{k: v for k, v in row.items() if k != "language"} for row in self.train_dataset]
        return torch.utils.data.DataLoader(Dataset.from_list(rows), batch_size=2, collate_fn=trainers.pad)


def _mixed(folder: str) -> None:
    trainers.no_hub()
    for kind, expected, message in (
        (_OwnLoader, ValueError, "a batch must have one objective; got 'el', 'tr'"),
        (_OwnCollator, RuntimeError, "a batch came without its objective.*_OwnCollator makes its batches itself"),
    ):
        trainer = kind(
            model=trainers.tiny_llama(),
            args=trainers.arguments_of(folder, max_steps=1, gradient_accumulation_steps=2),
            train_dataset=Dataset.from_list(trainers.sentences(0, 4, ("de", "sw", "tr", "el"))),
            data_collator=trainers.pad,
        )
        with pytest.warns(UserWarning, match="take turns"):
            attached = attach(trainer, "mgda")
        with pytest.raises(expected, match=message):
            trainer.train()
        assert attached.state.step == 0  # nothing was reduced


def test_batches_of_several_objectives_are_refused(alone: Callable[..., Any]) -> None:
    alone(_mixed)


class _Another(TrainerCallback):  # type: ignore[misc]
    """Makes a Trainer in the midst of a training."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Trainer(model=trainers.tiny_llama(), args=trainers.arguments_of(args.output_dir, max_steps=1))


def _interrupted(folder: str) -> None:
    trainers.no_hub()
    trainer = _trainer(folder)
    trainer.add_callback(_Another())
    attach(trainer, "mgda")
    with pytest.raises(RuntimeError, match="another Trainer or Accelerator was made while this one trains"):
        trainer.train()


def test_a_trainer_made_while_another_trains(alone: Callable[..., Any]) -> None:
    """Accelerate's settings are those of the process: passes would not be reduced, and nobody would say so."""
    alone(_interrupted)


# --- versions ---


def test_the_private_names_that_are_overridden_exist() -> None:
    """If this fails, transformers has renamed what contrib/transformers.py overrides: read its Trainer anew."""
    kept_by_instances = {"_signature_columns"}
    missing = [name for name in PRIVATE if name not in kept_by_instances and not hasattr(Trainer, name)]
    assert not missing, f"transformers' Trainer has no {missing} any more; adapt bucket_moo_ext.contrib.transformers"


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_that_is_gone_is_named(name: str) -> None:
    trainer = SimpleNamespace(**{other: None for other in PRIVATE if other != name})
    with pytest.raises(RuntimeError, match=re.escape(f"transformers 9.9: Trainer has no {name} any more")):
        checks.check_names(trainer, "9.9")


def test_without_transformers_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import bucket_moo_ext.contrib.transformers as module

    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    try:
        with pytest.raises(ImportError, match=r"pip install 'transformers>=5\.24"):
            importlib.reload(module)
    finally:
        monkeypatch.undo()
        importlib.reload(module)
