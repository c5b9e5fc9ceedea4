"""model_parallel_group beside FSDP2: TP 2 x FSDP 2 trains as one process does."""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.support.errors import error_of, expect
from tests.support.sharded import full

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore")]

Runner = Callable[..., list[Any]]
STEPS = 2
RATE = 0.5
LANGUAGES = ("a", "b")


class Block(nn.Module):
    """A feed-forward network, whose two layers are cut, and a norm that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.down(torch.tanh(self.up(self.norm(x))))
        return result


class Network(nn.Module):
    """Two blocks, a head and a private scale for each language."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.scales = nn.ParameterDict({language: torch.ones(6) for language in LANGUAGES})
        self.head = nn.Linear(6, 5)
        self.double()

    def forward(self, x: torch.Tensor, language: str) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        for name, scale in self.scales.items():  # all of them get a gradient, as FSDP2 wants it
            x = x * (1.0 + (name == language) * (scale - 1.0))
        result: torch.Tensor = self.head(x)
        return result


def by_group(name: str) -> str:
    """FSDP2's groups."""
    return ".".join(name.split(".")[:2]) if name.startswith("blocks") else "rest"


def by_kind(name: str) -> str:
    return "norm" if "norm" in name else name.rsplit(".", 2)[-2]


SCOPES: dict[str, dict[str, Any]] = {
    "bucket": {},
    "bucket, support": {"support": True},
    "function": {"scope": by_kind},
    "model": {"scope": "model"},
    "model, support": {"scope": "model", "support": True},
}


def _loss(model: nn.Module, seed: int, language: str, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + 10 * step + LANGUAGES.index(language))
    x = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    y = 3 * torch.randn(5, dtype=torch.float64, generator=generator)
    loss: torch.Tensor = (model(x, language) - y).square().mean()
    return loss


def _train(model: nn.Module, state: moo.BucketMOO, seed: int, languages: tuple[str, ...], passes: int) -> None:
    """A row of each language in every pass; `languages`: of this process, one a pass or all."""
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        for number in range(passes):
            if len(languages) > 1:
                state.backward({language: _loss(model, seed, language, step) for language in languages})
                continue
            with contextlib.nullcontext() if number == passes - 1 else state.accumulate():
                _loss(model, seed, languages[0], step).backward()
        optimizer.step()


def _arrays(model: nn.Module) -> dict[str, Any]:
    return {
        name: (full(p) if hasattr(p, "full_tensor") else p).detach().numpy().copy()
        for name, p in model.named_parameters()
    }


def _in_pieces(rank: int, world: int, seed: int, passes: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    language = LANGUAGES[mesh.get_local_rank("dp")]
    results = {}
    for name, options in SCOPES.items():
        model: Any = Network(seed)
        for block in model.blocks:
            parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
            fully_shard(block, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
        state = moo.register(
            model, moo.CAGrad(), objective=language, model_parallel_group=mesh.get_group("tp"), **options
        )
        _train(model, state, seed, (language,), passes)
        results[name] = _arrays(model)
    return results


@pytest.mark.parametrize("passes", [1, 2])
def test_pieces_train_as_the_whole_model(run_ranks: Runner, random_seed: int, passes: int) -> None:
    results = run_ranks(4, _in_pieces, random_seed, passes)
    for name, options in SCOPES.items():
        model = Network(random_seed)
        start = _arrays(model)
        state = moo.register(model, moo.CAGrad(), **{"scope": by_group, **options})
        _train(model, state, random_seed, LANGUAGES, 1)
        for parameter, values in _arrays(model).items():
            moved = np.linalg.norm(values - start[parameter])
            for result in results:
                error = np.linalg.norm(result[name][parameter] - values)
                assert error <= 1e-8 * moved, f"{name}: {parameter} is off by {error / moved:.2e} of its way"


def _without(rank: int, world: int) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model: Any = Network(1)
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return error_of(lambda: moo.register(model, "mgda"))


def test_pieces_without_the_group_are_refused(run_ranks: Runner) -> None:
    for error in run_ranks(4, _without):
        expect(error, ValueError, "model_parallel_group=mesh.get_group")
