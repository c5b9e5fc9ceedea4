"""Streaming data: an iterable data set, dealt by label into batches of one objective."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from bucket_moo_ext import plain
from bucket_moo_ext.data.corpora import warn_of_small
from bucket_moo_ext.data.schedule import Schedule, check_place, count, ranks_per_objective, shares_of


class _Key:
    """The value of a key: not a lambda, for processes that are to be given a stream."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, example: Any) -> Hashable:
        value: Hashable = example[self._key]
        return value


class ObjectiveStream(IterableDataset[Any]):
    """The examples of a stream in an order whose batches have one objective each: this rank's.

    ::

        stream = ObjectiveStream(source, "language", ("de", "sw", "tr"), batch_size=8, steps=1000)
        for batch in DataLoader(stream, batch_size=8):
            ...

    The schedule is that of ``ObjectiveBatchSampler``. Every rank reads the whole source, which must be the same on all
    ranks, and finds by itself which examples are its own: no two ranks get the same ones, and all have as many steps.
    Examples keep the order of the source: shuffle that.

    What comes before its turn waits, at most ``buffer_size`` examples of each objective. Beyond that the source has
    more of an objective than its share can use: these examples are left out and counted in ``skipped``, or with
    ``surplus="error"`` are an error. When the source ends it is read again;
    a corpus that turns out smaller than a batch is warned of, once, on rank 0.

    The DataLoader must have the same ``batch_size``. Its workers read the whole source each, and take batches in turn;
    so a source must not divide itself among them. Hugging Face's streaming data sets do: use at most one worker.

    Args:
        source: An iterable that can be iterated anew, of examples; with ``set_epoch()``, that is called.
        label: The key of an example's label, or a function of the example.
        objectives: The labels in their order.
        batch_size: Examples of a rank's batch in a pass.
        steps: Of an epoch.
        per, passes, rank, world_size: As for ``ObjectiveBatchSampler``.
        shares: "round_robin" or a mapping from objectives to shares.
        buffer_size: Examples of an objective that wait at most; at least ``batch_size``.
        surplus: "skip" or "error".

    Raises:
        TypeError, ValueError: A bad argument, named, with what is allowed. In iterating: an example with another label,
            or an objective of which the source has no example.
        RuntimeError: In iterating, with ``surplus="error"``: a full buffer; or a source of shards with several workers.
    """

    def __init__(
        self,
        source: Iterable[Any],
        label: str | Callable[[Any], Hashable],
        objectives: Sequence[Hashable],
        batch_size: Any,
        steps: Any,
        *,
        per: Any = "rank",
        passes: Any = 1,
        shares: str | Mapping[Any, float] = "round_robin",
        buffer_size: Any = 10_000,
        surplus: str = "skip",
        rank: Any = None,
        world_size: Any = None,
    ) -> None:
        if not hasattr(source, "__iter__") or iter(source) is source:
            raise TypeError(
                f"source must be an iterable that can be iterated anew, a generator cannot; got {type(source).__name__}"
            )
        if not isinstance(label, str) and not callable(label):
            raise TypeError(f"label must be a key or a function of an example; got {type(label).__name__}")
        if isinstance(objectives, (str, bytes)) or not objectives or len(set(objectives)) != len(objectives):
            raise ValueError(f"objectives must be distinct labels, one at least; got {objectives!r}")
        self._source = source
        if getattr(source, "_distributed", None) is not None:  # of Hugging Face's streaming data sets
            raise ValueError(
                "source was divided among ranks (split_dataset_by_node()); give the whole one: every rank reads it and "
                "takes what is its own"
            )
        self._label_of: Callable[[Any], Hashable] = label if callable(label) else _Key(label)
        self.objectives: tuple[Hashable, ...] = tuple(objectives)
        self.batch_size = count("batch_size", batch_size)
        self._buffer_size = plain.integer_within("buffer_size", buffer_size, self.batch_size, 2**62)
        self._surplus = plain.choice("surplus", surplus, ("skip", "error"))
        self.rank, world_size = check_place(rank, world_size)
        self.schedule = Schedule(
            shares_of(shares, None, self.objectives),
            self.objectives,
            per=ranks_per_objective(per, world_size),
            passes=count("passes", passes),
            steps=count("steps", steps),
            world_size=world_size,
        )
        self.epoch = 0
        self.skipped: dict[Hashable, int] = dict.fromkeys(self.objectives, 0)
        """Examples of each objective that were left out in the newest epoch; with workers, in their copies alone."""
        self._start = 0
        self._sizes_known = False

    def set_epoch(self, epoch: Any) -> None:
        """The epoch of the next iteration, told to the source too where it has a ``set_epoch()``.

        Raises:
            TypeError, ValueError: No number >= 0.
        """
        epoch = plain.integer_within("epoch", epoch, 0, 2**62)
        if epoch != self.epoch:
            self._start = 0
        self.epoch = epoch

    def state_dict(self, position: Any) -> dict[str, int]:
        """Where the epoch is. ``position``: passes of it that were trained on.

        Raises:
            TypeError, ValueError: An epoch has not so many passes.
        """
        passes = self.schedule.steps * self.schedule.passes
        return {"epoch": self.epoch, "position": plain.integer_within("position", position, 0, passes)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The next iteration has the rest of that epoch. It reads the source up to there, and hands nothing out.

        Raises:
            ValueError: It is no such state.
        """
        if set(state) != {"epoch", "position"}:
            raise ValueError(f"a stream's state has epoch and position; got {sorted(state)}")
        self.epoch = plain.integer_within("epoch", state["epoch"], 0, 2**62)
        self._start = self.state_dict(state["position"])["position"]

    def __len__(self) -> int:
        """Examples of an epoch, on each rank."""
        return self.schedule.steps * self.schedule.passes * self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """The rest of the epoch; in a worker its part."""
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        if workers > 1 and hasattr(self._source, "num_shards"):
            raise RuntimeError(
                f"source ({type(self._source).__name__}) divides its shards among a DataLoader's workers, each of "
                f"which must read all of it here; use num_workers 0 or 1, not {workers}"
            )
        start, self._start = self._start, 0
        for number, batch in enumerate(self._batches()):
            if number >= start and (number - start) % workers == own:
                yield from batch

    def _batches(self) -> Iterator[list[Any]]:
        """This rank's, one a pass. All ranks take all batches in the same order, so they agree on whose is what."""
        self.skipped = dict.fromkeys(self.objectives, 0)
        waiting: dict[Hashable, deque[Any]] = {name: deque() for name in self.objectives}
        examples = self._examples(waiting)
        schedule = self.schedule
        for number in range(schedule.steps * schedule.passes):
            own: list[Any] = []
            for rank in range(schedule.world_size):
                name = self.objectives[schedule.slot(number, rank)[0]]
                while len(waiting[name]) < self.batch_size:
                    next(examples)
                batch = [waiting[name].popleft() for _ in range(self.batch_size)]
                if rank == self.rank:
                    own = batch
            yield own

    def _examples(self, waiting: dict[Hashable, "deque[Any]"]) -> Iterator[None]:
        """Puts the source's examples where they wait, one at a time, over and over."""
        walk = 0
        while True:
            if hasattr(self._source, "set_epoch"):
                self._source.set_epoch(self.epoch + walk)
            found: Counter[Hashable] = Counter()
            for example in self._source:
                name = self._label_of(example)
                if name not in waiting:
                    raise ValueError(f"an example is labelled {name!r}; objectives are {list(self.objectives)}")
                found[name] += 1
                if len(waiting[name]) < self._buffer_size:
                    waiting[name].append(example)
                elif self._surplus == "error":
                    raise RuntimeError(
                        f"{self._buffer_size} examples of {name!r} wait for their turn, and more come: give a larger "
                        "buffer_size, a source that is shuffled, other shares, or surplus='skip'"
                    )
                else:
                    self.skipped[name] += 1
                yield
            if missing := [name for name in self.objectives if name not in found]:
                raise ValueError(f"the source has no example of {missing}")
            if not self._sizes_known:
                self._sizes_known = True
                warn_of_small(found, self.batch_size, self.rank)
            walk += 1
