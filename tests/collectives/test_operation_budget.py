"""What a bucket asks of the device, counted over the emulated kernels and held to cuda/operations.json.

A launch costs some two microseconds, as much as a small kernel takes. `make test-emulated` runs these tests.
"""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.support import emulated_cuda
from tests.support.checks import ON_DEVICE, draw
from tests.support.ddp import CAP_MB, SIZES, batch_of, loss_of, mlp

pytestmark = pytest.mark.device
counts_on_device = pytest.mark.skipif(not ON_DEVICE, reason="needs the build with emulated CUDA kernels")

Runner = Callable[..., list[Any]]
Counts = dict[str, int]

ROOT = Path(__file__).resolve().parents[2]
BUDGET: dict[str, Counts] = json.loads((ROOT / "cuda" / "operations.json").read_text())
KINDS = ("kernels", "collectives", "memory", "events")
OF_EVENTS = ("event_records", "event_waits")
OF_MEMORY = ("copies", "memsets")

LAYOUT = {"shards": 40_000, "shards and a tail": 40_003, "all tail": 2000, "a short tail": 60}
"""Elements by how a bucket of them is cut, of any dtype and over two to four ranks."""


def by_kind(counted: Counts) -> Counts:
    """Of what was asked for; nothing else may have been, as a synchronisation or an allocation."""
    summed = {
        "kernels": counted.get("kernels", 0),
        "collectives": counted.get("collectives", 0),
        "memory": sum(counted.get(kind, 0) for kind in OF_MEMORY),
        "events": sum(counted.get(kind, 0) for kind in OF_EVENTS),
    }
    others = counted.keys() - {"kernels", "collectives", *OF_MEMORY, *OF_EVENTS}
    assert not others, f"asked for {others}: {counted}"
    return summed


def together(*what: str, times: int = 1) -> Counts:
    """The budgets of some things that come `times` times."""
    return {kind: times * sum(BUDGET[one][kind] for one in what) for kind in KINDS}


def call(*what: str) -> Counts:
    """The same of a direct call, which is a step and waits."""
    return together("a step", *what, "a wait for a result")


def plus(*counts: Counts) -> Counts:
    return {kind: sum(count[kind] for count in counts) for kind in KINDS}


def check(counted: Counts, budget: Counts, what: str) -> None:
    """Neither more nor less: what is saved is taken from the budget, so that it does not come back unseen."""
    assert counted == budget, f"{what}: {counted}, and cuda/operations.json grants {budget}"


