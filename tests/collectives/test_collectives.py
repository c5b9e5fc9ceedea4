"""moo.all_reduce and moo.reduce_scatter against the reference, on 1 to 4 ranks."""

import hashlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support import checks
from tests.support import reference as ref
from tests.support.checks import ON_DEVICE, Outcome, draw, outcome, raw, unraw

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]
# Emulated kernels are slow; what two ranks do on a device, one, three or four do as well.
WORLDS = [1, pytest.param(2, marks=pytest.mark.host), 3, 4]
Case = tuple[str, torch.dtype, int]  # method, dtype, elements

# Around what shard_layout.hpp cuts at: 16 bytes, and 16 KiB in elements of 8, 4 and 2 bytes.
SIZES = [0, 1, 2, 3, 7, 8, 9, 15, 17, 1023, 2047, 2048, 2049, 4095, 4096, 4097, 4098, 4099, 8191, 8193, 16411]
FEW_SIZES = [1, 17, 4099, 16411]
SHARDS = [0, 1, 3, 16, 17, 1025, 4096, 4099]


def order_of(world: int) -> list[list[int]]:
    """Some permutation for every objective."""
    rows = [[(i + j) % world for j in range(world)] for i in range(world)]
    return [row[::-1] if i % 2 else row for i, row in enumerate(rows)]


def methods(world: int) -> dict[str, tuple[str | moo.Method, str, dict[str, Any]]]:
    """Name of the case -> what the state takes, the reference's method and its options."""
    orders = order_of(world)
    return {
        "mean": ("mean", "mean", {}),
        "mgda": ("mgda", "mgda", {}),
        "mgda l2": (moo.MGDA(normalize="l2"), "mgda", {"normalize": "l2"}),
        "cagrad": (moo.CAGrad(c=0.5), "cagrad", {"c": 0.5}),
        "cagrad rescaled": (moo.CAGrad(c=1.2, rescale=True), "cagrad", {"c": 1.2, "rescale": True}),
        "pcgrad": (moo.PCGrad(permutation=orders), "pcgrad", {"orders": orders}),
        "pcgrad sum": (
            moo.PCGrad("sum", orders),
            "pcgrad",
            {"orders": orders, "reduction": "sum"},
        ),
    }


def cases(world: int) -> list[Case]:
    everything = [("mgda", dtype, n) for dtype in ref.DTYPES for n in SIZES]
    everything += [("mgda", torch.float32, 100_003), ("cagrad", torch.bfloat16, 100_003)]
    # A device solves in a kernel of its own, which sees Gramians and no dtype.
    dtypes = (torch.float32,) if ON_DEVICE else ref.DTYPES
    everything += [(name, dtype, n) for name in methods(world) if name != "mgda" for dtype in dtypes for n in FEW_SIZES]
    return everything


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def slim(got: Outcome, keep: bool) -> Outcome | bytes:
    """The outcome, or from ranks whose bits are only compared, its hash."""
    return got if keep else digest(got.result + got.gramian.tobytes() + got.weights.tobytes())


# ------------------------------------------------------------------------------------------ all_reduce


def rank_all_reduce(rank: int, world: int, seed: int, todo: list[Case]) -> list[tuple[Outcome | bytes, bool]]:
    table = methods(world)
    states = [{name: moo.BucketMOO(table[name][0], seed=7) for name in table} for _ in range(2)]
    results = []
    for index, (name, dtype, n) in enumerate(todo):
        row = draw(seed, (index, rank), n, dtype)
        again = row.clone()
        assert moo.all_reduce(row, states[0][name]) is None
        moo.all_reduce(again, states[1][name])
        got = outcome(row, states[0][name])
        results.append((slim(got, rank == 0), raw(again) == got.result))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_all_reduce(run_ranks: Runner, random_seed: int, world: int) -> None:
    todo = cases(world)
    ranks = run_ranks(world, rank_all_reduce, random_seed, todo)
    table = methods(world)
    for index, (name, dtype, n) in enumerate(todo):
        label = f"{name} {dtype} n={n} world={world}"
        got = ranks[0][index][0]
        assert all(repeated for _, repeated in (results[index] for results in ranks)), f"{label}: other bits again"
        assert all(results[index][0] == slim(got, False) for results in ranks[1:]), f"{label}: ranks differ"
        rows = [draw(random_seed, (index, rank), n, dtype) for rank in range(world)]
        checks.verify(label, rows, got, table[name][1], table[name][2], generic=n >= 1000)


