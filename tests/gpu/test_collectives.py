"""The collectives on a GPU, several ranks: against the references."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from tests.gpu.device import DEVICE
from tests.gpu.one_gpu import run_gpu_ranks
from tests.support import reference as ref
from tests.support.checks import Outcome, draw, outcome, raw, unraw, verify

__all__ = ["run_gpu_ranks"]  # a fixture
Runner = Callable[..., list[Any]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGE = 1_000_003
SIZES = DEVICE.pick((1, 7, 5000, 100_003, LARGE), dry=(7, 5001))
# Large ones of two types only: the references, on the CPU, would take most of the time.
CASES = [(dtype, n) for dtype in DTYPES for n in SIZES if n < LARGE or dtype in DTYPES[:2]]


def rank_all_reduce(rank: int, world: int, seed: int, shared: Sequence[str]) -> list[list[Outcome]]:
    results: list[list[Outcome]] = []
    for objectives in shared:
        results.append([])
        for method in ("mean", "mgda"):
            state = moo.BucketMOO(method, objective=objectives[rank])
            for dtype, n in CASES:
                row = draw(seed, (rank, n), n, dtype).to(DEVICE.name)
                moo.all_reduce(row, state)
                results[-1].append(outcome(row.cpu(), state))
    return results


@pytest.mark.parametrize("shared", [["ab"], ["abc"], ["abcd", "abab", "aaab"]], ids="-".join)
def test_all_reduce(run_gpu_ranks: Runner, random_seed: int, shared: list[str]) -> None:
    """`shared`: which ranks share an objective, one setting after another on the same ranks."""
    world = len(shared[0])
    ranks = run_gpu_ranks(world, rank_all_reduce, random_seed, shared)
    for number, objectives in enumerate(shared):
        first, *others = (results[number] for results in ranks)
        assert all([o.result for o in results] == [o.result for o in first] for results in others)
        place = iter(first)
        for method in ("mean", "mgda"):
            for dtype, n in CASES:
                rows = [draw(random_seed, (r, n), n, dtype) for r in range(world)]
                verify(f"{objectives} {method} {dtype} {n}", rows, next(place), method, objective=objectives)


def rank_two_levels(rank: int, world: int, seed: int) -> list[list[Outcome]]:
    mesh = init_device_mesh(torch.device(DEVICE.name).type, (2, 2), mesh_dim_names=("node", "gpu"))
    results: list[list[Outcome]] = []
    for along in ("node", "gpu"):
        state = moo.BucketMOO("mgda", mesh=mesh, objectives=along)
        results.append([])
        for dtype, n in CASES:
            row = draw(seed, (rank, n), n, dtype).to(DEVICE.name)
            moo.all_reduce(row, state)
            results[-1].append(outcome(row.cpu(), state))
            full = draw(seed, (rank, n), n * world, dtype).to(DEVICE.name)
            shard = torch.empty(n, dtype=dtype, device=DEVICE.name)
            moo.reduce_scatter(shard, full, state)
            results[-1].append(outcome(shard.cpu(), state))
    return results


def test_two_levels(run_gpu_ranks: Runner, random_seed: int) -> None:
    """The mean of ranks that share an objective is formed in the bucket's dtype."""
    ranks = run_gpu_ranks(4, rank_two_levels, random_seed)
    for number, objectives in enumerate(("0011", "0101")):
        for place, (dtype, n) in enumerate(CASES):
            label = f"{objectives} {dtype} {n}"
            given: dict[str, Any] = {"objective": objectives, "is_summed": True}
            whole, scattered = ([results[number][2 * place + i] for results in ranks] for i in range(2))
            assert all(o.result == whole[0].result for o in whole), label
            rows = [draw(random_seed, (r, n), n, dtype) for r in range(4)]
            verify(label, rows, whole[0], "mgda", **given)
            rows = [draw(random_seed, (r, n), n * 4, dtype) for r in range(4)]
            for r, of_rank in enumerate(scattered):
                shard = slice(r * n, (r + 1) * n)
                verify(label, rows, of_rank, "mgda", shard=shard, **given)


def rank_sketched(rank: int, world: int, seed: int, shared: Sequence[str]) -> list[list[dict[str, Any]]]:
    return [sketched(rank, world, seed, objectives) for objectives in shared]


def sketched(rank: int, world: int, seed: int, objectives: str) -> list[dict[str, Any]]:
    state = moo.BucketMOO("mgda", objective=objectives[rank], gramian=moo.Sketch(1024))
    results = []
    for dtype, n in CASES:
        row = draw(seed, (rank, n), n, dtype).to(DEVICE.name)
        moo.all_reduce(row, state)
        (bucket,) = state.report().buckets
        full = draw(seed, (rank, n), n * world, dtype).to(DEVICE.name)
        shard = torch.empty(n, dtype=dtype, device=DEVICE.name)
        moo.reduce_scatter(shard, full, state)
        assert torch.equal(full.cpu(), draw(seed, (rank, n), n * world, dtype)), "the input is only read"
        (scattered,) = state.report().buckets
        results.append({  # no tensors: a rank's are gone when it ends
            "row": raw(row.cpu()), "weights": bucket.weights.numpy(), "gramian": bucket.gramian.numpy(),
            "width": bucket.width, "shard": raw(shard.cpu()), "shard weights": scattered.weights.numpy(),
        })  # fmt: skip
    return results


def test_sketched(run_gpu_ranks: Runner, random_seed: int) -> None:
    shared = ["abc", "aab"]
    ranks = run_gpu_ranks(3, rank_sketched, random_seed, shared)
    for number, objectives in enumerate(shared):
        check_sketched(random_seed, objectives, [results[number] for results in ranks])


