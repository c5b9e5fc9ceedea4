"""Reductions on a device and its streams: who waits for whom, what lives how long, and what a graph holds.

Runs on the emulated CUDA device, over a stand-in for NCCL: `make test-emulated`. Whatever is used before it was waited
for ends a rank there, so that every test here is also one of all the streams, events and memory that it passes.
"""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.support import emulated_cuda
from tests.support.checks import ON_DEVICE, draw, raw
from tests.support.ddp import CAP_MB, batch_of, loss_of, mlp

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not ON_DEVICE, reason="needs the build with emulated CUDA kernels"),
]

Runner = Callable[..., list[Any]]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SIZES = (1, 5000, 40_003)
SKETCHES = (moo.Sketch(64), moo.Sketch(64, refresh_every=2), moo.Sketch(64, lag=1))


def results_of(rank: int, world: int, seed: int, device: str, gramian: Any, method: Any) -> list[bytes]:
    """Some steps of buckets of all kinds."""
    state = moo.BucketMOO(method, gramian=gramian)
    results = []
    for step in range(3):
        for dtype in DTYPES:
            for n in SIZES:
                row = draw(seed, (step, rank, n), n, dtype).to(device)
                moo.all_reduce(row, state)
                results.append(raw(row.cpu()))
        full = draw(seed, (step, rank), 3001 * world, torch.float32).to(device)
        shard = torch.empty(3001, device=device)
        moo.reduce_scatter(shard, full, state)
        parts = [torch.empty_like(shard) for _ in range(world)]
        dist.all_gather(parts, shard)
        results += [raw(part.cpu()) for part in parts]
        results.append(raw(state.report().buckets[0].gramian))
    return results


def rank_on_both(rank: int, world: int, seed: int, gramian: Any, method: Any) -> tuple[list[bytes], list[bytes]]:
    with emulated_cuda.stream():
        on_stream = results_of(rank, world, seed, "cuda", gramian, method)
    return on_stream, results_of(rank, world, seed, "cpu", gramian, method)


@pytest.mark.parametrize("method", ["mgda", moo.Smoothed("pcgrad", 0.5)], ids=str)
def test_streams_change_no_bit(run_ranks: Runner, random_seed: int, method: Any) -> None:
    """The same kernels without any stream are what every other test of the device path compares with its reference."""
    ranks = run_ranks(3, rank_on_both, random_seed, "exact", method, backend=emulated_cuda.nccl)
    for on_stream, in_order in ranks:
        assert on_stream == in_order == ranks[0][0]


@pytest.mark.parametrize("sketch", SKETCHES, ids=str)
def test_sketches_on_streams(run_ranks: Runner, random_seed: int, sketch: moo.Sketch) -> None:
    """The stand-in for NCCL multiplies float32 and float64 by itself: their results may differ in the last bit."""
    for on_stream, in_order in run_ranks(3, rank_on_both, random_seed, sketch, "mgda", backend=emulated_cuda.nccl):
        for place, (got, expected) in enumerate(zip(on_stream, in_order, strict=True)):
            kind = place % (len(DTYPES) * len(SIZES) + 4)
            dtype = DTYPES[kind // len(SIZES)] if kind < len(DTYPES) * len(SIZES) else torch.float32
            dtype = torch.float64 if kind == len(DTYPES) * len(SIZES) + 3 else dtype
            a, b = (torch.frombuffer(bytearray(bits), dtype=dtype) for bits in (got, expected))
            torch.testing.assert_close(a, b)


def rank_host_never_waits(rank: int, world: int, seed: int, gramian: Any) -> None:
    state = moo.BucketMOO("mgda", gramian=gramian)
    with emulated_cuda.stream():
        rows = [draw(seed, (rank, n), n, torch.float32).to("cuda") for n in (40_003, 64)]
        for step in range(6):
            with emulated_cuda.counting() as counted:
                for row in rows:
                    moo.all_reduce(row, state)
            assert "on_legacy_stream" not in counted
            assert ("synchronisations" in counted) == (step == 0)
            assert "kernels" in counted
            if step > 2:
                assert "allocations" not in counted


@pytest.mark.parametrize("gramian", ["exact", *SKETCHES], ids=str)
def test_the_host_waits_in_the_first_step_alone(run_ranks: Runner, random_seed: int, gramian: Any) -> None:
    """And nothing is ever enqueued on the legacy stream, for which everybody waits."""
    run_ranks(2, rank_host_never_waits, random_seed, gramian, backend=emulated_cuda.nccl)


def on_device(seed: int, rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = batch_of(seed, rank, step, torch.float32)
    return x.to("cuda"), y.to("cuda")


def rank_model(rank: int, world: int, seed: int) -> None:
    """One problem for all buckets: every Future is of what comes behind the last bucket."""
    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32).to("cuda"), bucket_cap_mb=CAP_MB)
        moo.register(ddp, "mgda", scope="model")
        for step in range(4):
            rows = []
            for other in range(world):
                alone = copy.deepcopy(ddp.module)
                loss_of(alone, on_device(seed, other, step)).backward()
                rows.append(torch.cat([p.grad.cpu().flatten() for p in alone.parameters()]))
            ddp.zero_grad()
            loss_of(ddp, on_device(seed, rank, step)).backward()
            got = torch.cat([p.grad.cpu().flatten() for p in ddp.module.parameters()])
            gramian = torch.stack(rows).double()
            torch.testing.assert_close(got, moo.weights(gramian @ gramian.T, "mgda").float() @ torch.stack(rows))


