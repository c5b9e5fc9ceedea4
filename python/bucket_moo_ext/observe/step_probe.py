"""What the optimizer's real step does to each objective, beside what the reduced gradient would do."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bucket_moo_ext.report import Report
from bucket_moo_ext.state import BucketMOO


@dataclass(frozen=True, eq=False)
class TakenStep:
    """First-order changes of every objective's loss. Below zero the loss falls.

    For the objectives' mean gradients g_k, the reduced gradient d as the optimizer got it and the change s of the
    parameters.

    Attributes:
        step: The state's number of the step.
        objectives: K names.
        gradient: ``[K]`` float64, -<g_k, d>: of a step of length 1 along -d, times the length of d. NaN where the
            gradients were gone already (``zero_grad()`` before the probe's end).
        taken: ``[K]`` float64, <g_k, s>: of the step that was taken, weight decay and all.
        gradient_cosines: ``[K]`` float64, ``gradient`` over the lengths of g_k and d.
        taken_cosines: ``[K]`` float64, ``taken`` over the lengths of g_k and s. Both NaN where the lengths of g_k are
            unknown: with weights that a ``Sketch`` kept from an earlier step.
        gradient_norm, taken_norm: Lengths of d and s.
    """

    step: int
    objectives: tuple[str, ...]
    gradient: torch.Tensor
    taken: torch.Tensor
    gradient_cosines: torch.Tensor
    taken_cosines: torch.Tensor
    gradient_norm: float
    taken_norm: float

    @property
    def worsened(self) -> tuple[str, ...]:
        """Objectives whose loss rises to first order in the step, though it would not along the gradient."""
        return tuple(
            name
            for name, gradient, taken in zip(self.objectives, self.gradient.tolist(), self.taken.tolist(), strict=True)
            if taken > 0 and not gradient > 0
        )

    def to_dict(self) -> dict[str, Any]:
        """Strings, numbers, lists and dicts only, ready for JSON: what is undefined (NaN, Inf) becomes None."""

        def plain(value: Any) -> Any:
            if isinstance(value, torch.Tensor | tuple):
                return [plain(item) for item in (value.tolist() if isinstance(value, torch.Tensor) else value)]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {name: plain(value) for name, value in vars(self).items()} | {"worsened": list(self.worsened)}

    def __str__(self) -> str:
        """A table, one line an objective."""
        width = max(9, *(len(name) for name in self.objectives))
        lines = [
            f"step {self.step}: first-order changes of the losses; gradient of length {self.gradient_norm:.3e}, "
            f"step of length {self.taken_norm:.3e}",
            f"{'objective':<{width}} {'gradient':>11} {'cosine':>8} {'step':>11} {'cosine':>8}",
        ]
        columns = (self.gradient, self.gradient_cosines, self.taken, self.taken_cosines)
        for name, *values in zip(self.objectives, *(column.tolist() for column in columns), strict=True):
            gradient, gradient_cosine, taken, taken_cosine = values
            rises = "  rises" if name in self.worsened else ""
            lines.append(
                f"{name:<{width}} {gradient:>11.3e} {gradient_cosine:>8.4f} {taken:>11.3e} {taken_cosine:>8.4f}{rises}"
            )
        return "\n".join(lines)


class StepProbe:
    """Compares the step that an optimizer takes with the objectives' gradients.

    AdamW, momentum, clipping and weight decay turn an update without conflicts into a step that may have some::

        probe = moo.StepProbe(state, ddp)
        if step % 100 == 0:
            with probe:
                loss_fn(ddp(x), y).backward()
                optimizer.step()
            print(probe.result)

    A step in the ``with`` block must be a whole one: all of its passes and the optimizer's step, and no ``zero_grad()``
    behind the passes. It costs the memory of a copy of the parameters and of a gradient for each objective that this
    rank has in the step, K + 2 inner products, and at the end one exchange of a few numbers. Steps outside cost
    nothing.

    Args:
        state: Of ``module``.
        module: A module that ``register()`` took: of DDP, or a plain one.
        loss_scale: What losses are multiplied by before ``backward()``, as by a ``GradScaler`` that the optimizer's
            step takes out again; its ``get_scale()``. Set ``probe.loss_scale`` where it changes.

    Raises:
        TypeError: ``state`` is no BucketMOO or ``module`` no module.
        ValueError: ``loss_scale`` is not finite and > 0, or ``module`` has no trained parameter.
        NotImplementedError: Parameters are sharded (FSDP, DTensor): no rank has their whole gradients.
    """

    def __init__(self, state: BucketMOO, module: nn.Module, *, loss_scale: float = 1.0) -> None:
        if not isinstance(state, BucketMOO):
            raise TypeError(f"state must be a BucketMOO, as register() returns it; got {type(state).__name__}")
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module; got {type(module).__name__}")
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("module has no parameter that requires a gradient")
        is_flat = any(hasattr(part, "_fsdp_wrapped_module") for part in module.modules())
        if is_flat or any(hasattr(parameter, "placements") for parameter in trained):
            raise NotImplementedError(
                "StepProbe does not support sharded parameters (DTensor, FSDP): no rank has their whole gradients"
            )
        self._state, self._module, self._trained = state, module, trained
        self.loss_scale = loss_scale
        self._result: TakenStep | None = None
        self._rows: _Rows | None = None

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by."""
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf):
            raise ValueError(f"loss_scale must be a finite number > 0; got {value!r}")
        self._loss_scale = float(value)

    @property
    def result(self) -> TakenStep:
        """Of the last ``with`` block.

        Raises:
            RuntimeError: There was none.
        """
        if self._result is None:
            raise RuntimeError("there is no result yet: run a step inside `with probe:`")
        return self._result

    def __enter__(self) -> "StepProbe":
        """Begins to keep gradients."""
        if self._rows is not None:
            raise RuntimeError("this probe is at work already")
        self._rows = _Rows(self._state, self._module, self._trained)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Compares, unless there was an exception. Collective over the state's group.

        Raises:
            RuntimeError: There was no backward pass.
        """
        rows, self._rows = self._rows, None
        assert rows is not None
        rows.close()
        if kind is None:
            self._result = _compare(rows, self._state, self._loss_scale)


class _Rows:
    """What this rank brought in a step: a weighted sum of gradients for each of its objectives."""

    def __init__(self, state: BucketMOO, module: nn.Module, trained: list[nn.Parameter]) -> None:
        self._state, self._module = state, module
        self.trained = trained
        self.before = [parameter.detach().clone() for parameter in trained]
        self.sums: dict[str, list[torch.Tensor | None]] = {}
        self.weights: dict[str, float] = {}
        self._passes = 0
        self._seen = [0] * len(trained)  # passes of each
        self._hooks = [
            p.register_hook(self._hook_of(place))  # type: ignore[no-untyped-call]
            for place, p in enumerate(trained)
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook_of(self, place: int) -> Any:
        def keep(gradient: torch.Tensor) -> None:
            self._add(place, gradient)

        return keep

    def _add(self, place: int, gradient: torch.Tensor) -> None:
        if not getattr(self._module, "require_backward_grad_sync", True):
            raise RuntimeError("StepProbe does not support no_sync(): use state.accumulate() for several passes")
        name, weight = self._state.objective_name, self._state.weight
        self._seen[place] += 1
        if self._seen[place] > self._passes:
            self._passes += 1
            self.weights[name] = self.weights.get(name, 0.0) + weight
        if weight == 0:
            return
        sums = self.sums.setdefault(name, [None] * len(self.trained))
        row = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32)) * weight
        before = sums[place]
        sums[place] = row if before is None else before.add_(row)


def _compare(rows: _Rows, state: BucketMOO, loss_scale: float) -> TakenStep:
    report = state.report()
    steps = [p.detach() - before for p, before in zip(rows.trained, rows.before, strict=True)]
    updates = [p.grad for p in rows.trained]
    has_gradients = any(update is not None for update in updates)
    own = {
        name: (weight, _inner(rows.sums.get(name, []), updates), _inner(rows.sums.get(name, []), steps))
        for name, weight in rows.weights.items()
    }
    weights, gradient, taken = _add_up(own, report, state)
    shown = gradient if has_gradients else torch.full_like(gradient, math.nan)
    gradient_norm = math.sqrt(_inner(updates, updates)) if has_gradients else math.nan
    taken_norm = math.sqrt(_inner(steps, steps))
    is_of_this_step = all(bucket.solved_step == report.step for bucket in report.buckets)
    norms = report.gramian.diagonal().sqrt() if is_of_this_step else torch.full_like(gradient, math.nan)
    return TakenStep(
        step=report.step,
        objectives=report.objectives,
        gradient=-shown / weights / loss_scale,
        taken=taken / weights / loss_scale,
        gradient_cosines=-shown / weights / (norms * gradient_norm),
        taken_cosines=taken / weights / (norms * taken_norm),
        gradient_norm=gradient_norm,
        taken_norm=taken_norm,
    )


def _inner(first: list[torch.Tensor | None] | list[torch.Tensor], second: Any) -> float:
    """Over all parameters, in float64; what is missing is zero."""
    products: Iterator[float] = (
        float(a.double().flatten().dot(b.double().flatten()))
        for a, b in zip(first, second, strict=False)
        if a is not None and b is not None
    )
    return math.fsum(products)


def _add_up(
    own: dict[str, tuple[float, float, float]], report: Report, state: BucketMOO
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Over ranks: weights and inner products, each [K] in the report's order."""
    everybody: list[Any] = [own]
    group = state.process_group
    if group is not None:
        everybody = [None] * group.size()
        dist.all_gather_object(everybody, own, group=group)
    if not any(everybody):
        raise RuntimeError("there was no backward pass of this module inside `with probe:`")
    sums = torch.zeros(3, len(report.objectives), dtype=torch.float64)
    for rank in everybody:
        for name, values in rank.items():
            sums[:, report.objectives.index(name)] += torch.tensor(values, dtype=torch.float64)
    return sums[0], sums[1], sums[2]
