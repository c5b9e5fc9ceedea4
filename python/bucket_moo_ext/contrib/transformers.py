"""One line for ``transformers.Trainer`` and the trainers made of it: TRL's SFTTrainer and DPOTrainer.

    >>> from bucket_moo_ext.contrib.transformers import attach
    >>> attached = attach(trainer, method="mgda", objective="language")  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

Written for and tested with transformers 5.24.0, accelerate 1.15.0 and TRL 1.16.0, whose names in ``PRIVATE`` it
overrides. docs/frameworks.md says what was tested.
"""

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bucket_moo_ext as moo
from bucket_moo_ext.contrib._trainer_checks import PRIVATE, check_names, check_room, check_trainer
from bucket_moo_ext.contrib._trainer_data import (
    KEY,
    LabelledCollator,
    UnlabelledCollator,
    namer_of,
    parts_of,
    sampling_of,
)
from bucket_moo_ext.contrib._trainer_report import metrics_of
from bucket_moo_ext.data import ObjectiveSampler, ObjectiveStream

try:
    import transformers
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
    from transformers.training_args import ParallelMode
except ImportError as error:
    raise ImportError(
        f"bucket_moo_ext.contrib.transformers needs transformers and accelerate ({error}): "
        "pip install 'transformers>=5.24,<6' 'accelerate>=1.15'"
    ) from error

__all__ = ["PRIVATE", "Attached", "attach"]

STATE_NAME = "bucket_moo.json"
"""The file in a checkpoint folder that holds ``BucketMOO.state_dict()``."""


