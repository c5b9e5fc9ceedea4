"""DDP in all its moods: every option that changes which buckets there are, what is in them or who calls."""

import copy
import gc
import itertools
import math
import os
import tempfile
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.checks import ON_DEVICE
from tests.support.ddp import (
    CAP_MB,
    assert_close,
    assert_mgda,
    batch_of,
    check_buckets,
    digest,
    flat,
    gradient_digest,
    gradients,
    loss_of,
    mgda_weights,
    mlp,
)

RunRanks = Callable[..., list[Any]]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.fixture
def seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _local(
    model: nn.Module, world: int, seed: int, step: int, dtype: torch.dtype = torch.float64
) -> list[dict[str, np.ndarray]]:
    return [
        gradients(model, lambda m, r=r: loss_of(m, batch_of(seed, r, step, dtype)))  # type: ignore[misc]
        for r in range(world)
    ]


def _same_on_all_ranks(results: list[Any]) -> None:
    assert all(result == results[0] for result in results), results


# --- options of the constructor ---


def _train_with_options(rank: int, world: int, seed: int, options: dict[str, Any]) -> list[str]:
    """Three steps against the reference, with the gradients kept (zeroed) and dropped between steps."""
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB, **options)
    state = moo.register(ddp)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    digests = []
    for step in range(4):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        local = _local(ddp.module, world, seed, step)
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        check_buckets(ddp, state, local, TOLERANCE[torch.float64])
        digests.append(gradient_digest(ddp))
        optimizer.step()
    return digests


def _train_with_all_options(rank: int, world: int, seed: int) -> list[str]:
    by_options = {}
    for view, static, unused in itertools.product((False, True), repeat=3):
        if static and unused:
            continue  # static_graph makes find_unused_parameters moot; DDP warns
        options = {
            "gradient_as_bucket_view": view,
            "static_graph": static,
            "find_unused_parameters": unused,
        }
        by_options[view, static, unused] = _train_with_options(rank, world, seed, options)
    for (view, static, unused), digests in by_options.items():
        # A view or a copy of the bucket: the same bits.
        assert digests == by_options[not view, static, unused]
    return [text for digests in by_options.values() for text in digests]


@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified")
@pytest.mark.parametrize("world", [1, 2, 3])
def test_bucket_views_static_graphs_and_unused_parameter_search(run_ranks: RunRanks, world: int, seed: int) -> None:
    _same_on_all_ranks(run_ranks(world, _train_with_all_options, seed))


class _Heads(nn.Module):
    """A trunk, a head a rank, and one that nobody uses."""

    def __init__(self, seed: int, world: int) -> None:
        super().__init__()
        self.trunk = mlp(seed, sizes=(8, 300, 30))
        self.heads = nn.ModuleList(mlp(seed + 1 + i, sizes=(30, 100, 5)) for i in range(world))
        self.idle = mlp(seed, sizes=(30, 100, 5))

    def forward(self, x: torch.Tensor, head: int) -> torch.Tensor:
        out: torch.Tensor = self.heads[head](self.trunk(x))
        return out


def _unused_parameters(rank: int, world: int, seed: int) -> list[str]:
    digests = []
    for view in (False, True):
        model = _Heads(seed, world)
        options = {"find_unused_parameters": True, "gradient_as_bucket_view": view}
        ddp = DDP(model, bucket_cap_mb=CAP_MB, **options)
        state = moo.register(ddp)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
        for step in range(2):
            batches = [batch_of(seed, r, step, sizes=(8, 5)) for r in range(world)]

            def loss(m: nn.Module, r: int, batches: list[Any] = batches) -> torch.Tensor:
                x, y = batches[r]
                value: torch.Tensor = (m(x, r) - y).square().mean()
                return value

            local = [gradients(model, lambda m, r=r: loss(m, r)) for r in range(world)]
            optimizer.zero_grad()
            loss(ddp, rank).backward()
            check_buckets(ddp, state, local, TOLERANCE[torch.float64])
            assert all(p.grad is None for p in model.idle.parameters())
            # A bucket that one rank alone uses: its gradient, unscaled; nobody's: nothing to solve.
            kinds = set()
            for bucket in state.report().buckets:
                users: set[int] = set()
                for name in bucket.parameters:
                    part, head = name.split(".")[:2]
                    users |= {"trunk": set(range(world)), "heads": {int(head)}, "idle": set()}[part]
                if len(users) == 1:
                    assert bucket.weights.tolist() == [float(r in users) for r in range(world)]
                if not users:
                    assert bucket.status == "inactive"
                    assert bucket.weights.tolist() == [0.0] * world
                kinds.add(len(users))
            assert kinds >= {0, 1, world}, state.report()
            optimizer.step()
            digests.append(gradient_digest(ddp))
    return digests


