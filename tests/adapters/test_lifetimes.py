"""Models that nobody has any more are freed, with all that reduced them; those that somebody has keep reducing."""

import copy
import gc
import io
import weakref
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.support.ddp import batch_of, loss_of, mlp
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.host


def _objectives(state: moo.BucketMOO, model: nn.Module) -> None:
    """A step of two passes."""
    with state.accumulate():
        state.objective = "de"
        loss_of(model, batch_of(5, 0, 0)).backward()
    state.objective = "sw"
    loss_of(model, batch_of(5, 1, 0)).backward()


def _trained(model: nn.Module, **options: Any) -> list[weakref.ref[Any]]:
    """Of the module, a parameter and the state, after two steps."""
    state = moo.register(model, "mgda", **options)
    for _ in range(2):
        _objectives(state, model)
        state.report()
        model.zero_grad()
    return [weakref.ref(x) for x in (model, next(model.parameters()), state)]


@pytest.mark.parametrize("scope", ["bucket", "model", "parameter"])
def test_a_plain_module_is_freed(scope: str) -> None:
    left = _trained(mlp(1), scope=scope)
    gc.collect()
    assert [found() is None for found in left] == [True] * 3


def _wrapped(rank: int, world: int) -> dict[str, list[bool]]:
    found = {}
    for name in ("ddp", "fsdp1", "fsdp2"):
        model: Any = mlp(1)
        if name == "ddp":
            model = DistributedDataParallel(model)
        elif name == "fsdp1":
            model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        else:
            fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        left = _trained(model)
        del model
        gc.collect()
        found[name] = [one() is None for one in left]
    return found


def test_wrapped_models_are_freed() -> None:
    for found in run_ranks(2, _wrapped):
        assert found == dict.fromkeys(("ddp", "fsdp1", "fsdp2"), [True] * 3)


def test_parts_keep_reducing_when_what_was_registered_is_gone() -> None:
    first, second = nn.Linear(4, 6), nn.Linear(6, 2)
    state = moo.register(nn.ModuleList([first, second]), "mgda")
    gc.collect()

    def loss(seed: int) -> torch.Tensor:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        return second(first(x).tanh()).square().sum()

    state.backward({"de": loss(0), "sw": loss(1)})
    report = state.report()
    assert report.objectives == ("de", "sw")
    assert sorted(report.buckets[0].parameters) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_copies_and_files_of_a_module_reduce_nothing() -> None:
    model = mlp(1)
    state = moo.register(model, "mgda")
    _objectives(state, model)
    step = state.report().step
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    for twin in twins:
        twin.zero_grad()
        loss_of(twin, batch_of(5, 0, 0)).backward()
        assert twin.state_dict().keys() == model.state_dict().keys()
    del model
    gc.collect()
    for twin in twins:
        loss_of(twin, batch_of(5, 0, 0)).backward()
    assert state.report().step == step
