"""What is in the buckets: parameters of several dtypes, scaled, autocast, sparse, complex, few."""

import copy
import math
import os
import tempfile
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
    TOLERANCE,
    assert_mgda,
    batch_of,
    check_buckets,
    digest,
    flat,
    gradient_digest,
    gradients,
    loss_of,
    mlp,
    same_on_all_ranks,
)

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]


# --- precision ---


class _MixedTypes(nn.Module):
    def __init__(self, seed: int, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mlp(seed + i, d, (30, 90, 30)) for i, d in enumerate(dtypes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x.to(next(part.parameters()).dtype))
        return x.double()


def _mixed_types(rank: int, world: int, seed: int) -> list[str]:
    digests = []
    for dtypes in (
        (torch.float32, torch.float64),
        (torch.bfloat16,),
        (torch.float16, torch.bfloat16, torch.float32),
    ):
        model = _MixedTypes(seed, *dtypes)
        ddp = DDP(model, bucket_cap_mb=CAP_MB)
        state = moo.register(ddp)
        for step in range(2):
            batches = [batch_of(seed, r, step, sizes=(30, 30)) for r in range(world)]
            local = [gradients(model, lambda m, b=b: loss_of(m, b)) for b in batches]  # type: ignore[misc]
            ddp.zero_grad()
            loss_of(ddp, batches[rank]).backward()
            report = state.report()
            assert {b.dtype for b in report.buckets} == {str(d)[6:] for d in dtypes}
            by_name = dict(model.named_parameters())
            for bucket in report.buckets:
                dtype = getattr(torch, bucket.dtype)
                assert {by_name[n].dtype for n in bucket.parameters} == {dtype}
                rows = np.stack([np.concatenate([g[n] for n in bucket.parameters]) for g in local])
                got = np.concatenate([flat(by_name[n].grad, by_name[n]) for n in bucket.parameters])
                # Accumulated in float32 or better, so half an ulp of the result, and that of float32.
                rounding = torch.finfo(dtype).eps + 1e-5 * (dtype != torch.float64)
                assert_mgda(rows, got, rounding + 1e-9, f"{bucket}")
                exact = bucket.weights.numpy() @ rows
                ulp = torch.finfo(dtype).eps * np.abs(exact) + torch.finfo(dtype).tiny
                sums = 1e-6 * np.abs(rows).max(0) * (dtype != torch.float64)
                assert (np.abs(got - exact) <= 0.51 * ulp + sums + 1e-12).all()
            digests.append(gradient_digest(ddp))
    return digests


@pytest.mark.parametrize("world", [1, 3])
def test_parameters_of_several_dtypes(run_ranks: RunRanks, world: int, seed: int) -> None:
    same_on_all_ranks(run_ranks(world, _mixed_types, seed))


def _grad_scaler(rank: int, world: int, seed: int) -> list[Any]:
    dtype = torch.float32
    model = mlp(seed, dtype)
    scaled = DDP(copy.deepcopy(model), bucket_cap_mb=CAP_MB)
    plain = DDP(copy.deepcopy(model), bucket_cap_mb=CAP_MB)
    states = [moo.register(ddp) for ddp in (scaled, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    optimizers = [torch.optim.SGD(ddp.parameters(), lr=0.05) for ddp in (scaled, plain)]
    seen: list[Any] = []
    for step in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        batch = batch_of(seed, rank, step, dtype)
        overflows = step == 2
        factor = math.inf if overflows and rank == world - 1 else 1.0
        before = digest(scaled.parameters())
        scaler.scale(loss_of(scaled, batch) * factor).backward()
        scaler.unscale_(optimizers[0])
        scaler.step(optimizers[0])
        scaler.update()
        if overflows:
            assert digest(scaled.parameters()) == before  # skipped, on every rank
            assert scaler.get_scale() == 2.0**12
            report = states[0].report()
            assert {b.status for b in report.buckets} == {"nonfinite"}
            assert report.fallbacks == len(report.buckets)
        else:
            assert digest(scaled.parameters()) != before
            loss_of(plain, batch).backward()
            for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)
            optimizers[1].step()
            for a, b in zip(*(s.report().buckets for s in states), strict=True):
                torch.testing.assert_close(a.weights, b.weights, rtol=1e-6, atol=1e-9)
        seen.append(gradient_digest(scaled))
    return seen


@pytest.mark.parametrize("world", [1, 2, 3])
def test_grad_scaler_skips_on_all_ranks_and_leaves_the_weights_alone(
    run_ranks: RunRanks, world: int, seed: int
) -> None:
    same_on_all_ranks(run_ranks(world, _grad_scaler, seed))


def _autocast(rank: int, world: int, seed: int) -> list[str]:
    dtype = torch.float32
    ddp = DDP(mlp(seed, dtype), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp)

    def loss(model: nn.Module, r: int, step: int) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x, y = batch_of(seed, r, step, dtype)
            out = model(x)
            assert out.dtype == torch.bfloat16
            return (out.float() - y).square().mean()

    digests = []
    for step in range(3):
        local = [gradients(ddp.module, lambda m, r=r, step=step: loss(m, r, step)) for r in range(world)]  # type: ignore[misc]
        ddp.zero_grad()
        loss(ddp, rank, step).backward()
        check_buckets(ddp, state, local, TOLERANCE[dtype])
        digests.append(gradient_digest(ddp))
    return digests


def test_autocast_to_bfloat16(run_ranks: RunRanks, seed: int) -> None:
    same_on_all_ranks(run_ranks(2, _autocast, seed))


# --- unusual parameters ---


class _Vector(nn.Module):
    """One parameter."""

    def __init__(self, seed: int, n: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


def _few_elements(rank: int, world: int, seed: int) -> list[str]:
    digests = []
    for n in (1, 2, 3, 5):
        ddp = DDP(_Vector(seed, n))
        state = moo.register(ddp)
        for step in range(2):
            batches = [batch_of(seed + n, r, step, sizes=(n, 6)) for r in range(world)]

            def loss(m: nn.Module, r: int, batches: list[Any] = batches) -> torch.Tensor:
                x, y = batches[r]
                value: torch.Tensor = (m(x) - y[0]).square().mean()
                return value

            local = [gradients(ddp.module, lambda m, r=r: loss(m, r)) for r in range(world)]  # type: ignore[misc]
            ddp.zero_grad()
            loss(ddp, rank).backward()
            # Nearly dependent rows: d is a small difference of large terms.
            check_buckets(ddp, state, local, 1e-7)
            digests.append(gradient_digest(ddp))
    return digests


@pytest.mark.parametrize("world", [1, 4])
def test_one_parameter_and_fewer_elements_than_ranks(run_ranks: RunRanks, world: int, seed: int) -> None:
    same_on_all_ranks(run_ranks(world, _few_elements, seed))


class _Embedding(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(50, 8, generator=generator, dtype=torch.float64)
        self.table = nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
        self.head = mlp(seed, sizes=(8, 5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.table(tokens))
        return out


def _sparse(rank: int, world: int, seed: int, way: str) -> str:
    model = _Embedding(seed)
    ddp = DDP(model)
    if way == "register":
        state = moo.register(ddp)
    else:
        state = moo.BucketMOO()
        ddp.register_comm_hook(state, moo.bucket_moo_hook)
        state.name_parameters(model.named_parameters())
    with tempfile.TemporaryFile() as output:
        error_stream = os.dup(2)
        os.dup2(output.fileno(), 2)  # the warning comes from a native thread
        try:
            for step in range(3):

                def loss(m: nn.Module, r: int, step: int = step) -> torch.Tensor:
                    # As many rows as the rank says: sparse buckets differ in size.
                    generator = torch.Generator().manual_seed(seed + 10 * r + step)
                    tokens = torch.randint(50, (4 + 3 * r,), generator=generator)
                    value: torch.Tensor = m(tokens).square().mean()
                    return value

                local = [gradients(model, lambda m, r=r: loss(m, r)) for r in range(world)]  # type: ignore[misc]
                ddp.zero_grad()
                loss(ddp, rank).backward()
                weight = model.table.weight
                assert weight.grad is not None
                assert weight.grad.is_sparse
                expected = np.mean([grads["table.weight"] for grads in local], axis=0)
                np.testing.assert_allclose(flat(weight.grad, weight), expected, atol=1e-14)
                report = state.report()
                assert report.sparse == step + 1
                dense = [b for b in report.buckets if "head.0.weight" in b.parameters]
                assert len(dense) == 1
                names = dense[0].parameters
                rows = np.stack([np.concatenate([g[n] for n in names]) for g in local])
                by_name = dict(model.named_parameters())
                got = np.concatenate([flat(by_name[n].grad, by_name[n]) for n in names])
                assert_mgda(rows, got, 1e-9)
        finally:
            os.dup2(error_stream, 2)
            os.close(error_stream)
        output.seek(0)
        said = output.read().decode()
    assert said.count("a sparse gradient bucket is averaged") == 1, said
    return gradient_digest(ddp)


@pytest.mark.parametrize(("world", "way"), [(1, "hook"), (2, "register"), (3, "hook")])
def test_sparse_gradients_are_averaged_and_said_once(run_ranks: RunRanks, world: int, way: str, seed: int) -> None:
    same_on_all_ranks(run_ranks(world, _sparse, seed, way))


class _Complex(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(60, 50, generator=generator, dtype=torch.complex128))
        self.b = nn.Parameter(torch.randn(50, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.complex128) @ self.w).abs() + self.b


def _complex(rank: int, world: int, seed: int) -> list[str]:
    ddp = DDP(_Complex(seed))
    state = moo.register(ddp)
    digests = []
    for step in range(2):
        batches = [batch_of(seed, r, step, sizes=(60, 50)) for r in range(world)]
        local = [gradients(ddp.module, lambda m, b=b: loss_of(m, b)) for b in batches]  # type: ignore[misc]
        ddp.zero_grad()
        loss_of(ddp, batches[rank]).backward()
        assert ddp.module.w.grad.dtype == torch.complex128
        by_name = dict(ddp.module.named_parameters())
        for bucket in state.report().buckets:
            rows = np.stack([np.concatenate([g[n] for n in bucket.parameters]) for g in local])
            got = np.concatenate([flat(by_name[n].grad, by_name[n]) for n in bucket.parameters])
            assert_mgda(rows, got, 1e-9, f"{bucket.parameters}")
            assert bucket.dtype == "float64"
        digests.append(digest(torch.view_as_real(p.grad) if p.is_complex() else p.grad for p in by_name.values()))
    return digests


@pytest.mark.parametrize("world", [1, 2])
def test_complex_parameters_count_as_pairs_of_reals(run_ranks: RunRanks, world: int, seed: int) -> None:
    same_on_all_ranks(run_ranks(world, _complex, seed))