@pytest.mark.parametrize("world", [2, 3])
def test_parameters_that_some_or_all_ranks_do_not_use(run_ranks: RunRanks, world: int, seed: int) -> None:
    _same_on_all_ranks(run_ranks(world, _unused_parameters, seed))


def _rebuild(rank: int, world: int, seed: int) -> None:
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp)
    names = sorted(name for name, _ in ddp.module.named_parameters())
    counts = []
    for step in range(4):
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        report = state.report()
        assert report.step == step + 1
        assert [b.index for b in report.buckets] == list(range(len(report.buckets)))
        # No bucket of the old cut lingers: every parameter is in one bucket.
        assert sorted(n for b in report.buckets for n in b.parameters) == names
        assert sum(b.numel for b in report.buckets) == sum(p.numel() for p in ddp.parameters())
        counts.append(len(report.buckets))
        assert report.reduced == sum(counts)
    # DDP's first iteration has one bucket; it is cut up when the order of the gradients is known.
    assert counts[0] == 1
    assert counts[1] > 1
    assert counts[1] == counts[2] == counts[3]


def test_buckets_are_rebuilt_after_the_first_iteration(run_ranks: RunRanks, seed: int) -> None:
    run_ranks(2, _rebuild, seed)


# --- how a step is made up ---


def _accumulate(rank: int, world: int, seed: int) -> list[str]:
    digests = []
    for view in (False, True):
        ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB, gradient_as_bucket_view=view)
        state = moo.register(ddp)
        for step in range(2):
            micro = [_local(ddp.module, world, seed, 10 * step + i) for i in range(3)]
            total = [{n: sum(m[r][n] for m in micro) for n in micro[0][r]} for r in range(world)]
            ddp.zero_grad()
            with ddp.no_sync():
                for i in range(2):
                    loss_of(ddp, batch_of(seed, rank, 10 * step + i)).backward()
            assert state.step == step  # nothing was sent
            loss_of(ddp, batch_of(seed, rank, 10 * step + 2)).backward()
            assert state.step == step + 1
            check_buckets(ddp, state, total, TOLERANCE[torch.float64])
            digests.append(gradient_digest(ddp))
    return digests


@pytest.mark.parametrize("world", [1, 3])
def test_no_sync_reduces_the_sum_of_the_micro_batches(run_ranks: RunRanks, world: int, seed: int) -> None:
    _same_on_all_ranks(run_ranks(world, _accumulate, seed))


def _uneven_inputs(rank: int, world: int, seed: int, way: str) -> str:
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB)
    if way == "register":
        state = moo.register(ddp)
    else:
        state = moo.BucketMOO(bucket_cap_mb=CAP_MB)
        ddp.register_comm_hook(state, moo.bucket_moo_hook)
        state.name_parameters(ddp.module.named_parameters())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    batches = [2 + r for r in range(world)]  # the last rank has the most
    with ddp.join():
        for step in range(batches[rank]):
            local = _local(ddp.module, world, seed, step)
            for r in range(world):
                if step >= batches[r]:  # a rank that has run out takes part with zeros
                    local[r] = {name: 0.0 * g for name, g in local[r].items()}
            optimizer.zero_grad()
            loss_of(ddp, batch_of(seed, rank, step)).backward()
            check_buckets(ddp, state, local, TOLERANCE[torch.float64])
            optimizer.step()
    assert state.step == max(batches)
    return digest(ddp.parameters())


