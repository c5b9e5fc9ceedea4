"""Steps whose gradients are known, for what watches them: plain modules in one process."""

from collections.abc import Mapping, Sequence

import bucket_moo_ext as moo
import numpy as np
import torch
from torch import nn

from tests.support.reference import Array

Gradients = Mapping[str, Sequence[Array]]
"""By objective: the gradient of each parameter."""


class Linear(nn.Module):
    """Parameters "a", "b", ... whose gradients are what a step says, whatever the parameters are."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        for name, size in zip("abcdefgh", sizes, strict=False):
            self.register_parameter(name, nn.Parameter(torch.zeros(size, dtype=torch.float64)))

    def forward(self, gradients: Sequence[Array]) -> torch.Tensor:
        terms = [
            (parameter * torch.from_numpy(gradient)).sum()
            for parameter, gradient in zip(self.parameters(), gradients, strict=True)
        ]
        return torch.stack(terms).sum()


def train_step(model: Linear, state: moo.BucketMOO, gradients: Gradients) -> None:
    """A step of a pass for each objective."""
    model.zero_grad()
    state.backward({name: model(rows) for name, rows in gradients.items()})


def draw(rng: np.random.Generator, names: Sequence[str], sizes: Sequence[int]) -> dict[str, list[Array]]:
    """Independent normal gradients."""
    return {name: [rng.standard_normal(size) for size in sizes] for name in names}


def cosines(rows: Sequence[Array]) -> Array:
    """[K, K], of K gradients."""
    matrix = np.stack(rows)
    norms = np.linalg.norm(matrix, axis=1)
    with np.errstate(invalid="ignore"):
        result: Array = matrix @ matrix.T / np.outer(norms, norms)
    return result
