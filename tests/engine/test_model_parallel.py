"""model_parallel_group: ranks that hold other pieces of the same model use the weights of the whole."""

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
from tests.support.ddp import same_on_all_ranks
from tests.support.errors import error_of, expect
from tests.support.reference import float64

pytestmark = pytest.mark.host

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
    ],
    ids=["bucket", "model", "parameter", "groups and support", "bucket and support"],
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


def _stages(rank: int, world: int) -> Any:
    """A pipeline: other parameters, and other buckets, on each stage."""
    data, pieces = _grid(2)
    stage, objective = dist.get_rank(pieces), dist.get_rank(data)
    names = (["embed", "block0.weight", "block0.norm"], ["block1.weight", "block1.norm", "head.0"])[stage]
    sizes = {n: {**PIECED, **COPIES}[n] for n in names}
    model = scopes.Given(sizes=sizes)
    ddp = DDP(model, process_group=data, bucket_cap_mb=0.02)
    state = moo.register(ddp, "mgda", scope="model", model_parallel_group=pieces)
    for s in range(2):
        model.zero_grad()
        row = scopes.row(SEED + s, objective, 0, objective, torch.float64, {**PIECED, **COPIES})
        ddp({n: row[n] for n in names}).backward()
    assert len(state.report().buckets) == (2, 1)[stage]
    return {n: float64(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def test_stages_of_a_pipeline_are_one_model(run_ranks: RunRanks) -> None:
    sizes = {**PIECED, **COPIES}
    rows = [scopes.row(SEED + 1, r, 0, r, torch.float64, sizes) for r in range(2)]
    expected = scopes.expected(scopes.means(rows, [0, 1]), "mgda", {}, lambda name: "")
    got: dict[str, np.ndarray] = {}
    for stage in run_ranks(4, _stages):
        for name, gradient in stage.items():
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-10 * np.abs(expected[name]).max())
            got[name] = gradient
    assert got.keys() == sizes.keys()


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
    data, pieces = _grid(2)
    model = scopes.Given(sizes=PIECED)
    ddp = DDP(model, process_group=data)
    state = moo.register(ddp, "mgda", model_parallel_group=pieces)
    row = scopes.row(SEED, rank, 0, 0, torch.float64, PIECED)
    errors = []
    for objective, weight in (("same", 1.0), ("other" if rank == 3 else "same", 1.0), ("same", 2.0 + (rank == 0))):
        state.objective, state.weight = objective, weight
        errors.append(error_of(lambda: ddp(row).backward()))
    return errors


def test_ranks_of_one_model_have_the_same_objectives_and_weights(run_ranks: RunRanks) -> None:
    for fine, objectives, weights in run_ranks(4, _other_objectives):
        assert fine[0] is type(None), fine
        expect(
            objectives, ValueError, "ranks of model_parallel_group must have the same buckets, objectives and weights"
        )
        expect(weights, ValueError, "model_parallel_group")


def _an_error_elsewhere(rank: int, world: int) -> Any:
    """The ranks of one data-parallel group disagree; those of the other hear of it."""
    data, pieces = _grid(2)
    state = moo.BucketMOO(
        "mgda", process_group=data, model_parallel_group=pieces, seed=1 if rank == 2 else 0, objective=rank // 2
    )
    return error_of(lambda: moo.all_reduce(torch.ones(9), state))


def test_an_error_in_one_data_parallel_group_is_one_in_all(run_ranks: RunRanks) -> None:
    errors = run_ranks(4, _an_error_elsewhere)
    for rank in (0, 2):
        expect(errors[rank], ValueError, "seed")
    for rank in (1, 3):
        expect(errors[rank], ValueError, "ranks that hold other pieces of the model .place 0 .* have raised an error")


def _other_buckets(rank: int, world: int) -> Any:
    data, pieces = _grid(2)
    sizes = dict(list(PIECED.items())[rank % 2 :])
    ddp = DDP(scopes.Given(sizes=sizes), process_group=data)
    moo.register(ddp, "mgda", model_parallel_group=pieces)
    return error_of(lambda: ddp(scopes.row(SEED, rank, 0, 0, torch.float64, PIECED)).backward())


def test_other_buckets_on_other_pieces(run_ranks: RunRanks) -> None:
    for error in run_ranks(4, _other_buckets):
        expect(error, ValueError, "the same configuration, buckets, objectives and weights")


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
