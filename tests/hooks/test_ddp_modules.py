"""What `register` and the Python hook make of DDP modules that are not quite what they seem."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import (
    CAP_MB,
    WAYS,
    assert_mgda,
    batch_of,
    check_buckets,
    check_step,
    gradients,
    hook,
    loss_of,
    mlp,
)
from tests.support.errors import error_of

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]


# --- what the reducer has is not what the module has ---


class _WithExtras(nn.Module):
    """A network, and parameters of other kinds that DDP is told to ignore."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = mlp(seed)
        self.extras = nn.Module()  # DDP does not find names to ignore that have no dot
        self.extras.meta = nn.Parameter(torch.empty(3, device="meta"))
        self.extras.float8 = nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn))
        self.extras.own = nn.Parameter(torch.ones(5, dtype=torch.float64))
        names = [f"extras.{name}" for name, _ in self.extras.named_parameters()]
        DDP._set_params_and_buffers_to_ignore_for_model(self, names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(x) * self.extras.own
        return out


def _ignored(rank: int, world: int, seed: int, way: str) -> None:
    model = _WithExtras(seed)
    ddp = DDP(model, bucket_cap_mb=CAP_MB)
    state = hook(ddp, way)
    for step in range(3):
        reduced = {f"network.{name}" for name, _ in model.network.named_parameters()}
        local = []
        for r in range(world):
            # meta tensors cannot be copied by value: the reference differentiates by hand.
            named = [(name, p) for name, p in model.named_parameters() if name in reduced or name == "extras.own"]
            grads = torch.autograd.grad(loss_of(model, batch_of(seed, r, step)), [p for _, p in named])
            local.append({n: g.reshape(-1).numpy().copy() for (n, _), g in zip(named, grads, strict=True)})
        ddp.zero_grad()
        loss_of(ddp, batch_of(seed, rank, step)).backward()
        report = state.report()
        assert {name for bucket in report.buckets for name in bucket.parameters} == reduced
        by_name = dict(model.named_parameters())
        for bucket in report.buckets:
            rows = np.stack([np.concatenate([g[n] for n in bucket.parameters]) for g in local])
            got = np.concatenate([by_name[n].grad.reshape(-1).numpy() for n in bucket.parameters])  # type: ignore[union-attr]
            assert_mgda(rows, got, 1e-9)
        # This rank's own, untouched.
        own = model.extras.own.grad
        np.testing.assert_allclose(own.numpy(), local[rank]["extras.own"], rtol=1e-12)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_ddp_ignores(run_ranks: RunRanks, way: str, seed: int) -> None:
    run_ranks(2, _ignored, seed, way)


def _frozen(rank: int, world: int, seed: int, way: str) -> None:
    # All frozen between wrapping and registering, and some thawed again: the reducer has them all along.
    model = mlp(seed)
    ddp = DDP(model, bucket_cap_mb=CAP_MB, find_unused_parameters=True)
    ddp.requires_grad_(False)
    state = hook(ddp, way)
    ddp.requires_grad_(True)
    for step in range(2):
        check_step(ddp, ddp, state, rank, world, seed, step)
    # Frozen before wrapping: the reducer never sees them, whatever they are.
    model = mlp(seed)
    model[0].requires_grad_(False)  # type: ignore[index]
    model[0].extra = nn.Parameter(torch.empty(2, device="meta"), requires_grad=False)  # type: ignore[index]
    DDP._set_params_and_buffers_to_ignore_for_model(model, ["0.extra"])
    ddp = DDP(model, bucket_cap_mb=CAP_MB)
    state = hook(ddp, way)
    loss_of(ddp, batch_of(seed, rank, 0)).backward()
    names = {name for bucket in state.report().buckets for name in bucket.parameters}
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_are_frozen(run_ranks: RunRanks, way: str, seed: int) -> None:
    run_ranks(2, _frozen, seed, way)


def _older_gradients(rank: int, world: int, seed: int, passes: str) -> None:
    """Gradients in .grad, and a forward pass, say nothing about backward passes that were reduced."""
    model = mlp(seed)
    ddp = DDP(model, bucket_cap_mb=CAP_MB)
    old = batch_of(seed, rank, 7)
    if passes == "before wrapping":
        model = mlp(seed)
        loss_of(model, old).backward()
        ddp = DDP(model, bucket_cap_mb=CAP_MB)
        loss_of(ddp, old)  # without a backward pass
    else:
        with ddp.no_sync():
            loss_of(ddp, old).backward()
    state = moo.register(ddp)

    def both(m: nn.Module, r: int) -> torch.Tensor:
        return loss_of(m, batch_of(seed, r, 7)) + loss_of(m, batch_of(seed, r, 0))

    local = [gradients(model, lambda m, r=r: both(m, r)) for r in range(world)]  # type: ignore[misc]
    loss_of(ddp, batch_of(seed, rank, 0)).backward()
    check_buckets(ddp, state, local, 1e-9)  # the sums, as under no_sync()


@pytest.mark.parametrize("passes", ["before wrapping", "under no_sync()"])
@pytest.mark.parametrize("world", [1, 2])
def test_gradients_from_before_the_registration(run_ranks: RunRanks, world: int, passes: str, seed: int) -> None:
    run_ranks(world, _older_gradients, seed, passes)


# --- model parallelism ---


def _tensor_parallel(mesh: DeviceMesh, seed: int) -> nn.Module:
    # Imported here: it takes a second.
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), nn.LayerNorm(4))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})


