"""model_parallel_group: ranks that hold other pieces of the same model use the weights of the whole."""

import functools
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support import scopes
from tests.support.checks import ON_DEVICE
from tests.support.ddp import same_on_all_ranks
from tests.support.errors import error_of, expect
from tests.support.reference import float64

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]
SEED = 11

# Pieces of a model of three layers: along one dimension, of odd sizes where they are cut.
PIECED = {"embed": 1303, "block0.weight": 6007, "block1.weight": 5003, "head.0": 2001}
COPIES = {"block0.norm": 7, "block1.norm": 9}


def _is_copy(name: str) -> bool:
    return name in COPIES


def _cut(size: int, place: int, places: int) -> slice:
    """Pieces of different sizes."""
    bounds = [round(size * (p / places) ** 1.2) for p in range(places + 1)]
    return slice(bounds[place], bounds[place + 1])


def _piece(row: dict[str, np.ndarray], place: int, places: int) -> dict[str, np.ndarray]:
    return {n: v if _is_copy(n) else v[_cut(len(v), place, places)] for n, v in row.items()}


def _grid(places: int) -> tuple[Any, Any]:
    """Groups of data parallelism and of model parallelism, of this rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size() // places, places), mesh_dim_names=("dp", "tp"))
    return mesh.get_group("dp"), mesh.get_group("tp")


def _train(rank: int, world: int, places: int, options: dict[str, Any], steps: int = 2) -> Any:
    data, pieces = _grid(places)
    place, objective = dist.get_rank(pieces), dist.get_rank(data)
    sizes = {**PIECED, **COPIES}
    row = [scopes.row(SEED + s, objective, 0, objective, torch.float64, sizes) for s in range(steps)]
    own = {n: len(v) for n, v in _piece(row[0], place, places).items()}
    model = scopes.Given(sizes=own)
    ddp = DDP(model, process_group=data, bucket_cap_mb=100.0)
    state = moo.register(ddp, moo.PCGrad(), model_parallel_group=pieces, replicated=_is_copy, **options)
    for s in range(steps):
        model.zero_grad()
        ddp(_piece(row[s], place, places)).backward()
    weights = [part.weights.tolist() for part in state.report().buckets]
    gramian = state.report().gramian.tolist()
    return place, {n: float64(p.grad) for n, p in model.named_parameters() if p.grad is not None}, weights, gramian


def _whole(rank: int, world: int, options: dict[str, Any], steps: int = 2) -> Any:
    model = scopes.Given(sizes={**PIECED, **COPIES})
    ddp = DDP(model, bucket_cap_mb=100.0)
    state = moo.register(ddp, moo.PCGrad(), **options)
    for s in range(steps):
        model.zero_grad()
        ddp(scopes.row(SEED + s, rank, 0, rank, torch.float64, {**PIECED, **COPIES})).backward()
    return {
        n: float64(p.grad) for n, p in model.named_parameters() if p.grad is not None
    }, state.report().gramian.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "bucket"},
        {"scope": "model"},
        {"scope": "parameter"},
        {"scope": scopes.kind_of, "support": True},
        {"scope": "bucket", "support": True},
        {"scope": "model", "support": True},
    ],
    ids=["bucket", "model", "parameter", "groups and support", "bucket and support", "model and support"],
)
def test_pieces_equal_the_whole_model(run_ranks: RunRanks, options: dict[str, Any]) -> None:
    """TP 2 x DP 2, a bucket, uneven pieces; copies count once."""
    expected, gramian = run_ranks(2, _whole, options)[0]
    results = run_ranks(4, _train, 2, options)
    same_on_all_ranks([weights for _, _, weights, _ in results])
    for place, got, _, summed in results:
        np.testing.assert_allclose(summed, gramian, rtol=1e-11)
        for name, piece in _piece(expected, place, 2).items():
            np.testing.assert_allclose(got[name], piece, rtol=0, atol=1e-11 * np.abs(expected[name]).max())


@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_random_choices_are_those_of_the_whole_model(run_ranks: RunRanks, scope: str) -> None:
    """Three objectives, whose order matters to PCGrad."""
    options = {"scope": scope}
    expected, _ = run_ranks(3, _whole, options)[0]
    for place, got, *_ in run_ranks(6, _train, 2, options):
        for name, piece in _piece(expected, place, 2).items():
            np.testing.assert_allclose(got[name], piece, rtol=0, atol=1e-11 * np.abs(expected[name]).max())


def _other_sizes(rank: int, world: int) -> Any:
    """One piece brings another size in the second pass of a step."""
    data, pieces = _grid(2)
    state = moo.BucketMOO("mgda", process_group=data, model_parallel_group=pieces)
    with state.accumulate():
        moo.all_reduce(torch.ones(10), state, bucket="x")
    size = 12 if rank % 2 else 10
    first = error_of(lambda: moo.all_reduce(torch.ones(size), state, bucket="x"))
    state.discard()
    moo.all_reduce(torch.ones(10), state, bucket="x")
    return first


@pytest.mark.host  # elsewhere the other pieces wait for it, as for any rank that makes other calls
def test_an_error_of_one_piece_in_the_midst_of_a_step(run_ranks: RunRanks) -> None:
    for rank, error in enumerate(run_ranks(4, _other_sizes)):
        expect(error, ValueError, "is of another size" if rank % 2 else "have raised an error")


def _tensor_parallel(rank: int, world: int, method: str) -> Any:
    """torch's own, whose parameters DDP makes local."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def new() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 5), nn.LayerNorm(5)).double()

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    objective = mesh.get_local_rank("dp")
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    ddp = DDP(parallelize_module(new(), mesh["tp"], plan), device_mesh=mesh["dp"])
    moo.register(ddp, method, model_parallel_group=mesh.get_group("tp"), scope="model")
    plain = DDP(new(), process_group=mesh.get_group("dp"))
    moo.register(plain, method, scope="model")
    optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (ddp, plain)]
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + objective)
        x = torch.randn(4, 6, dtype=torch.float64, generator=generator)
        y = torch.randn(5, dtype=torch.float64, generator=generator) * 3
        for m, optimizer in zip((ddp, plain), optimizers, strict=True):
            optimizer.zero_grad()
            (m(x) - y).square().mean().backward()
            optimizer.step()
    place = mesh.get_local_rank("tp")
    whole = dict(plain.module.named_parameters())
    for name, parameter in ddp.module.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        wanted = whole[name].detach()
        if name in ("0.weight", "0.bias"):
            wanted = wanted.chunk(2, 0)[place]
        elif name == "2.weight":
            wanted = wanted.chunk(2, 1)[place]
        torch.testing.assert_close(local.detach(), wanted, rtol=1e-9, atol=1e-12)
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["mgda", "upgrad"])
def test_torchs_tensor_parallelism(run_ranks: RunRanks, method: str) -> None:
    """Which parameters are copies is seen from what is a DTensor."""
    assert all(run_ranks(4, _tensor_parallel, method))