def test_one_problem_for_the_model_on_streams(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_model, random_seed, backend=emulated_cuda.nccl)


def rank_who_waits(rank: int, world: int) -> None:
    state = moo.BucketMOO("mgda")
    with emulated_cuda.stream():
        row = torch.ones(5000).to("cuda")
        moo.all_reduce(row, state)
        future = moo.all_reduce(row, state, async_op=True)
        with emulated_cuda.faults() as found:
            row.zero_()
        assert found, "the result was not waited for"
        future.wait()
        with emulated_cuda.faults() as found:
            row.zero_()
        assert not found
    with emulated_cuda.stream(), emulated_cuda.faults() as found:
        moo.all_reduce(row, state)  # on another stream than what made it
    assert found, "the gradient was not waited for"


def test_a_future_is_what_orders_streams(run_ranks: Runner) -> None:
    run_ranks(2, rank_who_waits, backend=emulated_cuda.nccl)


def rank_drops_its_tensors(rank: int, world: int, seed: int) -> None:
    for gramian in ("exact", *SKETCHES):
        state = moo.BucketMOO("mgda", gramian=gramian)
        with emulated_cuda.stream():
            for step in range(3):
                row = draw(seed, (step, rank), 5000, torch.float32).to("cuda")
                full = draw(seed, (step, rank), 5000 * world, torch.float32).to("cuda")
                shard = torch.empty_like(row)
                moo.all_reduce(row, state, async_op=True)
                moo.reduce_scatter(shard, full, state, async_op=True)
                del row, full, shard
            state.report()


def test_tensors_may_be_dropped_at_once(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_drops_its_tensors, random_seed, backend=emulated_cuda.nccl)


def rank_captures(rank: int, world: int, seed: int, gramian: Any) -> None:
    state = moo.BucketMOO("mgda", gramian=gramian)
    sizes = (5000, 64)
    with emulated_cuda.stream():
        rows = [draw(seed, (rank, n), n, torch.float32).to("cuda") for n in sizes]
        work = [row.clone() for row in rows]
        for _ in range(2):
            for row in work:
                moo.all_reduce(row, state)
        assert state.step == 2 * len(sizes)
        with emulated_cuda.counting() as counted, emulated_cuda.Graph() as graph:
            for row in work:
                moo.all_reduce(row, state)
        assert not {"synchronisations", "allocations", "on_legacy_stream"} & counted.keys()
        assert state.step == 2 * len(sizes), "what is captured is not done"
        for replay in range(1, 4):
            for row, start in zip(work, rows, strict=True):
                row.copy_(start)
            graph.replay()
            assert state.step == (2 + replay) * len(sizes)
            eager = moo.BucketMOO("mgda", gramian=gramian)
            eager.load_state_dict({**state.state_dict(), "step": (1 + replay) * len(sizes)})
            for row, start in zip(work, rows, strict=True):
                again = start.clone()
                moo.all_reduce(again, eager)
                assert raw(again.cpu()) == raw(row.cpu())
        assert state.report().buckets[0].solved_step == state.step
        moo.all_reduce(torch.ones(100_003).to("cuda"), state)  # the state goes on, with more memory, beside its graph
        for row, start in zip(work, rows, strict=True):
            row.copy_(start)
        graph.replay()
        assert state.step == 6 * len(sizes) + 1


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("gramian", ["exact", moo.Sketch(64)], ids=str)
def test_a_captured_all_reduce(run_ranks: Runner, random_seed: int, world: int, gramian: Any) -> None:
    run_ranks(world, rank_captures, random_seed, gramian, backend=emulated_cuda.nccl)