def rank_same_bits(rank: int, world: int, seed: int) -> bytes:
    state = moo.BucketMOO("pcgrad", seed=3)
    total = hashlib.sha256()
    for index, n in enumerate([5, 4099, 20_011]):
        row = draw(seed, (index, rank), n, torch.float32)
        moo.all_reduce(row, state)
        total.update(raw(row))
    return total.digest()


def test_two_runs_give_the_same_bits(run_ranks: Runner, random_seed: int) -> None:
    first, second = (run_ranks(3, rank_same_bits, random_seed) for _ in range(2))
    assert len(set(first + second)) == 1


# -------------------------------------------------------------------------------------- reduce_scatter


def scatter_cases(world: int) -> list[Case]:
    everything = [("mgda", dtype, shard) for dtype in ref.DTYPES for shard in SHARDS]
    everything += [(name, torch.float32, shard) for name in methods(world) for shard in (1, 1025, 4099)]
    return everything


def rank_reduce_scatter(
    rank: int, world: int, seed: int, todo: list[Case]
) -> list[tuple[Outcome, bytes, bytes, dict[str, bool]]]:
    """Outcome; hash of the other results; the own shard of the all_reduce; what must hold."""
    table = methods(world)
    states = {name: moo.BucketMOO(table[name][0]) for name in table}
    results = []
    for index, (name, dtype, shard) in enumerate(todo):
        state = states[name]
        row = draw(seed, (index, rank), shard * world, dtype)
        before = raw(row)
        out = torch.full((shard,), torch.nan, dtype=dtype)
        assert moo.reduce_scatter(out, row, state) is None
        got = outcome(out, state)
        facts = {"input not written": raw(row) == before}

        own = slice(rank * shard, (rank + 1) * shard)
        in_place = row.clone()
        moo.reduce_scatter(in_place[own], in_place, state)
        facts["in place: same bits"] = raw(in_place[own]) == got.result
        in_place[own] = row[own]
        facts["in place: other shards not written"] = raw(in_place) == before

        future = moo.reduce_scatter(out.zero_(), row, state, async_op=True)
        facts["async: the output"] = future.wait().data_ptr() == out.data_ptr()
        facts["async: same bits"] = raw(out) == got.result

        moo.all_reduce(row, state)
        common = digest(got.gramian.tobytes() + got.weights.tobytes())
        results.append((got, common, raw(row[own]), facts))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_reduce_scatter(run_ranks: Runner, random_seed: int, world: int) -> None:
    todo = scatter_cases(world)
    ranks = run_ranks(world, rank_reduce_scatter, random_seed, todo)
    table = methods(world)
    for index, (name, dtype, shard) in enumerate(todo):
        rows = [draw(random_seed, (index, rank), shard * world, dtype) for rank in range(world)]
        bytes_ = shard * dtype.itemsize
        # Then both cut the bucket alike, take the same partial sums, and so come to the same bits.
        same_layout = world == 1 or (bytes_ % 16 == 0 and (bytes_ * world > 16 * 1024 or shard == 0))
        for rank in range(world):
            label = f"{name} {dtype} shard={shard} rank {rank} of {world}"
            got, common, reduced, facts = ranks[rank][index]
            assert all(facts.values()), f"{label}: {facts}"
            assert common == ranks[0][index][1], f"{label}: ranks differ"
            own = slice(rank * shard, (rank + 1) * shard)
            checks.verify(label, rows, got, table[name][1], table[name][2], shard=own, generic=shard > 1000)
            if same_layout:
                assert got.result == reduced, f"{label}: all_reduce has other bits"
            else:
                apart = np.abs(unraw(got.result, dtype) - unraw(reduced, dtype))
                allowed = 1e-2 if shard < 16 else 8 * ref.unit_roundoff(dtype) + 1e-4
                assert (apart <= allowed).all(), f"{label}: all_reduce differs by {apart.max()}"