def attach(
    trainer: Any,
    method: str | moo.Method = "mgda",
    objective: str = "language",
    *,
    weight: SupportsFloat | Callable[[Mapping[str, Any]], SupportsFloat] | None = None,
    layout: str = "ranks",
    shares: Any = "round_robin",
    objectives: Sequence[str] | None = None,
    gramian: str | moo.Sketch = "exact",
    scope: str | Callable[[str], str | int] = "bucket",
    support: bool = False,
    private_scale: str = "mean",
    row_norms: bool = False,
    seed: SupportsIndex | None = None,
    log_every: int = 1,
    evaluate_objectives: bool = True,
) -> "Attached":
    """Makes a Trainer reduce gradients conflict-aware instead of averaging them.

    To be called on every rank, between making the trainer and ``trainer.train()``. Every batch then has examples of one
    objective. With ``layout="ranks"`` ranks may have different ones in a pass, with ``"passes"`` all ranks have the
    same. ``gradient_accumulation_steps`` is the number of passes of a step, as in ``BucketMOO.accumulate()``: a step
    has room for ranks times passes (``"ranks"``) or passes (``"passes"``) objectives, in one process too.

    **The loss of a pass is the mean over its own tokens**, whatever ``average_tokens_across_devices`` says, and an
    objective's gradient is that of the mean over all its tokens in the step: a pass weighs in its objective as many
    tokens as it has. Left alone the Trainer divides by the tokens of all ranks and passes together, so that an
    objective's gradient would be as long as its tokens are many. So ``method="mean"`` counts each language once, where
    the Trainer alone counts each token once. Losses that the Trainer does not divide by tokens (DPO's, say) are means
    over examples, and every pass weighs the same.

    Args:
        trainer: A ``transformers.Trainer`` or one of a subclass, not trained yet.
        method: As for ``register``.
        objective: The column of ``train_dataset`` with each example's objective: strings, ints or a ``ClassLabel``.
        weight: Of a pass inside its objective: a number >= 0, a function of the batch, or None: its target tokens where
            the Trainer divides the loss by tokens, else 1.
        layout: "ranks" or "passes", as for ``register``.
        shares: Which objective comes how often, as for ``bucket_moo_ext.data.ObjectiveSampler``, or of a
            ``train_dataset`` without a length as for ``ObjectiveStream``.
        objectives: The names that occur in the column: needed for a ``train_dataset`` without a length, which every
            rank then reads whole, in its order. None: all that occur.
        gramian, scope, support, private_scale, row_norms: As for ``register``.
        seed: Of the order of examples and of the method's random choices; None: the Trainer's ``data_seed``, or else
            its ``seed``.
        log_every: Every how many logs of the training loss have ``moo/...`` beside it; 0: none.
        evaluate_objectives: Whether evaluation gives ``eval_<objective>_loss`` too, by one more evaluation for each
            objective's part of the eval data set, if that has the column and more than one objective.

    Returns:
        What gives the state and the report once training has begun.

    Raises:
        TypeError, ValueError: A bad argument, or an option of the trainer that cannot be combined.
        NotImplementedError: A wrapper or a data set that is not supported.
        RuntimeError: Attached already, or this transformers lacks a private name that is overridden here.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"trainer must be a transformers.Trainer; got {type(trainer).__name__}")
    if isinstance(trainer, _ConflictAware):
        raise RuntimeError("trainer: attach() was called for it before; a trainer takes one reduction, once")
    check_names(trainer, transformers.__version__)
    if not isinstance(objective, str) or not objective:
        raise TypeError(f"objective must be the name of a column of train_dataset; got {objective!r}")
    if weight is not None and not callable(weight):
        moo.BucketMOO(weight=weight)  # or raises
    if not isinstance(log_every, int) or isinstance(log_every, bool) or log_every < 0:
        raise ValueError(f"log_every must be an int >= 0; got {log_every!r}")
    if not isinstance(evaluate_objectives, bool):
        raise TypeError(f"evaluate_objectives must be a bool; got {evaluate_objectives!r}")
    args = trainer.args
    seed = (args.seed if args.data_seed is None else args.data_seed) if seed is None else seed
    options = {
        "method": method,
        "layout": layout,
        "gramian": gramian,
        "scope": scope,
        "support": support,
        "private_scale": private_scale,
        "row_norms": row_norms,
        "seed": seed,
    }
    checked = moo.BucketMOO(**options)  # type: ignore[arg-type]  # or raises
    check_trainer(trainer, objective)
    sampling = sampling_of(trainer, objective, objectives, checked.layout, shares, int(seed))
    check_room(trainer, checked.layout, len(sampling.objectives))
    attached = Attached(trainer, objective, sampling, options, weight, log_every, evaluate_objectives)
    kind = type(trainer)
    trainer._bucket_moo = attached
    trainer.__class__ = type(
        kind.__name__, (_ConflictAware, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__}
    )
    trainer.add_callback(_Events(attached))
    return attached


class Attached:
    """What ``attach`` has put on a trainer.

    Attributes:
        objectives: The names that occur in the column.
    """

    def __init__(
        self,
        trainer: Any,
        column: str,
        sampling: ObjectiveSampler | ObjectiveStream,
        options: dict[str, Any],
        weight: Any,
        log_every: int,
        evaluates: bool,
    ) -> None:
        """By ``attach``; ``options``: of ``register``."""
        self.objectives: tuple[str, ...] = tuple(map(str, sampling.objectives))
        self._trainer = trainer
        self._column = column
        self._sampling = sampling
        self._options = options
        self._weight = weight
        self._log_every = log_every
        self._evaluates = evaluates
        self._state: moo.BucketMOO | None = None
        self._module: nn.Module | None = None  # that the state is registered on
        self._checkpoint: Path | None = None  # that training goes on from
        self._saved: dict[str, Any] | None = None  # of a state, to be restored behind a first backward pass
        self._steps = 0  # of the state, at the end of the last one
        self._logs = 0

    @property
    def state(self) -> moo.BucketMOO:
        """The state of the reduction.

        Raises:
            RuntimeError: Training has not begun, so that there is none.
        """
        if self._state is None:
            raise RuntimeError(
                "there is no state yet: the trainer wraps its model in train(); a callback can ask in on_step_end()"
            )
        return self._state

    def report(self) -> moo.Report:
        """``BucketMOO.report()`` of the newest step."""
        return self.state.report()

    def _register(self) -> None:
        """On the module that the trainer has wrapped by now; once for each."""
        module = self._trainer.model_wrapped
        if self._module is not module:
            args, options = self._trainer.args, dict(self._options)
            if args.ddp_bucket_cap_mb is not None and args.parallel_mode != ParallelMode.DISTRIBUTED:
                options["bucket_cap_mb"] = args.ddp_bucket_cap_mb  # of a plain module's buckets too
            self._state, self._module = moo.register(module, **options), module
        if self._checkpoint is None:
            return
        path, self._checkpoint = self._checkpoint / STATE_NAME, None
        if not path.exists():
            warnings.warn(
                f"bucket_moo_ext: {path} is not there, so the checkpoint was saved without attach(), or just in time "
                "(enable_jit_checkpoint), which has no event for it; the reduction begins anew",
                stacklevel=2,
            )
            return
        self._saved = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(_wrapped_by(module), DistributedDataParallel):
            self._restore()

    def _discard(self) -> None:
        self.state.discard()
        self._steps = self.state.step

    def _has_made_one_step(self) -> bool:
        """Since the last one; to be asked at the end of each."""
        before, self._steps = self._steps, self.state.step
        return self._steps == before + 1

    def _restore(self) -> None:
        assert self._saved is not None
        self.state.load_state_dict(self._saved)
        self._saved = None
        self._steps = self.state.step

    def _save(self, folder: Path) -> None:
        (folder / STATE_NAME).write_text(json.dumps(self.state.state_dict()), encoding="utf-8")

    def _weigh(self, batch: Mapping[str, Any], tokens: float | None) -> SupportsFloat:
        if callable(self._weight):
            weight: SupportsFloat = self._weight(batch)
            return weight
        if self._weight is not None:
            return float(self._weight)
        return 1.0 if tokens is None else tokens

    def _metrics(self) -> dict[str, float]:
        """For a log of the training loss."""
        self._logs += 1
        if not self._log_every or self._logs % self._log_every or self._state is None:
            return {}
        return metrics_of(self.report())


def _wrapped_by(module: Any) -> Any:
    """What a compiled module runs, or the module itself."""
    return getattr(module, "_orig_mod", module)


class _Events(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """What happens at the events of a training."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model is wrapped, and no pass was made."""
        self._attached._register()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The order of the epoch, also where Accelerate skips batches of it, and passes of a step cut off."""
        self._attached._sampling.set_epoch(int(state.epoch or 0))
        self._attached._discard()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of passes that a callback has cut off in the midst of a step nothing is left, as in the Trainer itself."""
        self._attached._discard()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was saved."""
        if args.should_save and not args.save_only_model and not state.is_hyper_param_search:
            self._attached._save(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


class _ConflictAware:
    """Goes before the trainer's own class."""

    _bucket_moo: Attached
    args: Any
    accelerator: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    current_gradient_accumulation_steps: int
    _signature_columns: list[str]

    # --- data ---

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if (column := self._bucket_moo._column) not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, column]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> ObjectiveSampler | ObjectiveStream:
        return self._bucket_moo._sampling

    def get_batch_sampler(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Of sentence-transformers' trainers, which ask for no sampler."""
        if dataset is self.train_dataset:
            return torch.utils.data.BatchSampler(
                self._bucket_moo._sampling, self.args.train_batch_size, drop_last=False
            )
        return super().get_batch_sampler(dataset, *args, **kwargs)  # type: ignore[misc]

    def get_train_dataloader(self) -> Any:
        """Batches of one objective, with its name."""
        column = self._bucket_moo._column
        name_of = namer_of(self.train_dataset, column)
        with self._collating(LabelledCollator(self.data_collator, column, name_of)):
            loader = super().get_train_dataloader()  # type: ignore[misc]
        if not isinstance(self._bucket_moo._sampling, ObjectiveStream):
            return loader
        return torch.utils.data.DataLoader(  # which Accelerate is not to cut once more
            self._bucket_moo._sampling,
            batch_size=self.args.train_batch_size,
            collate_fn=loader.collate_fn,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Batches without the column."""
        with self._collating(UnlabelledCollator(self.data_collator, self._bucket_moo._column)):
            return super().get_eval_dataloader(*args, **kwargs)  # type: ignore[misc]

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Batches without the column."""
        with self._collating(UnlabelledCollator(self.data_collator, self._bucket_moo._column)):
            return super().get_test_dataloader(*args, **kwargs)  # type: ignore[misc]

    @contextlib.contextmanager
    def _collating(self, collator: Any) -> Iterator[None]:
        """The data loader that is made inside collates so."""
        before, self.data_collator = self.data_collator, collator
        try:
            yield
        finally:
            self.data_collator = before

    # --- training ---

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Every pass of a step is reduced: none is left to ``no_sync()``."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        self._bucket_moo._checkpoint = Path(folder) if folder else None
        gradient_state = self.accelerator.gradient_state
        before = gradient_state.plugin_kwargs
        gradient_state.plugin_kwargs = {**before, "sync_each_batch": True}
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        finally:
            gradient_state.plugin_kwargs = before

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A pass: objective and weight from the batch, the loss a mean over it."""
        attached = self._bucket_moo
        state = attached.state
        if not isinstance(inputs, Mapping) or KEY not in inputs:
            raise RuntimeError(
                "trainer: a batch came without its objective, so its data loader was not made with data_collator, "
                f"which attach() wraps; {type(self).__name__} makes its batches itself and is not supported"
            )
        state.objective = inputs.pop(KEY)  # type: ignore[attr-defined]
        passes = self.current_gradient_accumulation_steps
        if passes > 1 and not self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch"):
            raise RuntimeError(
                "trainer: another Trainer or Accelerator was made while this one trains; they share settings in a "
                "process, so that this one's passes would go unreduced. Make them before train()"
            )
        with self._alone():
            _, items = self.get_batch_samples(iter([inputs]), 1, self.args.device)  # type: ignore[attr-defined]
            tokens = None if items is None else float(items)
            state.weight = attached._weigh(inputs, tokens)
            if tokens == 0:
                items = 1  # a loss of 0, not 0 / 0; its weight is 0
            if attached._saved is not None:
                self._warm_up(model, inputs, items)
                attached._restore()
            closes = self.accelerator.sync_gradients
            with contextlib.nullcontext() if closes else state.accumulate():
                loss: torch.Tensor = super().training_step(model, inputs, items)  # type: ignore[misc]
            if closes and not attached._has_made_one_step():
                raise RuntimeError(
                    "trainer: a batch made several backward passes that were reduced, where attach() takes each for a "
                    "pass of a step: losses that cache gradients (sentence-transformers' Cached...Loss) are not "
                    "supported; use the loss that does not cache"
                )
        return loss / passes

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The trainer counts the batch of this rank and pass alone, and divides by nothing else."""
        averages, passes = self.args.average_tokens_across_devices, self.current_gradient_accumulation_steps
        self.args.average_tokens_across_devices, self.current_gradient_accumulation_steps = False, 1
        try:
            yield
        finally:
            self.args.average_tokens_across_devices, self.current_gradient_accumulation_steps = averages, passes

    def _warm_up(self, model: nn.Module, inputs: Any, items: Any) -> None:
        """A backward pass that is thrown away, so that DDP has the buckets that it had when the state was saved."""
        device = self.args.device
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            super().training_step(model, copy.copy(inputs), items)  # type: ignore[misc]
        for buffer, value in buffers:
            buffer.copy_(value)
        model.zero_grad()

    # --- looking ---

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With ``moo/...`` beside the training loss."""
        if "loss" in logs:
            logs.update(self._bucket_moo._metrics())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Of the whole, and then of each objective's part, as of a dict of data sets."""
        attached = self._bucket_moo
        whole = self.eval_dataset if eval_dataset is None else eval_dataset
        options = {"ignore_keys": ignore_keys, "metric_key_prefix": metric_key_prefix, **kwargs}
        metrics: dict[str, float] = super().evaluate(eval_dataset, **options)  # type: ignore[misc]
        parts = parts_of(whole, attached._column) if attached._evaluates else {}
        if len(parts) < 2:
            return metrics
        if eval_dataset is not None:
            # The Trainer keeps persistent workers by one name for all data sets that it is given.
            persistent, self.args.dataloader_persistent_workers = self.args.dataloader_persistent_workers, False
            try:
                metrics.update(super().evaluate(parts, **options))  # type: ignore[misc]
            finally:
                self.args.dataloader_persistent_workers = persistent
            return metrics
        self.eval_dataset = parts  # evaluated by name: the trainer has prepared it already
        try:
            metrics.update(super().evaluate(None, **options))  # type: ignore[misc]
        finally:
            self.eval_dataset = whole
        return metrics
