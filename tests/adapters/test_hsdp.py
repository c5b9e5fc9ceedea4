"""HSDP: a model sharded over one dimension of a mesh, with replicas along the other, as if trained in one process."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from tests.support.errors import Raised, error_of, expect
from tests.support.sharded import (
    Reference,
    Transformer,
    assert_same_model,
    full,
    groups_of,
    loss_of,
    shard,
    tokens_of,
)

Runner = Callable[..., list[Any]]
Loss = Callable[[nn.Module], torch.Tensor]
DIMENSIONS = ("replicate", "shard")
OBJECTIVES: list[str | tuple[str, ...]] = ["replicate", "shard", DIMENSIONS]
RATE = 0.5

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore")]


def _mesh(replicas: int = 2, shards: int = 2) -> DeviceMesh:
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=DIMENSIONS)


def _objective(rank: int, along: str | tuple[str, ...]) -> int:
    return {"replicate": rank // 2, "shard": rank % 2}[along] if isinstance(along, str) else rank


def _losses(seed: int, count: int, step: int) -> list[Loss]:
    return [lambda model, row=row: loss_of(model, tokens_of(seed, row, step)) for row in range(count)]  # type: ignore[misc]


def _means(losses: list[Loss], objective: list[int], weight: list[float]) -> list[Loss]:
    """By objective, the weighted mean of its losses."""
    means: list[Loss] = []
    for k in sorted(set(objective)):
        mine = [(loss, w) for loss, of, w in zip(losses, objective, weight, strict=True) if of == k]
        total = sum(w for _, w in mine)
        means.append(lambda m, mine=mine, total=total: sum(w / total * loss(m) for loss, w in mine))  # type: ignore[misc]
    return means


def _bits(model: nn.Module, state: moo.BucketMOO) -> Any:
    """What all ranks must have alike."""
    weights = [(sorted(b.parameters), b.weights.tolist(), b.gramian.tolist()) for b in state.report().buckets]
    return weights, [full(p).tolist() for p in model.parameters()], state.state_dict()


def _training(rank: int, world: int, seed: int, along: str | tuple[str, ...]) -> Any:
    mesh = _mesh()
    weight = [1.0, 3.0, 0.5, 2.0]
    for method in ("mgda", "cagrad", "upgrad"):
        reference = Reference(Transformer(seed), method)
        model = shard(Transformer(seed), mesh["shard"])
        state = moo.register(model, method, mesh=mesh, objectives=along, weight=weight[rank])
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(3):
            losses = _losses(seed, world, step)
            state.objective = _objective(rank, along)
            optimizer.zero_grad()
            losses[rank](model).backward()
            optimizer.step()
            reference.step(_means(losses, [_objective(r, along) for r in range(world)], weight), RATE)
            report = state.report()
            assert (report.step, report.passes, state.step) == (step + 1, 1, step + 1)
            names = sorted(sorted(bucket.parameters) for bucket in report.buckets)
            assert names == sorted(map(sorted, groups_of(reference.model)))
        assert_same_model(model, reference.model, 1e-7 if method == "mgda" else 1e-5)
    return _bits(model, state)


@pytest.mark.parametrize("along", OBJECTIVES, ids=str)
def test_training_is_that_of_one_process(run_ranks: Runner, random_seed: int, along: str | tuple[str, ...]) -> None:
    results = run_ranks(4, _training, random_seed, along)
    assert all(result == results[0] for result in results)


def _passes(rank: int, world: int, seed: int, along: str | tuple[str, ...], layout: str) -> None:
    mesh = _mesh()
    reference = Reference(Transformer(seed), "mgda")
    model = shard(Transformer(seed), mesh["shard"])
    state = moo.register(model, "mgda", mesh=mesh, objectives=along, layout=layout)
    for step in range(2):
        losses = _losses(seed, 3 * world, step)  # row p * world + rank is that of a rank in pass p
        model.zero_grad()
        of = [(_objective(r, along) + p) % 3 if layout == "ranks" else p for p in range(3) for r in range(world)]
        for p in range(3):
            state.objective = of[p * world + rank]
            if p < 2:
                with state.accumulate():
                    losses[p * world + rank](model).backward()
                assert all(not full(parameter.grad).any() for parameter in model.parameters())
            else:
                losses[p * world + rank](model).backward()
        reference.step(_means(losses, of, [1.0] * len(of)), 0.0)
        for name, parameter in model.named_parameters():
            expected = reference.update[name]
            assert (full(parameter.grad) - expected).norm() <= 1e-7 * expected.norm() + 1e-12, name
        report = state.report()
        assert (report.passes, report.layout, report.step) == (3, layout, step + 1)
        assert sum(report.buckets[0].rows) == 3 * world


@pytest.mark.parametrize(
    ("along", "layout"), [("replicate", "ranks"), ("replicate", "passes"), (DIMENSIONS, "ranks")], ids=str
)
def test_steps_of_several_passes(
    run_ranks: Runner, random_seed: int, along: str | tuple[str, ...], layout: str
) -> None:
    run_ranks(4, _passes, random_seed, along, layout)


def _gradients(model: Transformer, rank: int, seed: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model, tokens_of(seed, rank, 0)).backward()
    return {name: full(p.grad) for name, p in model.named_parameters()}


def _parts(model: Any) -> list[Any]:
    return [model, *model.blocks]


def _mean(rank: int, world: int, seed: int) -> None:
    """Plain HSDP is FSDP2's own over both dimensions."""
    mesh = _mesh()
    cases: list[tuple[str, dict[str, Any], Callable[[Any], object], float]] = [
        ("float64", {}, lambda model: None, 1e-12),
        ("float32", {"reduce_dtype": torch.float32}, lambda model: None, 1e-6),
        ("bfloat16", {"reduce_dtype": torch.bfloat16}, lambda model: None, 3e-2),
        ("float16", {"reduce_dtype": torch.float16}, lambda model: None, 3e-3),
        ("sum", {}, lambda model: model.set_force_sum_reduction_for_comms(True), 1e-12),
        ("divided", {}, lambda model: [m.set_gradient_divide_factor(2.5) for m in _parts(model)], 1e-12),
    ]
    for name, policy, prepare, tolerance in cases:
        plain = shard(Transformer(seed), mesh, mp_policy=MixedPrecisionPolicy(**policy))
        prepare(plain)
        expected = _gradients(plain, rank, seed)
        for along in OBJECTIVES:
            ours = shard(Transformer(seed), mesh["shard"], mp_policy=MixedPrecisionPolicy(**policy))
            prepare(ours)
            moo.register(ours, "mean", mesh=mesh, objectives=along)
            for parameter, gradient in _gradients(ours, rank, seed).items():
                error = (gradient - expected[parameter]).norm()
                assert error <= tolerance * expected[parameter].norm(), (name, along, parameter, float(error))