# --------------------------------------------------------------------------------------------- futures


def rank_async(rank: int, world: int, seed: int) -> list[bytes]:
    sizes = [3, 4099, 20_011, 1, 5000]
    results = []
    waited = moo.BucketMOO("pcgrad")
    for index, n in enumerate(sizes):
        row = draw(seed, (index, rank), n, torch.float32)
        moo.all_reduce(row, waited)
        results.append(raw(row))
    at_once = moo.BucketMOO("pcgrad")
    rows = [draw(seed, (index, rank), n, torch.float32) for index, n in enumerate(sizes)]
    futures = [moo.all_reduce(row, at_once, async_op=True) for row in rows]
    torch.futures.wait_all(futures)
    for row, future in zip(rows, futures, strict=True):
        assert future.done()
        value = future.value()
        assert value.data_ptr() == row.data_ptr()
        assert value.shape == row.shape
    assert [raw(row) for row in rows] == results
    chained = moo.all_reduce(rows[0], at_once, async_op=True).then(lambda f: float(f.value().sum()))
    assert chained.wait() == float(rows[0].sum())
    assert at_once.step == len(sizes) + 1
    return results


def test_futures(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_async, random_seed)
    assert ranks[0] == ranks[1] == ranks[2]


def rank_shapes(rank: int, world: int, seed: int) -> tuple[bytes, bytes]:
    flat = draw(seed, (rank,), 6 * 1000, torch.float32)
    shaped = flat.clone().reshape(2, 3, 1000)
    address = shaped.data_ptr()
    state = moo.BucketMOO("mgda")
    moo.all_reduce(flat, state)
    moo.all_reduce(shaped, state)
    assert shaped.shape == (2, 3, 1000)
    assert shaped.data_ptr() == address
    leaf = draw(seed, (rank,), 6 * 1000, torch.float32).requires_grad_()
    moo.all_reduce(leaf.detach(), state)
    with torch.no_grad():
        assert raw(leaf) == raw(flat)
    return raw(flat), raw(shaped)