def rank_forgets_to_zero(rank: int, world: int, seed: int) -> list[int]:
    warned = []
    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32).to("cuda"), bucket_cap_mb=CAP_MB)
        moo.register(ddp, "mgda")
        for step in range(6):
            if step < 4:
                ddp.zero_grad(set_to_none=False)
            x, y = (part.to("cuda") for part in batch_of(seed, rank, step, torch.float32))
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                loss_of(ddp, (x, y)).backward()
            warned += [step for warning in said if "zero_grad()" in str(warning.message)]
    return warned


def test_gradients_that_nobody_zeroed_are_noticed(run_ranks: Runner, random_seed: int) -> None:
    """On a device the answer is ready a pass later at the latest; in the emulation at once."""
    for warned in run_ranks(2, rank_forgets_to_zero, random_seed, backend=emulated_cuda.nccl):
        assert warned == [4]


def rank_captures_too_early(rank: int, world: int) -> None:
    with emulated_cuda.stream():
        row = torch.ones(5000).to("cuda")
        state = moo.BucketMOO("mgda")
        with emulated_cuda.Graph(), pytest.raises(RuntimeError, match="run at least one backward pass before"):
            moo.all_reduce(row, state)
        moo.all_reduce(row, state)
        other = torch.ones(5001).to("cuda")
        with emulated_cuda.Graph(), pytest.raises(RuntimeError, match="one of 5001 elements is not known yet"):
            moo.all_reduce(other, state)
        for sketch in (moo.Sketch(64, refresh_every=2), moo.Sketch(64, lag=1)):
            keeps = moo.BucketMOO("mgda", gramian=sketch)
            moo.all_reduce(row, keeps)
            with emulated_cuda.Graph(), pytest.raises(RuntimeError, match="cannot be captured in a graph"):
                moo.all_reduce(row, keeps)


def test_a_capture_that_is_refused_is_not_spoilt(run_ranks: Runner) -> None:
    """The first use of a state under capture says what to do, before anything is allocated."""
    run_ranks(1, rank_captures_too_early, backend=emulated_cuda.nccl)


def rank_hears_of_an_error(rank: int, world: int) -> None:
    state = moo.BucketMOO(moo.Mean(weights=(1.0, 3.0)), objective=f"o{rank}")
    with emulated_cuda.stream():
        row = torch.ones(5000).to("cuda")
        moo.all_reduce(row, state)
        state.objective = "one"
        with emulated_cuda.counting() as counted:
            moo.all_reduce(row, state)
            moo.all_reduce(row, state)  # what one rank knows by now, another may not
            for _ in range(2):
                with pytest.raises(ValueError, match="another number of objectives than the 1 of step 2"):
                    moo.all_reduce(row, state)
        assert "synchronisations" not in counted
        assert "copies" not in counted
        assert bool(row.cpu().isnan().all())


def test_the_host_hears_of_an_error_without_a_copy(run_ranks: Runner) -> None:
    """That it need not wait to read what the kernel wrote shows that the kernel fenced."""
    run_ranks(2, rank_hears_of_an_error, backend=emulated_cuda.nccl)


