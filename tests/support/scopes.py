"""Modules with given gradients, and what groups of their parameters should get. Shares no code with the package."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.support import reference as ref
from tests.support.reference import Array

SIZES = {
    "embed": 1301,
    "block0.norm": 7,
    "block0.weight": 6007,
    "block1.norm": 7,
    "block1.weight": 6007,
    "expert.a": 1023,
    "expert.b": 17,
    "head.0": 5001,
    "head.1": 33,
    "head.2": 128,
}
"""Parameters: some above 16 KiB, some of a few elements, of odd sizes, so that shards cut through them."""


def touches(name: str, objective: int) -> bool:
    """Whether an objective's gradient of a parameter is not zero: heads are for one, experts for some."""
    kind, _, rest = name.partition(".")
    if kind == "head":
        return objective == int(rest)
    if kind == "expert":
        return objective % 2 == (rest == "a")
    return True


class Given(nn.Module):
    """A module whose gradients are what its forward pass is given, by name."""

    def __init__(self, dtype: torch.dtype = torch.float64, sizes: Mapping[str, int] = SIZES) -> None:
        super().__init__()
        for name, size in sizes.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(torch.zeros(size, dtype=dtype)))

    def forward(self, gradients: Mapping[str, Array]) -> torch.Tensor:
        terms = [
            (parameter * torch.from_numpy(gradients[name]).to(parameter.dtype)).sum()
            for name, parameter in self.named_parameters()
        ]
        return torch.stack(terms).sum()


def row(
    seed: int, rank: int, number: int, objective: int, dtype: torch.dtype, sizes: Mapping[str, int] = SIZES
) -> dict[str, Array]:
    """What a rank brings in pass `number`, as `dtype` has it; the same for whoever asks."""
    drawn = {}
    for name, size in sizes.items():
        key = hashlib.sha256(f"{seed} {rank} {number} {name}".encode()).digest()
        values = np.random.default_rng(list(key)).standard_normal(size) * (1.0 + objective)
        values *= touches(name, objective)
        drawn[name] = ref.float64(torch.from_numpy(values).to(dtype))
    return drawn


def means(rows: Sequence[Mapping[str, Array]], objectives: Sequence[int]) -> dict[str, Array]:
    """[K, n] for each parameter: the mean over the rows of each objective, in the order in which they come up."""
    order = list(dict.fromkeys(objectives))
    return {
        name: np.stack(
            [np.mean([r[name] for r, o in zip(rows, objectives, strict=True) if o == k], axis=0) for k in order]
        )
        for name in rows[0]
    }


def problems(
    gradients: Mapping[str, Array], group_of: Callable[[str], Any], support: bool, limit: int = 16
) -> dict[Any, list[str]]:
    """Names of the parameters of each problem, by group and by the objectives that it is for.

    `limit`: problems of a group. Where there are more supports, those that come up late join the one of all objectives.
    """
    found: dict[Any, list[str]] = {}
    for name, rows in gradients.items():
        group = group_of(name)
        everything = tuple(range(len(rows)))
        kind = tuple(np.flatnonzero(rows.any(axis=1)).tolist()) if support else everything
        known = [key for key in found if key[0] == group]
        if (group, kind) not in found and len(known) + 1 >= limit:
            kind = everything
        found.setdefault((group, kind), []).append(name)
    return found


def expected(
    gradients: Mapping[str, Array],
    method: str,
    options: Mapping[str, Any],
    group_of: Callable[[str], Any],
    *,
    support: bool = False,
    private_scale: str = "mean",
) -> dict[str, Array]:
    """The update of every parameter: each problem solved on its whole rows."""
    updates: dict[str, Array] = {}
    for names in problems(gradients, group_of, support).values():
        rows = np.concatenate([gradients[name] for name in names], axis=1)
        weights = ref.weights(rows, method, **options)
        if support and private_scale == "mean" and method != "mean":
            weights = weights * rows.any(axis=1).sum() / len(rows)
        for name in names:
            updates[name] = weights @ gradients[name]
    return updates


def kind_of(name: str) -> str:
    """A grouping of the parameters."""
    return name.split(".")[0]
