"""report().signal against the products of different rows of an objective, in float64."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.support import reference as ref
from tests.support import scopes, sharded
from tests.support.checks import ON_DEVICE
from tests.support.reference import Array
from tests.support.scopes import Given

Runner = Callable[..., list[Any]]
Plan = Sequence[tuple[str, float]]  # objective and weight of every row

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def drawn(seed: int, number: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """Row `number`: something that all have in common, and noise."""
    common = np.random.default_rng([seed, 10**6]).standard_normal(n)
    own = np.random.default_rng([seed, number]).standard_normal(n)
    return torch.from_numpy(common + 2 * own).to(dtype)


def signal_of(rows: Sequence[Array], plan: Plan) -> Array:
    """Inner products of different rows alone: the mean over pairs of rows of two objectives, or of one."""
    names = list(dict.fromkeys(name for name, _ in plan))
    signal = np.full((len(names), len(names)), np.nan)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            total = weights = 0.0
            for a, (objective, weight) in enumerate(plan):
                for b, (other, other_weight) in enumerate(plan):
                    if objective == first and other == second and a != b and weight * other_weight > 0:
                        total += weight * other_weight * float(rows[a] @ rows[b])
                        weights += weight * other_weight
            signal[i, j] = total / weights if weights > 0 else np.nan
    return signal


def assert_signal(got: Array, rows: Sequence[Array], plan: Plan, dtype: torch.dtype = torch.float64) -> None:
    size = float(np.mean([row @ row for row in rows]))
    np.testing.assert_allclose(got, signal_of(rows, plan), rtol=0, atol=TOLERANCE[dtype] * size)


def _passes(rank: int, world: int, seed: int, plans: Sequence[Plan], n: int, dtype: torch.dtype, how: Any) -> Any:
    """A step of direct calls: in pass p rank r brings row p W + r."""
    state = moo.BucketMOO("mgda", row_norms=True, **how)
    result = torch.empty(0)
    for number, plan in enumerate(plans):
        state.objective, state.weight = plan[rank]
        result = drawn(seed, number * world + rank, n, dtype)
        with contextlib.nullcontext() if number == len(plans) - 1 else state.accumulate():
            moo.all_reduce(result, state)
    report = state.report()
    return report.signal.numpy(), report.buckets[0].gramian.numpy(), str(report), ref.float64(result)


def check_passes(
    run_ranks: Runner, seed: int, plans: Sequence[Plan], n: int, dtype: torch.dtype = torch.float64, **how: Any
) -> list[Any]:
    world = len(plans[0])
    results = run_ranks(world, _passes, seed, plans, n, dtype, how)
    plan = [row for rows in plans for row in rows]
    rows = [ref.float64(drawn(seed, number, n, dtype)) for number in range(len(plan))]
    assert_signal(results[0][0], rows, plan, dtype)
    for other in results[1:]:
        np.testing.assert_array_equal(other[0], results[0][0])
    return results


@pytest.mark.host
@pytest.mark.parametrize("n", [1, 37, 4999, 40_013])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_ranks_that_share_an_objective(run_ranks: Runner, random_seed: int, n: int, dtype: torch.dtype) -> None:
    plan = [("de", 1.0), ("sw", 3.0), ("de", 2.5), ("sw", 0.5)]
    check_passes(run_ranks, random_seed, [plan], n, dtype)


def test_an_objective_of_one_row_has_no_estimate(run_ranks: Runner, random_seed: int) -> None:
    plan = [("de", 1.0), ("sw", 1.0), ("de", 1.0)]
    signal, gramian, text, _ = check_passes(run_ranks, random_seed, [plan], 5000)[0]
    assert np.isnan(signal[1, 1])
    assert signal[0, 1] == gramian[0, 1]
    share = 100 * signal[0, 0] / gramian[0, 0]
    assert f"signal in the squared length of whole gradients: de {share:.0f} %\n" in text


def test_a_row_that_is_left_out_counts_for_nothing(run_ranks: Runner, random_seed: int) -> None:
    check_passes(run_ranks, random_seed, [[("de", 1.0), ("de", 0.0), ("de", 2.0)]], 5000)


@pytest.mark.parametrize("n", [3, 30_011])
def test_passes_in_one_process(run_ranks: Runner, random_seed: int, n: int) -> None:
    plans = [[("de", 1.0)], [("sw", 1.0)], [("de", 4.0)], [("sw", 2.0)], [("de", 0.25)]]
    check_passes(run_ranks, random_seed, plans, n)


@pytest.mark.parametrize("layout", ["ranks", "passes"])
def test_passes_of_several_ranks(run_ranks: Runner, random_seed: int, layout: str) -> None:
    plans = [[("de", 1.0), ("de", 3.0)], [("sw", 2.0), ("sw", 1.0)], [("de", 0.5), ("de", 0.0)]]
    check_passes(run_ranks, random_seed, plans, 30_011, torch.float32, layout=layout)


def test_a_weight_that_is_out_of_all_proportion(run_ranks: Runner, random_seed: int) -> None:
    """The later one becomes the unit, and what came before is next to nothing."""
    plans = [[("de", 1.0), ("sw", 1.0)], [("de", 1e15), ("sw", 1.0)], [("de", 2e15), ("sw", 2.0)]]
    check_passes(run_ranks, random_seed, plans, 9001)


def test_sketches(run_ranks: Runner, random_seed: int) -> None:
    """What sketches give is the estimate of the sketched rows."""
    plan = [("de", 1.0), ("sw", 1.0), ("de", 2.0)]
    n, width = 40_000, 1024
    results = run_ranks(3, _passes, random_seed, [plan], n, torch.float64, {"gramian": moo.Sketch(width=width)})
    rows = [ref.sketch(ref.float64(drawn(random_seed, r, n, torch.float64)), width, step=1) for r in range(3)]
    assert_signal(results[0][0], rows, plan, torch.float32)


def _on_mesh(rank: int, world: int, seed: int) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("language", "data"))
    state = moo.BucketMOO("mgda", row_norms=True, mesh=mesh, objectives="language")
    for number in range(2):
        row = drawn(seed, number * world + rank, 9001, torch.float64)
        with contextlib.nullcontext() if number == 1 else state.accumulate():
            moo.all_reduce(row, state)
    return state.report().signal.numpy()


def test_on_a_mesh_the_mean_of_ranks_inside_is_a_row(run_ranks: Runner, random_seed: int) -> None:
    got = run_ranks(4, _on_mesh, random_seed)
    rows = [ref.float64(drawn(random_seed, number, 9001, torch.float64)) for number in range(8)]
    means = [(rows[2 * i] + rows[2 * i + 1]) / 2 for i in range(4)]
    assert_signal(got[0], means, [("0", 1.0), ("1", 1.0)] * 2)


def _ddp(rank: int, world: int, seed: int, scope: str, number_of_passes: int) -> Any:
    objectives = [(rank + p) % 2 for p in range(number_of_passes)]
    model = DistributedDataParallel(Given(), bucket_cap_mb=0.05)
    state = moo.register(model, "mgda", scope=scope, row_norms=True)
    for _ in range(2):  # DDP rebuilds its buckets
        model.zero_grad()
        for number, objective in enumerate(objectives):
            state.objective = objective
            gradients = scopes.row(seed, rank, number, objective, torch.float64)
            with contextlib.nullcontext() if number == number_of_passes - 1 else state.accumulate():
                model(gradients).backward()
    report = state.report()
    return [(bucket.parameters, bucket.objectives, bucket.signal.numpy()) for bucket in report.buckets]


@pytest.mark.parametrize("scope", ["bucket", "model", "parameter"])
@pytest.mark.parametrize(("world", "passes"), [(4, 1), (2, 3)])
def test_every_part_has_its_own(run_ranks: Runner, random_seed: int, scope: str, world: int, passes: int) -> None:
    got = run_ranks(world, _ddp, random_seed, scope, passes)
    order = [(rank, number) for number in range(passes) for rank in range(world)]
    plan = [(str((rank + number) % 2), 1.0) for rank, number in order]
    rows = [scopes.row(random_seed, rank, number, (rank + number) % 2, torch.float64) for rank, number in order]
    for parameters, objectives, signal in got[0]:
        assert objectives == ("0", "1")
        names = [name.removeprefix("module.") for name in parameters]
        assert_signal(signal, [np.concatenate([row[name] for name in names]) for row in rows], plan)
    assert sum(len(parameters) for parameters, _, _ in got[0]) == len(scopes.SIZES)


def _pieces(rank: int, world: int, seed: int) -> Any:
    """Ranks 0 and 1 have the beginnings of all parameters, and copies of one; 2 and 3 have the rest."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("piece", "data"))
    piece, data = mesh.get_local_rank("piece"), mesh.get_local_rank("data")
    row = scopes.row(seed, data, 0, 0, torch.float64)
    mine = {name: v if name == "head.1" else (v[:100] if piece == 0 else v[100:]) for name, v in row.items()}
    mine = {name: v for name, v in mine.items() if len(v) > 0 and name in ("head.1", "head.0", "expert.a")}
    model = DistributedDataParallel(
        Given(sizes={name: len(v) for name, v in mine.items()}), process_group=mesh.get_group("data")
    )
    state = moo.register(
        model,
        "mgda",
        objective="de",
        row_norms=True,
        model_parallel_group=mesh.get_group("piece"),
        replicated=lambda name: name == "head.1",
    )
    model(mine).backward()
    return state.report().signal.numpy()


