"""One rank over NCCL: what is captured into graphs, what waits, what is allocated. Needs nothing but one GPU."""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.gpu.device import DEVICE
from tests.gpu.networks import CAP_MB, backward, by_layer, network
from tests.gpu.one_gpu import run_gpu_ranks, run_nccl_rank

__all__ = ["run_gpu_ranks", "run_nccl_rank"]  # fixtures
Runner = Callable[..., list[Any]]
ROW = DEVICE.pick(40_000, dry=4000)


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rank_graph(rank: int, world: int, seed: int, set_to_none: bool) -> None:
    x = torch.randn(6, 8, device=DEVICE.name)

    def step() -> None:
        ddp.zero_grad(set_to_none=set_to_none)
        ddp(x).square().mean().backward()

    with DEVICE.on_side_stream():
        ddp = DistributedDataParallel(network(DEVICE.name, torch.float32), bucket_cap_mb=CAP_MB)
        state = moo.register(ddp, "pcgrad", objective=f"o{rank}")
        for _ in range(11):
            step()
    ddp.zero_grad(set_to_none=set_to_none)
    graph = DEVICE.capture(step)
    for replay in range(3):
        x.copy_(torch.randn(6, 8, device=DEVICE.name))
        graph.replay()
        DEVICE.synchronize()
        plain = network(DEVICE.name, torch.float32)
        plain(x).square().mean().backward()
        # One objective: its own gradient.
        torch.testing.assert_close(gradient(ddp), gradient(plain), rtol=1e-4, atol=1e-6)
        # The device counts the eager steps and the replays; the capture itself is no step, for nothing of it is run.
        assert state.report().step == 11 + replay + 1


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_captured_backward_pass(run_nccl_rank: Runner, random_seed: int, set_to_none: bool) -> None:
    """Of gradients that are zeroed in place the host asks the device whether they were, and looks in the capture."""
    run_nccl_rank(rank_graph, random_seed, set_to_none)


def rank_graph_of_all_reduce(rank: int, world: int, seed: int) -> None:
    """A graph goes on with its memory whatever the state is used for, and counts as eager steps do."""
    eager = moo.BucketMOO("gradvac", seed=3)
    captured = moo.BucketMOO("gradvac", seed=3)
    row = torch.randn(ROW, device=DEVICE.name)
    work = row.clone()
    with DEVICE.on_side_stream():
        moo.all_reduce(work, captured)
    graph = DEVICE.capture(lambda: moo.all_reduce(work, captured))
    moo.all_reduce(torch.randn(10 * ROW, device=DEVICE.name), captured)  # eager, beside the graph
    live = [torch.full((size,), 7.0, device=DEVICE.name) for size in (10_000, ROW, 100_000)]
    first = row.clone()
    moo.all_reduce(first, eager)
    for replay in range(3):
        DEVICE.busy(5_000_000)
        work.copy_(row)
        graph.replay()
        assert captured.report().step == 2 + replay + 1, "two eager steps, and those that are replayed"
        torch.testing.assert_close(work, first)  # one objective: its own gradient
    assert all((tensor == 7.0).all() for tensor in live)
    if not DEVICE.lacks("refusals in a capture"):
        with pytest.raises(RuntimeError, match="load a state before capturing"):
            captured.load_state_dict(eager.state_dict())


def test_a_captured_all_reduce(run_nccl_rank: Runner, random_seed: int) -> None:
    run_nccl_rank(rank_graph_of_all_reduce, random_seed)


def rank_captured_sketch(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(64))
    row = torch.randn(ROW, device=DEVICE.name)
    work = row.clone()
    with DEVICE.on_side_stream():
        moo.all_reduce(work, state)
    graph = DEVICE.capture(lambda: moo.all_reduce(work, state))
    gramians = []
    for replay in range(3):
        work.copy_(row)
        graph.replay()
        report = state.report()
        torch.testing.assert_close(work, row)  # one objective: its own gradient
        assert report.step == report.buckets[0].solved_step == 1 + replay + 1
        gramians.append(float(report.gramian))
    assert len(set(gramians)) == 3, "each replay draws anew"


