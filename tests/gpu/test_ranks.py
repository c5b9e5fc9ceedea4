"""The collectives and the DDP hook on a GPU: against the references, and against the same run on the CPU."""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.gpu.one_gpu import nccl, note, run_gpu_ranks
from tests.support.checks import Outcome, draw, outcome, raw, verify

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(
        not (moo.build_info()["cuda"] and torch.cuda.is_available()), reason="needs a GPU and a build with CUDA kernels"
    ),
]
__all__ = ["run_gpu_ranks"]  # a fixture
Runner = Callable[..., list[Any]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (1, 7, 5000, 100_003, 3_000_001)
CASES = [(dtype, n) for dtype in DTYPES for n in SIZES if dtype != torch.float64 or n < 1_000_000]
CAP_MB = 0.004


# --- collectives ---


def rank_all_reduce(rank: int, world: int, seed: int, objectives: Sequence[str]) -> list[Outcome]:
    results = []
    for method in ("mean", "mgda"):
        state = moo.BucketMOO(method, objective=objectives[rank])
        for dtype, n in CASES:
            row = draw(seed, (rank, n), n, dtype).cuda()
            moo.all_reduce(row, state)
            results.append(outcome(row.cpu(), state))
    return results


@pytest.mark.parametrize("objectives", ["ab", "abc", "abab", "aaab", "abcd"])
def test_all_reduce(run_gpu_ranks: Runner, random_seed: int, objectives: str) -> None:
    world = len(objectives)
    ranks = run_gpu_ranks(world, rank_all_reduce, random_seed, objectives)
    assert all([o.result for o in results] == [o.result for o in ranks[0]] for results in ranks)
    place = iter(ranks[0])
    for method in ("mean", "mgda"):
        for dtype, n in CASES:
            rows = [draw(random_seed, (r, n), n, dtype) for r in range(world)]
            verify(f"{method} {dtype} {n}", rows, next(place), method, objective=objectives)


def rank_sketched(rank: int, world: int, seed: int, objectives: Sequence[str]) -> list[dict[str, Any]]:
    state = moo.BucketMOO("mgda", objective=objectives[rank], gramian=moo.Sketch(1024))
    results = []
    for dtype, n in CASES:
        row = draw(seed, (rank, n), n, dtype).cuda()
        moo.all_reduce(row, state)
        (bucket,) = state.report().buckets
        full = draw(seed, (rank, n), n * world, dtype).cuda()
        shard = torch.empty(n, dtype=dtype, device="cuda")
        moo.reduce_scatter(shard, full, state)
        assert torch.equal(full.cpu(), draw(seed, (rank, n), n * world, dtype)), "the input is only read"
        (scattered,) = state.report().buckets
        results.append({
            "row": row.cpu(), "weights": bucket.weights, "gramian": bucket.gramian, "width": bucket.width,
            "shard": shard.cpu(), "shard weights": scattered.weights,
        })  # fmt: skip
    return results


@pytest.mark.parametrize("objectives", ["abc", "aab"])
def test_sketched(run_gpu_ranks: Runner, random_seed: int, objectives: str) -> None:
    """The weighted sums of what is reported; the Gramian's error is a few standard errors at most."""
    world = len(objectives)
    names = list(dict.fromkeys(objectives))
    ranks = run_gpu_ranks(world, rank_sketched, random_seed, objectives)
    for place, (dtype, n) in enumerate(CASES):
        results = [results[place] for results in ranks]
        first = results[0]
        assert first["width"] == (1024 if n > 2048 else 0)
        assert all(raw(r["row"]) == raw(first["row"]) for r in results), "the same bits on every rank"
        share = torch.tensor([1 / objectives.count(name) for name in objectives], dtype=torch.float64)
        unit = torch.finfo(dtype).eps
        for size, weights, got in (
            (n, first["weights"], first["row"]),
            (n * world, first["shard weights"], torch.cat([r["shard"] for r in results])),
        ):
            rows = torch.stack([draw(random_seed, (r, n), size, dtype).double() for r in range(world)])
            coefficients = share * torch.stack([weights[names.index(name)] for name in objectives])
            terms = coefficients[:, None] * rows
            error = (got.double() - terms.sum(0)).abs()
            assert bool((error <= 4 * world * unit * terms.abs().sum(0) + 1e-6).all()), (dtype, n)
        means = torch.stack([
            torch.stack([draw(random_seed, (r, n), n, dtype).double() for r in range(world) if objectives[r] == name])
            .mean(0) for name in names
        ])  # fmt: skip
        norms = means.norm(dim=1)
        off = (first["gramian"] - means @ means.T).abs() / norms.outer(norms)
        assert float(off.max()) <= (8 / 32 if first["width"] else 0.01), (dtype, n)


def rank_captured_sketch(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(64))
    row = torch.randn(40_000, device="cuda")
    work = row.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        moo.all_reduce(work, state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        moo.all_reduce(work, state)
    gramians = []
    for replay in range(3):
        work.copy_(row)
        graph.replay()
        report = state.report()
        torch.testing.assert_close(work, row)  # one objective: its own gradient
        assert report.step == report.buckets[0].solved_step == 2 + replay
        gramians.append(float(report.gramian))
    assert len(set(gramians)) == 3, "each replay draws anew"
    for sketch in (moo.Sketch(64, refresh_every=2), moo.Sketch(64, lag=1)):
        keeps = moo.BucketMOO("mgda", gramian=sketch)
        moo.all_reduce(work, keeps)
        with pytest.raises(RuntimeError, match="cannot be captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            moo.all_reduce(work, keeps)


def test_a_captured_sketch(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(1, rank_captured_sketch, random_seed, backend=nccl)


def rank_reduce_scatter(rank: int, world: int, seed: int) -> list[bytes]:
    state = moo.BucketMOO("mgda")
    results = []
    for n in (3, 1000, 50_000):
        full = draw(seed, (rank, n), n * world, torch.float32).cuda()
        shard = torch.full((n,), torch.nan, device="cuda")
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


def rank_special(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO("mgda")
    row = draw(seed, (rank,), 20_011, torch.float32).cuda()
    if rank == 1:
        row[17] = torch.nan
    moo.all_reduce(row, state)
    assert torch.isnan(row[17])
    assert row.isnan().sum().item() == 1
    assert state.report().fallbacks == 1
    state.objective = "one"
    state.weight = [2.0, 0.0, 1.0][rank]
    row = draw(seed, (7, rank), 20_011, torch.float32).cuda()
    if rank == 1:
        row.fill_(torch.inf)  # left out, so that it is not read
    moo.all_reduce(row, state)
    expected = (2 * draw(seed, (7, 0), 20_011, torch.float64) + draw(seed, (7, 2), 20_011, torch.float64)) / 3
    torch.testing.assert_close(row.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    assert state.report().objectives == ("one",)


def test_nan_weights_and_ranks_left_out(run_gpu_ranks: Runner, random_seed: int) -> None:
    run_gpu_ranks(3, rank_special, random_seed)


def rank_resume(rank: int, world: int, seed: int) -> dict[str, list[bytes]]:
    def run(state: moo.BucketMOO, steps: range) -> list[bytes]:
        results = []
        for step in steps:
            row = draw(seed, (step, rank), 3001, torch.float32).cuda()
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


# --- DDP ---


def network(device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(8, 60), nn.Tanh(), nn.Linear(60, 21), nn.Tanh(), nn.Linear(21, 5))
    return layers.to(device, dtype)


def backward(ddp: nn.Module, seed: int, rank: int, step: int, device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed * 1000 + 10 * step + rank)
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64).to(device, dtype)
    y = 2 * torch.randn(5, generator=generator, dtype=torch.float64).to(device, dtype)
    ddp.zero_grad()
    (ddp(x) - y).square().mean().backward()


def rank_ddp(rank: int, world: int, seed: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for method in ("mean", "mgda", "cagrad", "upgrad", "pcgrad", "gradvac"):
        for way in ("native", "python"):
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
            report = state.report()
            results[f"{method} {way}"] = (
                hashlib.sha256(raw(gradient)).hexdigest(),
                gradient.double().numpy(),
                np.stack([bucket.weights.numpy() for bucket in report.buckets]),
            )
    return results


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ddp_is_as_on_the_cpu(run_ranks: Runner, run_gpu_ranks: Runner, random_seed: int, dtype: torch.dtype) -> None:
    host = run_ranks(3, rank_ddp, random_seed, "cpu", dtype)
    device = run_gpu_ranks(3, rank_ddp, random_seed, "cuda", dtype)
    tolerance = 1e-7 if dtype == torch.float64 else 2e-3
    for key, (digest, gradient, weights) in device[0].items():
        assert all(results[key][0] == digest for results in device), key
        np.testing.assert_allclose(weights, host[0][key][2], atol=tolerance, err_msg=key)
        scale = np.abs(host[0][key][1]).max()
        np.testing.assert_allclose(gradient, host[0][key][1], atol=tolerance * scale, err_msg=key)
    for method in ("mgda", "gradvac"):
        assert device[0][f"{method} native"][0] == device[0][f"{method} python"][0]


def rank_quiet(rank: int, world: int, seed: int) -> None:
    ddp = DistributedDataParallel(network("cuda", torch.float32), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp, "mgda", objective=f"o{rank}")
    for step in range(4):
        backward(ddp, seed, rank, step, "cuda", torch.float32)
    generator = torch.Generator(device="cuda").manual_seed(seed)
    x = torch.randn(6, 8, generator=generator, device="cuda")
    loss = ddp(x).square().mean()
    if dist.get_backend() == "nccl":
        torch.cuda.set_sync_debug_mode("error")
    try:
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.report().step == 5
    row = torch.randn(300_001, device="cuda")
    own = moo.BucketMOO("gradvac")
    for _ in range(3):
        moo.all_reduce(row, own)
    torch.cuda.synchronize()
    if dist.get_backend() == "nccl":
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        for _ in range(5):
            moo.all_reduce(row, own)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("world", [1, 2])
def test_nothing_waits_and_nothing_is_allocated(
    run_ranks: Runner, run_gpu_ranks: Runner, random_seed: int, world: int
) -> None:
    if world == 1:
        run_ranks(1, rank_quiet, random_seed, backend=nccl)
    else:
        run_gpu_ranks(world, rank_quiet, random_seed)


def rank_order(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO("mean")
    row = torch.zeros(2_000_000, device="cuda")
    moo.all_reduce(row, state)
    for _ in range(5):
        torch.cuda._sleep(5_000_000)
        row.fill_(float(rank))  # late, on the current stream
        future = moo.all_reduce(row, state, async_op=True)
        future.wait()
        doubled = row * 2  # early, on the current stream
        assert doubled.unique().tolist() == [float(world - 1)]


def test_the_order_of_streams(run_gpu_ranks: Runner, random_seed: int) -> None:
    run_gpu_ranks(2, rank_order, random_seed)


def rank_graph(rank: int, world: int, seed: int) -> None:
    x = torch.randn(6, 8, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ddp = DistributedDataParallel(network("cuda", torch.float32), bucket_cap_mb=CAP_MB)
        state = moo.register(ddp, "pcgrad", objective=f"o{rank}")
        for _ in range(11):
            ddp.zero_grad(set_to_none=True)
            ddp(x).square().mean().backward()
    torch.cuda.current_stream().wait_stream(side)
    ddp.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ddp(x).square().mean().backward()
    for _ in range(3):
        x.copy_(torch.randn(6, 8, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        got = torch.cat([p.grad.flatten() for p in ddp.parameters() if p.grad is not None])
        plain = network("cuda", torch.float32)
        plain(x).square().mean().backward()
        expected = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)  # one objective: its own gradient
    assert state.report().step == 15, "the device counts what is replayed"


def rank_graph_of_all_reduce(rank: int, world: int, seed: int) -> None:
    """A graph goes on with its memory whatever the state is used for, and counts as eager steps do."""
    eager = moo.BucketMOO("gradvac", seed=3)
    captured = moo.BucketMOO("gradvac", seed=3)
    row = torch.randn(40_000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="before capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        moo.all_reduce(row, captured)
    work = row.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        moo.all_reduce(work, captured)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        moo.all_reduce(work, captured)
    moo.all_reduce(torch.randn(400_000, device="cuda"), captured)
    live = [torch.full((size,), 7.0, device="cuda") for size in (10_000, 40_000, 100_000)]
    first = row.clone()
    moo.all_reduce(first, eager)
    for _ in range(3):
        torch.cuda._sleep(5_000_000)
        work.copy_(row)
        graph.replay()
        assert captured.report().step >= 3
        torch.testing.assert_close(work, first)  # one objective: its own gradient
    assert all((tensor == 7.0).all() for tensor in live)
    with pytest.raises(RuntimeError, match="load a state before capturing"):
        captured.load_state_dict(eager.state_dict())


def test_a_captured_all_reduce(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(1, rank_graph_of_all_reduce, random_seed, backend=nccl)


def test_a_captured_backward_pass(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(1, rank_graph, random_seed, backend=nccl)


def rank_memory(rank: int, world: int, seed: int) -> dict[str, float]:
    def peak(hook: bool) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(24)]).cuda()
        ddp = DistributedDataParallel(model, bucket_cap_mb=25, gradient_as_bucket_view=True)
        if hook:
            moo.register(ddp, "mgda")
        x = torch.randn(8, 1024, device="cuda")
        for _ in range(3):
            ddp.zero_grad()
            ddp(x).square().mean().backward()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        ddp.zero_grad()
        ddp(x).square().mean().backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20

    plain = peak(False)
    ours = peak(True)
    return {"plain DDP": plain, "with the hook": ours, "extra": ours - plain}


def test_memory_of_the_hook(run_gpu_ranks: Runner, random_seed: int) -> None:
    ranks = run_gpu_ranks(2, rank_memory, random_seed)
    note("memory", {"gradients": 24 * (1024 * 1024 + 1024) * 4 / 2**20, "ranks": 2, **ranks[0]})
    assert ranks[0]["extra"] <= 2.5 * 25  # a bucket above the cap by a parameter, and little else
