"""The state of a hook: what to solve, for whom, and what came out."""

import atexit
import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from bucket_moo_ext import _C
from bucket_moo_ext.functional import _word
from bucket_moo_ext.methods import Method, describe, resolve
from bucket_moo_ext.process_group import parent_group, private_group
from bucket_moo_ext.report import Report, make_report

_MAX_NAME_BYTES: int = _C.build_info()["max_objective_name_bytes"]


def _check_objective(objective: object) -> None:
    if objective is None:
        return
    if isinstance(objective, bool) or not isinstance(objective, str | int):
        raise TypeError(f"objective must be a string, an int or None; got {type(objective).__name__} {objective!r}")
    allowed = f"objective must be 1 to {_MAX_NAME_BYTES} bytes of UTF-8 without a zero byte"
    try:
        size = len(str(objective).encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{allowed}; got {objective!r}, which UTF-8 cannot hold") from error
    if not 1 <= size <= _MAX_NAME_BYTES or "\0" in str(objective):
        raise ValueError(f"{allowed}; got {size} bytes: {objective!r}")


def _check_weight(weight: object) -> float:
    if isinstance(weight, str | bytes) or not hasattr(weight, "__float__"):
        raise TypeError(f"weight must be a number; got {type(weight).__name__} {weight!r}")
    value = float(weight)
    if not 0 <= value < math.inf:
        raise ValueError(f"weight must be finite and >= 0; got {weight!r}")
    return value


# What is in flight keeps its native state alive. At exit, though, a rank must not wait for peers that may never come.
_live: "weakref.WeakSet[_C.State]" = weakref.WeakSet()


@atexit.register
def _shut_down() -> None:
    for native in list(_live):
        native.shutdown()


class BucketMOO:
    """Configuration and state of a conflict-aware reduction over one process group.

    Args:
        method: A name of ``available_methods()`` or a method object. The same on every rank.
        objective: What this rank's gradient belongs to: a name (at most 63 bytes of UTF-8) or an int (the same as its
            decimal text). Ranks that name the same objective share it. None: the rank itself is the objective. At most
            64 objectives. May be changed for every step.
        weight: Weight of this rank inside its objective, finite and >= 0, for example its number of target tokens.
            A rank of weight 0 is left out: its gradient is not read. May be changed for every step.
        gramian: "exact". The same on every rank.
        process_group: The ranks to reduce over; None: the default group. With DDP over a sub-group, that sub-group.
        seed: Key of the methods' random choices, 0 to 2**64 - 1. The same on every rank.
        bucket_cap_mb: The ``bucket_cap_mb`` that DDP was made with, >= 0 (``register`` reads it off the module). DDP's
            first iteration puts all gradients in one bucket; a bucket above this cap plus its largest parameter is
            exchanged in pieces, at up to 1.5 times the traffic, so that scratch memory stays near that of one regular
            bucket. The same on every rank.

    Raises:
        TypeError, ValueError: A bad argument, named, with what is allowed.
    """

    def __init__(
        self,
        method: str | Method = "mgda",
        *,
        objective: str | int | None = None,
        weight: float = 1.0,
        gramian: str = "exact",
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
        bucket_cap_mb: float = 25.0,
    ) -> None:
        self._method = resolve(method)
        if gramian != "exact":
            raise ValueError(f"gramian must be 'exact'; got {gramian!r}")
        self._gramian = gramian
        self._seed = _word("seed", seed)
        if isinstance(bucket_cap_mb, bool) or not isinstance(bucket_cap_mb, int | float):
            raise TypeError(f"bucket_cap_mb must be a number; got {type(bucket_cap_mb).__name__}")
        if not 0 <= bucket_cap_mb < math.inf:
            raise ValueError(f"bucket_cap_mb must be finite and >= 0; got {bucket_cap_mb!r}")
        self._bucket_cap_mb = float(bucket_cap_mb)
        self._process_group = process_group
        self._native: _C.State | None = None
        self._step = 0
        self._named: list[tuple[str, torch.Tensor]] = []  # until there is a native state
        self.objective = objective
        self.weight = weight

    @property
    def method(self) -> Method:
        """The method, with its parameters."""
        return self._method

    @property
    def objective(self) -> str | int | None:
        """What this rank's gradient belongs to, from the next step on."""
        return self._objective

    @objective.setter
    def objective(self, objective: str | int | None) -> None:
        _check_objective(objective)
        self._objective = objective
        if self._native is not None:
            self._native.set_objective(self._objective_name())

    @property
    def weight(self) -> float:
        """Weight of this rank inside its objective, from the next step on."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        value = _check_weight(weight)
        self._weight = value
        if self._native is not None:
            self._native.set_weight(value)

    @property
    def step(self) -> int:
        """Steps so far: backward passes that reduced, and calls of the collectives, refused ones among them."""
        return self._step if self._native is None else self._native.step

    def name_parameters(self, named_parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Gives parameters the names that ``report()`` shows: ``state.name_parameters(model.named_parameters())``.

        ``register`` does this by itself; with ``register_comm_hook`` parameters are shown by their shapes otherwise.
        """
        self._named.extend(named_parameters)
        if self._native is not None:
            self._native.name_parameters(self._named)
            self._named.clear()

    def report(self) -> Report:
        """What was solved in the newest step, bucket by bucket, as this rank knows it (all ranks know the same).

        Complete once ``backward()`` has returned. Costs a small solve a bucket; sends nothing.

        Raises:
            RuntimeError: Nothing was reduced yet.
        """
        records = [] if self._native is None else self._native.records()
        if self._native is None or not records:
            raise RuntimeError("there is nothing to report: no bucket was reduced yet")
        return make_report(describe(self._method), records, self._native.counters())

    def memory(self) -> int:
        """Bytes of scratch memory that the reductions hold."""
        return 0 if self._native is None else self._native.scratch_bytes()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the step that random choices are keyed by.

        With it a resumed run makes the choices of an uninterrupted one wherever the buckets are the same; a fresh DDP
        module has one bucket in its first iteration, so run one backward pass, whose gradients are thrown away, before
        ``load_state_dict``.
        """
        return {"step": self.step, "method": describe(self._method), "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``. To be called on every rank.

        Raises:
            ValueError: The dict lacks ``step``, or was saved with another method or seed.
        """
        mine = self.state_dict()
        missing = mine.keys() - state_dict.keys()
        if missing:
            raise ValueError(f"state_dict lacks {', '.join(sorted(missing))}")
        for field in ("method", "seed"):
            if state_dict[field] != mine[field]:
                raise ValueError(
                    f"state_dict was saved with {field} {state_dict[field]!r}, this state has {mine[field]!r}"
                )
        step = state_dict["step"]
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(f"state_dict: step must be an integer >= 0; got {step!r}")
        self._step = step
        if self._native is not None:
            self._native.step = self._step

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the process group and what hangs on it; the copy uses the default group."""
        return {
            "method": self._method,
            "objective": self._objective,
            "weight": self._weight,
            "gramian": self._gramian,
            "seed": self._seed,
            "bucket_cap_mb": self._bucket_cap_mb,
            "step": self.step,
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Restores ``__getstate__``."""
        step = saved.pop("step")
        self.__init__(**saved)  # type: ignore[misc]
        self._step = step

    def __repr__(self) -> str:
        """One line."""
        return (
            f"BucketMOO({describe(self._method)}, objective={self._objective!r}, weight={self._weight!r}, "
            f"gramian={self._gramian!r}, seed={self._seed}, step={self.step})"
        )

    def _objective_name(self) -> str:
        if self._objective is not None:
            return str(self._objective)
        return str(parent_group(self._process_group).rank())

    def _bound(self) -> _C.State:
        """The native state; the first call makes it, which is collective over the group."""
        if self._native is None:
            parent = parent_group(self._process_group)
            objective = self._objective_name()
            own = private_group(parent)
            configuration = [
                ("method", describe(self._method)),
                ("gramian", self._gramian),
                ("seed", str(self._seed)),
                ("bucket_cap_mb", repr(self._bucket_cap_mb)),
                ("version", str(_C.build_info()["version"])),
            ]
            cap = min(round(self._bucket_cap_mb * 2**20), 2**60)
            native = _C.State(own, self._method._native(), self._seed, cap, configuration)
            native.set_objective(objective)
            native.set_weight(self._weight)
            native.step = self._step
            native.name_parameters(self._named)
            self._named.clear()
            self._native = native
            _live.add(native)
        return self._native