def test_a_captured_sketch(run_nccl_rank: Runner, random_seed: int) -> None:
    run_nccl_rank(rank_captured_sketch, random_seed)


def rank_quiet(rank: int, world: int, seed: int) -> None:
    ddp = DistributedDataParallel(network(DEVICE.name, torch.float32), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp, "mgda", objective=f"o{rank}")
    for step in range(4):
        backward(ddp, seed, rank, step, DEVICE.name, torch.float32)
    loss = ddp(torch.randn(6, 8, device=DEVICE.name)).square().mean()
    is_nccl = torch.distributed.get_backend() == DEVICE.nccl  # Gloo waits for the host
    with DEVICE.no_waiting() if is_nccl else contextlib.nullcontext():
        loss.backward()
    for is_quiet in (False, True):  # in the first step of several passes hosts compare objectives
        ddp.zero_grad()
        x = torch.randn(6, 8, device=DEVICE.name)
        with DEVICE.no_waiting() if is_nccl and is_quiet else contextlib.nullcontext():
            with state.accumulate():
                ddp(x).square().mean().backward()
            ddp(x).mean().backward()
    assert state.report().step == 7
    for scope in ("bucket", "parameter", by_layer):
        ddp = DistributedDataParallel(network(DEVICE.name, torch.float32), bucket_cap_mb=CAP_MB)
        state = moo.register(ddp, "mgda", objective=f"o{rank}", scope=scope, support=True)
        for step in range(4):
            backward(ddp, seed, rank, step, DEVICE.name, torch.float32)
        loss = ddp(torch.randn(6, 8, device=DEVICE.name)).square().mean()
        with DEVICE.no_waiting() if is_nccl else contextlib.nullcontext():
            loss.backward()
        assert state.report().step == 5
    told = moo.BucketMOO("mgda", gramian=moo.Sketch(64, lag=1))
    totals = {"a": float(world), "b": float(world)}
    for step in range(4):
        with DEVICE.no_waiting() if is_nccl and step > 1 else contextlib.nullcontext():
            told.objective = "a"
            with told.accumulate(totals):
                moo.all_reduce(torch.ones(ROW, device=DEVICE.name), told, bucket="b")
            told.objective = "b"
            moo.all_reduce(torch.ones(ROW, device=DEVICE.name), told, bucket="b")
    assert told.report().buckets[0].solved_step == 3
    row = torch.randn(DEVICE.pick(300_001, dry=3001), device=DEVICE.name)
    own = moo.BucketMOO("gradvac")
    for _ in range(3):
        moo.all_reduce(row, own)
    DEVICE.synchronize()
    before = DEVICE.allocations()
    for _ in range(5):
        moo.all_reduce(row, own)
    assert not is_nccl or DEVICE.allocations() == before


def test_nothing_waits_and_nothing_is_allocated(run_nccl_rank: Runner, random_seed: int) -> None:
    run_nccl_rank(rank_quiet, random_seed)


def test_nothing_waits_among_two(run_gpu_ranks: Runner, random_seed: int) -> None:
    run_gpu_ranks(2, rank_quiet, random_seed)


def rank_refusals(rank: int, world: int, seed: int) -> None:
    row = torch.randn(ROW, device=DEVICE.name)
    fresh = moo.BucketMOO("mgda")
    keeping = [
        moo.BucketMOO("mgda", gramian=sketch) for sketch in (moo.Sketch(64, refresh_every=2), moo.Sketch(64, lag=1))
    ]
    with DEVICE.on_side_stream():
        for state in keeping:
            moo.all_reduce(row, state)
    if DEVICE.lacks("refusals in a capture"):
        return
    for state in keeping:
        with pytest.raises(RuntimeError, match="cannot be captured"), DEVICE.capturing():
            moo.all_reduce(row, state)
    with pytest.raises(RuntimeError, match="before capturing"), DEVICE.capturing():
        moo.all_reduce(row, fresh)


def test_what_a_capture_refuses(run_nccl_rank: Runner, random_seed: int) -> None:
    """Last of one rank's: a capture that fails in another way may leave the process without a usable device."""
    run_nccl_rank(rank_refusals, random_seed)
