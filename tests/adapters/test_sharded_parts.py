"""scope= and support= under FSDP2, HSDP and FSDP1: training as one process does with the same groups of parameters."""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.support.flat import FULL_SHARD, NO_SHARD, SHARD_GRAD_OP, whole_parameters, wrap
from tests.support.sharded import Transformer, full, loss_of, shard, tokens_of

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore")]

Runner = Callable[..., list[Any]]
LANGUAGES = ("a", "b", "c", "d")
STEPS = 2
RATE = 0.5


class Mixed(Transformer):
    """All ranks run all adapters in one order, as FSDP2 wants it, and add a language's own."""

    def forward(self, tokens: torch.Tensor, language: str = "") -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        for name, adapter in self.adapters.items():
            x = x + (name == language) * adapter(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def by_kind(name: str) -> str:
    """Groups within a block, and across blocks."""
    return "norm" if "norm" in name else name.rsplit(".", 2)[-2]


def by_group(name: str) -> str:
    """FSDP2's groups of ``shard()``."""
    return ".".join(name.split(".")[:2]) if name.startswith(("blocks", "adapters")) else "rest"


SCOPES: dict[str, dict[str, Any]] = {
    "bucket, support": {"support": True},
    "parameter": {"scope": "parameter"},
    "function": {"scope": by_kind},
    "function, support": {"scope": by_kind, "support": True},
    "model, support": {"scope": "model", "support": True},
}


Parameters = dict[str, Any]  # by name, as arrays


def _arrays(parameters: dict[str, torch.Tensor]) -> Parameters:
    return {name: parameter.detach().double().numpy().copy() for name, parameter in parameters.items()}


def _in_one_process(
    seed: int, languages: tuple[str, ...], adapters: tuple[str, ...], options: dict[str, Any]
) -> tuple[Parameters, Parameters]:
    """Parameters at the start and after the training."""
    model = Mixed(seed, adapters)
    start = _arrays(dict(model.named_parameters()))
    state = moo.register(model, moo.CAGrad(), **{"scope": by_group, **options})
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        state.backward(
            {
                language: loss_of(model, tokens_of(seed, row, step), language if adapters else "")
                for row, language in enumerate(languages)
            }
        )
        optimizer.step()
    return start, _arrays(dict(model.named_parameters()))


def _check(
    results: list[dict[str, Parameters]], seed: int, languages: tuple[str, ...], adapters: tuple[str, ...]
) -> None:
    """Of every rank, by the name of the scope."""
    for name in results[0]:
        start, expected = _in_one_process(seed, languages, adapters, SCOPES[name])
        for result in results:
            assert result[name].keys() == expected.keys()
            for parameter, values in expected.items():
                error = np.linalg.norm(result[name][parameter] - values)
                moved = np.linalg.norm(values - start[parameter])
                assert error <= 1e-8 * moved, f"{name}: {parameter} is off by {error / moved:.2e} of its way"


def _train(model: nn.Module, seed: int, row: int, language: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, tokens_of(seed, row, step), language).backward()
        optimizer.step()


def _new_sharded(seed: int, languages: tuple[str, ...], over: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    model: Any = shard(Mixed(seed, languages), over)
    return model, moo.register(model, moo.CAGrad(), **options)


def _whole(model: nn.Module) -> Parameters:
    return _arrays({name: full(parameter) for name, parameter in model.named_parameters()})


def _sharded(rank: int, world: int, seed: int) -> dict[str, Parameters]:
    languages = LANGUAGES[:world]
    results = {}
    for name, options in SCOPES.items():
        model, state = _new_sharded(seed, languages, world, {"objective": languages[rank], **options})
        _train(model, seed, rank, languages[rank])
        results[name] = _whole(model)
        parts = state.report().buckets
        assert sorted(n for part in parts for n in part.parameters) == sorted(results[name])
        if state.support:
            assert all(len(part.support) == 1 for part in parts if part.parameters[0].startswith("adapters"))
    return results


def test_fsdp2(run_ranks: Runner, random_seed: int) -> None:
    """A language's adapter beside the trunk, uneven shards."""
    _check(run_ranks(3, _sharded, random_seed), random_seed, LANGUAGES[:3], LANGUAGES[:3])


def _in_passes(rank: int, world: int, seed: int) -> dict[str, Parameters]:
    """A pass a language on all ranks, which have the same rows."""
    languages = LANGUAGES[:3]
    results = {}
    for name, options in SCOPES.items():
        model, state = _new_sharded(seed, languages, world, {"layout": "passes", **options})
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        for step in range(STEPS):
            optimizer.zero_grad()
            for row, language in enumerate(languages):
                state.objective = language
                with contextlib.nullcontext() if row == len(languages) - 1 else state.accumulate():
                    loss_of(model, tokens_of(seed, row, step), language).backward()
            optimizer.step()
        results[name] = _whole(model)
    return results


def test_fsdp2_in_several_passes(run_ranks: Runner, random_seed: int) -> None:
    _check(run_ranks(2, _in_passes, random_seed), random_seed, LANGUAGES[:3], LANGUAGES[:3])


def _hybrid(rank: int, world: int, seed: int, along: Any) -> dict[str, Parameters]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    place = {"replicate": rank // 2, "shard": rank % 2}.get(str(along), rank)
    languages = LANGUAGES[: 4 if isinstance(along, tuple) else 2]
    results = {}
    for name, options in SCOPES.items():
        if not options.get("support"):
            continue  # the places of parameters in a shard are what matters here
        given = {"mesh": mesh, "objectives": along, "objective": languages[place], **options}
        model, _ = _new_sharded(seed, languages, mesh["shard"], given)
        _train(model, seed, place, languages[place])
        results[name] = _whole(model)
    return results


@pytest.mark.parametrize("along", ["replicate", "shard", ("replicate", "shard")], ids=str)
def test_hsdp(run_ranks: Runner, random_seed: int, along: Any) -> None:
    languages = LANGUAGES[: 4 if isinstance(along, tuple) else 2]
    _check(run_ranks(4, _hybrid, random_seed, along), random_seed, languages, languages)


def _flat(rank: int, world: int, seed: int, strategy: Any) -> dict[str, Parameters]:
    languages = LANGUAGES[:world]
    results = {}
    for name, options in SCOPES.items():
        if "scope" in options:  # its flat parameters are other buckets
            model = wrap(Transformer(seed), strategy)
            moo.register(model, moo.CAGrad(), objective=languages[rank], **options)
            _train(model, seed, rank, "")
            results[name] = _arrays(whole_parameters(model))
    return results


@pytest.mark.parametrize(("world", "strategy"), [(3, FULL_SHARD), (2, SHARD_GRAD_OP), (2, NO_SHARD)], ids=str)
def test_fsdp1(run_ranks: Runner, random_seed: int, world: int, strategy: Any) -> None:
    """A shard is a range of the flat parameter, which cuts through parameters and has padding."""
    _check(run_ranks(world, _flat, random_seed, strategy), random_seed, LANGUAGES[:world], ())