def test_the_mean_is_plain_hsdp(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(4, _mean, random_seed)


def _other_meshes(rank: int, world: int, seed: int) -> None:
    """Three replicas, whose number divides no shard; FSDP2 over all ranks with objectives along one dimension."""
    mesh = _mesh(3, 2)
    everything = init_device_mesh("cpu", (world,))
    for along, over in (("replicate", mesh["shard"]), (DIMENSIONS, mesh["shard"]), ("replicate", everything)):
        reference = Reference(Transformer(seed), "mgda")
        model = shard(Transformer(seed), over)
        state = moo.register(model, mesh=mesh, objectives=along)
        got = _gradients(model, rank, seed)
        reference.step(
            _means(_losses(seed, world, 0), [_objective(r, along) for r in range(world)], [1.0] * world), 0.0
        )
        for name, expected in reference.update.items():
            assert (got[name] - expected).norm() <= 1e-7 * expected.norm(), (along, name)
        assert state.report().mesh.endswith("replicate" if along == "replicate" else "replicate, shard")


def test_odd_numbers_of_replicas_and_two_levels_under_fsdp2(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(6, _other_meshes, random_seed)


# --- wrong use ---


def _wrong(rank: int, world: int, seed: int) -> list[Raised]:
    mesh = _mesh()
    errors = [error_of(lambda: moo.register(shard(Transformer(seed), mesh)))]
    apart = shard(Transformer(seed + (rank == 3)), mesh["shard"])  # one shard of one replica
    errors.append(error_of(lambda: moo.register(apart, mesh=mesh, objectives="replicate")))
    model = shard(Transformer(seed), mesh["shard"])
    other = init_device_mesh("cpu", (4, 1), mesh_dim_names=DIMENSIONS)
    errors.append(error_of(lambda: moo.register(model, mesh=other, objectives="replicate")))
    hooked = shard(Transformer(seed), mesh["shard"])
    hooked.set_all_reduce_hook(lambda tensor: None)  # type: ignore[operator]
    errors.append(error_of(lambda: moo.register(hooked, mesh=mesh, objectives="replicate")))
    state = moo.register(model, mesh=mesh, objectives="replicate")  # nothing was changed
    state.objective = rank
    errors.append(error_of(lambda: _gradients(model, rank, seed)))
    model.reset_iter_state()  # type: ignore[operator]
    state.objective = rank // 2
    _gradients(model, rank, seed)
    assert state.report().objectives == ("0", "1")
    return errors


def test_wrong_use_raises_on_all_ranks(run_ranks: Runner, random_seed: int) -> None:
    for native, apart, other, hooked, disagree in run_ranks(4, _wrong, random_seed):
        expect(native, ValueError, r"mesh of 2 dimensions \(replicate, shard\)", r"mesh=mesh\['shard'\]", "objectives=")
        expect(apart, ValueError, "parameters of rank 3 are not those of rank 1", "Replicas must start equal")
        expect(other, ValueError, "mesh must be the one of two dimensions", "sharded over ranks ., .$")
        expect(hooked, RuntimeError, "all-reduce hook")
        expect(disagree, ValueError, "must have the same objective", "rank 0 has '0', rank 1 '1'")