def rank_error_in_a_step_of_several_buckets(rank: int, world: int, seed: int) -> None:
    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32).to("cuda"), bucket_cap_mb=CAP_MB)
        state = moo.register(ddp, moo.Mean(weights=(1.0, 3.0)), objective=f"o{rank}")

        def backward(step: int) -> bool:
            ddp.zero_grad()
            x, y = (part.to("cuda") for part in batch_of(seed, rank, step, torch.float32))
            loss_of(ddp, (x, y)).backward()
            return all(bool(p.grad.isfinite().all()) for p in ddp.parameters() if p.grad is not None)

        for step in range(3):
            assert backward(step)
        assert len(state.report().buckets) > 1
        state.objective = "one"
        assert not backward(3)
        state.objective = f"o{rank}"
        assert backward(4)
        row = torch.ones(5000).to("cuda")
        for call in (lambda: backward(5), lambda: moo.all_reduce(row, state), lambda: moo.all_reduce(row, state)):
            with pytest.raises(ValueError, match="another number of objectives than the 1 of step 4"):
                call()
        assert state.step == 5


def test_an_error_is_raised_where_a_step_begins(run_ranks: Runner, random_seed: int) -> None:
    """The emulation's host knows of it before the step's second bucket, where another's would go on."""
    run_ranks(2, rank_error_in_a_step_of_several_buckets, random_seed, backend=emulated_cuda.nccl)


def failed_state(rank: int, row: torch.Tensor) -> moo.BucketMOO:
    state = moo.BucketMOO(moo.Mean(weights=(1.0, 3.0)), objective=f"o{rank}")
    moo.all_reduce(row, state)
    state.objective = "one"
    moo.all_reduce(row, state)
    return state


def rank_makes_states(rank: int, world: int) -> None:
    with emulated_cuda.stream():
        row = torch.ones(5000).to("cuda")
        kept = failed_state(rank, row)
        for allocations in (1, 0, 0):
            with emulated_cuda.counting() as counted:
                state = failed_state(rank, row)
            assert counted.get("allocations", 0) == allocations
            del state
            gc.collect()
        with emulated_cuda.counting() as counted:
            states = [moo.BucketMOO("mgda") for _ in range(2)]
            for state in states:
                for _ in range(3):  # without the errors of the states before
                    row.fill_(1.0)
                    moo.all_reduce(row, state)
        assert counted["allocations"] == 1
        with emulated_cuda.Graph():
            moo.all_reduce(row, states[0])
        del state, states, kept
        gc.collect()
        with emulated_cuda.counting() as counted:
            states = [failed_state(rank, row) for _ in range(3)]
        assert len(states) == 3
        assert counted["allocations"] == 1, "a graph may write to what its state had"


def test_pinned_memory_is_used_again(run_ranks: Runner) -> None:
    """By states that come and go; that a host writes to it that has not waited would be a fault."""
    run_ranks(2, rank_makes_states, backend=emulated_cuda.nccl)


def rank_is_made_beside_a_capture(rank: int, world: int) -> None:
    with emulated_cuda.stream():
        row = torch.ones(5000).to("cuda")
        made = moo.BucketMOO("mgda")
        for _ in range(2):
            moo.all_reduce(row, made)
        row.fill_(1.0)
        with emulated_cuda.Graph() as graph:  # of another thread, as it were
            moo.all_reduce(row, made)
            with emulated_cuda.stream(), emulated_cuda.cached_memory():
                state = moo.BucketMOO("mgda")
                with pytest.raises(ValueError, match="contiguous"):  # of a state that is made by now
                    moo.all_reduce(torch.empty(4, 4, device="cuda").t(), state)
        graph.replay()
        assert bool((row == 1.0).all().cpu())


def test_a_state_may_be_made_while_a_graph_is_captured(run_ranks: Runner) -> None:
    run_ranks(1, rank_is_made_beside_a_capture, backend=emulated_cuda.nccl)


def rank_drops_a_state_beside_a_capture(rank: int, world: int) -> None:
    with emulated_cuda.stream():
        row = torch.ones(5000).to("cuda")
        states = [moo.BucketMOO("mgda") for _ in range(33)]  # torch has 32 streams for them: two share one
        for state in states:
            moo.all_reduce(row, state)
        with emulated_cuda.Graph() as graph:
            moo.all_reduce(row, states[0])
            del state
            states.pop()
            gc.collect()
        graph.replay()
        moo.all_reduce(row, moo.BucketMOO("mgda"))
        states.pop()
        gc.collect()
        with emulated_cuda.counting() as counted:
            moo.all_reduce(row, moo.BucketMOO("mgda"))
        assert "allocations" not in counted, "what goes after the capture serves again"