@pytest.mark.parametrize(("world", "way"), [(2, "hook"), (3, "register")])
def test_join_with_uneven_inputs(run_ranks: RunRanks, world: int, way: str, seed: int) -> None:
    _same_on_all_ranks(run_ranks(world, _uneven_inputs, seed, way))


def _clip(rank: int, world: int, seed: int) -> tuple[float, str]:
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB)
    moo.register(ddp)
    for step in range(2):
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        before = np.concatenate([flat(p.grad, p) for p in ddp.parameters()])
        bound = 0.5 * float(np.linalg.norm(before))
        norm = float(nn.utils.clip_grad_norm_(ddp.parameters(), bound))
        after = np.concatenate([flat(p.grad, p) for p in ddp.parameters()])
        assert norm == pytest.approx(np.linalg.norm(before), rel=1e-12)
        assert_close(after, before * (bound / norm), 1e-5)
    return norm, gradient_digest(ddp)


def test_gradient_clipping_sees_the_same_update_on_every_rank(run_ranks: RunRanks, seed: int) -> None:
    _same_on_all_ranks(run_ranks(3, _clip, seed))


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
            local = [gradients(model, lambda m, b=b: loss_of(m, b)) for b in batches]
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
    _same_on_all_ranks(run_ranks(world, _mixed_types, seed))


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
    _same_on_all_ranks(run_ranks(world, _grad_scaler, seed))


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
        local = [gradients(ddp.module, lambda m, r=r, step=step: loss(m, r, step)) for r in range(world)]
        ddp.zero_grad()
        loss(ddp, rank, step).backward()
        check_buckets(ddp, state, local, TOLERANCE[dtype])
        digests.append(gradient_digest(ddp))
    return digests


def test_autocast_to_bfloat16(run_ranks: RunRanks, seed: int) -> None:
    _same_on_all_ranks(run_ranks(2, _autocast, seed))


# --- several modules, several groups ---


def _several_modules(rank: int, world: int, seed: int) -> list[str]:
    first, second = mlp(seed, sizes=(40, 120, 30)), mlp(seed + 1, sizes=(30, 120, 5))
    ddps = [DDP(m, bucket_cap_mb=CAP_MB) for m in (first, second)]
    states = [moo.register(ddps[0]), moo.BucketMOO(bucket_cap_mb=CAP_MB)]
    ddps[1].register_comm_hook(states[1], moo.bucket_moo_hook)
    states[1].name_parameters(second.named_parameters())
    chain = nn.Sequential(first, second)
    digests = []
    for step in range(3):
        # One backward pass through both modules.
        local = _local(chain, world, seed, step)
        chain.zero_grad()
        x, y = batch_of(seed, rank, step)
        (ddps[1](ddps[0](x)) - y).square().mean().backward()
        for i in (0, 1):
            own = [{n[2:]: g for n, g in grads.items() if n[0] == f"{i}"} for grads in local]
            check_buckets(ddps[i], states[i], own, TOLERANCE[torch.float64])
        digests.append(gradient_digest(chain))
    for step in range(3, 5):
        # Forward passes in one order, backward passes in the other.
        sizes = ((40, 30), (30, 5))
        batches = [[batch_of(seed, r, step, sizes=s) for r in range(world)] for s in sizes]
        local_of = [
            [gradients(m, lambda model, b=b: loss_of(model, b)) for b in batches[i]]
            for i, m in enumerate((first, second))
        ]
        chain.zero_grad()
        losses = [loss_of(ddp, batches[i][rank]) for i, ddp in enumerate(ddps)]
        for loss in losses[:: 1 if step == 3 else -1]:
            loss.backward()
        for i in (0, 1):
            check_buckets(ddps[i], states[i], local_of[i], TOLERANCE[torch.float64])
        digests.append(gradient_digest(chain))
    return digests


