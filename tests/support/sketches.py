"""Gradients for sketched reductions, and the comparison of what came of them with the reference."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import torch
from torch import nn

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import ON_DEVICE, Outcome, draw


def width_of(sketch: moo.Sketch, n: int) -> int:
    """Columns for a bucket of n elements, as documented; 0: its Gramian is exact."""
    width = sketch.width
    if isinstance(width, float):
        wanted, width = width * n, 64
        while width < min(wanted, 2**28):
            width *= 2
    return 0 if n <= 2 * width else width


@dataclass(frozen=True)
class Solver:
    """A method, as the state and as the reference take it."""

    method: str | moo.Method
    name: str
    options: dict[str, Any]


def solvers(world: int) -> dict[str, Solver]:
    orders = [[(2 * i + j) % world for j in range(world)] for i in range(world)]
    return {
        "mean": Solver("mean", "mean", {}),
        "mgda": Solver("mgda", "mgda", {}),
        "mgda l2": Solver(moo.MGDA(normalize="l2"), "mgda", {"normalize": "l2"}),
        "cagrad": Solver(moo.CAGrad(c=0.5), "cagrad", {"c": 0.5}),
        "pcgrad": Solver(moo.PCGrad(permutation=orders), "pcgrad", {"orders": orders}),
    }


MGDA = Solver("mgda", "mgda", {})


def verify(
    label: str,
    rows: Sequence[torch.Tensor],
    got: Outcome,
    sketch: moo.Sketch,
    solver: Solver = MGDA,
    *,
    solved: Sequence[torch.Tensor] | None = None,
    bucket: int = 0,
    objective: Sequence[Hashable] | None = None,
    weight: Sequence[float] | None = None,
    solved_weight: Sequence[float] | None = None,
    shard: slice = slice(None),
) -> None:
    """Gramian and weights are those of the sketches of `solved`'s gradients, the result is `rows` combined by them.

    `solved`, `solved_weight`: rows and weights of the step whose weights served; None: this step's.
    """
    width = width_of(sketch, rows[0].numel())
    assert got.width == width, label
    if width == 0:
        assert got.solved_step == got.step, f"{label}: nothing is kept of exact buckets"
        checks.verify(label, rows, got, solver.name, solver.options, objective=objective, weight=weight, shard=shard)
        return
    now = checks.gradients(rows, objective, weight)
    then = checks.gradients(
        rows if solved is None else solved, objective, weight if solved_weight is None else solved_weight
    )
    seen = then.through(lambda row: ref.sketch(row, width, sketch.seed, got.solved_step, bucket))
    # A column's own rounding beside that of a product of two rows.
    error = 2 * seen.gramian_error()
    checks.verify_solution(label, seen, got, solver.name, solver.options, error, generic=True)
    checks.verify_combination(label, now, got, shard)
    again = moo.weights(torch.from_numpy(got.gramian), solver.method, step=got.solved_step).numpy()
    # On a device several lanes add up what one thread does here.
    np.testing.assert_allclose(got.weights, again, rtol=0, atol=1e-9 if ON_DEVICE else 0, err_msg=label)
    if seen.means.any():
        reference = ref.weights(seen.means, solver.name, **solver.options)
        np.testing.assert_allclose(got.weights, reference, rtol=0, atol=2e-3, err_msg=label)


def row_of(seed: int, key: Sequence[int], rank: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Gradients of several sizes, so that no method gives them equal weights."""
    return draw(seed, (*key, rank), n, dtype, 1.0 + 0.5 * rank)


def rows_of(
    seed: int, key: Sequence[int], world: int, n: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    return [row_of(seed, key, rank, n, dtype) for rank in range(world)]


def digest(got: Outcome) -> bytes:
    parts = (got.result, got.gramian.tobytes(), got.weights.tobytes(), str((got.solved_step, got.status)).encode())
    return hashlib.sha256(b"".join(parts)).digest()


def slim(got: Outcome, keep: bool) -> Outcome | bytes:
    """The outcome, or of ranks that are only compared, its hash."""
    return got if keep else digest(got)


class Given(nn.Module):
    """A loss of Σ <c_p, p>: the gradient of parameter p is c_p, whatever the parameters are; None: it is not used."""

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(n, dtype=dtype)) for n in sizes])

    def forward(self, coefficients: list[torch.Tensor | None]) -> torch.Tensor:
        terms = [(p * c).sum() for p, c in zip(self.layers, coefficients, strict=True) if c is not None]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class Training:
    """Some steps of a DDP module."""

    sketch: moo.Sketch
    name: str = "mgda"  # of the solver
    dtype: torch.dtype = torch.float32
    way: str = "native"
    sizes: tuple[int, ...] = (5003, 120, 3001, 60, 91, 4100, 20_011)
    steps: int = 3
    accumulate: int = 1  # micro-batches
    unused: bool = False  # parameter i is not used by rank i
    sleepy: bool = False  # random pauses between a rank's gradients

    def coefficients(self, seed: int, step: int, rank: int, micro: int = 0) -> list[torch.Tensor | None]:
        return [
            None if self.unused and place == rank else row_of(seed, (step, micro, place), rank, n, self.dtype)
            for place, n in enumerate(self.sizes)
        ]

    def gradients(self, seed: int, step: int, rank: int) -> list[torch.Tensor]:
        """As autograd adds them up."""
        total = [torch.zeros(n, dtype=self.dtype) for n in self.sizes]
        for micro in range(self.accumulate):
            for sum_, c in zip(total, self.coefficients(seed, step, rank, micro), strict=True):
                if c is not None:
                    sum_ += c
        return total


MANY = tuple(300 + 450 * (i * 7 % 11) for i in range(40))
