"""Which parameters share weights: scope= and support=, for DDP and for plain modules, against float64 references."""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support import scopes
from tests.support.ddp import gradient_digest, same_on_all_ranks
from tests.support.reference import float64

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]

CAP_MB = 0.03
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
METHODS: dict[str, dict[str, Any]] = {"mean": {}, "mgda": {}, "cagrad": {"c": 0.3}}

# By pass, then rank.
SCHEDULES = {
    1: [[0], [1], [2], [0]],
    2: [[0, 1], [2, 0]],
    3: [[0, 1, 2]],
    4: [[2, 0, 1, 2]],
}


def by_layer(name: str) -> str:
    """Norms apart, the rest by layer: groups within a bucket and across buckets."""
    return "norms" if name.endswith("norm") else name.split(".")[0]


SCOPES: dict[str, Any] = {"model": "model", "parameter": "parameter", "layer": by_layer}


def _method(name: str) -> Any:
    return moo.CAGrad(**METHODS[name]) if name == "cagrad" else name


def _group_of(scope: str, state: moo.BucketMOO) -> Callable[[str], Any]:
    if scope == "bucket":
        bucket = {name: part.index for part in state.report().buckets for name in part.parameters}
        return bucket.__getitem__
    return {"model": lambda name: "", "parameter": lambda name: name, "layer": by_layer}[scope]


def _step(
    module: Any, model: torch.nn.Module, state: moo.BucketMOO, rank: int, world: int, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The rows of all passes and ranks as means by objective; the model's gradients are the answer."""
    schedule = SCHEDULES[world]
    model.zero_grad()
    for number, objectives in enumerate(schedule):
        state.objective = objectives[rank]
        with contextlib.nullcontext() if number == len(schedule) - 1 else state.accumulate():
            module(scopes.row(seed, rank, number, objectives[rank], dtype)).backward()
    rows = [scopes.row(seed, r, p, o, dtype) for p, of_ranks in enumerate(schedule) for r, o in enumerate(of_ranks)]
    return scopes.means(rows, [o for of_ranks in schedule for o in of_ranks])


def _check(
    model: torch.nn.Module, gradients: dict[str, Any], state: moo.BucketMOO, scope: str, method: str, tolerance: float
) -> None:
    expected = scopes.expected(
        gradients,
        method,
        METHODS[method],
        _group_of(scope, state),
        support=state.support,
        private_scale=state.private_scale,
    )
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        error = np.linalg.norm(float64(parameter.grad) - expected[name])
        size = np.linalg.norm(gradients[name], axis=1).max()
        assert error <= tolerance * size, f"{scope}, {method}: {name} is {error / size:.1e} off"


def _train(rank: int, world: int, scope: str, support: bool, seed: int) -> list[str]:
    digests = []
    for method, private_scale, dtype in (
        ("mgda", "mean", torch.float64),
        ("cagrad", "mean", torch.float32),
        ("cagrad", "active", torch.float64),
        ("mean", "mean", torch.float32),
        ("mgda", "mean", torch.bfloat16),
    ):
        model = scopes.Given(dtype)
        module = DDP(model, bucket_cap_mb=CAP_MB) if world > 1 else model
        options: dict[str, Any] = {
            "scope": SCOPES.get(scope, scope),
            "support": support,
            "private_scale": private_scale,
        }
        if world == 1:
            options["bucket_cap_mb"] = CAP_MB
        state = moo.register(module, _method(method), **options)
        for step in range(2):  # DDP's first has one bucket
            gradients = _step(module, model, state, rank, world, seed + step, dtype)
            _check(model, gradients, state, scope, method, TOLERANCE[dtype])
        digests.append(gradient_digest(model))
        _check_report(state, gradients, scope, TOLERANCE[dtype])
    return digests


def _check_report(state: moo.BucketMOO, gradients: dict[str, Any], scope: str, tolerance: float) -> None:
    """Every parameter is in one part, whose Gramian is that of its parameters and whose support is right."""
    report = state.report()
    found = [name for part in report.buckets for name in part.parameters]
    assert sorted(found) == sorted(gradients)
    assert len({part.index for part in report.buckets}) > 1  # of several buckets
    assert report.split_by_support == state.support
    for part in report.buckets:
        rows = np.concatenate([gradients[name] for name in part.parameters], axis=1)
        limit = 2 * tolerance * (rows**2).sum(1).max()
        np.testing.assert_allclose(part.gramian.numpy(), rows @ rows.T, rtol=0, atol=limit)
        assert part.numel == rows.shape[1]
        active = {o for o, r in zip(report.objectives, rows, strict=True) if r.any()}
        assert set(part.support) == active
        groups = {"parameter": set(part.parameters), "layer": set(map(by_layer, part.parameters)), "model": {"model"}}
        assert {part.group} == groups.get(scope, {""})
    whole = np.concatenate(list(gradients.values()), axis=1)
    limit = 2 * tolerance * (whole**2).sum(1).max()
    np.testing.assert_allclose(report.gramian.numpy(), whole @ whole.T, rtol=0, atol=limit)
    str(report)


@pytest.mark.parametrize(
    ("scope", "support"),
    [("bucket", True), ("model", True), ("parameter", False), ("parameter", True), ("layer", False), ("layer", True)],
)
@pytest.mark.parametrize("world", SCHEDULES)
def test_each_group_gets_the_weights_of_its_own_problem(
    run_ranks: RunRanks, random_seed: int, world: int, scope: str, support: bool
) -> None:
    same_on_all_ranks(run_ranks(world, _train, scope, support, random_seed % 2**31))