def test_pieces_of_a_model_have_the_signal_of_the_whole(run_ranks: Runner, random_seed: int) -> None:
    rows = [scopes.row(random_seed, data, 0, 0, torch.float64) for data in range(2)]
    whole = [np.concatenate([row[name] for name in ("head.1", "head.0", "expert.a")]) for row in rows]
    for signal in run_ranks(4, _pieces, random_seed):
        assert_signal(signal, whole, [("de", 1.0)] * 2)


def _sharded(rank: int, world: int, seed: int) -> tuple[Array, Array]:
    tokens = sharded.tokens_of(seed, rank, 0)
    plain = sharded.Transformer(seed)
    sharded.loss_of(plain, tokens).backward()
    own = np.concatenate([ref.float64(p.grad).ravel() for p in plain.parameters() if p.grad is not None])
    model = sharded.shard(sharded.Transformer(seed), world)
    state = moo.register(model, "mgda", objective="de", row_norms=True)
    sharded.loss_of(model, tokens).backward()
    return state.report().signal.numpy(), own


def test_sharded_gradients(run_ranks: Runner, random_seed: int) -> None:
    results = run_ranks(3, _sharded, random_seed)
    assert_signal(results[0][0], [own for _, own in results], [("de", 1.0)] * 3)


def _kept(rank: int, world: int, seed: int) -> list[Array]:
    """What reports say where a step uses the weights of the step before."""
    state = moo.BucketMOO("mgda", gramian=moo.Sketch(width=1024, lag=1), row_norms=True, objective="de")
    signals = []
    for step in range(3):
        moo.all_reduce(drawn(seed, step * world + rank, 40_000, torch.float64), state, bucket="b")
        report = state.report()
        signals.append(np.array([float(report.signal), report.buckets[0].solved_step]))
    return signals


