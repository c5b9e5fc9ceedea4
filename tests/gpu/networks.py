"""A small model, and its backward passes with gradients of every rank's own."""

import torch
from torch import nn

CAP_MB = 0.004  # of a bucket: the model has several


def by_layer(name: str) -> str:
    """A scope."""
    return name.split(".")[0]


def network(device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(8, 60), nn.Tanh(), nn.Linear(60, 21), nn.Tanh(), nn.Linear(21, 5))
    return layers.to(device, dtype)


def backward(ddp: nn.Module, seed: int, rank: int, step: int, device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed * 1000 + 10 * step + rank)
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64).to(device, dtype)
    y = 2 * torch.randn(5, generator=generator, dtype=torch.float64).to(device, dtype)
    ddp.zero_grad()
    (ddp(x) - y).square().mean().backward()
