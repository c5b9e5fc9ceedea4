"""A callback for Lightning's Trainer.

    >>> from bucket_moo_ext.contrib.lightning import MooCallback
    >>> moo_callback = MooCallback(method="mgda", objective="language")  # doctest: +SKIP
    >>> trainer = Trainer(callbacks=[moo_callback], use_distributed_sampler=False)  # doctest: +SKIP

Written for and tested with lightning 2.6.6, two of whose private names it uses (``PRIVATE``). docs/frameworks.md says
what was tested.
"""

import contextlib
import copy
import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, SupportsFloat

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bucket_moo_ext as moo

try:
    import lightning
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.strategies import ParallelStrategy
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
except ImportError as error:
    raise ImportError(
        f"bucket_moo_ext.contrib.lightning needs Lightning ({error}): pip install 'lightning>=2.6,<2.7'"
    ) from error

from bucket_moo_ext.contrib._lightning_checks import (
    PRIVATE,
    check_names,
    check_optimizers,
    check_source,
    check_strategy,
    label_in,
    sources_of,
    value_in,
)
from bucket_moo_ext.contrib._trainer_report import metrics_of
from bucket_moo_ext.data import ObjectiveBatchSampler, ObjectiveStream

__all__ = ["PRIVATE", "MooCallback"]

_SET_BY_BATCH = ("module", "method", "objective", "weight")


