"""What support=True is for: experts, adapters and heads that some objectives never touch, beside a shared trunk."""

from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.support import reference as ref

pytestmark = pytest.mark.device

LANGUAGES = ("de", "sw", "tr")
ROUTES = {"de": (0, 1), "sw": (1, 2), "tr": (0, 2)}  # to experts


class MixtureOfExperts(nn.Module):
    """A trunk, experts of which a language has some, an adapter and a head for each language."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Linear(6, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))  # the last is nobody's
        self.adapters = nn.ModuleDict({name: nn.Linear(6, 6) for name in LANGUAGES})
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in LANGUAGES})
        self.double()

    def forward(self, x: torch.Tensor, language: str) -> torch.Tensor:
        x = torch.tanh(self.trunk(x))
        x = x + sum(self.experts[e](x) for e in ROUTES[language]) + self.adapters[language](x)
        out: torch.Tensor = self.heads[language](x)
        return out


def _losses(model: MixtureOfExperts, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    y = torch.randn(3, 8, 1, dtype=torch.float64, generator=generator)
    return {name: functional.mse_loss(model(x, name), y[k]) for k, name in enumerate(LANGUAGES)}


@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_every_part_of_a_mixture_of_experts_is_a_problem_of_its_own_objectives(scope: str) -> None:
    model = MixtureOfExperts()
    state = moo.register(model, "mgda", scope=scope, support=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    owners: dict[str, set[str]] = {}
    for name, _ in model.named_parameters():
        kind, which, *_ = name.split(".")
        expert = {language for language, used in ROUTES.items() if which in map(str, used)}
        owners[name] = {"trunk": set(LANGUAGES), "experts": expert}.get(kind, {which})
    for step in range(5):
        gradients: dict[str, dict[str, torch.Tensor]] = {}
        for language, loss in _losses(model, step).items():
            found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            gradients[language] = {
                name: torch.zeros_like(p) if g is None else g
                for (name, p), g in zip(model.named_parameters(), found, strict=True)
            }
        optimizer.zero_grad()
        state.backward(_losses(model, step))
        for shared in {frozenset(names) for names in owners.values()}:
            own = [name for name, names in owners.items() if names == shared]
            rows = torch.stack([torch.cat([gradients[k][name].flatten() for name in own]) for k in LANGUAGES])
            weights = torch.from_numpy(ref.weights(rows.numpy(), "mgda"))
            expected = (weights @ rows) * (len(shared) / len(LANGUAGES))
            got = torch.cat(
                [
                    torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                    for name, p in model.named_parameters()
                    if name in own
                ]
            )
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        optimizer.step()
    lines: dict[tuple[str, ...], Any] = {part.support: part for part in state.report().buckets}
    assert set(lines) == {LANGUAGES, ("de", "sw"), ("sw", "tr"), ("de", "tr"), ("de",), ("sw",), ("tr",), ()}


class Quadratics(nn.Module):
    """|trunk - target|^2 + |own - 1|^2 for each of two objectives, the first of which is as good as solved."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Parameter(torch.tensor([1e-6], dtype=torch.float64))
        self.first = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor([9.0], dtype=torch.float64))

    def losses(self) -> dict[str, torch.Tensor]:
        return {
            "first": self.trunk.square().sum() + (self.first - 1).square().sum(),
            "second": (self.trunk - 5).square().sum() + (self.second - 1).square().sum(),
        }


@pytest.mark.parametrize("support", [False, True])
def test_a_private_parameter_does_not_stand_still_with_another_objective(support: bool) -> None:
    """An objective whose gradient is nearly zero gets all the weight, which freezes what is the other's own."""
    model = Quadratics()
    state = moo.register(model, "mgda", scope="model", support=support)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(60):
        optimizer.zero_grad()
        state.backward(model.losses())
        optimizer.step()
    assert abs(model.trunk.item()) < 1e-5  # stationary for both, on the scale of their conflict
    if support:
        assert model.second.item() == pytest.approx(1.0, abs=1e-6)
    else:
        assert model.second.item() == pytest.approx(9.0, abs=1e-3)
