"""DDP in all its moods: what changes which buckets there are, or who calls."""

import itertools
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.checks import ON_DEVICE
from tests.support.ddp import (
    CAP_MB,
    TOLERANCE,
    assert_close,
    batch_of,
    check_buckets,
    digest,
    flat,
    gradient_digest,
    gradients,
    local_gradients,
    loss_of,
    mgda_weights,
    mlp,
    same_on_all_ranks,
)

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]


# --- options of the constructor ---


def _train_with_options(rank: int, world: int, seed: int, options: dict[str, Any]) -> list[str]:
    """Three steps against the reference, with the gradients kept (zeroed) and dropped between steps."""
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB, **options)
    state = moo.register(ddp)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    digests = []
    for step in range(4):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        local = local_gradients(ddp.module, world, seed, step)
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified")
@pytest.mark.parametrize("world", [1, 2, 3])
def test_bucket_views_static_graphs_and_unused_parameter_search(run_ranks: RunRanks, world: int, seed: int) -> None:
    same_on_all_ranks(run_ranks(world, _train_with_all_options, seed))


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
        ddp = DDP(model, bucket_cap_mb=CAP_MB, **options)  # type: ignore[arg-type]
        state = moo.register(ddp)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
        for step in range(2):
            batches = [batch_of(seed, r, step, sizes=(8, 5)) for r in range(world)]

            def loss(m: nn.Module, r: int, batches: list[Any] = batches) -> torch.Tensor:
                x, y = batches[r]
                value: torch.Tensor = (m(x, r) - y).square().mean()
                return value

            local = [gradients(model, lambda m, r=r: loss(m, r)) for r in range(world)]  # type: ignore[misc]
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
    same_on_all_ranks(run_ranks(world, _unused_parameters, seed))


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
            micro = [local_gradients(ddp.module, world, seed, 10 * step + i) for i in range(3)]
            total = [{n: sum(m[r][n] for m in micro) for n in micro[0][r]} for r in range(world)]
            ddp.zero_grad()
            with ddp.no_sync():
                for i in range(2):
                    loss_of(ddp, batch_of(seed, rank, 10 * step + i)).backward()
            assert state.step == step  # nothing was sent
            loss_of(ddp, batch_of(seed, rank, 10 * step + 2)).backward()
            assert state.step == step + 1
            check_buckets(ddp, state, total, TOLERANCE[torch.float64])  # type: ignore[arg-type]
            digests.append(gradient_digest(ddp))
    return digests


@pytest.mark.parametrize("world", [1, 3])
def test_no_sync_reduces_the_sum_of_the_micro_batches(run_ranks: RunRanks, world: int, seed: int) -> None:
    same_on_all_ranks(run_ranks(world, _accumulate, seed))


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
            local = local_gradients(ddp.module, world, seed, step)
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
    same_on_all_ranks(run_ranks(world, _uneven_inputs, seed, way))


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
    same_on_all_ranks(run_ranks(3, _clip, seed))


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
                local = [gradients(ddp.module, lambda m, b=b: loss_of(m, b)) for b in batches]  # type: ignore[misc]
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


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_bucket_above_the_cap_is_exchanged_in_pieces(run_ranks: RunRanks, world: int, seed: int) -> None:
    same_on_all_ranks(run_ranks(world, _pieces, seed))


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
        local = local_gradients(ddp.module, world, seed, step)
        rows_of_objective = []
        for name in order:
            ranks = [r for r in range(world) if names[r] == name]
            total = sum(weights[r] for r in ranks)
            rows_of_objective.append({p: sum(weights[r] / total * local[r][p] for r in ranks) for p in local[0]})
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        assert state.report().objectives == order
        check_buckets(ddp, state, rows_of_objective, TOLERANCE[torch.float64])  # type: ignore[arg-type]
        for bucket in state.report().buckets:
            rows = np.stack([np.concatenate([g[n] for n in bucket.parameters]) for g in rows_of_objective])
            np.testing.assert_allclose(bucket.weights.numpy(), mgda_weights(rows), atol=1e-7)
        digests.append(gradient_digest(ddp))
    return digests


def test_objective_and_weight_may_change_every_step(run_ranks: RunRanks, seed: int) -> None:
    same_on_all_ranks(run_ranks(3, _objectives_change, seed))