class MooCallback(Callback):  # type: ignore[misc]  # lightning is not seen by mypy
    """Makes a Trainer reduce gradients conflict-aware instead of averaging them.

    For ``DDPStrategy``; for ``ModelParallelStrategy`` with modules that ``configure_model()`` gives to
    ``fully_shard()`` (FSDP2); for ``FSDPStrategy``; and for one device, where a step has as many objectives as passes.
    ``moo.register()`` is called on ``trainer.model`` as training begins.

    A batch is a pass, of one objective. ``accumulate_grad_batches`` is the number of passes of a step, as in
    ``BucketMOO.accumulate()``: each is reduced, where Lightning alone adds up on each rank and reduces once. The update
    is a mean over ranks and passes, so losses are not divided by ``accumulate_grad_batches``, and a last step of fewer
    passes is as long as others. The loss of ``training_step`` is to be a mean over its batch.

    What Lightning logs has, beside the module's own, ``moo/conflict_share``, ``moo/residual`` and others, and for each
    objective ``moo/weight_...`` and ``moo/norm_...``, of the last step (NaN if it has no part in it). Checkpoints have
    the state of the reduction and, where a train data loader reads from ``bucket_moo_ext.data``, the place in the
    epoch.

    A resumed run under DDP runs its first batch once more and throws the gradients away, so that DDP has the buckets
    that it had when the checkpoint was saved: what it logs counts once, what ``training_step`` counts itself twice.
    Not with ``automatic_optimization=False``.

    Args:
        method: As for ``moo.register``.
        objective: Of a batch: its key, or a function of it. The value is a string or an int, or a list or a tensor
            that has the same for every example.
        weight: Of a batch inside its objective, >= 0: None: 1; a key of the batch, or a function of it. Of a list or a
            tensor, which has one for every example, the sum. With the number of target tokens the mean within an
            objective is over tokens.
        log_every: Every how many steps metrics are logged; 0: never; None: the trainer's ``log_every_n_steps``.
        **options: What ``moo.register()`` takes beside: ``gramian``, ``layout``, ``scope``, ``support``, ``seed`` and
            others.

    Raises:
        TypeError, ValueError: A bad argument, named. From ``fit()``: a batch without an objective or with several, a
            data loader whose batches are dealt for other ranks or passes, a ``ddp_comm_hook``.
        NotImplementedError: From ``fit()``: strategies that reduce gradients themselves (DeepSpeed, XLA), tensor
            parallelism, several optimizers.
        RuntimeError: From ``fit()``: this Lightning lacks a private name that is used here.
    """

    def __init__(
        self,
        method: str | moo.Method = "mgda",
        objective: str | Callable[[Any], Any] = "language",
        *,
        weight: str | Callable[[Any], SupportsFloat] | None = None,
        log_every: int | None = None,
        **options: Any,
    ) -> None:
        if not callable(objective) and (not isinstance(objective, str) or not objective):
            raise TypeError(f"objective must be a key of a batch or a function of a batch; got {objective!r}")
        if weight is not None and not callable(weight) and (not isinstance(weight, str) or not weight):
            raise TypeError(f"weight must be None, a key of a batch or a function of a batch; got {weight!r}")
        if log_every is not None and (not isinstance(log_every, int) or isinstance(log_every, bool) or log_every < 0):
            raise ValueError(f"log_every must be None or an int >= 0; got {log_every!r}")
        allowed = [name for name in inspect.signature(moo.register).parameters if name not in _SET_BY_BATCH]
        if unknown := [name for name in options if name not in allowed]:
            raise TypeError(f"MooCallback has no option {unknown[0]!r}; those of moo.register are {', '.join(allowed)}")
        checked = {name: value for name, value in options.items() if name != "bucket_cap_mb" or value is not None}
        moo.BucketMOO(method, **checked)  # or raises
        self._method = method
        self._objective = objective
        self._weight = weight
        self._log_every = log_every
        self._options = options
        self._state: moo.BucketMOO | None = None
        self._module: weakref.ref[nn.Module] | None = None  # that the state is registered on
        self._saved: dict[str, Any] | None = None  # of a state, to be restored
        self._sources: list[tuple[Any, ObjectiveBatchSampler | ObjectiveStream]] = []  # of the train data loaders
        self._place: dict[str, int] | None = None  # epoch, and batches of it that were trained on
        self._pass = contextlib.ExitStack()  # what holds while a step is to stay open
        self._leaves_open = False
        self._open_passes = 0
        self._has_reduced = False  # in this batch
        self._steps = 0  # of the optimizer, before this batch
        self._logged: set[str] = set()  # names of metrics

    @property
    def state(self) -> moo.BucketMOO:
        """The state of the reduction.

        Raises:
            RuntimeError: Training has not begun, so that there is none.
        """
        if self._state is None:
            raise RuntimeError("there is no state yet: MooCallback registers the model when training begins")
        return self._state

    def report(self) -> moo.Report:
        """``BucketMOO.report()`` of the newest step."""
        return self.state.report()

    # --- before and after training ---

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuses what cannot work, before anything is wrapped."""
        if stage != "fit":
            return
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"trainer must be a lightning.pytorch.Trainer; got one of {type(trainer).__module__}: import it from "
                "lightning.pytorch"
            )
        check_names(trainer.fit_loop, lightning.__version__)
        check_strategy(trainer.strategy)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The model is wrapped and checkpoints are loaded: registers."""
        check_optimizers(trainer, pl_module.automatic_optimization)
        self._sources = self._checked_sources(trainer)
        self._register(trainer)
        if trainer.ckpt_path is not None and self._saved is None:
            warnings.warn(
                f"bucket_moo_ext: {trainer.ckpt_path} has no state of MooCallback, since it was saved without one; the "
                "reduction begins anew",
                stacklevel=2,
            )
        if self._saved is not None and not (
            isinstance(trainer.model, DistributedDataParallel) and pl_module.automatic_optimization
        ):
            self._restore()
        self._go_to_place(trainer)
        if isinstance(trainer.strategy, ParallelStrategy) and pl_module.automatic_optimization:
            # Lightning would leave all but the last pass to no_sync().
            trainer.strategy.block_backward_sync = contextlib.nullcontext

    def _checked_sources(self, trainer: Any) -> list[tuple[Any, ObjectiveBatchSampler | ObjectiveStream]]:
        """Those of the train data loaders; what is wrong with one is raised on every rank."""
        problem, sources = None, []
        try:
            sources = sources_of(trainer)
            for _, source in sources:
                check_source(trainer, source)
        except ValueError as error:
            problem = error
        if not trainer.strategy.reduce_boolean_decision(problem is None, all=True):
            raise problem or ValueError("train data loader: another rank's does not fit the trainer, and says why")
        return sources

    def _register(self, trainer: Any) -> None:
        """On the module that the strategy has wrapped by now; once for each."""
        module = trainer.model
        if self._module is not None and self._module() is module:
            return
        if self._state is not None and self._saved is None:  # of a fit() before
            self._saved = self._saved_state()
        with warnings.catch_warnings():
            # Of ModelParallelStrategy's mesh, where that dimension has size 1: nothing drifts apart along it.
            warnings.filterwarnings("ignore", message=r".*has others too \(tensor_parallel\)")
            self._state = moo.register(module, self._method, **self._options)
        self._module = weakref.ref(module)

    def _go_to_place(self, trainer: Any) -> None:
        """Where the checkpoint was, or the beginning of the epoch."""
        epoch, place = trainer.current_epoch, self._place
        if place is None or place["epoch"] != epoch or len(self._sources) != 1:
            self._begin_epoch(epoch)
            place = self._place
        elif not hasattr(self._sources[0][0], "load_state_dict"):  # or the loader goes there by itself
            source = self._sources[0][1]
            source.load_state_dict({**source.state_dict(0), **place})
        assert place is not None
        if (epoch or place["position"]) and any(loader.num_workers for loader, _ in self._sources):
            iter(trainer.fit_loop._data_fetcher)  # workers have read ahead already

    def _begin_epoch(self, epoch: int) -> None:
        self._place = {"epoch": epoch, "position": 0}
        for _, source in self._sources:  # Lightning tells those samplers alone that a batch sampler is made of
            source.set_epoch(epoch)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves the strategy as it was."""
        if stage == "fit":
            self._let_go(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Gives up the open step, and leaves the strategy as it was."""
        self._let_go(trainer)

    def _let_go(self, trainer: Any) -> None:
        self._give_up_step()
        self._sources = []
        vars(trainer.strategy).pop("block_backward_sync", None)

    def _give_up_step(self) -> None:
        self._pass.close()
        self._open_passes = 0
        if self._state is not None:
            self._state.discard()

    # --- training ---

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Another order of examples; and what an epoch that was broken off has put aside is given up."""
        self._give_up_step()
        self._begin_epoch(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A pass begins: its objective and weight, and whether it leaves the step open."""
        state = self.state
        state.objective = label_in(batch, self._objective)
        state.weight = 1.0 if self._weight is None else _total(value_in(batch, "weight", self._weight))
        if self._saved is not None:
            self._warm_up(trainer, pl_module, batch, batch_idx)
            self._restore()
        self._pass.close()
        self._has_reduced, self._steps = False, trainer.global_step
        self._leaves_open = trainer.fit_loop._should_accumulate()
        if self._leaves_open:
            self._pass.enter_context(state.accumulate())

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        """Takes back that Lightning has divided the loss by the number of passes: the update is their mean."""
        passes = trainer.accumulate_grad_batches
        if not pl_module.automatic_optimization or passes == 1:
            return
        if isinstance(trainer.model, DistributedDataParallel) and not trainer.model.require_backward_grad_sync:
            raise RuntimeError(
                f"lightning {lightning.__version__}: a pass that is accumulated runs under no_sync(), so that its "
                "gradients would not be reduced by objective; bucket_moo_ext.contrib.lightning was written for "
                "lightning 2.6"
            )
        loss.register_hook(lambda gradient: gradient * passes)  # type: ignore[no-untyped-call]

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """The pass is over."""
        self._pass.close()
        self._has_reduced = True
        self._open_passes = self._open_passes + 1 if self._leaves_open else 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Raises RuntimeError where the pass that closes the step was left out."""
        if self._open_passes:
            raise RuntimeError(
                "training_step returned None in the pass that closes a step, so the gradients of its "
                f"{self._open_passes} passes before would be lost; return a loss, multiplied by 0 say"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs, where a step was closed."""
        self._pass.close()  # there may have been no backward pass
        self._place = {"epoch": trainer.current_epoch, "position": batch_idx + 1}
        every = trainer.log_every_n_steps if self._log_every is None else self._log_every
        if not every or trainer.global_step % every or trainer.global_step == self._steps or not self._has_reduced:
            return
        metrics = metrics_of(self.report())
        # Lightning would repeat what objectives that are not in this step had in an earlier one.
        pl_module.log_dict({**dict.fromkeys(self._logged, math.nan), **metrics}, on_step=True, on_epoch=False)
        self._logged.update(metrics)

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Of the reduction, as the newest step that was closed has left it, and the place in the epoch.

        The same on every rank.
        """
        if self._state is None and self._saved is None:
            return {}
        return {"state": self._saved_state(), **({} if self._place is None else {"place": self._place})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()`` when training begins."""
        self._saved = state_dict["state"]
        self._place = state_dict.get("place")

    def _saved_state(self) -> dict[str, Any]:
        if self._saved is not None:  # and was not restored yet
            return self._saved
        return copy.copy(self.state).state_dict()  # a copy has no open step

    def _restore(self) -> None:
        assert self._saved is not None
        self.state.load_state_dict(self._saved)
        self._saved = None

    def _warm_up(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A backward pass that is thrown away, so that DDP has the buckets that it had when the state was saved."""
        takes_number = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
        buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        with _draws_nothing(pl_module.device), _logs_nothing(pl_module):
            output = trainer.strategy.training_step(copy.copy(batch), *([batch_idx] if takes_number else []))
            loss = output["loss"] if isinstance(output, dict) else output
            if loss is not None:
                pl_module.backward(loss)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        pl_module.zero_grad()


def _draws_nothing(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Random numbers that are drawn inside are drawn again after."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextlib.contextmanager
def _logs_nothing(pl_module: Any) -> Iterator[None]:
    """What the module logs inside is not logged."""
    pl_module.log = lambda *_, **__: None  # log_dict() calls it, too
    try:
        yield
    finally:
        del pl_module.log


def _total(weight: Any) -> float:
    """A number; of a batch's examples the sum of theirs, which collation makes a tensor or a list of."""
    if isinstance(weight, list | tuple):
        return sum(map(_total, weight))
    return float(weight.sum() if isinstance(weight, torch.Tensor) else weight)
