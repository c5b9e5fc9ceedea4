"""The hook inside DistributedDataParallel, against plain DDP and float64 references."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import (
    CAP_MB,
    assert_close,
    batch_of,
    check_buckets,
    flat,
    gradient_digest,
    gradients,
    loss_of,
    mlp,
    pcgrad_weights,
)

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]
# Emulated kernels are slow; what two ranks do on a device, one, three or four do as well.
WORLDS = (1, pytest.param(2, marks=pytest.mark.host), 3, 4)


def _local(ddp: DDP, world: int, seed: int, step: int, dtype: torch.dtype) -> list[Any]:
    return [
        gradients(ddp.module, lambda m, r=r: loss_of(m, batch_of(seed, r, step, dtype)))  # type: ignore[misc]
        for r in range(world)
    ]


# --- (a) the mean is DDP ---


def _train_beside_plain_ddp(rank: int, world: int, seed: int) -> None:
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-3),
    }
    for dtype in (torch.float64, torch.float32):
        eps = torch.finfo(dtype).eps
        for make_optimizer in optimizers.values():
            plain = DDP(mlp(seed, dtype), bucket_cap_mb=CAP_MB)
            ours = DDP(mlp(seed, dtype), bucket_cap_mb=CAP_MB)
            moo.register(ours, method="mean")
            optimizer = [make_optimizer(m.parameters()) for m in (plain, ours)]
            for step in range(4):
                # At the same point: the gradients differ by no more than the rounding of a sum of W terms.
                local = _local(ours, world, seed, step, dtype)
                for model, opt in zip((plain, ours), optimizer, strict=True):
                    opt.zero_grad()
                    loss_of(model, batch_of(seed, rank, step, dtype)).backward()
                for name, parameter in ours.module.named_parameters():
                    assert parameter.grad is not None
                    size = np.mean([np.abs(grads[name]) for grads in local], axis=0)
                    exact = np.mean([grads[name] for grads in local], axis=0)
                    error = np.abs(flat(parameter.grad, parameter) - exact)
                    assert (error <= (world + 2) * eps * size).all(), (name, step, error.max())
                if world <= 2 and step == 0:  # halves are exact and there is one order to add two terms
                    assert gradient_digest(plain) == gradient_digest(ours)
                for opt in optimizer:
                    opt.step()
            for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=64 * eps, atol=64 * eps)
            if world <= 2:
                for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
                    assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_the_mean_trains_like_plain_ddp(run_ranks: RunRanks, world: int, rng: np.random.Generator) -> None:
    run_ranks(world, _train_beside_plain_ddp, int(rng.integers(2**31)))


# --- (b) and (d) two ways to register, two runs, all ranks: the same bits ---


def _methods(world: int) -> list[Any]:
    return [
        *moo.available_methods(),
        moo.MGDA(normalize="l2"),
        moo.CAGrad(c=1.0),
        moo.CAGrad(c=0.7, rescale=True),
        moo.PCGrad(reduction="sum"),
        moo.PCGrad(permutation=[list(range(world))[::-1]] * world),
        moo.Mean(weights=list(range(1, world + 1))),
    ]


def _train(rank: int, seed: int, method: Any, way: str) -> tuple[list[str], list[torch.Tensor]]:
    """Digests of the gradients of three steps, and the weights solved for."""
    ddp = DDP(mlp(seed, torch.float32), bucket_cap_mb=CAP_MB)
    if way == "register":
        state = moo.register(ddp, method=method, seed=seed)
    else:
        state = moo.BucketMOO(method=method, seed=seed, bucket_cap_mb=CAP_MB)
        ddp.register_comm_hook(state, moo.bucket_moo_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    digests, weights = [], []
    for step in range(3):
        optimizer.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step, torch.float32)).backward()
        digests.append(gradient_digest(ddp))
        weights += [bucket.weights for bucket in state.report().buckets]
        optimizer.step()
    return digests, weights


def _compare_ways(rank: int, world: int, seed: int) -> list[list[str]]:
    all_digests = []
    for method in _methods(world):
        native, native_weights = _train(rank, seed, method, "register")
        for way in ("hook", "register") if method in ("mgda", "pcgrad") else ("hook",):
            again, again_weights = _train(rank, seed, method, way)
            assert again == native, f"{method}: register and {way} differ"
            for a, b in zip(native_weights, again_weights, strict=True):
                assert torch.equal(a, b), f"{method}, {way}: {a} {b}"
        all_digests.append(native)
    return all_digests


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_both_ways_to_register_both_runs_and_all_ranks_hold_the_same_bits(
    run_ranks: RunRanks, world: int, rng: np.random.Generator
) -> None:
    by_rank = run_ranks(world, _compare_ways, int(rng.integers(2**31)))
    assert all(digests == by_rank[0] for digests in by_rank)
    if world > 1:  # MGDA differs from the mean, or this test could not fail
        names = list(moo.available_methods())
        assert by_rank[0][names.index("mgda")] != by_rank[0][names.index("mean")]


# --- (c) against references ---


def _assert_cagrad(c: float) -> Callable[[np.ndarray, np.ndarray, float, str], None]:
    def check(rows: np.ndarray, d: np.ndarray, tolerance: float, what: str) -> None:
        """Primal and dual of Liu et al. 2021, eq. 3: d is optimal if the two values meet.

        The primal is min_k <g_k, d> for d in the ball |d - g_0| <= c |g_0|; any l on the simplex bounds it from above
        by <g_l, g_0> + c |g_0| |g_l|. The l to test is read off d = g_0 + (s / |g_l|) g_l by least squares.
        """
        mean = rows.mean(0)
        radius = c * np.linalg.norm(mean)
        scale = np.linalg.norm(rows, axis=1).max()
        assert np.linalg.norm(d - mean) <= radius + tolerance * scale, what
        v = np.linalg.lstsq(rows.T, d - mean, rcond=None)[0]
        assert np.linalg.norm(v @ rows - (d - mean)) <= tolerance * scale, f"{what}: not in span"
        assert v.min() >= -np.sqrt(tolerance) * abs(v).max(), f"{what}: {v}"
        v = np.maximum(v, 0)
        hull = v / v.sum() @ rows
        bound = hull @ mean + radius * np.linalg.norm(hull)
        assert (rows @ d).min() >= bound - 10 * np.sqrt(tolerance) * scale**2, what

    return check


def _assert_pcgrad(rows: np.ndarray, d: np.ndarray, tolerance: float, what: str) -> None:
    weights = pcgrad_weights(rows)
    distances = ((weights @ (rows @ rows.T)) * weights).sum(1) - 2 * weights @ (rows @ d)
    assert_close(d, weights[distances.argmin()] @ rows, tolerance, what)


def _assert_mean(rows: np.ndarray, d: np.ndarray, tolerance: float, what: str) -> None:
    assert np.linalg.norm(d - rows.mean(0)) <= tolerance * np.linalg.norm(rows, axis=1).max(), what


def _assert_common_descent(ddp: DDP, own: dict[str, np.ndarray], tolerance: float) -> None:
    """Every bucket's inequality, added up: this rank's loss falls at the rate |d|^2 or faster."""
    update = {n: flat(p.grad, p) for n, p in ddp.module.named_parameters()}
    product = sum(float(own[n] @ update[n]) for n in own)
    square = sum(float(d @ d) for d in update.values())
    assert product >= square - tolerance * sum(float(g @ g) for g in own.values())


def _compare_with_references(rank: int, world: int, seed: int) -> list[Any]:
    cases: list[tuple[Any, Any]] = [
        ("mean", _assert_mean),
        ("mgda", None),
        (moo.CAGrad(c=0.4), _assert_cagrad(0.4)),
        (moo.CAGrad(c=1.5), _assert_cagrad(1.5)),
        ("pcgrad", _assert_pcgrad),
    ]
    seen = []
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        for method, check in cases:
            ddp = DDP(mlp(seed, dtype), bucket_cap_mb=CAP_MB)
            state = moo.register(ddp, method=method, seed=seed)
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
            for step in range(2):
                local = _local(ddp, world, seed, step, dtype)
                optimizer.zero_grad()
                loss_of(ddp, batch_of(seed, rank, step, dtype)).backward()
                how = {} if check is None else {"check": check}
                check_buckets(ddp, state, local, tolerance, **how)
                if method == "mgda":
                    _assert_common_descent(ddp, local[rank], tolerance)
                seen.append((gradient_digest(ddp), [b.weights.tolist() for b in state.report().buckets]))
                optimizer.step()
            report = state.report()
            assert len(report.buckets) > 1
            assert {b.status for b in report.buckets} == {"ok"}
            assert report.step == 2
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_gradients_equal_the_float64_references(run_ranks: RunRanks, world: int, rng: np.random.Generator) -> None:
    by_rank = run_ranks(world, _compare_with_references, int(rng.integers(2**31)))
    assert all(seen == by_rank[0] for seen in by_rank)


def _shared_objectives(rank: int, world: int, seed: int) -> None:
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp, objective=("sw", "de", "sw", "sw")[rank])
    for step in range(2):
        local = _local(ddp, world, seed, step, torch.float64)
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        check_buckets(ddp, state, local, 1e-9, groups=(0, 1, 0, 0)[:world])
        assert state.report().objectives == ("sw", "de")


@pytest.mark.parametrize("world", [4])
def test_ranks_of_one_objective_are_averaged_first(run_ranks: RunRanks, world: int, rng: np.random.Generator) -> None:
    run_ranks(world, _shared_objectives, int(rng.integers(2**31)))


class _Constant(nn.Module):
    """A loss whose gradient is the input."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


def _fresh_orders(rank: int, world: int, seed: int) -> list[str]:
    """PCGrad's updates for gradients that all conflict, for a few steps and two seeds."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(world, 200, generator=generator, dtype=torch.float64)
    rows -= 0.9 * rows.mean(0)
    digests = []
    for own_seed in (seed, seed + 1):
        ddp = DDP(_Constant(200))
        moo.register(ddp, method="pcgrad", seed=own_seed)
        for _ in range(8):
            ddp.zero_grad()
            ddp(rows[rank]).backward()
            digests.append(gradient_digest(ddp))
    return digests


def test_pcgrad_draws_a_new_order_every_step_and_for_every_seed(run_ranks: RunRanks, rng: np.random.Generator) -> None:
    by_rank = run_ranks(3, _fresh_orders, int(rng.integers(2**31)))
    assert all(digests == by_rank[0] for digests in by_rank)
    # 8 updates are possible; two draws of eight do not come out alike.
    assert len(set(by_rank[0])) > 1
    assert by_rank[0][:8] != by_rank[0][8:]
