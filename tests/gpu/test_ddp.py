"""The DDP hook on a GPU, several ranks: against the same run on the CPU, and its memory."""

import contextlib
import gc
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.gpu.device import DEVICE, note
from tests.gpu.networks import CAP_MB, backward, by_layer, network
from tests.gpu.one_gpu import run_gpu_ranks
from tests.support.checks import raw

__all__ = ["run_gpu_ranks"]  # a fixture
Runner = Callable[..., list[Any]]


METHODS = DEVICE.pick(("mean", "mgda", "cagrad", "upgrad", "pcgrad", "gradvac"), dry=("mgda", "gradvac"))
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
Results = dict[tuple[torch.dtype, str, str], tuple[str, Any, Any]]


def rank_ddp(rank: int, world: int, seed: int, device: str) -> Results:
    """Of every dtype, method and way to register: digest of the gradient, the gradient, weights of the buckets."""
    results: Results = {}
    for dtype, method, way in itertools.product(TOLERANCE, METHODS, ("native", "python")):
        ddp = DistributedDataParallel(
            network(device, dtype), bucket_cap_mb=CAP_MB, gradient_as_bucket_view=way == "native"
        )
        if way == "native":
            state = moo.register(ddp, method, objective=f"o{rank}", seed=5)
        else:
            state = moo.BucketMOO(method, objective=f"o{rank}", seed=5, bucket_cap_mb=CAP_MB)
            ddp.register_comm_hook(state, moo.bucket_moo_hook)
        for step in range(4):
            backward(ddp, seed, rank, step, device, dtype)
        gradient = torch.cat([p.grad.flatten() for p in ddp.parameters() if p.grad is not None]).cpu()
        results[dtype, method, way] = (
            hashlib.sha256(raw(gradient)).hexdigest(),
            gradient.double().numpy(),
            np.stack([bucket.weights.numpy() for bucket in state.report().buckets]),
        )
    return results


def test_ddp_is_as_on_the_cpu(run_ranks: Runner, run_gpu_ranks: Runner, random_seed: int) -> None:
    host = run_ranks(3, rank_ddp, random_seed, "cpu")[0]
    device = run_gpu_ranks(3, rank_ddp, random_seed, DEVICE.name)
    for key, (digest, gradient, weights) in device[0].items():
        assert all(results[key][0] == digest for results in device), key
        tolerance = TOLERANCE[key[0]]
        np.testing.assert_allclose(weights, host[key][2], atol=tolerance, err_msg=str(key))
        scale = np.abs(host[key][1]).max()
        np.testing.assert_allclose(gradient, host[key][1], atol=tolerance * scale, err_msg=str(key))
    for dtype, method in itertools.product(TOLERANCE, ("mgda", "gradvac")):
        assert device[0][dtype, method, "native"][0] == device[0][dtype, method, "python"][0]


SCOPES: dict[str, Any] = {"bucket": "bucket", "parameter": "parameter", "layer": by_layer, "model": "model"}


def rank_scopes(rank: int, world: int, seed: int, device: str) -> dict[str, tuple[str, Any, list[Any]]]:
    """Of every scope, split by support: digest of the gradient, the gradient, and what parts the report has."""
    results = {}
    for name, scope in SCOPES.items():
        ddp = DistributedDataParallel(network(device, torch.float64), bucket_cap_mb=CAP_MB)
        state = moo.register(ddp, "pcgrad", objective=f"o{rank}", scope=scope, support=True, seed=5)
        for step in range(3):
            with state.accumulate() if step == 1 else contextlib.nullcontext():
                backward(ddp, seed, rank, step, device, torch.float64)
        gradient = torch.cat([p.grad.flatten() for p in ddp.parameters() if p.grad is not None]).cpu()
        parts = [(part.index, part.group, part.parameters) for part in state.report().buckets]
        results[name] = (hashlib.sha256(raw(gradient)).hexdigest(), gradient.numpy(), sorted(parts))
    return results


def test_parts_are_as_on_the_cpu(run_ranks: Runner, run_gpu_ranks: Runner, random_seed: int) -> None:
    host = run_ranks(3, rank_scopes, random_seed, "cpu")[0]
    device = run_gpu_ranks(3, rank_scopes, random_seed, DEVICE.name)
    for scope, (digest, gradient, parts) in device[0].items():
        assert all(results[scope][0] == digest for results in device), scope
        np.testing.assert_allclose(gradient, host[scope][1], rtol=0, atol=1e-9 * np.abs(gradient).max(), err_msg=scope)
        assert parts == host[scope][2]


LAYERS, WIDTH, CAP = DEVICE.pick((24, 1024, 25), dry=(4, 64, 1))


def rank_memory(rank: int, world: int, seed: int) -> dict[str, float]:
    def peak(hook: bool) -> float:
        gc.collect()  # what the model before holds in cycles
        before = DEVICE.allocated_bytes()
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]).to(DEVICE.name)
        ddp = DistributedDataParallel(model, bucket_cap_mb=CAP, gradient_as_bucket_view=True)
        if hook:
            moo.register(ddp, "mgda")
        x = torch.randn(8, WIDTH, device=DEVICE.name)

        def step() -> None:
            ddp.zero_grad()
            ddp(x).square().mean().backward()

        for _ in range(3):
            step()
        return (DEVICE.peak_bytes(step) - before) / 2**20

    plain = peak(False)
    ours = peak(True)
    return {"plain DDP": plain, "with the hook": ours, "extra": ours - plain}


def test_memory_of_the_hook(run_gpu_ranks: Runner, random_seed: int) -> None:
    ranks = run_gpu_ranks(2, rank_memory, random_seed)
    note("memory", {"gradients": LAYERS * (WIDTH * WIDTH + WIDTH) * 4 / 2**20, "ranks": 2, **ranks[0]})
    assert ranks[0]["extra"] <= 2.5 * CAP  # a bucket above the cap by a parameter, and little else
