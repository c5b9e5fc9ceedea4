"""moo.Recorder under wrappers: buckets that are rebuilt, parameters without names, shards."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.support.ddp import Batch, batch_of, gradients, loss_of, mlp
from tests.support.recorded import cosines
from tests.support.reference import Array

History = list[tuple[float, list[tuple[Any, float, float]]]]
"""By record: cosine of the whole, and for each part its key, cosine and noise."""


def wrapped(model: nn.Module, way: str, objective: str) -> tuple[nn.Module, moo.BucketMOO]:
    if way == "fsdp2":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, moo.register(model, "mgda", objective=objective)
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.016)
    if way == "ddp":
        return ddp, moo.register(ddp, "mgda", objective=objective)
    state = moo.BucketMOO("mgda", objective=objective, bucket_cap_mb=0.016)
    ddp.register_comm_hook(state, moo.bucket_moo_hook)
    return ddp, state


def history(rank: int, world: int, way: str) -> History:
    module, state = wrapped(mlp(3), way, ("de", "sw")[rank])
    recorder = moo.Recorder(state, 1)
    for step in range(4):
        module.zero_grad()
        loss_of(module, batch_of(1, rank, step)).backward()
        recorder.step()
    return [
        (
            record.whole.cosine("de", "sw"),
            [(tuple(p.key), p.cosine("de", "sw"), float(p.noise[0, 1])) for p in record.parts],
        )
        for record in recorder.history
    ]


def whole_gradient(model: nn.Module, batch: Batch) -> Array:
    of_name = gradients(model, lambda twin: loss_of(twin, batch))
    return np.concatenate(list(of_name.values()))


@pytest.mark.parametrize("way", ["ddp", "hook", "fsdp2"])
def test_under_a_wrapper(run_ranks: Callable[..., list[Any]], way: str) -> None:
    first, second = run_ranks(2, history, way)
    np.testing.assert_equal(first, second)
    model = mlp(3)
    for step, (whole, _) in enumerate(first):
        rows = [whole_gradient(model, batch_of(1, rank, step)) for rank in range(2)]
        expected = cosines(rows)[0, 1]
        assert whole == pytest.approx(expected, abs=1e-9)
    layouts = [{key for key, _, _ in parts} for _, parts in first]
    assert (layouts[0] == layouts[1]) == (way == "fsdp2")  # DDP has rebuilt its buckets
    assert layouts[1] == layouts[2] == layouts[3]
    assert len(layouts[1]) > 1
    of_key: dict[Any, list[float]] = {}
    for _, parts in first:
        assert len({key for key, _, _ in parts}) == len(parts)
        for key, cosine, noise in parts:
            values = of_key.setdefault(key, [])
            values.append(cosine)
            if len(values) == 1:
                assert np.isnan(noise)
            elif len(values) == 2:
                assert noise == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert {len(of_key[key]) for key in layouts[1]} == {4 if way == "fsdp2" else 3}