def test_several_modules_each_with_its_own_state(run_ranks: RunRanks, seed: int) -> None:
    _same_on_all_ranks(run_ranks(3, _several_modules, seed))


def _sub_groups(rank: int, world: int, seed: int) -> str:
    pairs = [[0, 2], [1, 3]]
    groups = [dist.new_group(pair) for pair in pairs]
    members = pairs[rank % 2]
    group = groups[rank % 2]
    for way in ("register", "register with the group", "hook"):
        model = mlp(seed + rank % 2)
        ddp = DDP(model, process_group=group, bucket_cap_mb=CAP_MB)
        if way == "hook":
            state = moo.BucketMOO(process_group=group, bucket_cap_mb=CAP_MB)
            ddp.register_comm_hook(state, moo.bucket_moo_hook)
            state.name_parameters(model.named_parameters())
        else:
            state = moo.register(ddp, process_group=group if "with" in way else None)
        for step in range(2):
            everybody = _local(model, world, seed, step)
            ddp.zero_grad()
            loss_of(ddp, batch_of(seed, rank, step)).backward()
            local = [everybody[r] for r in members]
            check_buckets(ddp, state, local, TOLERANCE[torch.float64])
            assert state.report().objectives == ("0", "1")  # ranks in the group
    return gradient_digest(ddp)


def test_sub_groups(run_ranks: RunRanks, seed: int) -> None:
    by_rank = run_ranks(4, _sub_groups, seed)
    assert by_rank[0] == by_rank[2]
    assert by_rank[1] == by_rank[3]
    assert by_rank[0] != by_rank[1]


def _overlapping_groups(rank: int, world: int, seed: int) -> str:
    """Ranks that are in different numbers of groups must still agree on a new state's own group."""
    groups = [dist.new_group([0, 1]), dist.new_group([1, 2])]
    kept = []
    for group, members in zip(groups, ([0, 1], [1, 2]), strict=True):
        if rank in members:
            state = moo.BucketMOO("mean", process_group=group)
            x = torch.full((5,), float(rank))
            moo.all_reduce(x, state)
            assert x.tolist() == [sum(members) / 2] * 5
            kept.append(state)
    everybody = moo.BucketMOO("mean")
    x = torch.full((5,), float(rank))
    moo.all_reduce(x, everybody)
    return digest([x])


def test_states_over_groups_that_overlap(run_ranks: RunRanks, seed: int) -> None:
    _same_on_all_ranks(run_ranks(3, _overlapping_groups, seed, timeout=60.0))


def _wrap_again(rank: int, world: int, seed: int) -> list[str]:
    model = mlp(seed)
    digests = []
    for step in range(3):
        ddp = DDP(model, bucket_cap_mb=CAP_MB)
        state = moo.register(ddp)
        local = _local(model, world, seed, step)
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        check_buckets(ddp, state, local, TOLERANCE[torch.float64])
        digests.append(gradient_digest(ddp))
        del ddp, state
        gc.collect()  # DDP's hooks on the parameters go with it
    return digests


def test_a_module_that_is_wrapped_again(run_ranks: RunRanks, seed: int) -> None:
    _same_on_all_ranks(run_ranks(2, _wrap_again, seed))


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

            local = [gradients(ddp.module, lambda m, r=r: loss(m, r)) for r in range(world)]
            ddp.zero_grad()
            loss(ddp, rank).backward()
            # Nearly dependent rows: d is a small difference of large terms.
            check_buckets(ddp, state, local, 1e-7)
            digests.append(gradient_digest(ddp))
    return digests


@pytest.mark.parametrize("world", [1, 4])
def test_one_parameter_and_fewer_elements_than_ranks(run_ranks: RunRanks, world: int, seed: int) -> None:
    _same_on_all_ranks(run_ranks(world, _few_elements, seed))


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

                local = [gradients(model, lambda m, r=r: loss(m, r)) for r in range(world)]
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
    _same_on_all_ranks(run_ranks(world, _sparse, seed, way))


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
        local = [gradients(ddp.module, lambda m, b=b: loss_of(m, b)) for b in batches]
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
    _same_on_all_ranks(run_ranks(world, _complex, seed))


