"""Reports over time, in bounded memory."""

import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import torch

from bucket_moo_ext.observe.logged import Logged, checked_configuration
from bucket_moo_ext.observe.noise import CosineNoise
from bucket_moo_ext.observe.record_lines import Content, NoiseLine, read, write
from bucket_moo_ext.observe.records import (
    PartKey,
    Record,
    keyed_parts,
    part_record,
    whole_cosines,
    whole_key,
    whole_record,
)
from bucket_moo_ext.observe.summary import Summary, summarize_part
from bucket_moo_ext.observe.writers import Writer, find_writer, scalars
from bucket_moo_ext.plain import choice, integer_within, number
from bucket_moo_ext.report import BucketReport, Report
from bucket_moo_ext.state import BucketMOO

_MOST = 2**53
_COUNTERS = ("steps", "records", "stride")
_OF_REDUCTION = ("method", "estimator", "layout", "scope", "split_by_support", "mesh")


@dataclass
class _Seen:
    """What is known of a part over all records.

    Attributes:
        key: The part: the one object that stands for it in all records.
        noise: Of its cosines.
        solved_step: The newest step that is in ``noise``.
        index: The newest record that it was in.
    """

    key: PartKey
    noise: CosineNoise
    solved_step: int = -1
    index: int = -1


@functools.cache
def _versions() -> dict[str, str]:
    return {"bucket_moo_ext": importlib.metadata.version("bucket_moo_ext"), "torch": torch.__version__}


def _check_state(state: BucketMOO | None) -> BucketMOO | None:
    if state is not None and not isinstance(state, BucketMOO):
        raise TypeError(f"state must be a BucketMOO, as register() returns it, or None; got {type(state).__name__}")
    return state