def check_sketched(random_seed: int, objectives: str, ranks: list[list[dict[str, Any]]]) -> None:
    """The weighted sums of what is reported; the Gramian's error is a few standard errors at most."""
    world = len(objectives)
    names = list(dict.fromkeys(objectives))
    for place, (dtype, n) in enumerate(CASES):
        results = [results[place] for results in ranks]
        first = results[0]
        assert first["width"] == (1024 if n > 2048 else 0)
        assert all(r["row"] == first["row"] for r in results), "the same bits on every rank"
        share = np.array([1 / objectives.count(name) for name in objectives])
        unit = torch.finfo(dtype).eps
        for size, weights, got in (
            (n, first["weights"], first["row"]),
            (n * world, first["shard weights"], b"".join(r["shard"] for r in results)),
        ):
            rows = np.stack([ref.float64(draw(random_seed, (r, n), size, dtype)) for r in range(world)])
            terms = (share * weights[[names.index(name) for name in objectives]])[:, None] * rows
            error = np.abs(unraw(got, dtype) - terms.sum(0))
            assert (error <= 4 * world * unit * np.abs(terms).sum(0) + 1e-6).all(), (dtype, n)
        rows = np.stack([ref.float64(draw(random_seed, (r, n), n, dtype)) for r in range(world)])
        means = np.stack([rows[[owner == name for owner in objectives]].mean(0) for name in names])
        norms = np.linalg.norm(means, axis=1)
        off = np.abs(first["gramian"] - means @ means.T) / np.outer(norms, norms)
        assert off.max() <= (8 / 32 if first["width"] else 0.01), (dtype, n)


def rank_reduce_scatter(rank: int, world: int, seed: int) -> list[bytes]:
    state = moo.BucketMOO("mgda")
    results = []
    for n in DEVICE.pick((3, 1000, 50_000), dry=(3, 2501)):
        full = draw(seed, (rank, n), n * world, torch.float32).to(DEVICE.name)
        shard = torch.full((n,), torch.nan, device=DEVICE.name)
        moo.reduce_scatter(shard, full, state)
        whole = full.clone()
        future = moo.all_reduce(whole, state, async_op=True)
        future.wait()
        torch.testing.assert_close(shard, whole[rank * n : (rank + 1) * n], rtol=1e-5, atol=1e-6)
        results.append(raw(whole.cpu()))
    return results


def test_reduce_scatter(run_gpu_ranks: Runner, random_seed: int) -> None:
    ranks = run_gpu_ranks(3, rank_reduce_scatter, random_seed)
    assert ranks[0] == ranks[1] == ranks[2]


N = DEVICE.pick(20_011, dry=5011)


def rank_special(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO("mgda")
    row = draw(seed, (rank,), N, torch.float32).to(DEVICE.name)
    if rank == 1:
        row[17] = torch.nan
    moo.all_reduce(row, state)
    assert torch.isnan(row[17])
    assert row.isnan().sum().item() == 1
    assert state.report().fallbacks == 1
    state.objective = "one"
    state.weight = [2.0, 0.0, 1.0][rank]
    row = draw(seed, (7, rank), N, torch.float32).to(DEVICE.name)
    if rank == 1:
        row.fill_(torch.inf)  # left out, so that it is not read
    moo.all_reduce(row, state)
    expected = (2 * draw(seed, (7, 0), N, torch.float64) + draw(seed, (7, 2), N, torch.float64)) / 3
    torch.testing.assert_close(row.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    assert state.report().objectives == ("one",)


def test_nan_weights_and_ranks_left_out(run_gpu_ranks: Runner, random_seed: int) -> None:
    run_gpu_ranks(3, rank_special, random_seed)


def rank_resume(rank: int, world: int, seed: int) -> dict[str, list[bytes]]:
    def run(state: moo.BucketMOO, steps: range) -> list[bytes]:
        results = []
        for step in steps:
            row = draw(seed, (step, rank), 3001, torch.float32).to(DEVICE.name)
            moo.all_reduce(row, state)
            results.append(raw(row.cpu()))
        return results

    results = {}
    for name, method in (("gradvac", moo.GradVac()), ("smoothed", moo.Smoothed("pcgrad", 0.5))):
        results[f"{name} whole"] = run(moo.BucketMOO(method, seed=4), range(6))
        first = moo.BucketMOO(method, seed=4)
        start = run(first, range(3))
        resumed = moo.BucketMOO(method, seed=4)
        resumed.load_state_dict(first.state_dict())
        results[f"{name} resumed"] = start + run(resumed, range(3, 6))
        results[f"{name} pickled"] = start + run(pickle.loads(pickle.dumps(first)), range(3, 6))
    return results


def test_resume_gives_the_same_bits(run_gpu_ranks: Runner, random_seed: int) -> None:
    ranks = run_gpu_ranks(2, rank_resume, random_seed)
    assert ranks[0] == ranks[1]
    for name in ("gradvac", "smoothed"):
        assert ranks[0][f"{name} resumed"] == ranks[0][f"{name} whole"]
        assert ranks[0][f"{name} pickled"] == ranks[0][f"{name} whole"]


def rank_order(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO("mean")
    row = torch.zeros(DEVICE.pick(2_000_000, dry=5000), device=DEVICE.name)
    moo.all_reduce(row, state)
    for _ in range(5):
        DEVICE.busy(5_000_000)
        row.fill_(float(rank))  # late, on the current stream
        future = moo.all_reduce(row, state, async_op=True)
        future.wait()
        doubled = row * 2  # early, on the current stream
        assert doubled.unique().tolist() == [float(world - 1)]


def test_the_order_of_streams(run_gpu_ranks: Runner, random_seed: int) -> None:
    run_gpu_ranks(2, rank_order, random_seed)