def _beside_tensor_parallelism(rank: int, world: int, seed: int, tp: int) -> None:
    mesh = init_device_mesh("cpu", (world // tp, tp), mesh_dim_names=("dp", "tp"))
    for way in WAYS:
        ddp = DDP(_tensor_parallel(mesh["tp"], seed), device_mesh=mesh["dp"])

        def run(ddp: DDP = ddp, way: str = way) -> moo.BucketMOO:
            state = hook(ddp, way)
            ddp(torch.full((2, 4), 1.0 + rank // tp)).square().sum().backward()
            return state

        if tp == 1:  # nobody holds another piece
            assert len(run().report().objectives) == world
            continue
        kind, words = error_of(run)
        assert kind is ValueError, (way, kind, words)
        for part in ("DTensor", "dimension tp", "tensor parallelism"):
            assert part in words
    dist.barrier()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("world", "tp"), [(4, 2), (2, 1)])
def test_ddp_beside_tensor_parallelism(run_ranks: RunRanks, world: int, tp: int, seed: int) -> None:
    run_ranks(world, _beside_tensor_parallelism, seed, tp)


def _ignored_pieces(rank: int, world: int) -> None:
    """DTensors that DDP has nothing to do with are nobody's business."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    for way in WAYS:
        model = nn.Sequential(nn.Linear(3, 2), nn.Module())
        model[1].piece = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
        model[1].forward = lambda x: x
        DDP._set_params_and_buffers_to_ignore_for_model(model, ["1.piece"])
        ddp = DDP(model)
        state = hook(ddp, way)
        ddp(torch.ones(1, 3) * (rank + 1)).sum().backward()
        assert {name for bucket in state.report().buckets for name in bucket.parameters} == {"0.weight", "0.bias"}


@pytest.mark.host
def test_ignored_distributed_tensors(run_ranks: RunRanks) -> None:
    run_ranks(2, _ignored_pieces)


def _distributed_tensors(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    state = moo.BucketMOO("mean")
    sharded = distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (world,)), [Shard(0)])
    for call in (
        lambda: moo.gramian(sharded),
        lambda: moo.gramian([sharded, torch.ones(4, 4)]),
        lambda: moo.sketch(sharded, 64),
        lambda: moo.weights(sharded),
        lambda: moo.aggregate(sharded),
        lambda: moo.combine(torch.ones(4, 4), sharded),
    ):
        kind, words = error_of(call)
        assert kind is ValueError, (kind, words)
        assert "to_local()" in words
    for call in (  # type: ignore[assignment]
        lambda: moo.all_reduce(sharded, state),
        lambda: moo.reduce_scatter(torch.ones(8), sharded, state),
        lambda: moo.reduce_scatter(sharded, torch.ones(32), state),
    ):
        kind, words = error_of(call)
        assert kind is ValueError, (kind, words)
        assert "to_local()" in words
    local = sharded.to_local() * (1.0 + rank)
    moo.all_reduce(local, state)
    assert torch.equal(local, torch.full((2, 4), 1.5))


@pytest.mark.host
def test_distributed_tensors_are_refused(run_ranks: RunRanks) -> None:
    run_ranks(2, _distributed_tensors)


def _empty_tensors(rank: int, world: int) -> None:
    """Tensors without elements to read: refused before anything is sent, on every rank, and the state goes on."""
    state = moo.BucketMOO("mean")

    def freed() -> torch.Tensor:
        tensor = torch.ones(70_000)
        tensor.untyped_storage().resize_(0)
        return tensor

    calls: dict[str, Callable[[], Any]] = {
        "freed": lambda: moo.all_reduce(freed(), state),
        "zero": lambda: moo.all_reduce(torch._efficientzerotensor((16,)), state),
        "functionalized": lambda: torch.func.functionalize(lambda x: moo.all_reduce(x, state))(torch.ones(16)),
        "in grad": lambda: torch.func.grad(lambda x: (moo.all_reduce(x, state), x.sum())[1])(torch.ones(16)),
        "in vmap": lambda: torch.vmap(lambda x: (moo.all_reduce(x, state), x)[1])(torch.ones(2, 16)),
        "nested": lambda: moo.all_reduce(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), state),
    }
    for name, call in calls.items():
        for only in (False, True):  # on one rank only
            if only and rank == 1:
                kind, words = error_of(lambda: moo.all_reduce(torch.ones(16), state))
                assert kind is ValueError, (name, kind, words)
                assert "rank 0 refused" in words
            else:
                kind, words = error_of(call)
                assert kind is ValueError, (name, kind, words)
                assert "hold its elements" in words or "dense" in words
        x = torch.full((3,), float(rank))
        moo.all_reduce(x, state)
        assert x.tolist() == [0.5] * 3, name


@pytest.mark.host
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_elements(run_ranks: RunRanks) -> None:
    run_ranks(2, _empty_tensors)


# --- wrappers ---


class _FabricModule(nn.Module):
    """Lightning Fabric's wrapper, in what matters: it runs one module and passes on attributes of another."""

    def __init__(self, forward_module: nn.Module, original_module: nn.Module) -> None:
        super().__init__()
        self._forward_module = forward_module
        self._original_module = original_module

    def forward(self, *args: Any) -> Any:
        return self._forward_module(*args)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_original_module"), name)


def _compiled(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return compiled


WRAPPERS: dict[str, Callable[[nn.Module], tuple[nn.Module, DDP]]] = {}


def _wrapper(make: Callable[[nn.Module], tuple[nn.Module, DDP]]) -> None:
    WRAPPERS[make.__name__] = make


@_wrapper
def compiled(model: nn.Module) -> tuple[nn.Module, DDP]:
    ddp = DDP(model)
    return _compiled(ddp), ddp


@_wrapper
def fabric(model: nn.Module) -> tuple[nn.Module, DDP]:
    ddp = DDP(model)
    return _FabricModule(ddp, model), ddp


@_wrapper
def compiled_by_fabric(model: nn.Module) -> tuple[nn.Module, DDP]:
    ddp = DDP(model)
    return _compiled(_FabricModule(_compiled(ddp), model)), ddp


def _wrapped(rank: int, world: int, seed: int, wrapper: str) -> None:
    model, ddp = WRAPPERS[wrapper](mlp(seed))
    state = moo.register(model)
    for step in range(2):
        check_step(model, ddp, state, rank, world, seed, step)


@pytest.mark.slow
@pytest.mark.host
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_modules_that_run_a_ddp_module(run_ranks: RunRanks, wrapper: str, seed: int) -> None:
    run_ranks(2, _wrapped, seed, wrapper)


def _other_wrappers(rank: int, world: int) -> None:
    from torch.distributed._composable.replicate import replicate
    from torch.distributed._composable.replicate_with_fsdp import replicate as replicate_with_fsdp

    mesh = init_device_mesh("cpu", (world,))
    cases: list[tuple[nn.Module, str]] = [
        (replicate_with_fsdp(nn.Linear(2, 2), mesh=mesh), "FSDP2's replicate()"),  # type: ignore[list-item]
        (nn.DataParallel(nn.Linear(2, 2)), "one process"),
        (nn.Sequential(DDP(nn.Linear(2, 2))), "in it, '0'"),
        (nn.Sequential(replicate(nn.Linear(2, 2))), "replicate() module in it, '0'"),
        (torch.optim.swa_utils.AveragedModel(DDP(nn.Linear(2, 2))), "in it, 'module'"),
        (torch.jit.script(nn.Linear(2, 2)), "wrap the model first"),
        (nn.Linear(2, 2), "wrap the model first"),
        (_compiled(nn.Linear(2, 2)), "wrap the model first"),
    ]
    for module, words in cases:
        kind, said = error_of(lambda module=module: moo.register(module))  # type: ignore[misc]
        assert kind is TypeError, (kind, said)
        assert words in said, (words, said)
        assert "DistributedDataParallel" in said
        assert ("not supported" in said) == ("wrap" not in words and "in it" not in words)


@pytest.mark.host
@pytest.mark.filterwarnings("ignore")
def test_other_wrappers_are_told_what_they_are(run_ranks: RunRanks) -> None:
    run_ranks(2, _other_wrappers)


# --- private parameters ---


class _TrunkAndHeads(nn.Module):
    """Parameters whose gradients are the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.heads = nn.ParameterList(torch.zeros(1, dtype=torch.float64) for _ in range(2))

    def forward(self, trunk: float, head: float, which: int) -> torch.Tensor:
        out: torch.Tensor = trunk * self.trunk + head * self.heads[which]
        return out


def _shared_bucket(rank: int, world: int, method: str) -> float:
    ddp = DDP(_TrunkAndHeads(), find_unused_parameters=True)
    state = moo.register(ddp, method)
    ddp((0.8, -103.75)[rank], 0.6, rank).backward()
    assert len(state.report().buckets) == 1
    return ddp.module.heads[rank].grad.item() / 0.6


@pytest.mark.parametrize("method", ["mean", "mgda", "pcgrad"])
def test_the_documented_scaling_of_private_parameters(run_ranks: RunRanks, method: str, repository: Path) -> None:
    rows = [line.split("|") for line in (repository / "docs" / "using.md").read_text().splitlines()]
    documented = next([float(r[2]), float(r[3])] for r in rows if len(r) == 5 and f"`{method}`" in r[1])
    assert run_ranks(2, _shared_bucket, method) == pytest.approx(documented, abs=6e-4)


class _OwnHead(nn.Module):
    def __init__(self, seed: int, world: int) -> None:
        super().__init__()
        self.trunk = mlp(seed, sizes=(40, 60))
        self.heads = nn.ModuleList(mlp(seed + 1 + r, sizes=(60, 5)) for r in range(world))

    def forward(self, x: torch.Tensor, head: int) -> torch.Tensor:
        out: torch.Tensor = self.heads[head](self.trunk(x))
        return out


def _head_loss(model: nn.Module, seed: int, rank: int, step: int) -> torch.Tensor:
    x, y = batch_of(seed, rank, step)
    return (model(x, rank) - y).square().mean()


def _private_heads(rank: int, world: int, seed: int, remedy: str) -> None:
    model = _OwnHead(seed, world)
    heads = [f"heads.{r}.{name}" for r in range(world) for name, _ in model.heads[r].named_parameters()]
    if remedy == "ignored":
        DDP._set_params_and_buffers_to_ignore_for_model(model, heads)
        ddp = DDP(model, bucket_cap_mb=CAP_MB)
    else:
        ddp = DDP(model, bucket_cap_mb=1e-6, find_unused_parameters=True)  # a bucket a parameter
    state = moo.register(ddp)
    for step in range(2):
        local = [gradients(model, lambda m, r=r, s=step: _head_loss(m, seed, r, s)) for r in range(world)]  # type: ignore[misc]
        ddp.zero_grad()
        _head_loss(ddp, seed, rank, step).backward()
        for bucket in state.report().buckets:
            rows = np.stack([np.concatenate([g[n] for n in bucket.parameters]) for g in local])
            by_name = dict(model.named_parameters())
            got = np.concatenate([by_name[n].grad.reshape(-1).numpy() for n in bucket.parameters])  # type: ignore[union-attr]
            assert_mgda(rows, got, 1e-9)
        # Every rank's own head follows its own loss, at full length.
        for name, parameter in model.heads[rank].named_parameters():
            expected = local[rank][f"heads.{rank}.{name}"]
            np.testing.assert_allclose(parameter.grad.reshape(-1).numpy(), expected, rtol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("remedy", ["ignored", "in buckets of their own"])
def test_the_documented_ways_to_keep_private_parameters_apart(run_ranks: RunRanks, remedy: str, seed: int) -> None:
    run_ranks(2, _private_heads, seed, remedy)