class Recorder:
    """Keeps what ``state.report()`` says of every n-th training step, and how far cosines are noise.

    ::

        recorder = moo.Recorder(state, every=10)
        for batch in loader:
            loss_fn(ddp(x), y).backward()
            optimizer.step()
            recorder.step()
        print(recorder.summary())

    A step that is not recorded costs nothing and does not wait for a GPU. All ranks know the same, and recording sends
    nothing, so a recorder on one rank is enough. Parts of the gradients are known by their parameters and groups, so
    buckets may be rebuilt and objectives may change; a part that is in none of the last ``keep`` records is forgotten.

    Args:
        state: Of any wrapper, or of direct calls of the collectives, each of which is a step. None: records that were
            loaded are only looked at.
        every: Steps from one record to the next, >= 1. The first step is recorded.
        keep: Records to keep, >= 2. A part of a record takes ``16 K**2 + 16 K`` bytes for K objectives, and some
            hundred.
        when_full: What becomes of older records. "thin": every second one is dropped, so that those that are kept,
            always at least half of ``keep`` then, are spread evenly over the whole training: numbers 0, s, 2s, ... for
            an s that doubles. "drop": the oldest is dropped. Noise, writers and ``last`` have all records.
        window: How many records means and noise look back, >= 2: recent ones count more, and the standard error of a
            mean is that of the plain mean of so many. None: all records count alike.

    Raises:
        TypeError, ValueError: A bad argument, named, with what is allowed.
    """

    def __init__(
        self,
        state: BucketMOO | None,
        every: SupportsIndex = 10,
        *,
        keep: SupportsIndex = 500,
        when_full: str = "thin",
        window: SupportsIndex | None = 100,
    ) -> None:
        self._state = _check_state(state)
        self._every = integer_within("every", every, 1, _MOST)
        self._keep = integer_within("keep", keep, 2, _MOST)
        self._when_full = choice("when_full", when_full, ("thin", "drop"))
        self._window = None if window is None else integer_within("window", window, 2, _MOST)
        self._steps = 0
        self._records = 0
        self._stride = 1  # of the records that are kept
        self._kept: list[Record] = []
        self._last: Record | None = None
        self._seen: dict[PartKey, _Seen] = {}
        self._recorded: tuple[int, int] | None = None  # step and count of buckets: to know what was recorded already
        self._writers: list[Writer] = []
        self._logged = Logged()
        self._reduction: dict[str, Any] = {}
        self._described: dict[str, Any] = {}

    @property
    def every(self) -> int:
        """Steps from one record to the next."""
        return self._every

    @property
    def history(self) -> tuple[Record, ...]:
        """The records that are kept, oldest first."""
        return tuple(self._kept)

    @property
    def last(self) -> Record | None:
        """The newest record, kept or not; None before the first."""
        return self._last

    @property
    def configuration(self) -> dict[str, Any]:
        """How the newest record's step was reduced (method, estimator, layout, ..., versions), and ``describe()``."""
        return {**self._reduction, **self._described}

    def describe(self, configuration: Mapping[str, Any]) -> None:
        """Adds to what files and pages say of the training: model, data, learning rate, ...

        Args:
            configuration: By name: strings, numbers, bools, None, or sequences of these. A name that is there already
                gets the new value.

        Raises:
            TypeError: Another value.
            ValueError: A name of what the state says itself, as in ``configuration``.
        """
        self._described.update(checked_configuration(configuration, (*_OF_REDUCTION, *_versions())))

    def log(
        self, losses: Mapping[str, float | torch.Tensor] | None = None, *, seconds: SupportsFloat | None = None
    ) -> None:
        """Values of this step, before ``step()``: the next record has the means of what was given since the last one.

        Args:
            losses: By objective, numbers or tensors of one element, which are not read before the next record. In
                steps of several passes one call a pass will do.
            seconds: Time that the step took.

        Raises:
            TypeError, ValueError: A bad argument.
        """
        self._logged.add(losses, seconds)

    def step(self) -> Record | None:
        """To be called once a training step, after ``backward()``: before or after the optimizer's step.

        Returns:
            The record; None if this step is not recorded, or if nothing was reduced since the last record.

        Raises:
            RuntimeError: There is no state; and from ``state.report()``: nothing was reduced yet, or the step is open.
        """
        if self._state is None:
            raise RuntimeError("this recorder has no state to ask: give one to Recorder.load(path, state=...)")
        self._steps += 1
        if (self._steps - 1) % self._every:
            return None
        report = self._state.report()
        if (report.step, report.reduced) == self._recorded:
            return None
        self._recorded = (report.step, report.reduced)
        return self._add(report)

    def __call__(self, *_: object, **__: object) -> None:
        """``step()``, as a hook of an optimizer: ``optimizer.register_step_post_hook(recorder)``."""
        self.step()

    def to(self, writer: object, *, prefix: str = "moo", details: bool = False) -> "Recorder":
        """Sends scalars of every record from now on to TensorBoard, Weights & Biases or MLflow.

        Args:
            writer: A ``SummaryWriter`` or what else has ``add_scalar(tag, value, step)``; a run of wandb or what else
                has ``log(dict)`` and ``define_metric``; the module mlflow or what else has
                ``log_metrics(dict, step=...)``.
            prefix: What names begin with, before a slash.
            details: Cosines of all pairs in every part too, which may be many.

        Returns:
            This recorder.

        Raises:
            TypeError: ``writer`` is none of these.
        """
        self._writers.append(find_writer(writer, prefix, details))
        return self

    def summary(self, *, z: float = 3.0, minimum: SupportsIndex = 10) -> Summary:
        """Which conflicts stand above noise.

        A pair of objectives conflicts in a part of the gradients if the mean of its cosine is below 0 by more than
        ``z`` standard errors. docs/observe.md says when that holds, and how often noise alone looks so.

        Args:
            z: > 0.
            minimum: Records of a pair that a verdict takes, >= 2.

        Raises:
            TypeError, ValueError: A bad argument.
            RuntimeError: There are no records.
        """
        limit = None if isinstance(z, bool) else number(z)
        if limit is None:
            raise TypeError(f"z must be a number; got {type(z).__name__} {z!r}")
        if not 0 < limit < float("inf"):
            raise ValueError(f"z must be finite and > 0; got {z!r}")
        least = integer_within("minimum", minimum, 2, _MOST)
        if self._last is None:
            raise RuntimeError("there is nothing to summarize: no step was recorded yet")
        pairs = [pair for seen in self._seen.values() for pair in summarize_part(seen.key, seen.noise, limit, least)]
        return Summary(
            records=self._records,
            first_step=self._kept[0].step,
            last_step=self._last.step,
            window=self._window,
            z=limit,
            minimum=least,
            whole=tuple(pair for pair in pairs if pair.part.is_whole),
            parts=tuple(pair for pair in pairs if not pair.part.is_whole),
        )

    def save(self, path: str | Path) -> None:
        """Writes the kept records and the noise as JSON Lines; docs/observe.md has the format.

        The file is replaced as a whole, or stays as it was.
        """
        settings = {
            "every": self._every,
            "keep": self._keep,
            "when_full": self._when_full,
            "window": self._window,
            "steps": self._steps,
            "records": self._records,
            "stride": self._stride,
        }
        kept = list(self._kept)
        if self._last is not None and (not kept or kept[-1] is not self._last):
            kept.append(self._last)
        noise = [
            NoiseLine(seen.key, seen.noise.objectives, seen.solved_step, seen.index, seen.noise.numbers)
            for seen in self._seen.values()
        ]
        write(Path(path), Content(settings, self._reduction, self._described, kept, noise))

    def plot(self, path: str | Path) -> None:
        """Draws maps of parts over steps, weights, residuals, and losses and step times where they were logged.

        Args:
            path: The image; its ending says the format (.png, .pdf, .svg, ...).

        Raises:
            RuntimeError: There are no records.
            ImportError: matplotlib is not installed (optional dependency ``[plot]``).
        """
        from bucket_moo_ext.observe.recording_figure import plot_recorder  # these two know the recorder

        plot_recorder(self, path)

    def page(self, path: str | Path, *, title: str = "Recording") -> None:
        """Writes one HTML page that stands alone: maps that can be stepped through, weights, losses, tables.

        ``python -m bucket_moo_ext report`` does the same with files of ``save()``, several too.

        Args:
            path: The file; it is replaced as a whole, or stays as it was.
            title: What the page calls the recording.
        """
        from bucket_moo_ext.observe.page import write_page

        write_page(path, {title: self})

    @staticmethod
    def load(path: str | Path, state: BucketMOO | None = None) -> "Recorder":
        """What ``save()`` wrote; writers are not in it.

        Args:
            path: The file.
            state: To go on recording.

        Raises:
            ValueError: It is no such file, of another version, or damaged: with the line.
            TypeError: ``state`` is no state.
        """
        _check_state(state)
        settings, reduction, described, records, noise = read(Path(path))
        try:
            steps, count, stride = (integer_within(name, settings.pop(name), 0, _MOST) for name in _COUNTERS)
            recorder = Recorder(state, **settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line 1: the settings are damaged: {error}") from error
        recorder._steps, recorder._records, recorder._stride = steps, count, max(stride, 1)
        recorder._reduction, recorder._described = reduction, described
        recorder._kept = [record for record in records if record.index % recorder._stride == 0]
        recorder._last = records[-1] if records else None
        for line in noise:
            seen = _Seen(line.key, CosineNoise(recorder._window), line.solved_step, line.index)
            seen.noise.restore(line.objectives, line.numbers)
            recorder._seen[line.key] = seen
        return recorder

    def _add(self, report: Report) -> Record:
        index = self._records
        parts = []
        for key, bucket in keyed_parts(report):
            seen = self._observe(key, index, report.step, bucket, bucket.cosines, bucket.solved_step)
            parts.append(part_record(seen.key, bucket, seen.noise.of(bucket.objectives).spread))
        solved = max(bucket.solved_step for bucket in report.buckets)
        losses, seconds = self._logged.take()
        self._reduction = {name: getattr(report, name) for name in _OF_REDUCTION} | _versions()
        whole = self._observe(whole_key(report), index, report.step, report, whole_cosines(report), solved)
        record = Record(
            index=index,
            step=report.step,
            passes=report.passes,
            whole=whole_record(whole.key, report, whole.noise.of(report.objectives).spread),
            parts=tuple(parts),
            conflict_share=report.conflict_share,
            global_conflict_share=report.global_conflict_share,
            fallbacks=report.fallbacks,
            losses=losses,
            seconds=seconds,
        )
        self._records += 1
        self._last = record
        self._retain(record)
        for writer in self._writers:
            writer.write(scalars(record, writer.details), record.step)
        return record

    def _observe(
        self,
        key: PartKey,
        index: int,
        step: int,
        of: BucketReport | Report,
        cosines: torch.Tensor,
        solved_step: int,
    ) -> _Seen:
        """Adds to a part's noise, unless these are the very cosines of the record before (kept by a ``Sketch``)."""
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen(key, CosineNoise(self._window))
        if solved_step == step or solved_step != seen.solved_step:
            seen.noise.add(of.objectives, cosines, of.signal)
        seen.solved_step, seen.index = solved_step, index
        return seen

    def _retain(self, record: Record) -> None:
        if record.index % self._stride == 0:
            self._kept.append(record)
        if len(self._kept) > self._keep:
            if self._when_full == "thin":
                self._stride *= 2
                self._kept = [kept for kept in self._kept if kept.index % self._stride == 0]
            else:
                del self._kept[0]
        gone = [key for key, seen in self._seen.items() if seen.index + self._keep <= record.index]
        for key in gone:
            del self._seen[key]
