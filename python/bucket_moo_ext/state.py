"""The state of a hook: what to solve, for whom, and what came out."""

import atexit
import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeAlias

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bucket_moo_ext import _C
from bucket_moo_ext.gramian_source import GramianSource, Sketch, check_source, choose
from bucket_moo_ext.levels import read_levels
from bucket_moo_ext.method_options import refuse_method_options
from bucket_moo_ext.methods import Method, describe, resolve
from bucket_moo_ext.model_parallel import ModelParallel
from bucket_moo_ext.plain import choice, flag, integer, is_finite, number, text, word
from bucket_moo_ext.process_group import device_group, level_groups, parent_group, private_group
from bucket_moo_ext.report import Report, Setup, make_report
from bucket_moo_ext.scope import Scope

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_Bucket: TypeAlias = tuple[list[str], list[str], list[float]]  # parameters, objectives and values of a solver state

_MAX_STEPS = 2**62  # steps to come are counted in 64 bits too
_MAX_NAME_BYTES: int = _C.build_info()["max_objective_name_bytes"]


def _check_objective(objective: object) -> str | int | None:
    """The objective as a plain string or int."""
    if objective is None:
        return None
    plain = text(objective) if isinstance(objective, str) else integer(objective)
    if plain is None:
        raise TypeError(f"objective must be a string, an int or None; got {type(objective).__name__} {objective!r}")
    allowed = f"objective must be 1 to {_MAX_NAME_BYTES} bytes of UTF-8 without a zero byte"
    try:
        size = len(str(plain).encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{allowed}; got {objective!r}, which UTF-8 cannot hold") from error
    if not 1 <= size <= _MAX_NAME_BYTES or "\0" in str(plain):
        raise ValueError(f"{allowed}; got {size} bytes: {objective!r}")
    return plain


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _check_weight(weight: object) -> float:
    value = number(weight)
    if value is None:
        raise TypeError(f"weight must be a number; got {type(weight).__name__} {weight!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"weight must be finite and >= 0; got {weight!r}")
    return value


def _check_totals(totals: object) -> list[tuple[str, float]]:
    """The totals of a step as the native state takes them; none if they are None."""
    if totals is None:
        return []
    if not isinstance(totals, Mapping):
        raise TypeError(f"totals must be a mapping from objectives to numbers; got {type(totals).__name__}")
    if not totals:
        raise ValueError("totals must name an objective; got none. Where they are not known leave totals out")
    checked: dict[str, float] = {}
    for objective, total in totals.items():
        try:
            name, value = str(_check_objective(objective)), number(total)
        except (TypeError, ValueError) as error:
            raise type(error)(f"totals: {error}") from None
        if objective is None or value is None:
            raise TypeError(f"totals must be a mapping from objectives to numbers; got {objective!r}: {total!r}")
        if not 0 <= value < math.inf:
            raise ValueError(f"totals[{objective!r}] must be finite and >= 0; got {total!r}")
        if name in checked:
            raise ValueError(f"totals has objective {name!r} twice")
        checked[name] = value
    return list(checked.items())


def _check_buckets(buckets: object, method: Method) -> list[_Bucket]:
    """The solver states of a state dict, as the native state takes them."""
    if not isinstance(buckets, list):
        raise ValueError(f"state_dict: buckets must be a list; got {type(buckets).__name__}")
    checked: list[_Bucket] = []
    seen: set[str] = set()
    for place, bucket in enumerate(buckets):
        where = f"state_dict: buckets[{place}]"
        if not isinstance(bucket, dict) or bucket.keys() != {"parameters", "objectives", "values"}:
            raise ValueError(f"{where} must be a dict of parameters, objectives and values; got {bucket!r:.200}")
        names = {field: bucket[field] for field in ("parameters", "objectives")}
        for field, given in names.items():
            if not isinstance(given, list) or not all(isinstance(name, str) and _is_utf8(name) for name in given):
                raise ValueError(f"{where}: {field} must be a list of strings of UTF-8; got {given!r:.200}")
            if len(set(given)) != len(given):
                raise ValueError(f"{where}: {field} must be distinct; got {given!r:.200}")
        for name in bucket["objectives"]:
            try:
                _check_objective(name)
            except ValueError as error:
                raise ValueError(f"{where}: objectives: {error}") from None
        if not bucket["parameters"] or not seen.isdisjoint(bucket["parameters"]):
            raise ValueError(f"{where}: parameters must be at least one, in no other bucket; got {names!r:.200}")
        seen.update(bucket["parameters"])
        size = method._native().state_size(len(bucket["objectives"]))
        values = bucket["values"]
        if not isinstance(values, list) or len(values) != size or not all(is_finite(value) for value in values):
            raise ValueError(
                f"{where}: values must be a list of {size} finite numbers for {len(bucket['objectives'])} objectives; "
                f"got {values!r:.200}"
            )
        checked.append((bucket["parameters"], bucket["objectives"], [float(value) for value in values]))
    return checked


# What is in flight keeps its native state alive. At exit, though, a rank must not wait for peers that may never come.
# Nor may a forked child touch what its parent goes on with.
_live: "weakref.WeakSet[_C.Engine]" = weakref.WeakSet()


@atexit.register
def _shut_down() -> None:
    for engine in list(_live):
        if engine.is_at_home():
            engine.shutdown()


# States with an open step, which an optimizer must not come between.
_accumulated: "weakref.WeakSet[BucketMOO]" = weakref.WeakSet()


@functools.cache
def _watch_optimizers() -> None:
    """Makes every optimizer refuse a step with parameters whose gradients are put aside."""

    def check(optimizer: torch.optim.Optimizer) -> None:
        for state in list(_accumulated):
            if any(id(p) in state._parameters for group in optimizer.param_groups for p in group["params"]):
                state._check_closed("optimizer.step()")

    def check_or_wrap(
        optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure") or next(iter(args[1:]), None)  # behind the optimizer itself
        if not callable(closure):
            check(optimizer)
            return None

        @functools.wraps(closure)
        def closing() -> Any:  # the closure may run the pass that closes the step
            result = closure()
            check(optimizer)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closing}
        return (args[0], closing, *args[2:]), kwargs

    register_optimizer_step_pre_hook(check_or_wrap)


class BucketMOO:
    """Configuration and state of a conflict-aware reduction over one process group.

    Args:
        method: A name of ``available_methods()`` or a method object. The same on every rank. ``GradVac`` and
            ``Smoothed`` remember every bucket, by the parameters that it holds and by objective names.
        objective: What this rank's gradient belongs to: a name (at most 63 bytes of UTF-8) or an int (the same as its
            decimal text), NumPy's or an enumeration's too. Ranks that name the same objective share it. None: the rank
            itself is the objective; with a mesh, its place along ``objectives``. At most 64 objectives. May be changed
            for every step.
        weight: Weight of this rank inside its objective, finite and >= 0, for example its number of target tokens.
            A rank of weight 0 is left out: its gradient is not read. May be changed for every step.
        gramian: How a bucket's Gramian is found: "exact"; a ``Sketch``, which estimates it at the price of an ordinary
            all-reduce; or "auto": exact where all ranks are on one node and at most 16, else ``Sketch()``. The same on
            every rank. ``report()`` says what was used.
        layout: How objectives are laid out over ranks and passes. "ranks": a pass may have other objectives on other
            ranks; "passes": every pass has one objective on all ranks, which is checked. The same on every rank.
        scope: Which parameters share weights, from one problem for the sum of their Gramians: those of a "bucket"; all
            of the "model"; each "parameter" has its own; or a function from a parameter's name to a group (a string or
            an int), ``lambda name: name.split(".")[2]`` for layers say. But for "bucket" results do not depend on how
            the gradients are cut into buckets, up to rounding. A group waits for its last bucket. Direct calls of the
            collectives have no parameters: each is a problem. The same groups on every rank. See docs/semantics.md.
        support: Whether parameters that share weights are split further by the objectives whose gradients are not
            exactly zero there, in this step: a language's own head, adapter or expert has a problem of its own and does
            not disturb that of the rest. At most 16 problems a group; parameters with yet another support join that of
            all objectives. A part that is split off has weights on the scale that ``private_scale`` says. The same on
            every rank.
        private_scale: With ``support``. "mean": weights that a method finds for A of K objectives are multiplied by A/K
            (by their share of the preference, where there is one), so that a parameter of one objective alone gets its
            gradient over K, as under DDP, and one learning rate serves for all. "active": they are not, and it gets all
            of it. Nothing is multiplied for methods whose update is on the scale of a sum rather than of a mean
            (NashMTL, FairGrad, ConFIG, Adasum, PCGrad with ``reduction="sum"``) and for Mean, which counts all
            objectives anyway. The same on every rank.
        row_norms: Whether the norm of every row, of a rank in a pass, is taken too. ``report()`` then has ``signal``,
            in which the noise of the rows is not: an unbiased estimate for objectives of several rows. Rows are read
            once more for it. For reductions in host memory. The same on every rank. See docs/observe.md.
        mesh: A DeviceMesh with named dimensions, of all ranks of ``process_group``, if ranks share objectives along
            some of them: reductions then have two levels. Ranks along the dimensions that ``objectives`` does not name
            must have the same objective in a pass, which is checked; their weights may differ. They first take the
            mean of their gradients by an ordinary reduce-scatter, each rank reduces its part across objectives, with
            the Gramian of the whole, and an all-gather puts the parts together. Results are those without a mesh, up to
            rounding; a rank sends as many bytes, but 1/I of them to other objectives where I ranks share one. With the
            exact Gramian ("auto" chooses that). On a GPU its ranks must ascend along ``objectives`` and along the other
            dimensions, as those of ``init_device_mesh`` do. The same on every rank.
        objectives: The dimension of ``mesh`` along which objectives differ, or a tuple of several.
        process_group: The ranks to reduce over; None: the default group. With DDP over a sub-group, that sub-group.
        model_parallel_group: The ranks that hold the other pieces of this rank's model, itself among them, under tensor
            parallelism: a group that is at right angles to ``process_group``. The Gramians of all pieces are added, so
            that all of them use the weights of the whole model. All of these ranks reduce the same buckets, of
            parameters with the same names and whatever sizes, in the same order, and have the same objective and
            weight; both are compared. Each holds a part of the elements of a parameter, or all of it (``replicated``).
            For DDP, ``fully_shard()`` and direct calls, with the exact Gramian and without ``mesh``. On a GPU it has a
            backend for that, and after the first step what differs between pieces is an error of the step, as between
            ranks. A copy of a state has none, and says so when it is used.
        replicated: A function of a parameter's name: whether all ranks of ``model_parallel_group`` have copies of it
            (norms, biases of row-parallel layers), with the same gradient. Then it counts once. None: where parameters
            are pieces of DTensors, those that are not; else none.
        seed: Key of the methods' random choices, 0 to 2**64 - 1. The same on every rank.
        bucket_cap_mb: The ``bucket_cap_mb`` that DDP was made with, >= 0 (``register`` reads it off the module). DDP's
            first iteration puts all gradients in one bucket; a bucket above this cap plus its largest parameter is
            exchanged in pieces, at up to 1.5 times the traffic, so that scratch memory stays near that of one regular
            bucket. The same on every rank.

    A state works in the process that made it. In a forked child what needs it raises RuntimeError.

    Raises:
        TypeError, ValueError: A bad argument, named, with what is allowed.
    """

    @refuse_method_options
    def __init__(
        self,
        method: str | Method = "mgda",
        *,
        objective: str | SupportsIndex | None = None,
        weight: SupportsFloat = 1.0,
        gramian: str | Sketch = "exact",
        layout: str = "ranks",
        scope: str | Callable[[str], str | int] = "bucket",
        support: bool = False,
        private_scale: str = "mean",
        row_norms: bool = False,
        mesh: "DeviceMesh | None" = None,
        objectives: str | tuple[str, ...] | None = None,
        process_group: dist.ProcessGroup | None = None,
        model_parallel_group: dist.ProcessGroup | None = None,
        replicated: Callable[[str], bool] | None = None,
        seed: SupportsIndex = 0,
        bucket_cap_mb: SupportsFloat = 25.0,
    ) -> None:
        self._method = resolve(method)
        self._gramian: GramianSource = check_source(gramian)
        self._estimator = ""  # what that came to, once there is a native state
        self._layout = choice("layout", layout, ("ranks", "passes"))
        self._scope = Scope(scope, support, private_scale)
        if self._scope.has_parts and isinstance(self._gramian, Sketch):
            raise NotImplementedError(
                "scope='parameter', a function as scope and support=True are not supported with a Sketch yet; use "
                "gramian='exact'"
            )
        self._row_norms = flag("row_norms", row_norms)
        self._levels = read_levels(mesh, objectives)
        self._mesh = mesh  # a copy has none, but its levels
        if self._levels is not None and isinstance(self._gramian, Sketch):
            raise NotImplementedError("mesh is not supported with a Sketch yet; use gramian='exact'")
        self._pieces = ModelParallel(model_parallel_group, replicated)
        if self._pieces.is_given and (self._levels is not None or isinstance(self._gramian, Sketch)):
            raise NotImplementedError(
                "model_parallel_group is not supported with mesh= or a Sketch yet; use gramian='exact' without mesh="
            )
        self._had_pieces = False  # as a copy of another state
        self._seed = word("seed", seed)
        cap = None if isinstance(bucket_cap_mb, bool) else number(bucket_cap_mb)
        if cap is None:
            raise TypeError(f"bucket_cap_mb must be a number; got {type(bucket_cap_mb).__name__}")
        if not 0 <= cap < math.inf:
            raise ValueError(f"bucket_cap_mb must be finite and >= 0; got {bucket_cap_mb!r}")
        self._bucket_cap_mb: float = cap + 0.0  # no -0.0: ranks compare the text
        self._process_group: dist.ProcessGroup | None = process_group
        self._made: _C.Engine | None = None  # use _engine
        self._ddp_buckets: _C.DdpBuckets | None = None
        self._device: torch.device | None = None  # of the engine
        self._accumulating = False
        self._totals: list[tuple[str, float]] = []  # of the steps that begin now
        self._is_alone = False  # one process, without a process group
        self._step: int = 0
        self._saved_buckets: list[_Bucket] = []  # until there is an engine
        # Those that have names, by their identity: tensors have no other equality.
        self._parameters: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self._named: list[tuple[str, torch.Tensor]] = []  # until there is somebody to tell
        self.objective = objective
        self.weight = weight

    @property
    def _engine(self) -> _C.Engine | None:
        """The native engine, once there is one.

        Raises:
            RuntimeError: This is a fork of the process that made it.
        """
        if self._made is not None:
            self._made.check_at_home()
        return self._made

    @property
    def method(self) -> Method:
        """The method, with its parameters."""
        return self._method

    @property
    def gramian(self) -> str | Sketch:
        """How a bucket's Gramian is found."""
        return self._gramian

    @property
    def layout(self) -> str:
        """How objectives are laid out over ranks and passes."""
        return self._layout

    @property
    def scope(self) -> str | Callable[[str], str | int]:
        """Which parameters share weights."""
        return self._scope.given

    @property
    def support(self) -> bool:
        """Whether parameters that other objectives depend on have weights of their own."""
        return self._scope.support

    @property
    def private_scale(self) -> str:
        """The scale of weights for a part of the objectives."""
        return self._scope.private_scale

    @property
    def row_norms(self) -> bool:
        """Whether the norms of rows are taken, for the signal in reports."""
        return self._row_norms

    @property
    def objective(self) -> str | int | None:
        """What this rank's gradient belongs to, from the next pass on."""
        return self._objective

    @objective.setter
    def objective(self, objective: str | SupportsIndex | None) -> None:
        plain = _check_objective(objective)
        if self._engine is not None:
            self._engine.set_objective(self._objective_name(plain))
        self._objective = plain

    @property
    def objective_name(self) -> str:
        """What reports call the objective of this rank's next pass.

        Raises:
            RuntimeError: It is the rank's number, and there is no process group yet.
        """
        return self._objective_name(self._objective)

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The ranks to reduce over; None for a plain module in one process.

        Raises:
            RuntimeError: There is no process group yet.
        """
        return None if self._is_alone else parent_group(self._process_group)

    @property
    def weight(self) -> float:
        """Weight of this rank inside its objective, from the next pass on."""
        return self._weight

    @weight.setter
    def weight(self, weight: SupportsFloat) -> None:
        value = _check_weight(weight)
        if self._engine is not None:
            self._engine.set_weight(value)
        self._weight = value

    @property
    def step(self) -> int:
        """Steps so far: backward passes that reduced, and calls of the collectives, refused ones among them."""
        return self._step if self._engine is None else self._engine.step

    @contextlib.contextmanager
    def accumulate(
        self, totals: Mapping[str, SupportsFloat] | Mapping[int, SupportsFloat] | None = None
    ) -> Iterator[None]:
        """Backward passes inside leave their step open; the first one outside closes it.

        A step of several passes, used as DDP's ``no_sync()``. In every pass each rank stands for one objective with one
        weight, and both may change from pass to pass::

            with state.accumulate():
                state.objective = "de"
                loss(model(german)).backward()
            state.objective = "sw"
            loss(model(swahili)).backward()  # closes the step
            optimizer.step()

        What a rank brings in a pass is a row. An objective's gradient is the weighted mean of its rows over ranks and
        passes, so any number of objectives (up to 64) goes with any number of ranks. A pass inside hands back zeros:
        what it brought is put aside, as a sum for every objective of this rank's shard, in float32 (float64 for
        float64). After the closing pass ``.grad`` is the answer. All ranks must agree on which passes close a step; a
        pass is to use the same parameters as the ones before it, or no gradient for some of them.

        ``no_sync()`` keeps its meaning inside: what it accumulates is one row. A direct call of a collective is a pass
        of its bucket. Needs no ``zero_grad()`` between the passes of a step.

        With a ``Sketch`` the sketches are put aside so. The rows themselves stay on their rank up to the closing pass,
        as a sum for each objective that the rank has had. ``totals`` spares that memory where weights are kept
        (``lag=1``, or ``refresh_every`` in a step that does not solve): what a row counts for is then known as it
        comes, and all go into one sum.

        Args:
            totals: What the weights of each objective's rows add up to, over all ranks and passes of the step that is
                begun: with weights of 1 the number of rows. The same on every rank; that of a step's first pass counts.
                With ``lag=1`` the first step, for which no weights are kept yet, is the mean of the objectives then.
                None: not known beforehand.

        Raises:
            TypeError, ValueError: ``totals`` is no mapping from objectives to finite numbers >= 0.
            ValueError: From ``backward()``, on every rank: ranks that disagree on whether the step is open or on
                ``totals``, rows that do not add up to ``totals``, or more than 64 objectives. On a GPU the results of
                such a step are NaN, and a later step raises.
            RuntimeError: From ``optimizer.step()`` while the step is open, for parameters that ``register`` or
                ``name_parameters`` has seen.
        """
        checked = _check_totals(totals)
        _watch_optimizers()
        _accumulated.add(self)
        before = self._accumulating, self._totals
        self._set_accumulating(True, checked)
        try:
            yield
        finally:
            self._set_accumulating(*before)

    def _set_accumulating(self, accumulating: bool, totals: list[tuple[str, float]]) -> None:
        if self._engine is not None:
            self._engine.set_accumulating(accumulating, totals)
        self._accumulating, self._totals = accumulating, totals

    def backward(
        self, losses: Mapping[str, torch.Tensor] | Mapping[int, torch.Tensor], *, retain_graph: bool = False
    ) -> None:
        """A step of one backward pass for each objective: ``state.backward({"de": loss_de, "sw": loss_sw})``.

        The same as the passes one by one, under ``accumulate()`` but for the last; in one process with ``totals``,
        which are known. For a module without a wrapper the losses may share a forward pass, whose graph is kept up to
        the last of them; DDP needs a forward pass for each backward pass, so losses of one DDP module must not be
        computed ahead of it.

        Args:
            losses: A scalar for each objective, in the order of the passes.
            retain_graph: Keep the graph after the last pass too.

        Raises:
            TypeError, ValueError: No losses, or one that is no scalar or needs no gradient: before any pass.
        """
        if not isinstance(losses, Mapping):
            raise TypeError(f"losses must be a mapping from objectives to scalar tensors; got {type(losses).__name__}")
        if not losses:
            raise ValueError("losses must have an objective at least; got none")
        for name, loss in losses.items():
            _check_objective(name)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise ValueError(f"losses[{name!r}] must be a scalar tensor that requires a gradient; got {got}")
        before, last = self._objective, list(losses)[-1]
        is_whole_step = self._is_alone and not self._accumulating and not self._open_passes()
        totals = self._totals_of(losses) if is_whole_step else None
        try:
            for name, loss in losses.items():
                self.objective = name
                with contextlib.nullcontext() if name == last else self.accumulate(totals):
                    torch.autograd.backward(loss, retain_graph=retain_graph or name != last)
        finally:
            self.objective = before

    def _totals_of(self, objectives: Iterable[object]) -> dict[str, float] | None:
        """For a step of a row for each of them; None where nothing is to be gained by telling."""
        if not (isinstance(self._gramian, Sketch) and (self._gramian.lag or self._gramian.refresh_every > 1)):
            return None
        totals: dict[str, float] = {}
        for objective in objectives:
            name = str(_check_objective(objective))
            totals[name] = totals.get(name, 0.0) + self._weight
        return totals

    def discard(self) -> None:
        """Gives up what an open step has put aside, so that the next pass begins a step.

        A backward pass that is going on ends as it would have.

        For a step that cannot go on: an exception in the middle of ``accumulate()``, a batch that is skipped. To be
        called on every rank.
        """
        if self._engine is not None:
            self._engine.discard_open_steps()
        if self._ddp_buckets is not None:
            self._ddp_buckets.discard_kept_passes()

    def _open_passes(self) -> int:
        """How many passes are put aside."""
        passes = 0 if self._engine is None else self._engine.open_passes()
        return passes + (0 if self._ddp_buckets is None else self._ddp_buckets.kept_passes())

    def _check_closed(self, what: str) -> None:
        """Raises RuntimeError while a step is open."""
        if passes := self._open_passes():
            raise RuntimeError(
                f"{what}: the step is open, {passes} pass{'es'[: 2 * (passes > 1)]} put aside; run its last backward "
                "pass outside of accumulate(), or give it up with discard()"
            )

    def name_parameters(self, named_parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Gives parameters the names that ``report()`` shows: ``state.name_parameters(model.named_parameters())``.

        ``register`` does this by itself; with ``register_comm_hook`` parameters are shown by their shapes otherwise.
        ``state_dict()`` knows a parameter by the name that it had when it was first reduced, so call this before the
        first backward pass. Names must be distinct.
        """
        named = list(named_parameters)
        trained = [name for name, parameter in named if parameter.requires_grad]
        self._pieces.check_not_too_late(trained, has_engine=self._engine is not None)
        for name, parameter in named:
            if parameter.requires_grad:
                self._scope.add(name)
                self._pieces.add(name, parameter)
        self._named.extend(named)
        self._parameters.update((id(parameter), parameter) for _, parameter in named)
        if self._engine is not None and self._ddp_buckets is not None:
            self._hand_over_names(self._ddp_buckets)

    def report(self) -> Report:
        """What was solved in the newest step, bucket by bucket, as this rank knows it (all ranks know the same).

        Complete once ``backward()`` has returned. Costs a small solve a bucket; sends nothing. On a GPU it waits for
        the reductions: their results stay on the device until somebody asks.

        Raises:
            RuntimeError: Nothing was reduced yet, or the step is open.
        """
        self._check_closed("report()")
        records = [] if self._engine is None else self._engine.records()
        if self._engine is None or not records:
            raise RuntimeError("there is nothing to report: no bucket was reduced yet")
        mesh = "" if self._levels is None else self._levels.title
        how = Setup(describe(self._method), self._estimator, self._layout, self._scope.name, self._scope.support, mesh)
        return make_report(how, records, self._engine.counters())

    def memory(self) -> int:
        """Bytes of scratch memory that the reductions hold."""
        return 0 if self._engine is None else self._engine.scratch_bytes()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: numbers, strings, lists and dicts only; the same on every rank.

        ``step`` is what random choices are keyed by. For a method with a memory (``GradVac``, ``Smoothed``) ``buckets``
        has a dict for every bucket, of ``parameters`` (names of the parameters it holds; "#3" for the fourth one that
        was reduced without a name; for a direct call "bucket:" and its ``bucket``, else "all_reduce[n]" or
        "reduce_scatter[n]" with its n elements), ``objectives`` (N names, all that the bucket has met) and ``values``
        (GradVac's N x N targets, row by row; then Smoothed's N weights and for each whether there is one, 1 or 0).

        With it a resumed run makes the choices of an uninterrupted one wherever the buckets are the same; a fresh DDP
        module has one bucket in its first iteration, so run one backward pass, whose gradients are thrown away, before
        ``load_state_dict``. With ``scope="model"`` the memory is that of one bucket, "model:"; where parts of buckets
        have weights of their own, or with a ``model_parallel_group``, that of each problem, by its parameters.

        Raises:
            RuntimeError: The step is open.
        """
        self._check_closed("state_dict()")
        saved = {"step": self.step, "method": describe(self._method), "seed": self._seed, "scope": self._scope.name}
        saved["support"] = self._scope.support
        if self._method._native().state_size(1) > 0:
            saved["buckets"] = [
                {"parameters": list(parameters), "objectives": list(objectives), "values": list(values)}
                for parameters, objectives, values in self._solver_states()
            ]
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``. To be called on every rank.

        Raises:
            TypeError: It is no mapping.
            ValueError: It lacks an entry, was saved with another method or seed, or is damaged. The state stays as it
                was.
        """
        mine = self.state_dict()
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, as state_dict() returns; got {type(state_dict).__name__}")
        given = {"scope": "bucket", "support": False, **state_dict}  # older ones know no other
        missing = mine.keys() - given.keys()
        if missing:
            raise ValueError(f"state_dict lacks {', '.join(sorted(missing))}")
        for field in ("method", "seed", "scope", "support"):
            if type(given[field]) is not type(mine[field]) or given[field] != mine[field]:
                raise ValueError(f"state_dict was saved with {field} {given[field]!r}, this state has {mine[field]!r}")
        step = state_dict["step"]
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _MAX_STEPS:
            raise ValueError(f"state_dict: step must be an integer >= 0 and below 2**62; got {step!r}")
        buckets = _check_buckets(state_dict["buckets"], self._method) if "buckets" in mine else []
        self._restore(step, buckets)

    def _solver_states(self) -> list[_Bucket]:
        return self._saved_buckets if self._engine is None else self._engine.solver_states()

    def _restore(self, step: int, buckets: list[_Bucket]) -> None:
        if self._engine is not None:
            self._engine.set_solver_states(buckets)  # may raise
            self._engine.step = step
        self._step = step
        self._saved_buckets = buckets

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the process group and what hangs on it; the copy uses the default group.

        What a subclass or the user has put on the state goes along.
        """
        return {
            "method": self._method,
            "objective": self._objective,
            "weight": self._weight,
            "gramian": self._gramian,
            "layout": self._layout,
            "scope": self._scope.given,
            "support": self._scope.support,
            "private_scale": self._scope.private_scale,
            "row_norms": self._row_norms,
            "levels": self._levels,
            "seed": self._seed,
            "bucket_cap_mb": self._bucket_cap_mb,
            "had_pieces": self._had_pieces or self._pieces.is_given,
            "step": self.step,
            "buckets": self._solver_states(),
            "attributes": {name: value for name, value in vars(self).items() if name not in _OWN_ATTRIBUTES},
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Restores ``__getstate__``."""
        arguments = dict(saved)
        step, buckets, attributes = (arguments.pop(name) for name in ("step", "buckets", "attributes"))
        levels, had_pieces = arguments.pop("levels", None), arguments.pop("had_pieces", False)
        BucketMOO.__init__(self, **arguments)  # a subclass may take other arguments
        self._levels, self._had_pieces = levels, had_pieces
        self._restore(step, buckets)
        vars(self).update(attributes)

    def __repr__(self) -> str:
        """One line."""
        step = self.step if self._made is None or self._made.is_at_home() else "that of another process"
        return (
            f"BucketMOO({describe(self._method)}, objective={self._objective!r}, weight={self._weight!r}, "
            f"gramian={self._gramian!r}, layout={self._layout!r}, scope={self._scope.given!r}, "
            f"support={self._scope.support}, seed={self._seed}, step={step})"
        )

    def _objective_name(self, objective: str | int | None) -> str:
        if objective is not None or self._is_alone:
            return str(objective or 0)
        group = parent_group(self._process_group)
        if self._levels is not None and self._levels.inside > 1:
            return str(self._levels.across_of(dist.get_rank()))
        return str(group.rank())

    def _bound(self, device: torch.device) -> _C.Engine:
        """The engine for tensors on `device`; the first call makes it, which is collective over the group.

        Raises:
            ValueError: The state reduces tensors elsewhere already, or this build or the group cannot on `device`.
        """
        engine = self._engine
        if engine is None:
            engine = self._made = self._make_engine(device)
            self._device = device
            _live.add(engine)
        elif (
            self._device is not None
            and device != self._device
            and (_C.reduces_on_device(device) or _C.reduces_on_device(self._device))
        ):
            raise ValueError(f"this state reduces tensors on {self._device}; got one on {device}: use a state for each")
        return engine

    def _bound_to_ddp(self, device: torch.device) -> _C.DdpBuckets:
        """What reduces DDP's buckets on `device`. Raises as `_bound()`."""
        self._pieces.check_named()
        engine = self._bound(device)
        if self._ddp_buckets is None:
            self._ddp_buckets = _C.DdpBuckets(engine, min(round(self._bucket_cap_mb * 2**20), 2**60))
            self._hand_over_names(self._ddp_buckets)
        return self._ddp_buckets

    def _hand_over_names(self, buckets: _C.DdpBuckets) -> None:
        buckets.name_parameters(self._named)
        self._named.clear()

    def _make_engine(self, device: torch.device) -> _C.Engine:
        if self._had_pieces:
            raise RuntimeError(
                "this state is a copy of one with a model_parallel_group, which does not come along; make a new state "
                "with it"
            )
        parent = None if self._is_alone else parent_group(self._process_group)
        grid: list[list[int]] = []
        if self._levels is not None:
            grid = self._levels.in_group([0] if parent is None else dist.get_process_group_ranks(parent))
        objective = self._objective_name(self._objective)
        if self._row_norms and _C.reduces_on_device(device):
            raise NotImplementedError(f"row_norms=True is for reductions in host memory; got tensors on {device}")
        if _C.reduces_on_device(device) and (names := self._method._objectives()):
            raise NotImplementedError(
                f"{describe(self._method)} names objectives ({', '.join(names)}), which is not supported on {device} "
                "yet; give one number an objective, in the order of the objectives"
            )
        group = across = inside = None
        if parent is not None and _C.reduces_on_device(device):
            group = device_group(parent, device)
            if self._levels is not None and self._levels.inside > 1:
                across, inside = level_groups(self._levels, self._mesh, parent, device)
        elif parent is not None:
            group = private_group(parent)
        # Nothing else is supported there yet.
        is_exact = self._levels is not None or self._pieces.is_given or self._scope.has_parts
        sketch, estimator = choose("exact" if is_exact else self._gramian, parent)
        configuration = [
            ("method", describe(self._method)),
            ("gramian", str(self._gramian)),
            ("layout", self._layout),
            ("scope", str(self._scope)),
            ("row_norms", str(self._row_norms)),
            ("mesh", str(self._levels)),
            *self._pieces.configuration,
            ("seed", str(self._seed)),
            ("bucket_cap_mb", repr(self._bucket_cap_mb)),
            ("version", str(_C.build_info()["version"])),
        ]
        engine = _C.Engine(
            group,
            device,
            self._method._native(),
            self._seed,
            sketch._native() if sketch else None,
            self._layout == "passes",
            self._row_norms,
            self._scope.grouping(not self._method._adds_up(), self._pieces.is_given, self._pieces.replicated),
            grid,
            across,
            inside,
            self._pieces.connect(parent, device),
            configuration,
        )
        self._estimator = estimator
        engine.set_objective(objective)
        engine.set_weight(self._weight)
        engine.set_accumulating(self._accumulating, self._totals)
        engine.step = self._step
        engine.set_solver_states(self._saved_buckets)
        return engine


_OWN_ATTRIBUTES = frozenset(vars(BucketMOO()))