def test_a_state_may_go_while_its_stream_is_captured_for_another(run_ranks: Runner) -> None:
    run_ranks(1, rank_drops_a_state_beside_a_capture, backend=emulated_cuda.nccl)


def rank_captures_buckets(rank: int, world: int, seed: int) -> None:
    """The reductions of a pass, one by one: what autograd does around them is the CPU's in the emulation.

    Gradients are zeroed in place: whether they were, the host has asked the device, and looks for the answer meanwhile.
    """
    captures = False
    graphs = []

    def reduce(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if not captures:
            return moo.bucket_moo_hook(state, bucket)
        with emulated_cuda.Graph() as graph:
            moo.bucket_moo_hook(state, bucket).wait()
        graph.replay()
        graphs.append(graph)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    with emulated_cuda.stream():
        ddp, twin = (
            DistributedDataParallel(mlp(seed, torch.float32).to("cuda"), bucket_cap_mb=CAP_MB) for _ in range(2)
        )
        state = moo.BucketMOO("mgda", bucket_cap_mb=CAP_MB)
        ddp.register_comm_hook(state, reduce)
        moo.register(twin, "mgda")
        for step in range(6):
            captures = step in (3, 4)
            for model in (ddp, twin):
                model.zero_grad(set_to_none=False)
                x, y = (part.to("cuda") for part in batch_of(seed, rank, step, torch.float32))
                loss_of(model, (x, y)).backward()
            for p, q in zip(ddp.parameters(), twin.parameters(), strict=True):
                assert p.grad is not None
                assert q.grad is not None
                assert raw(p.grad.cpu()) == raw(q.grad.cpu())
        assert len(graphs) > 2


def test_captured_buckets_of_ddp(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_captures_buckets, random_seed, backend=emulated_cuda.nccl)


def rank_captures_the_first_iteration(rank: int, world: int, seed: int) -> None:
    """Whose bucket goes in pieces, through memory that later passes have no use for."""
    graphs: list[tuple[Any, torch.Tensor, torch.Tensor]] = []

    def reduce(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        gradient = bucket.buffer().clone()
        future = moo.bucket_moo_hook(state, bucket)
        if not graphs:
            future.wait()
            with emulated_cuda.Graph() as graph:
                moo.bucket_moo_hook(state, bucket).wait()
            graphs.append((graph, bucket.buffer(), gradient))
        return future

    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32).to("cuda"), bucket_cap_mb=CAP_MB)
        ddp.register_comm_hook(moo.BucketMOO("mgda", bucket_cap_mb=CAP_MB), reduce)
        for step in range(3):
            ddp.zero_grad()
            x, y = (part.to("cuda") for part in batch_of(seed, rank, step, torch.float32))
            loss_of(ddp, (x, y)).backward()
            if step == 0:
                result = graphs[0][1].clone()
        graph, buffer, gradient = graphs[0]
        buffer.copy_(gradient)
        graph.replay()
        assert raw(buffer.cpu()) == raw(result.cpu())


def test_a_captured_first_iteration(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_captures_the_first_iteration, random_seed, backend=emulated_cuda.nccl)


def rank_first_iteration(rank: int, world: int, seed: int) -> list[bytes]:
    """DDP's first bucket holds the whole model and goes through the tile in pieces, from shards far apart."""
    emulated_cuda.set_max_pitch(4096)
    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32).to("cuda"), bucket_cap_mb=CAP_MB)
        moo.register(ddp, "mgda")
        results = []
        for step in range(3):
            ddp.zero_grad()
            x, y = (part.to("cuda") for part in batch_of(seed, rank, step, torch.float32))
            loss_of(ddp, (x, y)).backward()
            results.append(b"".join(raw(p.grad.cpu()) for p in ddp.parameters() if p.grad is not None))
    return results


def test_the_first_iteration_of_a_model_above_the_largest_pitch(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(2, rank_first_iteration, random_seed, backend=emulated_cuda.nccl)
    assert ranks[0] == ranks[1]