# --- the state between steps ---


def _pieces(rank: int, world: int, seed: int) -> list[str]:
    digests = []
    scratch = {}
    sizes = (40,) * 11 + (5,)  # no parameter is much of the whole
    for dtype in (torch.float64, torch.float32):
        gradients_by_cap = {}
        for cap in (25.0, 0.01, 1e-6):
            ddp = DDP(mlp(seed, dtype, sizes), bucket_cap_mb=25)  # one bucket
            state = moo.BucketMOO(bucket_cap_mb=cap)
            ddp.register_comm_hook(state, moo.bucket_moo_hook)
            state.name_parameters(ddp.module.named_parameters())
            for step in range(2):
                batches = [batch_of(seed, r, step, dtype, sizes) for r in range(world)]
                local = [gradients(ddp.module, lambda m, b=b: loss_of(m, b)) for b in batches]
                ddp.zero_grad()
                loss_of(ddp, batches[rank]).backward()
                check_buckets(ddp, state, local, TOLERANCE[dtype])
            assert len(state.report().buckets) == 1
            gradients_by_cap[cap] = np.concatenate([flat(p.grad, p) for p in ddp.parameters()])
            digests.append(gradient_digest(ddp))
            scratch[dtype, cap] = state.memory()
            # The Gramian's partial sums are cut elsewhere: the last bits may differ.
            assert_close(gradients_by_cap[cap], gradients_by_cap[25.0], TOLERANCE[dtype])
        if world > 1:
            assert scratch[dtype, 1e-6] < scratch[dtype, 0.01]
            # On a device the pieces of other ranks' shards are packed before they are sent.
            assert scratch[dtype, 0.01] < scratch[dtype, 25.0] or ON_DEVICE
    return digests


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_bucket_above_the_cap_is_exchanged_in_pieces(run_ranks: RunRanks, world: int, seed: int) -> None:
    _same_on_all_ranks(run_ranks(world, _pieces, seed))


def _objectives_change(rank: int, world: int, seed: int) -> list[str]:
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp, objective="sw")
    plan: list[tuple[list[str | int | None], list[float]]] = [
        (["sw", "sw", "sw"], [1.0, 1.0, 1.0]),
        (["sw", "de", "sw"], [1.0, 1.0, 3.0]),
        ([7, "fr", "7"], [2.0, 5.0, 6.0]),
        ([None, None, None], [1.0, 1.0, 1.0]),
        (["a", "a", "b"], [0.0, 2.0, 1.0]),
    ]
    digests = []
    for step, (objectives, weights) in enumerate(plan):
        state.objective = objectives[rank]
        state.weight = weights[rank]
        names = [str(r if o is None else o) for r, o in enumerate(objectives)]
        order = tuple(dict.fromkeys(names))
        local = _local(ddp.module, world, seed, step)
        rows_of_objective = []
        for name in order:
            ranks = [r for r in range(world) if names[r] == name]
            total = sum(weights[r] for r in ranks)
            rows_of_objective.append({p: sum(weights[r] / total * local[r][p] for r in ranks) for p in local[0]})
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        assert state.report().objectives == order
        check_buckets(ddp, state, rows_of_objective, TOLERANCE[torch.float64])
        for bucket in state.report().buckets:
            rows = np.stack([np.concatenate([g[n] for n in bucket.parameters]) for g in rows_of_objective])
            np.testing.assert_allclose(bucket.weights.numpy(), mgda_weights(rows), atol=1e-7)
        digests.append(gradient_digest(ddp))
    return digests


def test_objective_and_weight_may_change_every_step(run_ranks: RunRanks, seed: int) -> None:
    _same_on_all_ranks(run_ranks(3, _objectives_change, seed))