def rank_calls(
    rank: int, world: int, seed: int, n: int, dtype: torch.dtype, scatter: bool, gramian: Any
) -> list[Counts]:
    """What calls ask for, each a step of its own, once memory has been allocated."""
    state = moo.BucketMOO("mgda", gramian=gramian)
    counts = []
    with emulated_cuda.stream():
        for step in range(9):
            row = draw(seed, (step, rank), n, dtype).to("cuda")
            output = torch.empty(n // world, dtype=dtype, device="cuda") if scatter else row
            with emulated_cuda.counting() as counted:
                if scatter:
                    moo.reduce_scatter(output, row, state)
                else:
                    moo.all_reduce(row, state)
            assert bool(output.cpu().isfinite().all())
            if step >= 3:
                counts.append(by_kind(counted))
    return counts


@counts_on_device
@pytest.mark.parametrize("layout", LAYOUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_all_reduce(run_ranks: Runner, random_seed: int, world: int, dtype: torch.dtype, layout: str) -> None:
    n = LAYOUT[layout]
    if layout == "shards":
        n -= n % (world * 8)
    for counts in run_ranks(world, rank_calls, random_seed, n, dtype, False, "exact", backend=emulated_cuda.nccl):
        for counted in counts:
            check(counted, call(f"all-reduce, {layout}"), f"{n} elements over {world}")


def rank_passes(
    rank: int,
    world: int,
    seed: int,
    layout: Any,
    n: int,
    gramian: Any = "exact",
    is_told: bool = False,
    support: bool = False,
) -> list[list[Counts]]:
    """What the passes of a step ask for, by step, once memory has been allocated."""
    state = moo.BucketMOO("mgda", layout=layout, gramian=gramian, support=support)
    totals = {str(number): float(world) for number in range(3)} if is_told else None
    counts = []
    with emulated_cuda.stream():
        for step in range(6):
            of_step: list[Counts] = []
            for number in range(3):
                state.objective = str(number)
                row = draw(seed, (step, number, rank), n, torch.bfloat16).to("cuda")
                with emulated_cuda.counting() as counted:
                    if number < 2:
                        with state.accumulate(totals):
                            moo.all_reduce(row, state)
                    else:
                        moo.all_reduce(row, state)
                assert bool(row.cpu().any()) == (number == 2)
                if step >= 2:
                    of_step.append(by_kind(counted))
            counts.append(of_step)
        assert bool(row.cpu().isfinite().all())
    return counts[2:]


@counts_on_device
@pytest.mark.parametrize("layout", ["ranks", "passes"])
@pytest.mark.parametrize("support", [False, True])
def test_passes(run_ranks: Runner, random_seed: int, layout: str, support: bool) -> None:
    behind = "parts, behind the passes" if support else "behind the passes"
    arguments = (random_seed, layout, 40_003, "exact", False, support)
    for of_rank in run_ranks(2, rank_passes, *arguments, backend=emulated_cuda.nccl):
        for *before, last in of_rank:
            for counted in before:
                granted = together("a pass", f"{layout}, in a pass", "zeros handed back", "a wait for a result")
                check(counted, granted, f"{layout}, open")
            check(
                last,
                together("a pass", f"{layout}, in a pass", behind, "a wait for a result"),
                f"{layout}, closing",
            )


def rank_pieces(rank: int, world: int, seed: int, n: int) -> list[Counts]:
    """What a step of one pass asks for, where pairs of ranks hold pieces of one model."""
    counts = []
    with emulated_cuda.stream():
        mesh = init_device_mesh("cuda", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        state = moo.BucketMOO(
            "mgda", process_group=mesh.get_group("dp"), model_parallel_group=mesh.get_group("tp"), objective=rank // 2
        )
        for step in range(6):
            row = draw(seed, (step, rank), n, torch.float32).to("cuda")
            with emulated_cuda.counting() as counted:
                moo.all_reduce(row, state, bucket="x")
            assert bool(row.cpu().isfinite().all())
            counts.append(by_kind(counted) if step >= 3 else {})
    return counts[3:]


@counts_on_device
def test_pieces_of_a_model(run_ranks: Runner, random_seed: int) -> None:
    granted = ("a pass", "ranks, in a pass", "parts, behind the passes", "pieces of a model", "a wait for a result")
    for counts in run_ranks(4, rank_pieces, random_seed, 40_003, backend=emulated_cuda.nccl):
        for counted in counts:
            check(counted, together(*granted), "a piece")


def rank_levels(rank: int, world: int, seed: int, along: str, scatter: bool, n: int) -> list[list[Counts]]:
    """What a step of one pass and the passes of a step of two ask for, where ranks of a mesh share objectives."""
    counts = []
    with emulated_cuda.stream():
        mesh = init_device_mesh("cuda", (2, world // 2), mesh_dim_names=("node", "gpu"))
        state = moo.BucketMOO("mgda", mesh=mesh, objectives=along)
        row = draw(seed, (rank,), n, torch.float32).to("cuda")
        output = torch.empty(n // world, device="cuda") if scatter else row
        for step in range(8):
            of_step = []
            for leaves_open in ((False,), (True, False))[step % 2]:
                state._set_accumulating(leaves_open, [])
                with emulated_cuda.counting() as counted:
                    if scatter:
                        moo.reduce_scatter(output, row, state)
                    else:
                        moo.all_reduce(row, state)
                if step >= 4:
                    of_step.append(by_kind(counted))
            counts.append(of_step)
        assert bool(output.cpu().isfinite().all())
    return counts[4:]


@counts_on_device
@pytest.mark.parametrize("along", ["node", "gpu"])
def test_two_levels(run_ranks: Runner, random_seed: int, along: str) -> None:
    """Without a tail; with one inside, which the last rank has in its part; with one in every part."""
    last_inside = {"node": (1, 3), "gpu": (2, 3)}[along]
    for n in (64_000, 64_003, 64_008):
        for rank, steps in enumerate(
            run_ranks(4, rank_levels, random_seed, along, False, n, backend=emulated_cuda.nccl)
        ):
            mean = ["two levels, a pass", "two levels, the mean"]
            if n == 64_003:
                mean += ["two levels, a tail", *["two levels, the mean of tails"] * (rank in last_inside)]
            closes = ["two levels, the solve", "two levels, the parts", "a wait for a result"]
            across = ["all-reduce, shards"]
            if n == 64_008 or (n == 64_003 and rank in last_inside):
                across = ["all-reduce, shards and a tail", "two levels, a part with a tail"]
            for (alone,), (opens, last) in zip(steps[::2], steps[1::2], strict=True):
                check(alone, together("a step", *mean, *across, *closes), f"{n} elements along {along}, rank {rank}")
                if n == 64_008:
                    of_pass = together("a pass", *mean, "ranks, in a pass")
                    check(opens, plus(of_pass, together("zeros handed back", "a wait for a result")), "open")
                    check(last, plus(of_pass, together("behind the passes", *closes)), "closing")


@counts_on_device
@pytest.mark.parametrize(("along", "runs"), [("node", 4), ("gpu", 1)])
def test_reduce_scatter_in_two_levels(run_ranks: Runner, random_seed: int, along: str, runs: int) -> None:
    """A scaling for each run of shards that lie side by side."""
    for steps in run_ranks(4, rank_levels, random_seed, along, True, 40_028, backend=emulated_cuda.nccl):
        for (alone,) in steps[::2]:
            levels = ("two levels, a pass", "two levels, the mean", "two levels, the solve")
            more = {**together(), "kernels": runs - 1}
            check(alone, plus(call("reduce-scatter", *levels), more), along)


ADDED = {"kernels": 4, "collectives": 1, "memory": 0, "events": 0}
"""What a sketch asks for in a pass beside the row."""


@counts_on_device
@pytest.mark.parametrize("layout", ["ranks", "passes"])
def test_passes_with_a_sketch(run_ranks: Runner, random_seed: int, layout: str) -> None:
    averaged = {"kernels": int(layout == "passes"), "collectives": 0, "memory": 0, "events": 0}
    wide = moo.Sketch(8192)  # whose columns are exchanged as shards
    of_ranks = run_ranks(2, rank_passes, random_seed, layout, 40_000, wide, backend=emulated_cuda.nccl)
    for *before, last in itertools.chain.from_iterable(of_ranks):
        a_pass = plus(together("a pass", "sketch, in a pass", "a wait for a result"), averaged)
        for counted in before:
            check(counted, plus(a_pass, together("zeros handed back")), "open")
        check(last, plus(a_pass, together("sketch, behind the passes")), "closing")


@counts_on_device
def test_passes_whose_weights_are_known(run_ranks: Runner, random_seed: int) -> None:
    for sketch in (moo.Sketch(8192, lag=1), moo.Sketch(8192, lag=1, refresh_every=10)):
        of_ranks = run_ranks(2, rank_passes, random_seed, "ranks", 40_000, sketch, True, backend=emulated_cuda.nccl)
        for *before, last in itertools.chain.from_iterable(of_ranks):
            a_pass = together("a pass", "one sum, in a pass", "a wait for a result")
            behind = together("one sum, behind the passes")
            if sketch.refresh_every == 1:
                a_pass = plus(a_pass, ADDED)
                behind = plus(behind, together("sketch of passes, behind the step"))
            for counted in before:
                check(counted, plus(a_pass, together("zeros handed back")), "open")
            check(last, plus(a_pass, behind), "closing")


def rank_model(rank: int, world: int, seed: int, gramian: Any = "exact") -> list[Counts]:
    """What the backward passes of a module of two buckets ask for with one problem for both; each has a tail."""
    sizes = (41, 121, 61)
    counts = []
    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32, sizes).to("cuda"), bucket_cap_mb=CAP_MB)
        state = moo.BucketMOO("mgda", scope="model", gramian=gramian, bucket_cap_mb=CAP_MB)
        counted_in: list[Counts] = []

        def hook(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            with emulated_cuda.counting() as counted:
                done = moo.bucket_moo_hook(state, bucket)
            counted_in.append(counted)
            return done

        ddp.register_comm_hook(state, hook)
        for step in range(5):
            counted_in.clear()
            ddp.zero_grad()
            x, y = (part.to("cuda") for part in batch_of(seed, rank, step, torch.float32, sizes))
            loss_of(ddp, (x, y)).backward()
            counts.append(plus(*map(by_kind, counted_in)) if step >= 3 else {})
        weights = {tuple(bucket.weights.tolist()) for bucket in state.report().buckets}
        assert len(weights) == 1
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ddp.parameters())
    return counts[3:]


@counts_on_device
def test_one_problem_for_the_model(run_ranks: Runner, random_seed: int) -> None:
    for counts in run_ranks(2, rank_model, random_seed, backend=emulated_cuda.nccl):
        for counted in counts:
            buckets = together("ranks, in a pass", "behind the passes", "model, a bucket", times=2)
            check(counted, plus(together("a pass", "model, the solve"), buckets), "scope='model'")


@counts_on_device
def test_one_problem_for_the_model_with_a_sketch(run_ranks: Runner, random_seed: int) -> None:
    sketch = moo.Sketch(64)  # whose columns are a tail: they are no message
    for counts in run_ranks(2, rank_model, random_seed, sketch, backend=emulated_cuda.nccl):
        for counted in counts:
            buckets = together("sketch of the model", "sketch of the model, combined", times=2)
            budget = plus(together("a pass", "model, the solve"), buckets)
            check(counted, {**budget, "collectives": budget["collectives"] - 2}, "scope='model'")


@counts_on_device
@pytest.mark.parametrize("layout", LAYOUT)
def test_all_reduce_alone(run_ranks: Runner, random_seed: int, layout: str) -> None:
    """A single rank asks nobody: its bucket is one shard, whatever its size."""
    (counts,) = run_ranks(
        1, rank_calls, random_seed, LAYOUT[layout], torch.float32, False, "exact", backend=emulated_cuda.nccl
    )
    for counted in counts:
        check(counted, together("a step, one rank", "all-reduce, one rank", "a wait for a result"), layout)


@counts_on_device
@pytest.mark.parametrize("world", [2, 4])
def test_reduce_scatter(run_ranks: Runner, random_seed: int, world: int) -> None:
    for counts in run_ranks(
        world, rank_calls, random_seed, 10_007 * world, torch.float32, True, "exact", backend=emulated_cuda.nccl
    ):
        for counted in counts:
            check(counted, call("reduce-scatter"), f"over {world}")


@counts_on_device
@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_sketch(run_ranks: Runner, random_seed: int, world: int, scatter: bool) -> None:
    for counts in run_ranks(
        world, rank_calls, random_seed, 20_000, torch.float32, scatter, moo.Sketch(64), backend=emulated_cuda.nccl
    ):
        for counted in counts:
            check(counted, call("sketch"), f"over {world}")


@counts_on_device
def test_sketch_with_lag(run_ranks: Runner, random_seed: int) -> None:
    """The step's end is in the call."""
    for counts in run_ranks(
        2, rank_calls, random_seed, 20_000, torch.float32, False, moo.Sketch(64, lag=1), backend=emulated_cuda.nccl
    ):
        for counted in counts:
            check(counted, call("sketch, lag=1", "sketch, lag=1, behind the step"), "with lag")


@counts_on_device
def test_sketch_whose_weights_are_kept(run_ranks: Runner, random_seed: int) -> None:
    for counts in run_ranks(
        2, rank_calls, random_seed, 20_000, torch.float32, False, moo.Sketch(64, refresh_every=3),
        backend=emulated_cuda.nccl,
    ):  # fmt: skip
        solved = call("sketch")
        kept = call("sketch, kept weights")
        assert sorted(map(str, counts)) == sorted(map(str, 2 * [solved] + 4 * [kept]))


def rank_ddp(
    rank: int, world: int, seed: int, sizes: tuple[int, ...], cap_mb: float, state_cap_mb: float
) -> list[list[tuple[int, Counts]]]:
    """Of some backward passes every bucket's elements and operations, as DDP's hook asks for them."""
    passes: list[list[tuple[int, Counts]]] = []

    def hook(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        n = bucket.buffer().numel()
        with emulated_cuda.counting() as counted:
            done = moo.bucket_moo_hook(state, bucket)
        passes[-1].append((n, counted))
        return done

    with emulated_cuda.stream():
        ddp = DistributedDataParallel(mlp(seed, torch.float32, sizes).to("cuda"), bucket_cap_mb=cap_mb)
        state = moo.BucketMOO("mgda", bucket_cap_mb=state_cap_mb)
        ddp.register_comm_hook(state, hook)
        for step in range(5):
            passes.append([])
            ddp.zero_grad()
            x, y = (part.to("cuda") for part in batch_of(seed, rank, step, torch.float32, sizes))
            loss_of(ddp, (x, y)).backward()
    return passes[3:]


@counts_on_device
@pytest.mark.parametrize("world", [2, 3])
def test_ddp(run_ranks: Runner, random_seed: int, world: int) -> None:
    """The first bucket of a step sees to the step."""
    for passes in run_ranks(world, rank_ddp, random_seed, SIZES, CAP_MB, CAP_MB, backend=emulated_cuda.nccl):
        for buckets in passes:
            assert len(buckets) > 1
            for index, (n, counted) in enumerate(buckets):
                whole = 4 * n <= 16 * 1024
                layout = "all tail" if whole else "shards" if n % (4 * world) == 0 else "shards and a tail"
                step = ["a step"] if index == 0 else []
                check(by_kind(counted), together(*step, f"all-reduce, {layout}"), f"bucket {index}, {n} elements")


@counts_on_device
@pytest.mark.parametrize("world", [2, 4])
def test_a_bucket_in_pieces(run_ranks: Runner, random_seed: int, world: int) -> None:
    """As DDP's first iteration has it, here in every one: the cap is below what DDP was given."""
    sizes = (40, 60, 60, 60, 60, 5)
    for passes in run_ranks(world, rank_ddp, random_seed, sizes, 25.0, 0.0, backend=emulated_cuda.nccl):
        for ((n, counted),) in passes:
            exact = together("a step", "all-reduce, shards and a tail")
            pieces = 1 + (counted["collectives"] - exact["collectives"]) // BUDGET["a piece more"]["collectives"]
            assert pieces > 2
            # Every exchange of a piece is packed first, by a copy a rank; all but the last piece are exchanged twice.
            packing = {**together(), "memory": (2 * pieces - 1) * world}
            budget = plus(exact, together("a piece more", times=pieces - 1), packing)
            check(by_kind(counted), budget, f"{n} elements in {pieces} pieces")


def rank_one_more(rank: int, world: int, seed: int) -> tuple[Counts, ...]:
    """Counts of a bucket, and of one with an operation more of each kind."""
    state = moo.BucketMOO("mgda")
    row = draw(seed, (rank,), LAYOUT["shards"], torch.float32)
    counts = []
    with emulated_cuda.stream():
        row = row.to("cuda")
        more = {
            "nothing": lambda: None,
            "kernels": lambda: row.fill_(1.0),
            "collectives": lambda: dist.all_reduce(row),
            "memory": lambda: row.zero_(),
            "events": lambda: torch.Event("cuda").record(),
        }
        for _ in range(3):
            moo.all_reduce(row, state)
        for ask in more.values():
            with emulated_cuda.counting() as counted:
                moo.all_reduce(row, state)
                ask()
            counts.append(counted)
    return tuple(counts)


@counts_on_device
def test_an_operation_more_is_found(run_ranks: Runner, random_seed: int) -> None:
    """Of the check itself."""
    budget = together("a step", "all-reduce, shards", "a wait for a result")
    for bucket, *with_more in run_ranks(2, rank_one_more, random_seed, backend=emulated_cuda.nccl):
        check(by_kind(bucket), budget, "the bucket alone")
        for counted in with_more:
            with pytest.raises(AssertionError):
                check(by_kind(counted), budget, "with an operation more")


# What the whole is to stay below, whatever else is moved between the kinds.
CEILINGS = {"all-reduce, shards and a tail": 9, "sketch": 8, "sketch, lag=1": 8, "sketch, kept weights": 7}


def rank_operators(rank: int, world: int, seed: int) -> list[Counts]:
    """The functions, each with rows of 5000 elements for three objectives."""
    counts = []
    with emulated_cuda.stream():
        rows = [draw(seed, (row,), 5000, torch.float32).to("cuda") for row in range(3)]
        gramian = torch.ops.bucket_moo.gramian(rows)
        weights = torch.full((3,), 1 / 3, dtype=torch.float64).to("cuda")
        for call in (
            lambda: torch.ops.bucket_moo.gramian(rows),
            lambda: torch.ops.bucket_moo.solve(gramian, "mgda"),
            lambda: torch.ops.bucket_moo.combine(rows, weights),
        ):
            with emulated_cuda.counting() as counted:
                call()
            counts.append(by_kind(counted))
    return counts


@counts_on_device
def test_functions_launch_their_kernels_and_no_other(run_ranks: Runner, random_seed: int) -> None:
    """Gramian and solve unpack what they wrote; what counts the Gramian's blocks is cleared by a fill of bytes."""
    ((gramian, solve, combine),) = run_ranks(1, rank_operators, random_seed, backend=emulated_cuda.nccl)
    assert gramian == {"kernels": 2, "collectives": 0, "memory": 1, "events": 0}
    assert solve == {"kernels": 2, "collectives": 0, "memory": 0, "events": 0}
    assert combine == {"kernels": 1, "collectives": 0, "memory": 0, "events": 0}


@pytest.mark.parametrize("what", CEILINGS)
def test_ceilings(what: str) -> None:
    """Kernels, collectives and memory operations, those behind the step included."""
    parts = [name for name in BUDGET if name == what or name == f"{what}, behind the step"]
    counts = together(*parts)
    assert counts["kernels"] + counts["collectives"] + counts["memory"] <= CEILINGS[what]


def test_the_documented_operations_are_the_budget() -> None:
    rows = re.findall(
        r"^\| ([a-z][^|]*?) +\| (\d+) +\| (\d+) +\| (\d+) +\| (\d+) +\|",
        (ROOT / "docs" / "gpu.md").read_text(),
        re.MULTILINE,
    )
    documented = {name: dict(zip(KINDS, map(int, counts), strict=True)) for name, *counts in rows}
    assert documented == BUDGET