def test_kept_weights_have_the_signal_of_their_step(run_ranks: Runner, random_seed: int) -> None:
    signals = run_ranks(2, _kept, random_seed)[0]
    for signal, solved in signals:
        first = 2 * (int(solved) - 1)
        rows = [
            ref.sketch(ref.float64(drawn(random_seed, first + r, 40_000, torch.float64)), 1024, step=int(solved))
            for r in range(2)
        ]
        assert_signal(np.array([[signal]]), rows, [("de", 1.0)] * 2, torch.float32)


def _off(rank: int, world: int) -> Array:
    state = moo.BucketMOO("mgda", objective="de")
    moo.all_reduce(torch.randn(100, generator=torch.Generator().manual_seed(rank)), state)
    assert not state.row_norms
    assert "signal in" not in str(state.report())
    return state.report().signal.numpy()


def test_nothing_is_said_where_it_was_not_asked_for(run_ranks: Runner) -> None:
    assert np.isnan(run_ranks(2, _off)[0]).all()


def _differ(rank: int, world: int) -> str:
    state = moo.BucketMOO("mgda", row_norms=rank == 1)
    with pytest.raises(ValueError, match="row_norms: False on rank 0; True on rank 1") as caught:
        moo.all_reduce(torch.ones(100), state)
    dist.barrier()
    return str(caught.value)


def test_ranks_must_agree(run_ranks: Runner) -> None:
    assert len(set(run_ranks(2, _differ))) == 1


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_it_is_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="row_norms must be True or False; got "):
        moo.BucketMOO("mgda", row_norms=value)


@pytest.mark.device
@pytest.mark.skipif(not ON_DEVICE, reason="needs the build with emulated CUDA kernels")
def test_a_device_refuses() -> None:
    model = torch.nn.Linear(3, 2)
    state = moo.register(model, "mgda", row_norms=True)
    with pytest.raises(NotImplementedError, match="row_norms=True is for reductions in host memory; got tensors on"):
        state.backward({"de": model(torch.ones(3)).sum()})


def test_the_noise_is_taken_off_on_average() -> None:
    """Of rows with a known mean: over many steps the estimate is its square, the Gramian is not."""
    rng = np.random.default_rng(7)
    common = rng.standard_normal((2, 50)) * 0.3
    model = torch.nn.Linear(50, 2, bias=False).double()
    state = moo.register(model, "mean", row_norms=True)
    signals, gramians = [], []
    for _ in range(400):
        model.zero_grad()
        for number in range(4):
            state.objective = ("de", "sw")[number // 2]
            gradient = torch.from_numpy(common[number // 2] + rng.standard_normal(50))
            with contextlib.nullcontext() if number == 3 else state.accumulate():
                (model.weight[0] * gradient).sum().backward()
        signals.append(state.report().signal.numpy())
        gramians.append(state.report().gramian.numpy())
    mean, error = np.mean(signals, axis=0), np.std(signals, axis=0) / np.sqrt(len(signals))
    assert (np.abs(mean - common @ common.T) < 4 * error).all()
    assert (np.mean(gramians, axis=0) - common @ common.T).diagonal().min() > 20
