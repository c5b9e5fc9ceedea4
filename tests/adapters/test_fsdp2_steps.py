"""FSDP2: what surrounds a backward pass, and what cannot be reduced."""

import copy
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from bucket_moo_ext import private_torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from tests.support.errors import error_of, expect
from tests.support.sharded import (
    Reference,
    Transformer,
    combined,
    full,
    loss_of,
    mesh_of,
    shard,
    tokens_of,
)

Runner = Callable[..., list[Any]]

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]


def _backward(model: nn.Module, rank: int, seed: int, step: int = 0, language: str = "") -> None:
    loss_of(model, tokens_of(seed, rank, step), language).backward()


def _reference_step(reference: Reference, world: int, seed: int, step: int, rate: float = 0.0) -> None:
    reference.step([lambda m, r=r: loss_of(m, tokens_of(seed, r, step)) for r in range(world)], rate)  # type: ignore[misc]


def _assert_update(model: nn.Module, reference: Reference, factor: float = 1.0) -> None:
    for name, parameter in model.named_parameters():
        expected = factor * reference.update[name.replace("_checkpoint_wrapped_module.", "")]
        assert (full(parameter.grad) - expected).norm() <= 1e-7 * expected.norm() + 1e-12, name


# --- around the step ---


def _clipping_and_checkpoints(rank: int, world: int, seed: int, folder: str) -> None:
    reference = Reference(Transformer(seed), "gradvac")
    model: Any = shard(Transformer(seed), world)
    state = moo.register(model, moo.GradVac())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    norms = []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        _backward(model, rank, seed, number)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        norms.append(float(norm.full_tensor()))  # type: ignore[attr-defined]
        optimizer.step()

    step(model, optimizer, 0)
    step(model, optimizer, 1)
    assert all(norm > 0.01 for norm in norms)
    clipped = torch.cat([full(parameter.grad).flatten() for parameter in model.parameters()])
    assert abs(float(clipped.norm()) - 0.01) < 1e-6
    saved = {"model": get_model_state_dict(model), "moo": state.state_dict()}
    names = [name for bucket in saved["moo"]["buckets"] for name in bucket["parameters"]]
    assert sorted(names) == sorted(dict(reference.model.named_parameters()))
    dcp.save(saved, checkpoint_id=folder)
    step(model, optimizer, 2)

    resumed = shard(Transformer(seed + 1), world)
    other = moo.register(resumed, moo.GradVac())
    loaded = {"model": get_model_state_dict(resumed), "moo": saved["moo"]}
    dcp.load(loaded, checkpoint_id=folder)
    set_model_state_dict(resumed, loaded["model"])
    other.load_state_dict(loaded["moo"])
    step(resumed, torch.optim.SGD(resumed.parameters(), lr=0.5), 2)
    assert norms[2] == norms[3]
    assert other.state_dict() == state.state_dict()
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(full(one), full(two))


