"""The network of examples/cpp/train_network.hpp, trained with the Python package under DDP."""

from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.ranks import run_ranks

INPUTS, HIDDEN, EXAMPLES, STEPS, LEARNING_RATE = 6, 10, 32, 60, 0.1


class Network(nn.Module):
    """That of the program, from the same parameters."""

    def __init__(self) -> None:
        super().__init__()
        first = 0.5 * torch.sin(1.0 + 7.0 * torch.arange(HIDDEN * (INPUTS + 2), dtype=torch.float64))
        inside, bias, out = first.split([HIDDEN * INPUTS, HIDDEN, HIDDEN])
        self.inside, self.bias, self.out = map(nn.Parameter, (inside.view(HIDDEN, INPUTS).clone(), bias, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.inside.T + self.bias) @ self.out


def data(objective: int) -> tuple[torch.Tensor, torch.Tensor]:
    example, i = np.arange(EXAMPLES)[:, None], np.arange(INPUTS)[None]
    x = np.sin(1.7 * example + 0.9 * i * i + 0.3 * objective)
    y = (1.0 + objective) * np.sin(x.sum(axis=1)) * np.cos(objective)
    return torch.from_numpy(x), torch.from_numpy(y)


def with_ddp(rank: int, world: int) -> dict[str, Any]:
    model = Network()
    wrapped = DistributedDataParallel(model)
    state = moo.register(wrapped, "mgda", objective=f"task {rank}")
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=LEARNING_RATE)
    x, y = data(rank)
    found: dict[str, Any] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (wrapped(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        if step == 0:
            found = {"first": loss.item(), "weights": state.report().buckets[0].weights.tolist()}
    found["last"] = (model(x) - y).square().mean().item()
    found["parameters"] = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    return found


def assert_trained_like_ddp(printed: str, parameters: Path, world: int) -> None:
    """What the program printed, and the file that it wrote."""
    expected = run_ranks(world, with_ddp)
    np.testing.assert_allclose(np.loadtxt(parameters), expected[0]["parameters"], rtol=1e-7, atol=1e-9)
    lines = dict(line.split(": ") for line in printed.splitlines())
    for name, values in (
        ("losses at first", [one["first"] for one in expected]),
        ("weights of the first step", expected[0]["weights"]),
        ("losses at last", [one["last"] for one in expected]),
    ):
        np.testing.assert_allclose([float(value) for value in lines[name].split()], values, rtol=0, atol=6e-5)
