"""Samplers over a data set with labels: every batch has examples of one objective."""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler

from bucket_moo_ext import plain
from bucket_moo_ext.data.corpora import warn_of_small
from bucket_moo_ext.data.schedule import Schedule, check_place, count, ranks_per_objective, shares_of

_Item = TypeVar("_Item", covariant=True)


class _Sampling(Sampler[_Item]):
    """What both samplers are: a schedule, and an order of every objective's examples."""

    def __init__(
        self,
        labels: Sequence[Hashable],
        batch_size: Any,
        *,
        per: Any = "rank",
        passes: Any = 1,
        shares: Any = "round_robin",
        objectives: Sequence[Hashable] | None = None,
        steps: Any = None,
        rank: Any = None,
        world_size: Any = None,
        seed: Any = 0,
    ) -> None:
        self.batch_size = count("batch_size", batch_size)
        passes = count("passes", passes)
        self.rank, world_size = check_place(rank, world_size)
        per = ranks_per_objective(per, world_size)
        self._seed = plain.word("seed", seed)
        self._examples = _by_label(labels, objectives)
        sizes = {name: len(examples) for name, examples in self._examples.items()}
        warn_of_small(sizes, self.batch_size, self.rank)
        self.objectives: tuple[Hashable, ...] = tuple(self._examples)
        if steps is None:
            of_step = self.batch_size * passes * world_size
            steps = max(1, sum(sizes.values()) // of_step)
        self.schedule = Schedule(
            shares_of(shares, sizes, self.objectives),
            self.objectives,
            per=per,
            passes=passes,
            steps=count("steps", steps),
            world_size=world_size,
        )
        self._orders: dict[Hashable, tuple[int, torch.Tensor]] = {}  # the newest of each objective
        self.epoch = 0
        self._start = 0  # pass to begin with
        self._position = 0  # passes handed out

    def set_epoch(self, epoch: Any) -> None:
        """The epoch that the next iteration goes through: to be called on every rank, as for DistributedSampler.

        Raises:
            TypeError, ValueError: No number >= 0.
        """
        epoch = plain.integer_within("epoch", epoch, 0, 2**62)
        if epoch != self.epoch:
            self.epoch = epoch
            self._start = self._position = 0

    def objective(self, step: Any, pass_: Any = 0, rank: Any = None) -> Hashable:
        """The label that a rank has in a pass of a step of the epoch: known on all ranks.

        Args:
            step: 0 to ``steps - 1``.
            pass_: Of the step, from 0.
            rank: None: this one.

        Raises:
            TypeError, ValueError: There is no such step, pass or rank.
        """
        schedule = self.schedule
        step = plain.integer_within("step", step, 0, schedule.steps - 1)
        pass_ = plain.integer_within("pass_", pass_, 0, schedule.passes - 1)
        rank = self.rank if rank is None else plain.integer_within("rank", rank, 0, schedule.world_size - 1)
        return self.objectives[schedule.slot(step * schedule.passes + pass_, rank)[0]]

    def state_dict(self, position: Any = None) -> dict[str, int]:
        """Where the epoch is, for ``load_state_dict()``; the same on every rank.

        Args:
            position: Passes of this epoch that were trained on; None: those handed out so far, of which workers of a
                DataLoader ask for some ahead.

        Raises:
            TypeError, ValueError: An epoch has not so many passes.
        """
        passes = self.schedule.steps * self.schedule.passes
        position = self._position if position is None else plain.integer_within("position", position, 0, passes)
        return {"epoch": self.epoch, "position": position, "passes": passes, "batch_size": self.batch_size}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where ``state_dict()`` was: the next iteration has the rest of that epoch.

        Raises:
            ValueError: It is of a sampler with another batch size or number of passes.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"a sampler's state has {sorted(own)}; got {sorted(state)}")
        for field in ("passes", "batch_size"):
            if state[field] != own[field]:
                raise ValueError(f"the state is of a sampler with {field} {state[field]}; this one has {own[field]}")
        self.epoch = plain.integer_within("epoch", state["epoch"], 0, 2**62)
        self._start = self._position = plain.integer_within("position", state["position"], 0, own["passes"])

    def _passes(self) -> Iterator[int]:
        """Numbers of the passes that are left of the epoch."""
        start, self._start = self._start, 0
        for number in range(start, self.schedule.steps * self.schedule.passes):
            self._position = number + 1
            yield number
        self._position = 0

    def _batch(self, number: int, rank: int) -> list[int]:
        """Indices of the examples of a rank's batch in a pass of the epoch."""
        objective, before = self.schedule.slot(number, rank)
        name = self.objectives[objective]
        first = (self.epoch * self.schedule.batches[objective] + before) * self.batch_size
        size = len(self._examples[name])
        places = range(first, first + self.batch_size)
        return [self._examples[name][self._drawn(name, place // size, place % size)] for place in places]

    def _drawn(self, name: Hashable, walk: int, place: int) -> int:
        """Of an objective's examples, that at `place` of their order in their walk number `walk`."""
        known = self._orders.get(name)
        if known is None or known[0] != walk:
            key = hashlib.sha256(f"{self._seed} {walk} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
            known = walk, torch.randperm(len(self._examples[name]), generator=generator)
            self._orders[name] = known
        return int(known[1][place])


def _by_label(labels: Any, objectives: Sequence[Hashable] | None) -> dict[Hashable, list[int]]:
    """Indices of each objective's examples, in the order of the objectives."""
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(labels, (str, bytes)) or not hasattr(labels, "__len__"):
        raise TypeError(f"labels must be a sequence with the label of every example; got {type(labels).__name__}")
    if len(labels) == 0:
        raise ValueError("labels is empty: there is no example")
    found: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        name = label if isinstance(label, str) else plain.integer(label)
        if name is None:
            raise TypeError(f"labels must be strings or ints; labels[{index}] is {type(label).__name__} {label!r}")
        found.setdefault(name, []).append(index)
    if objectives is None:
        return {name: found[name] for name in sorted(found, key=lambda name: (isinstance(name, str), name))}
    if isinstance(objectives, (str, bytes)) or len(set(objectives)) != len(objectives) or not objectives:
        raise ValueError(f"objectives must be distinct labels, one at least; got {objectives!r}")
    if missing := [name for name in objectives if name not in found]:
        raise ValueError(f"objectives: there is no example of {missing}; the labels are {sorted(map(str, found))}")
    if unknown := [name for name in found if name not in objectives]:
        raise ValueError(
            f"objectives: examples are labelled {unknown}, which is none of {list(objectives)}; leave them out of the "
            "data set, or name them"
        )
    return {name: found[name] for name in objectives}


class ObjectiveBatchSampler(_Sampling[list[int]]):
    """Batches of one objective for this rank: the ``batch_sampler`` of a DataLoader.

    ::

        sampler = ObjectiveBatchSampler(dataset["language"], batch_size=8, passes=2)
        for batch in DataLoader(dataset, batch_sampler=sampler):
            ...

    **The schedule.** An epoch has ``steps`` steps of ``passes`` passes, the same on every rank. With ``per="rank"``
    ranks may have different objectives in a pass (``layout="ranks"``), with ``per="pass"`` all have the same
    (``layout="passes"``), with ``per=8`` every 8 neighbouring ranks do (``mesh=`` with nodes of 8). Turns are spread as
    evenly as the shares allow, without chance: with equal shares objectives go round, so that each occurs in every step
    where there are no more of them than ``passes`` times ranks (or ``passes``, or ``passes`` times nodes).

    **The examples.** Every objective's are taken in a random order, without replacement; when all were taken they
    are shuffled anew, within an epoch if need be. The next epoch goes on where this one ends: so every example of a
    large corpus is met, over several epochs, as often as any other of it, up to one time. A batch has ``batch_size``
    examples always: of a corpus that is smaller, some twice, which a warning says once, on rank 0. No two ranks get
    the same ones.

    Everything is a function of seed, epoch and arguments: the same in every process, whatever was drawn before.

    Args:
        labels: [n] of each example: str or int; a list, an array, a tensor, a column of a Hugging Face data set.
        batch_size: Examples of a rank's batch in a pass.
        per: "rank" (1), "pass" (all), or how many neighbouring ranks, from rank 0, have the same objective in a pass:
            it must divide the number of ranks.
        passes: Of a step (gradient accumulation).
        shares: Of the batches, for each objective: "round_robin": equal ones. "proportional": as the corpora are. A
            temperature T > 0: in proportion to n^(1/T), as multilingual training has it (1: proportional; towards
            infinity: equal). Or a mapping from labels to numbers > 0, of any sum.
        objectives: The labels in their order; None: those that occur, sorted, ints before strings.
        steps: Of an epoch; None: as many as have the examples of the data set in their batches, rounded down, at least
            one.
        rank, world_size: None: those of torch.distributed where it is initialised, else 0 and 1.
        seed: 0 to 2**64 - 1. The same on every rank.

    Raises:
        TypeError, ValueError: A bad argument, named, with what is allowed; an objective without examples, or with so
            small a share that it has no batch in an epoch.
    """

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of the epoch."""
        for number in self._passes():
            yield self._batch(number, self.rank)

    def __len__(self) -> int:
        """Batches of an epoch, on each rank."""
        return self.schedule.steps * self.schedule.passes


class ObjectiveSampler(_Sampling[int]):
    """The same as one order of the examples of all ranks, for those who cut it into batches and deal them themselves.

    Batch ``i`` of ``batch_size`` indices is that of rank ``i mod world_size``, as ``transformers.Trainer`` and
    Accelerate deal them (``BatchSamplerShard`` with ``split_batches=False``). Arguments and errors are those of
    ``ObjectiveBatchSampler``.
    """

    def __iter__(self) -> Iterator[int]:
        """The rest of the epoch: rank after rank, pass after pass."""
        for number in self._passes():
            for rank in range(self.schedule.world_size):
                yield from self._batch(number, rank)

    def __len__(self) -> int:
        """Examples of an epoch, on all ranks together."""
        return self.schedule.steps * self.schedule.passes * self.schedule.world_size * self.batch_size