def test_any_shape(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(2, rank_shapes, random_seed)
    assert len({data for rank in ranks for data in rank}) == 1


# ------------------------------------------------------------------------------------------ sub-groups


def rank_subgroups(rank: int, world: int, seed: int) -> dict[str, Outcome | None]:
    results: dict[str, Outcome | None] = {}
    pair = dist.new_group([1, 3])
    row = draw(seed, (0, rank), 5003, torch.float32)
    if rank in (1, 3):  # the other two are not asked
        state = moo.BucketMOO("mgda", process_group=pair)
        moo.all_reduce(row, state)
        results["pair"] = outcome(row, state)

    halves = [dist.new_group([0, 2]), dist.new_group([3, 1])]
    mine = halves[rank % 2]
    state = moo.BucketMOO("pcgrad", process_group=mine)
    whole = moo.BucketMOO("mgda")  # beside the groups, at the same time
    first = draw(seed, (1, rank), 5003, torch.float32)
    second = draw(seed, (2, rank), 5003, torch.float32)
    futures = [
        moo.all_reduce(first, state, async_op=True),
        moo.all_reduce(second, whole, async_op=True),
    ]
    torch.futures.wait_all(futures)
    results["half"] = outcome(first, state)
    results["whole"] = outcome(second, whole)
    shard = torch.empty(2501)
    moo.reduce_scatter(shard, draw(seed, (3, rank), 5002, torch.float32), state)
    results["shard"] = outcome(shard, state)
    return results


def test_subgroups(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(4, rank_subgroups, random_seed)

    def rows(index: int, members: list[int], n: int = 5003) -> list[torch.Tensor]:
        return [draw(random_seed, (index, rank), n, torch.float32) for rank in members]

    assert "pair" not in ranks[0]
    assert ranks[1]["pair"].result == ranks[3]["pair"].result
    checks.verify("pair", rows(0, [1, 3]), ranks[1]["pair"], "mgda")
    assert len({results["whole"].result for results in ranks}) == 1
    checks.verify("whole", rows(2, [0, 1, 2, 3]), ranks[0]["whole"], "mgda")
    orders = {"orders": [[0, 1], [0, 1]]}  # with two objectives there is one order
    for members in ([0, 2], [1, 3]):  # groups number their ranks in ascending order
        assert ranks[members[0]]["half"].result == ranks[members[1]]["half"].result
        checks.verify("half", rows(1, members), ranks[members[0]]["half"], "pcgrad", orders, generic=True)
        for place, rank in enumerate(members):
            own = slice(place * 2501, (place + 1) * 2501)
            checks.verify(
                f"shard of {rank}", rows(3, members, 5002), ranks[rank]["shard"], "pcgrad", orders,
                shard=own, generic=True,
            )  # fmt: skip


# ------------------------------------------------------------------------------------- NaN, Inf, zeros

BROKEN_SIZES = [5, 4099, 20_011]


def broken_row(seed: int, index: int, rank: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """NaN on rank 0, +Inf on rank 1, and where rank 0 has -Inf, rank 1 has +Inf: NaN in the mean."""
    row = draw(seed, (index, rank), n, dtype)
    if rank == 0:
        row[n // 2] = torch.nan
        row[1] = -torch.inf
        row[n - 1] = -torch.inf
    if rank == 1:
        row[0] = torch.inf
        row[1] = torch.inf
    return row


def rank_nonfinite(rank: int, world: int, seed: int) -> list[Outcome]:
    results = []
    for name in ("mean", "mgda", "cagrad", "pcgrad"):
        state = moo.BucketMOO(name)
        for index, n in enumerate(BROKEN_SIZES):
            for dtype in ref.DTYPES:
                row = broken_row(seed, index, rank, n, dtype)
                moo.all_reduce(row, state)
                results.append(outcome(row, state))
                whole = draw(seed, (index, rank), n, dtype)  # a finite one does not count
                moo.all_reduce(whole, state)
                assert state.report().buckets[0].status == "ok"
                assert bool(whole.isfinite().all())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_nonfinite_gradients_give_the_mean(run_ranks: Runner, random_seed: int, world: int) -> None:
    ranks = run_ranks(world, rank_nonfinite, random_seed)
    results = iter(zip(*ranks, strict=True))
    for name in ("mean", "mgda", "cagrad", "pcgrad"):
        fallbacks = 0
        for index, n in enumerate(BROKEN_SIZES):
            for dtype in ref.DTYPES:
                label = f"{name} {dtype} n={n}"
                fallbacks += 1
                outcomes = next(results)
                got = outcomes[0]
                # The payload of a NaN is nobody's business: ranks agree on everything else.
                rows = np.stack([ref.float64(broken_row(random_seed, index, r, n, dtype)) for r in range(world)])
                share = np.full(world, 1 / world)
                expected = ref.combine(rows, share)
                for other in outcomes:
                    result = unraw(other.result, dtype)
                    assert np.array_equal(np.isnan(result), np.isnan(expected)), label
                    infinite = np.isinf(expected)
                    assert np.array_equal(result[infinite], expected[infinite]), label
                    finite = np.isfinite(expected)
                    error = ref.combination_error(rows[:, finite], share, dtype)
                    assert (np.abs(result[finite] - expected[finite]) <= error).all(), label
                    assert other.status == "nonfinite", label
                    assert other.fallbacks == fallbacks, label
                    assert np.array_equal(other.weights, share), label
                    assert np.array_equal(result[finite], unraw(got.result, dtype)[finite]), label


def zero_row(seed: int, index: int, rank: int, n: int, dtype: torch.dtype, zeros: tuple[int, ...]) -> torch.Tensor:
    row = draw(seed, (index, rank), n, dtype)
    return -torch.zeros_like(row) if rank in zeros else row  # -0 is zero, too


ZERO_CASES = [
    (name, n, dtype, zeros)
    for name in ("mean", "mgda", "mgda l2", "cagrad", "cagrad rescaled", "pcgrad")
    for n in (5, 4099, 20_011)
    for dtype in (torch.float32, torch.bfloat16)
    for zeros in ((1,), (0, 2), (0, 1, 2))
]


def rank_zeros(rank: int, world: int, seed: int) -> list[Outcome]:
    states = {name: moo.BucketMOO(method[0]) for name, method in methods(world).items()}
    results = []
    for index, (name, n, dtype, zeros) in enumerate(ZERO_CASES):
        row = zero_row(seed, index, rank, n, dtype, zeros)
        moo.all_reduce(row, states[name])
        results.append(outcome(row, states[name]))
    return results


@pytest.mark.slow
def test_zero_gradients_are_left_out(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_zeros, random_seed)
    for index, (name, n, dtype, zeros) in enumerate(ZERO_CASES):
        label = f"{name} {dtype} n={n} zeros={zeros}"
        got = ranks[0][index]
        assert ranks[1][index].result == ranks[2][index].result == got.result, label
        rows = [zero_row(random_seed, index, rank, n, dtype, zeros) for rank in range(3)]
        _, method, options = methods(3)[name]
        checks.verify(label, rows, got, method, options, generic=n > 1000)
        if name != "mean":
            assert (got.weights[list(zeros)] == 0).all(), label
        if len(zeros) == 3:
            assert not unraw(got.result, dtype).any(), label
            assert got.status == ("ok" if name == "mean" else "inactive"), label


# ------------------------------------------------------------------------------------------ magnitudes

SCALES = {torch.float32: (1e-25, 1e25, 1e-37), torch.bfloat16: (1e-25, 1e25), torch.float64: (1e-60, 1e60)}
SCALES[torch.float16] = (1e-3, 1e3)


def rank_scales(rank: int, world: int, seed: int) -> list[Outcome]:
    results = []
    for method, _, _ in methods(world).values():
        state = moo.BucketMOO(method)
        for dtype, scales in SCALES.items():
            for index, scale in enumerate(scales):
                for n in (17, 4099):
                    row = draw(seed, (index, n, rank), n, dtype, scale)
                    moo.all_reduce(row, state)
                    results.append(outcome(row, state))
    return results


def test_large_and_small_gradients(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_scales, random_seed)
    results = iter(zip(*ranks, strict=True))
    for name, (_, method, options) in methods(3).items():
        for dtype, scales in SCALES.items():
            for index, scale in enumerate(scales):
                for n in (17, 4099):
                    label = f"{name} {dtype} n={n} scale={scale}"
                    got, *others = next(results)
                    assert all(other.result == got.result for other in others), label
                    rows = [draw(random_seed, (index, n, r), n, dtype, scale) for r in range(3)]
                    checks.verify(label, rows, got, method, options, generic=n > 1000)


# ------------------------------------------------------------------------------------------ randomness


def rank_random_order(rank: int, world: int, seed: int) -> list[Outcome]:
    state = moo.BucketMOO("pcgrad", seed=11)
    results = []
    torch.manual_seed(rank)  # ranks' own generators have no say
    for _ in range(4):
        row = draw(seed, (rank,), 30, torch.float32)
        row -= sum(draw(seed, (r,), 30, torch.float32) for r in range(world)) / world
        moo.all_reduce(row, state)
        results.append(outcome(row, state))
    return results


def test_pcgrad_order_is_that_of_seed_and_step(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(4, rank_random_order, random_seed)
    assert [o.result for o in ranks[0]] == [o.result for o in ranks[3]]
    for step, got in enumerate(ranks[0], start=1):
        assert got.step == step
        expected = moo.weights(got.gramian, "pcgrad", seed=11, step=step)
        assert isinstance(expected, torch.Tensor)
        assert np.array_equal(got.weights, expected.numpy())
    assert len({o.weights.tobytes() for o in ranks[0]}) > 1
