"""FSDP2 and FSDP1 on a GPU, several ranks: against the same run on the CPU."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from tests.gpu.device import DEVICE
from tests.gpu.networks import backward, network
from tests.gpu.one_gpu import gloo_cuda, run_gpu_ranks

__all__ = ["run_gpu_ranks"]  # a fixture
Runner = Callable[..., list[Any]]
WRAPPERS = ("fsdp2", "hsdp", "fsdp1")
METHODS = DEVICE.pick(("mean", "mgda", "cagrad"), dry=("mgda",))
CASES = [(wrapper, method, "bucket") for wrapper in WRAPPERS for method in METHODS] + [
    (wrapper, "mgda", "model") for wrapper in WRAPPERS
]


def _registered(wrapper: str, method: str, scope: str, rank: int, world: int, device: str) -> tuple[Any, moo.BucketMOO]:
    """A bucket for each layer that has parameters."""
    model: Any = network(device, torch.float32)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    if wrapper == "fsdp1":
        model = FullyShardedDataParallel(
            model,
            auto_wrap_policy=lambda module, recurse, **_: recurse or module in layers,
            device_id=torch.device(device, 0) if device != "cpu" else torch.device("cpu"),
            use_orig_params=True,
        )
        return model, moo.register(model, method, objective=f"o{rank}", scope=scope)
    given: dict[str, Any] = {"objective": f"o{rank}"}
    if wrapper == "hsdp":  # one replica, whose ranks share an objective
        mesh = init_device_mesh(device, (1, world), mesh_dim_names=("replicate", "shard"))
        given = {"mesh": mesh, "objectives": "replicate"}
    shards = mesh["shard"] if wrapper == "hsdp" else init_device_mesh(device, (world,))
    for part in (*layers, model):
        fully_shard(part, mesh=shards)
    return model, moo.register(model, method, scope=scope, **given)


def rank_sharded(rank: int, world: int, seed: int, device: str) -> dict[tuple[str, str, str], tuple[Any, Any]]:
    """Of every case: this rank's shards of the model after some steps, and weights of the buckets."""
    results = {}
    for wrapper, method, scope in CASES:
        model, state = _registered(wrapper, method, scope, rank, world, device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            backward(model, seed, rank, step, device, torch.float32)
            optimizer.step()
        shards = [p.to_local() if wrapper != "fsdp1" else p for p in model.parameters()]
        buckets = {min(bucket.parameters): bucket.weights.tolist() for bucket in state.report().buckets}
        results[wrapper, method, scope] = (
            torch.cat([shard.detach().flatten() for shard in shards]).double().cpu().numpy(),
            [buckets[name] for name in sorted(buckets)],
        )
    return results


def test_sharded_models_are_as_on_the_cpu(run_ranks: Runner, run_gpu_ranks: Runner, random_seed: int) -> None:
    if getattr(run_gpu_ranks, "keywords", {}).get("backend") is gloo_cuda:
        pytest.skip("several ranks on one GPU go over Gloo here, where nobody has tried FSDP's own collectives")
    host = run_ranks(2, rank_sharded, random_seed, "cpu")
    device = run_gpu_ranks(2, rank_sharded, random_seed, DEVICE.name)
    for on_host, on_device in zip(host, device, strict=True):
        for key, (shards, weights) in on_host.items():
            np.testing.assert_allclose(on_device[key][1], weights, atol=2e-3, err_msg=str(key))
            np.testing.assert_allclose(on_device[key][0], shards, atol=2e-3 * np.abs(shards).max(), err_msg=str(key))
