"""Which objective each rank has in each pass."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from bucket_moo_ext import plain

_MOST = 2**62


def shares_of(shares: object, sizes: Mapping[Hashable, int] | None, objectives: Sequence[Hashable]) -> list[float]:
    """The share of batches of each objective, which add up to 1.

    Args:
        shares: "round_robin", "proportional", a temperature or a mapping, as the samplers take it.
        sizes: Examples of each objective; None: not known.
        objectives: In their order.

    Raises:
        TypeError, ValueError: ``shares`` is none of these, or needs sizes that are not known.
    """
    if isinstance(shares, str) and shares == "round_robin":
        return [1.0 / len(objectives)] * len(objectives)
    if isinstance(shares, Mapping):
        unknown = [name for name in shares if name not in objectives]
        missing = [name for name in objectives if name not in shares]
        if unknown or missing:
            raise ValueError(
                f"shares must have the objectives {list(objectives)}"
                + (f"; it has no share for {missing}" if missing else "")
                + (f"; it also names {unknown}" if unknown else "")
            )
        wanted = [_number(shares[name], f"shares[{name!r}]") for name in objectives]
        return [share / math.fsum(wanted) for share in wanted]
    if shares == "proportional":
        temperature = 1.0
    elif not isinstance(shares, str) and plain.number(shares) is not None and not isinstance(shares, bool):
        temperature = _number(shares, "shares as a temperature")
    else:
        raise TypeError(
            'shares must be "round_robin", "proportional", a temperature > 0 or a mapping from objectives to shares; '
            f"got {shares!r}"
        )
    if sizes is None:
        raise ValueError(
            f"shares={shares!r} needs the size of each objective's corpus, which a stream does not have: give "
            "shares={objective: share}"
        )
    largest = max(sizes[name] for name in objectives)
    powers = [(sizes[name] / largest) ** (1.0 / temperature) for name in objectives]
    return [power / math.fsum(powers) for power in powers]


def _number(value: object, what: str) -> float:
    given = None if isinstance(value, bool) else plain.number(value)
    if given is None or not 0.0 < given < math.inf:
        raise ValueError(f"{what} must be a finite number > 0; got {value!r}")
    return given


def spread(shares: Sequence[float], count: int, room: int) -> torch.Tensor:
    """``count`` numbers of objectives, each as evenly spread as its share allows.

    The j-th turn of an objective of share s is due at (j + 1/2) / s; turns come in the order in which they are due,
    those due together in the order of the objectives. So equal shares go round. Where a step has room for several turns
    but fewer than there are objectives, those due together come in another order each time, so that all pairs meet.

    Args:
        shares: Of each objective; they add up to 1.
        count: Turns.
        room: Turns of a step.

    Returns:
        [count] int64.
    """
    # Others may be late with theirs, by half a turn each.
    turns = [torch.arange(math.ceil((count + len(shares)) * share) + 1, dtype=torch.float64) for share in shares]
    due = torch.cat([(turn + 0.5) / share for turn, share in zip(turns, shares, strict=True)])
    objective = torch.cat([torch.full((len(turn),), k) for k, turn in enumerate(turns)])
    if 1 < room < len(shares):
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(due), generator=generator)
        due, objective = due[order], objective[order]
    return objective[torch.argsort(due, stable=True)][:count]


class Schedule:
    """The objective of every pass and rank of an epoch: the same on every rank, and in every epoch."""

    def __init__(
        self,
        shares: Sequence[float],
        objectives: Sequence[Hashable],
        *,
        per: int,
        passes: int,
        steps: int,
        world_size: int,
    ) -> None:
        """``per``: neighbouring ranks with the same objective in a pass, from ``ranks_per_objective()``.

        Raises ValueError where an objective would have no batch in an epoch.
        """
        self.passes = passes
        self.steps = steps
        self.world_size = world_size
        self._per = per
        self._groups = world_size // per  # that may have different objectives in a pass
        turns = spread(shares, steps * passes * self._groups, passes * self._groups)
        counts = torch.bincount(turns, minlength=len(objectives))
        if (counts == 0).any():
            name = objectives[int(counts.argmin())]
            raise ValueError(
                f"objective {name!r} would have none of the {len(turns)} batches of an epoch, with a share of "
                f"{shares[int(counts.argmin())]:.2g}: give a larger share or more steps"
            )
        self._turns: list[int] = turns.tolist()
        self._before: list[int] = [0] * len(turns)  # batches of the same objective
        had = [0] * len(objectives)
        for turn, k in enumerate(self._turns):
            self._before[turn] = had[k]
            had[k] += per
        self.batches: list[int] = had
        """Of each objective, in an epoch, on all ranks together."""

    def slot(self, number: int, rank: int) -> tuple[int, int]:
        """Of pass ``number`` of the epoch: the objective's number, and how many batches it had before this one."""
        group, place = divmod(rank, self._per)
        turn = number * self._groups + group
        return self._turns[turn], self._before[turn] + place


def ranks_per_objective(per: Any, world_size: int) -> int:
    """How many neighbouring ranks have the same objective in a pass: 1 for "rank", all of them for "pass".

    Raises:
        TypeError, ValueError: ``per`` is neither of these nor a number that divides ``world_size``.
    """
    if isinstance(per, bool) or (ranks := plain.integer(per)) is None:
        word = plain.choice("per", per, ("rank", "pass"), "a number of ranks")
        return 1 if word == "rank" else world_size
    if ranks < 1 or world_size % ranks:
        raise ValueError(
            f"per as a number of neighbouring ranks must divide world_size, {world_size} here; got {ranks}"
        )
    return ranks


def check_place(rank: Any, world_size: Any) -> tuple[int, int]:
    """Rank and world size; None: those of torch.distributed, or of a single process.

    Raises:
        TypeError, ValueError: They are not such numbers; says which.
    """
    distributed = dist.is_available() and dist.is_initialized()
    if world_size is None:
        world_size = dist.get_world_size() if distributed else 1
    world = plain.integer_within("world_size", world_size, 1, _MOST)
    if rank is None:
        rank = dist.get_rank() if distributed else 0
    return plain.integer_within("rank", rank, 0, world - 1), world


def count(name: str, value: object) -> int:
    """A number >= 1. Raises TypeError or ValueError, which names it, for anything else."""
    return plain.integer_within(name, value, 1, _MOST)