# --------------------------------------------------------------------------------------------------------------- errors


def _other_objectives(rank: int, world: int) -> Any:
    """A first step in which all is well, then one that is not on one rank."""
    data, pieces = _grid(2)
    ddp = DDP(scopes.Given(sizes=PIECED), process_group=data)
    state = moo.register(ddp, "mgda", model_parallel_group=pieces)
    row = scopes.row(SEED, rank, 0, 0, torch.float64, PIECED)
    errors = []
    for objective, weight in ((0, 1.0), ("other" if rank == 3 else 0, 1.0), (rank // 2, 2.0 + (rank == 0)), (0, 1.0)):
        state.objective, state.weight = objective, weight
        errors.append(error_of(lambda: ddp(row).backward()))
    return errors


@pytest.mark.host
def test_ranks_of_one_model_have_the_same_objectives_and_weights(run_ranks: RunRanks) -> None:
    for first, objectives, weights, last in run_ranks(4, _other_objectives):
        assert first[0] is type(None), first
        expect(objectives, ValueError, "ranks of model_parallel_group must .* have the same objective and weight")
        expect(weights, ValueError, "ranks of model_parallel_group must")
        assert last[0] is type(None), last


def _an_error_elsewhere(rank: int, world: int, seeds: list[int]) -> Any:
    data, pieces = _grid(2)
    state = moo.BucketMOO(
        "mgda", process_group=data, model_parallel_group=pieces, seed=seeds[rank], objective=rank // 2
    )
    return [error_of(lambda: moo.all_reduce(torch.ones(9), state)) for _ in range(2)]


def test_an_error_in_one_data_parallel_group_is_one_in_all(run_ranks: RunRanks) -> None:
    """The ranks of one disagree; those of the other hear of it."""
    for rank, errors in enumerate(run_ranks(4, _an_error_elsewhere, [0, 0, 1, 0])):
        words = "ranks that hold other pieces of the model .place 0 .* have raised an error" if rank % 2 else "seed"
        for error in errors:
            expect(error, ValueError, words)


def test_pieces_of_other_configurations(run_ranks: RunRanks) -> None:
    """Every time, not only the first."""
    for errors in run_ranks(4, _an_error_elsewhere, [0, 1, 0, 1]):
        for error in errors:
            expect(error, ValueError, "seed", "1")


def _other_buckets(rank: int, world: int) -> Any:
    data, pieces = _grid(2)
    sizes = dict(list(PIECED.items())[rank % 2 :])
    ddp = DDP(scopes.Given(sizes=sizes), process_group=data)
    moo.register(ddp, "mgda", model_parallel_group=pieces)
    return error_of(lambda: ddp(scopes.row(SEED, rank, 0, 0, torch.float64, PIECED)).backward())


def test_other_buckets_on_other_pieces(run_ranks: RunRanks) -> None:
    for error in run_ranks(4, _other_buckets):
        expect(error, ValueError, "replicated|must reduce the same buckets")


def _without_names(rank: int, world: int) -> Any:
    data, pieces = _grid(2)
    ddp = DDP(scopes.Given(sizes=PIECED), process_group=data)
    ddp.register_comm_hook(
        moo.BucketMOO(process_group=data, model_parallel_group=pieces, replicated=_is_copy), moo.bucket_moo_hook
    )
    return error_of(lambda: ddp(scopes.row(SEED, rank, 0, 0, torch.float64, PIECED)).backward())


def test_copies_go_by_names(run_ranks: RunRanks) -> None:
    for error in run_ranks(4, _without_names):
        expect(error, ValueError, "model_parallel_group.*call name_parameters")


def _empty(rank: int, world: int) -> Any:
    """A piece may have nothing of a parameter."""
    data, pieces = _grid(2)
    sizes = {"a": 5 * (rank % 2), "b": 3}
    ddp = DDP(scopes.Given(sizes=sizes), process_group=data)
    state = moo.register(ddp, "mgda", model_parallel_group=pieces)
    ddp(scopes.row(SEED, rank, 0, 0, torch.float64, sizes)).backward()
    return state.report().buckets[0].numel


def test_a_piece_without_elements(run_ranks: RunRanks) -> None:
    assert run_ranks(4, _empty) == [3, 8, 3, 8]


def _several_passes(rank: int, world: int, weights: list[float]) -> Any:
    data, pieces = _grid(2)
    place = dist.get_rank(pieces)
    sizes = {**PIECED, **COPIES}
    rows = [scopes.row(SEED, rank // 2, n, n, torch.float64, sizes) for n in range(2)]
    ddp = DDP(scopes.Given(sizes={n: len(v) for n, v in _piece(rows[0], place, 2).items()}), process_group=data)
    state = moo.register(ddp, "mgda", model_parallel_group=pieces, replicated=_is_copy)
    for _ in range(2):
        ddp.zero_grad()
        with state.accumulate():
            state.objective, state.weight = 0, weights[rank]
            ddp(_piece(rows[0], place, 2)).backward()
        state.objective = 1
        error = error_of(lambda: ddp(_piece(rows[1], place, 2)).backward())
        if error[0] is not type(None):
            return error
    return place, {n: float64(p.grad) for n, p in ddp.module.named_parameters() if p.grad is not None}


def test_steps_of_several_passes(run_ranks: RunRanks) -> None:
    sizes = {**PIECED, **COPIES}
    rows = [scopes.row(SEED, r, n, n, torch.float64, sizes) for n in range(2) for r in range(2)]
    expected = scopes.expected(scopes.means(rows, [0, 0, 1, 1]), "mgda", {}, lambda name: "")
    for place, got in run_ranks(4, _several_passes, [1.0] * 4):
        for name, piece in _piece(expected, place, 2).items():
            np.testing.assert_allclose(got[name], piece, rtol=0, atol=1e-10 * np.abs(expected[name]).max())


@pytest.mark.host
def test_other_weights_in_one_of_several_passes(run_ranks: RunRanks) -> None:
    for error in run_ranks(4, _several_passes, [1.0, 2.0, 1.0, 2.0]):
        expect(error, ValueError, "have the same objective and weight")


def _found_on_the_device(rank: int, world: int, objectives: list[str], weights: list[float], names: list[str]) -> Any:
    """A step in which all is well, one that differs between pieces, and those behind it."""
    data, pieces = _grid(2)
    state = moo.BucketMOO("mgda", process_group=data, model_parallel_group=pieces)
    rows, errors = [], []
    moo.all_reduce(torch.ones(50), state, bucket="y")  # known, as "x" is from the first step on
    for step in range(4):
        is_other = step == 1
        state.objective, state.weight = objectives[rank] if is_other else rank // 2, weights[rank] if is_other else 1.0
        row = torch.full((50,), 1.0 + rank)
        bucket = names[rank] if is_other else "x"
        errors.append(error_of(functools.partial(moo.all_reduce, row, state, bucket=bucket)))
        rows.append(bool(row.isfinite().all()))
    return rows[:2], [error[0] is type(None) for error in errors[:3]], errors[3]


@pytest.mark.skipif(not ON_DEVICE, reason="ranks compare on the host")
@pytest.mark.parametrize(
    ("objectives", "weights", "names"),
    [
        ("aabc", [1.0] * 4, "xxxx"),
        ("aabb", [1.0, 1.0, 1.0, 2.0], "xxxx"),
        ("aabb", [1.0] * 4, "xyxy"),
        ("baab", [1.0] * 4, "xxxx"),
    ],
    ids=["objective", "weight", "bucket", "order"],
)
def test_pieces_that_differ_are_an_error_of_the_step(
    run_ranks: RunRanks, objectives: str, weights: list[float], names: str
) -> None:
    """Its results are NaN on all ranks of the model, and the step after the next one raises, as for any such error."""
    for finite, quiet, last in run_ranks(4, _found_on_the_device, list(objectives), weights, list(names)):
        assert finite == [True, False]
        assert quiet == [True, True, True]
        expect(last, ValueError, "ranks of model_parallel_group must .* have the same objective and weight; in step")


def _arguments(rank: int, world: int) -> None:
    _, pieces = _grid(2)
    expect(error_of(lambda: moo.BucketMOO(model_parallel_group=3)), TypeError, "a ProcessGroup or None; got int")  # type: ignore[arg-type]
    expect(error_of(lambda: moo.BucketMOO(replicated=bool)), ValueError, "give model_parallel_group")
    expect(
        error_of(lambda: moo.BucketMOO(model_parallel_group=pieces, gramian=moo.Sketch())),
        NotImplementedError,
        "Sketch",
    )
    state = moo.BucketMOO(model_parallel_group=pieces)
    expect(error_of(lambda: moo.all_reduce(torch.ones(3), state)), ValueError, "none of which is in process_group")
    twin = moo.BucketMOO.__new__(moo.BucketMOO)
    twin.__setstate__(state.__getstate__())
    expect(error_of(lambda: moo.all_reduce(torch.ones(3), twin)), RuntimeError, "does not come along")


def test_arguments(run_ranks: RunRanks) -> None:
    run_ranks(4, _arguments)
