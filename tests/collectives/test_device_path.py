"""What only reductions on a device do: errors that the device finds, names that it remembers, the caller's group.

Runs in the build with emulated CUDA kernels, where CPU tensors take the way of CUDA tensors: `make test-emulated`.
"""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support import reference as ref
from tests.support.checks import ON_DEVICE, draw, raw

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not ON_DEVICE, reason="needs the build with emulated CUDA kernels"),
]

Runner = Callable[..., list[Any]]


def rank_options_for_another_k(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO(moo.Mean(weights=(1.0, 3.0)), objective=f"o{rank}")
    row = draw(seed, (rank,), 5000, torch.float32)
    moo.all_reduce(row, state)
    assert row.isfinite().all()
    state.objective = "one"
    for _ in range(2):  # enqueued before every rank could know
        moo.all_reduce(row, state)
        assert row.isnan().all()
    for call in (lambda: moo.all_reduce(row, state), lambda: moo.all_reduce(row, state)):
        with pytest.raises(ValueError, match="options are for another number of objectives than the 1 of step 2"):
            call()
    with pytest.raises(ValueError, match="options are for another number of objectives than the 1 of step 3"):
        state.report()  # of the newest step


def test_a_later_step_that_the_method_cannot_solve_is_nan_and_then_an_error(
    run_ranks: Runner, random_seed: int
) -> None:
    run_ranks(2, rank_options_for_another_k, random_seed)


def rank_first_step_of_another_k(rank: int, world: int) -> None:
    state = moo.BucketMOO(moo.Mean(weights=(1.0, 3.0, 5.0)))
    row = torch.ones(10)
    with pytest.raises(ValueError, match=r"Mean\(weights=...\) holds 3 weights, but there are 2 objectives"):
        moo.all_reduce(row, state)
    assert row.tolist() == [1.0] * 10


def test_the_first_step_raises_before_anything_is_reduced(run_ranks: Runner) -> None:
    run_ranks(2, rank_first_step_of_another_k)


def rank_many_names(rank: int, world: int) -> None:
    state = moo.BucketMOO(moo.Smoothed("mgda", 0.5))
    for step in range(128):  # 256 names
        state.objective = f"{step} {rank}"
        row = torch.ones(20) + rank
        moo.all_reduce(row, state)
        assert row.isfinite().all()
    saved = state.state_dict()
    assert len(saved["buckets"][0]["objectives"]) == 256
    state.objective = "one more"
    for _ in range(2):
        moo.all_reduce(row, state)
        assert row.isnan().all()
    with pytest.raises(ValueError, match="257 objective names, more than it can remember"):
        moo.all_reduce(row, state)
    fresh = moo.BucketMOO(moo.Smoothed("mgda", 0.5))
    fresh.load_state_dict(saved)
    fresh.objective = f"127 {rank}"
    row = torch.ones(20) + rank
    moo.all_reduce(row, fresh)
    assert row.isfinite().all()


def test_names_that_a_method_with_a_memory_can_tell_apart(run_ranks: Runner) -> None:
    run_ranks(2, rank_many_names)


def rank_other_collectives(rank: int, world: int, seed: int) -> list[bytes]:
    state = moo.BucketMOO("mgda")
    results = []
    for step in range(3):
        row = draw(seed, (step, rank), 9001, torch.float32)
        other = torch.full((100,), float(rank))
        work = dist.all_reduce(other, async_op=True)
        future = moo.all_reduce(row, state, async_op=True)
        work.wait()
        future.wait()
        assert other.tolist() == [world * (world - 1) / 2] * 100
        results.append(raw(row))
    return results


def test_collectives_of_the_callers_go_on_beside_ours(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_other_collectives, random_seed)
    assert ranks[0] == ranks[1] == ranks[2]


def rank_two_devices(rank: int, world: int) -> None:
    state = moo.BucketMOO("mgda")
    moo.all_reduce(torch.ones(3), state)
    with pytest.raises(ValueError, match="reduces tensors on cpu; got one on meta"):
        moo.all_reduce(torch.ones(3, device="meta"), state)


def test_a_state_is_for_one_device(run_ranks: Runner) -> None:
    run_ranks(1, rank_two_devices)


def rank_changing_k(rank: int, world: int, seed: int) -> list[tuple[bytes, list[float]]]:
    """The first step has one objective, the others more than the kernels were chosen for, or fewer."""
    state = moo.BucketMOO("mean")
    results = []
    for step, names in enumerate(["aaaa", "abcd", "abab", "aaab", "dcba"]):
        state.objective = names[rank]
        row = draw(seed, (step, rank), 3001, torch.bfloat16)
        moo.all_reduce(row, state)
        results.append((raw(row), state.report().buckets[0].gramian.flatten().tolist()))
    return results


def test_the_number_of_objectives_may_change(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(4, rank_changing_k, random_seed)
    assert all(results == ranks[0] for results in ranks)
    for step, names in enumerate(["aaaa", "abcd", "abab", "aaab", "dcba"]):
        rows = [ref.float64(draw(random_seed, (step, r), 3001, torch.bfloat16)) for r in range(4)]
        means = np.stack([
            np.mean([row for row, name in zip(rows, names, strict=True) if name == objective], axis=0)
            for objective in dict.fromkeys(names)
        ])  # fmt: skip
        gramian = means @ means.T
        np.testing.assert_allclose(ranks[0][step][1], gramian.flatten(), rtol=1e-5, atol=1e-5 * gramian.max())
        combined = ref.float64(torch.frombuffer(bytearray(ranks[0][step][0]), dtype=torch.bfloat16))
        np.testing.assert_allclose(combined, means.mean(axis=0), rtol=0.02, atol=0.02)


def rank_kept_for_others(rank: int, world: int, seed: int, sketch: moo.Sketch) -> None:
    state = moo.BucketMOO("mgda", objective=f"o{rank}", gramian=sketch)
    n = 5000
    for step in range(3):
        row = draw(seed, (step, rank), n, torch.float32)
        moo.all_reduce(row, state)
        assert row.isfinite().all()
    state.objective = f"another {rank}"
    row = draw(seed, (3, rank), n, torch.float32)
    for step in (4, 5):  # enqueued before every rank could know
        moo.all_reduce(row, state)
        assert row.isnan().all()
        with pytest.raises(ValueError, match=rf"objectives of the first step in every step.*step {step} has others"):
            state.report()
    with pytest.raises(ValueError, match=r"objectives of the first step in every step.*step 4 has others"):
        moo.all_reduce(row, state)
    # From a step that is set on, there may be others.
    fresh = moo.BucketMOO("mgda", objective=f"o{rank}", gramian=sketch)
    for name in ("a", "b"):
        fresh.objective = f"{name}{rank}"
        row = draw(seed, (4, rank), n, torch.float32)
        moo.all_reduce(row, fresh)
        assert fresh.report().objectives == tuple(f"{name}{r}" for r in range(world))
        fresh.load_state_dict(fresh.state_dict())


@pytest.mark.parametrize("sketch", [moo.Sketch(64, lag=1), moo.Sketch(64, refresh_every=3)])
def test_kept_weights_are_for_the_objectives_of_the_first_step(
    run_ranks: Runner, random_seed: int, sketch: moo.Sketch
) -> None:
    run_ranks(2, rank_kept_for_others, random_seed, sketch)


def rank_first_solve_nonfinite(rank: int, world: int, seed: int) -> list[tuple[int, str, list[float]]]:
    """The host does not know that the first solve found a NaN: the mean that it gave serves for the period."""
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(64, refresh_every=3))
    results = []
    for step in range(1, 5):
        row = draw(seed, (step, rank), 5000, torch.float32)
        if step == 1 and rank == 0:
            row[77] = torch.nan
        moo.all_reduce(row, state)
        assert int(row.isnan().sum()) == (step == 1)
        (bucket,) = state.report().buckets
        results.append((bucket.solved_step, bucket.status, bucket.weights.tolist()))
    return results


def test_a_first_solve_with_a_nan_serves_as_the_mean(run_ranks: Runner, random_seed: int) -> None:
    for results in run_ranks(2, rank_first_solve_nonfinite, random_seed):
        assert results[:3] == [(1, "nonfinite", [0.5, 0.5])] * 3
        assert results[3][:2] == (4, "ok")