def test_clipping_and_checkpoints(run_ranks: Runner, random_seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(2, _clipping_and_checkpoints, random_seed, folder)


def _activation_checkpoints(rank: int, world: int, seed: int) -> None:
    reference = Reference(Transformer(seed), "mgda")
    _reference_step(reference, world, seed, 0)
    model: Any = Transformer(seed)
    for name, block in model.blocks.named_children():
        model.blocks.register_module(name, checkpoint_wrapper(block))
    state = moo.register(shard(model, world), "mgda")
    _backward(model, rank, seed)
    _assert_update(model, reference)
    assert len(state.report().buckets) == 3

    class Reentrant(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.block, x, use_reentrant=True)

    model = shard(Transformer(seed), world)
    model.blocks[1] = Reentrant(model.blocks[1])
    moo.register(model, "mgda")
    expect(error_of(lambda: _backward(model, rank, seed)), RuntimeError, "use_reentrant=False")


def test_activation_checkpoints(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _activation_checkpoints, random_seed)


def _without_synchronisation(rank: int, world: int, seed: int) -> None:
    """What set_requires_gradient_sync(False) adds up is one row."""
    reference = Reference(Transformer(seed), "mgda")
    model: Any = shard(Transformer(seed), world)
    state = moo.register(model, "mgda")
    for step in range(2):
        model.zero_grad()
        model.set_requires_gradient_sync(False)
        _backward(model, rank, seed, 2 * step)
        model.set_requires_gradient_sync(True)
        _backward(model, rank, seed, 2 * step + 1)
        assert (state.step, state.report().passes) == (step + 1, 1)
        rows = [[tokens_of(seed, r, 2 * step + p) for p in range(2)] for r in range(world)]
        reference.step([lambda m, row=row: loss_of(m, row[0]) + loss_of(m, row[1]) for row in rows], 0.0)  # type: ignore[misc]
        _assert_update(model, reference)


def test_without_synchronisation(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _without_synchronisation, random_seed)


def test_scales_of_operations() -> None:
    factor = dist._make_nccl_premul_sum(0.25)
    scales = {dist.ReduceOp.AVG: 1.0, dist.ReduceOp.SUM: 2.0}
    for op, scale in scales.items():
        assert private_torch.scale_of(op, 2) == scale
        assert private_torch.scale_of(dist.ReduceOp(op), 2) == scale
    assert private_torch.scale_of(factor, 2) == 0.5
    expect(error_of(lambda: private_torch.scale_of(dist.ReduceOp.MAX, 2)), ValueError, "AVG, SUM and PREMUL_SUM")


# --- groups that a pass does not reach ---


def _unreached_by_all(rank: int, world: int, seed: int) -> None:
    """Every pass has its language's adapter; the closing one must reach the others' too."""
    model: Any = shard(Transformer(seed, ("de", "sw")), world)
    state = moo.register(model, "mgda", layout="passes")

    def step() -> None:
        state.objective = "de"
        with state.accumulate():
            _backward(model, rank, seed, 0, "de")
        state.objective = "sw"
        _backward(model, rank, seed, 1, "sw")

    expect(error_of(step), RuntimeError, "did not reach", "adapters.de", r"set_reduce_scatter_unused_params\(True\)")
    model.zero_grad()
    _backward(model, rank, seed, 2, "sw")  # goes on
    assert model.adapters["de"].weight.grad is None
    if not hasattr(model, "set_reduce_scatter_unused_params"):
        return
    model.set_reduce_scatter_unused_params(True)
    model.zero_grad()
    step()
    # Each adapter has one objective: its own language's mean gradient.
    for number, name in enumerate(("de", "sw")):
        reference = Reference(Transformer(seed, ("de", "sw")), "mean")
        rows = [tokens_of(seed, r, number) for r in range(world)]
        reference.step([lambda m, row=row, name=name: loss_of(m, row, name) for row in rows], 0.0)  # type: ignore[misc]
        parameter = f"adapters.{name}.weight"
        expected = reference.update[parameter]
        got = full(dict(model.named_parameters())[parameter].grad)
        assert (got - expected).norm() <= 1e-9 * expected.norm()
    assert len(state.report().buckets) == 5


def test_groups_that_a_pass_does_not_reach(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _unreached_by_all, random_seed)


class _Branches(nn.Module):
    """Modules of one size, of which all run and only some have a part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))

    def forward(self, x: torch.Tensor, used: tuple[int, ...]) -> torch.Tensor:
        outputs = [part(x) for part in self.parts]
        result: torch.Tensor = torch.stack([outputs[i].square().sum() for i in used]).sum()
        return result


def _branches(world: int) -> tuple[Any, _Branches]:
    """Sharded, and not."""
    torch.manual_seed(0)
    model = _Branches()
    twin = copy.deepcopy(model)
    for part in model.parts:
        fully_shard(part, mesh=mesh_of(world), reshard_after_forward=False)
    fully_shard(model, mesh=mesh_of(world), reshard_after_forward=False)
    return model, twin


def _unreached_by_some(rank: int, world: int) -> None:
    x = torch.ones(2, 4, dtype=torch.float64)
    for used in [((0, 1, 2), (0, 1)), ((0, 1), (0, 2)), ((0, 1, 2), (1, 2))]:
        model, twin = _branches(world)
        state = moo.register(model, "mgda")
        words = error_of(lambda: model(x, used[rank]).backward())  # noqa: B023
        expect(words, ValueError, "the same calls in the same order", r"set_reduce_scatter_unused_params\(True\)")
        if not hasattr(model, "set_reduce_scatter_unused_params"):
            continue
        model.reset_iter_state()
        model.zero_grad()
        model.set_reduce_scatter_unused_params(True)
        model(x, used[rank]).backward()
        assert state.step == 2
        for number, part in enumerate(model.parts):
            active = [r for r in range(world) if number in used[r]]
            other = twin.parts[number]
            expected = torch.autograd.grad(other(x).square().sum(), list(other.parameters()))
            for got, whole in zip(part.parameters(), expected, strict=True):
                assert (full(got.grad) - whole * bool(active)).norm() <= 1e-9 * whole.norm()


def test_groups_that_only_some_ranks_reach(run_ranks: Runner) -> None:
    run_ranks(2, _unreached_by_some, group_timeout=timedelta(seconds=20))


def _parts_of_a_group(rank: int, world: int) -> None:
    """FSDP2 sends the gradients that there are, and does not say whose."""
    x = torch.ones(2, 4, dtype=torch.float64)
    some, others = r"set_reduce_scatter_unused_params\(True\)", "rank 1 refused the arguments of its call"
    for used in [((0, 1, 2), (0, 1)), ((0, 1), (0, 2)), ((0, 1), (0, 1))]:
        torch.manual_seed(0)
        model: Any = _Branches()
        twin = copy.deepcopy(model)
        moo.register(fully_shard(model, mesh=mesh_of(world)), "mgda")
        words = error_of(lambda: model(x, used[rank]).backward())  # noqa: B023
        expect(words, ValueError, some if len(used[rank]) < 3 else others)
        if not hasattr(model, "set_reduce_scatter_unused_params"):
            continue
        model.reset_iter_state()
        model.zero_grad()
        model.set_reduce_scatter_unused_params(True)
        model(x, used[rank]).backward()
        rows = [torch.autograd.grad(twin(x, u), list(twin.parameters()), allow_unused=True) for u in used]
        flat = []
        for row in rows:
            pairs = zip(twin.parameters(), row, strict=True)
            flat.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs]).detach())
        expected = combined(torch.stack(flat).numpy(), "mgda")
        got = torch.cat([full(parameter.grad).flatten() for parameter in model.parameters()])
        assert (got - torch.from_numpy(expected)).norm() <= 1e-7 * got.norm()


def test_a_part_of_a_group_is_refused(run_ranks: Runner) -> None:
    run_ranks(2, _parts_of_a_group, group_timeout=timedelta(seconds=20))


def _broken_passes(rank: int, world: int, seed: int) -> None:
    model: Any = shard(Transformer(seed), world)
    state = moo.register(model, "mgda", layout="passes")
    state.objective = rank
    expect(error_of(lambda: _backward(model, rank, seed)), ValueError, "layout='passes'", "rank 1 '1'")
    if not hasattr(model, "reset_iter_state"):
        return
    model.reset_iter_state()
    model.zero_grad()
    state.objective = "both"
    reference = Reference(Transformer(seed), "mean")
    _reference_step(reference, world, seed, 0)
    _backward(model, rank, seed)
    _assert_update(model, reference)


def test_a_pass_after_a_broken_one(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _broken_passes, random_seed)


# --- what is refused ---


def _refusals(rank: int, world: int, seed: int) -> None:
    mesh = mesh_of(world)

    def refused(module: Any, kind: type[BaseException], *words: str, **options: Any) -> None:
        expect(error_of(lambda: moo.register(module, **options)), kind, *words)

    hybrid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    model: Any = fully_shard(nn.Linear(4, 4), mesh=hybrid)
    refused(model, ValueError, "HSDP", "2 dimensions", "replicate, shard", r"fully_shard\(model, mesh=")
    model = fully_shard(nn.Linear(4, 4), mesh=hybrid["shard"])
    refused(model, ValueError, "one rank", "without fully_shard")

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fully_shard(model[0], mesh=mesh)
    refused(model, TypeError, "'0' is sharded", "whole")
    fully_shard(model, mesh=mesh)
    refused(model, ValueError, "process_group", process_group=dist.new_group())
    moo.register(model)
    refused(model, RuntimeError, "ConflictAwareReduceScatter", "once")

    refused(fully_shard(nn.Linear(4, 4, device="meta"), mesh=mesh), ValueError, "'weight'", "meta", "to_empty")
    whole = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicate", "shard"))
    sharded: Any = fully_shard(nn.Linear(4, 4), mesh=whole["shard"])
    with pytest.warns(UserWarning, match=r"has others too \(replicate\).*mesh=mesh"):
        moo.register(sharded)

    policy = MixedPrecisionPolicy(reduce_dtype=torch.float8_e5m2)
    refused(fully_shard(nn.Linear(4, 4), mesh=mesh, mp_policy=policy), TypeError, "reduce_dtype", "float8_e5m2")
    refused(fully_shard(nn.Tanh(), mesh=mesh), ValueError, "no parameter")
    refused(nn.Linear(2, 2), TypeError, "DistributedDataParallel", r"fully_shard\(\)", "plain one")
    refused(print, TypeError, "DistributedDataParallel", r"fully_shard\(\)", "plain one")


def test_refusals(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _refusals, random_seed)


def test_other_versions_of_torch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, words in (("2.10.1", "2.11 to 2.15"), ("2.16.0+cpu", r"2\.16\.0")):
        monkeypatch.setattr(torch, "__version__", version)
        expect(error_of(private_torch.check_sharded_version), RuntimeError, words)
