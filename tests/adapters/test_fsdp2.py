"""FSDP2: training of a sharded transformer against the same training in one process."""

import contextlib
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from tests.support.sharded import (
    Reference,
    Transformer,
    assert_same_model,
    full,
    groups_of,
    loss_of,
    mesh_of,
    shard,
    tokens_of,
)

Runner = Callable[..., list[Any]]
METHODS = ("mgda", "cagrad", "upgrad")
STEPS, RATE = 3, 0.5

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore")]


def _losses(seed: int, count: int, step: int) -> list[Callable[[torch.nn.Module], torch.Tensor]]:
    return [lambda model, row=row: loss_of(model, tokens_of(seed, row, step)) for row in range(count)]  # type: ignore[misc]


def _check_names(report: moo.Report, model: Transformer) -> None:
    assert sorted(sorted(bucket.parameters) for bucket in report.buckets) == sorted(map(sorted, groups_of(model)))


def _training(rank: int, world: int, seed: int) -> None:
    for method in METHODS:
        reference = Reference(Transformer(seed), method)
        model = shard(Transformer(seed), world)
        state = moo.register(model, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(STEPS):
            losses = _losses(seed, world, step)
            optimizer.zero_grad()
            losses[rank](model).backward()
            optimizer.step()
            reference.step(losses, RATE)
            report = state.report()
            assert (report.step, report.passes, state.step) == (step + 1, 1, step + 1)
            _check_names(report, reference.model)
        assert_same_model(model, reference.model, 1e-7 if method == "mgda" else 1e-5)


def test_training_is_that_of_one_process(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(3, _training, random_seed)


def _passes(rank: int, world: int, seed: int, layout: str) -> None:
    reference = Reference(Transformer(seed), "mgda")
    model = shard(Transformer(seed), world, reshard_after_forward=layout == "ranks")
    state = moo.register(model, "mgda", layout=layout)
    for step in range(2):
        losses = _losses(seed, 3 * world, step)  # row p * world + rank is that of a rank in pass p
        model.zero_grad()
        for p in range(3):
            # "ranks": rank r is objective (r + p) % 3 of its pass; "passes": every pass one objective.
            state.objective = (rank + p) % 3 if layout == "ranks" else p
            if p < 2:
                with state.accumulate():
                    losses[p * world + rank](model).backward()
                assert all(not full(parameter.grad).any() for parameter in model.parameters())
            else:
                losses[p * world + rank](model).backward()
        objective = [(r + p) % 3 if layout == "ranks" else p for p in range(3) for r in range(world)]
        means = []
        for k in sorted(set(objective)):
            mine = [loss for loss, of in zip(losses, objective, strict=True) if of == k]
            means.append(lambda m, mine=mine: sum(loss(m) for loss in mine) / len(mine))
        reference.step(means, 0.0)
        for name, parameter in model.named_parameters():
            expected = reference.update[name]
            assert (full(parameter.grad) - expected).norm() <= 1e-7 * expected.norm() + 1e-12, name
        report = state.report()
        assert (report.passes, report.layout, report.step) == (3, layout, step + 1)
        _check_names(report, reference.model)


@pytest.mark.host
@pytest.mark.parametrize("layout", ["ranks", "passes"])
def test_steps_of_several_passes(run_ranks: Runner, random_seed: int, layout: str) -> None:
    run_ranks(2, _passes, random_seed, layout)


def _sketched_passes(rank: int, world: int, seed: int) -> None:
    """Whatever the weights are, the update is the sum of the objectives' means by them."""
    reference = Reference(Transformer(seed), "mean")
    cases: list[tuple[str, moo.Sketch, dict[int, int] | None]] = [
        ("ranks", moo.Sketch(64), None),
        ("passes", moo.Sketch(64, lag=1), None),
        ("ranks", moo.Sketch(64, lag=1), {0: 2, 1: 2}),
    ]
    for layout, sketch, totals in cases:
        model = shard(Transformer(seed), world)
        state = moo.register(model, "mgda", layout=layout, gramian=sketch)
        for step in range(2):
            losses = _losses(seed, 2 * world, step)
            model.zero_grad()
            for p in range(2):
                state.objective = (rank + p) % 2 if layout == "ranks" else p
                with state.accumulate(totals) if p == 0 else contextlib.nullcontext():
                    losses[p * world + rank](model).backward()
            rows = [reference.gradients(loss) for loss in losses]
            objective = [(r + p) % 2 if layout == "ranks" else p for p in range(2) for r in range(world)]
            report = state.report()
            assert any(bucket.width for bucket in report.buckets)
            weights = {
                name: dict(zip(bucket.objectives, bucket.weights, strict=True))
                for bucket in report.buckets
                for name in bucket.parameters
            }
            for name, parameter in model.named_parameters():
                expected = sum(
                    float(weights[name][str(k)]) * row[name] / objective.count(k)
                    for k, row in zip(objective, rows, strict=True)
                )
                error = np.linalg.norm(full(parameter.grad).numpy() - expected)
                assert error <= 1e-6 * np.linalg.norm(expected), (layout, sketch, step, name)


@pytest.mark.host
def test_sketches_of_several_passes(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _sketched_passes, random_seed)


def _gradients(model: Transformer, rank: int, seed: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model, tokens_of(seed, rank, 0)).backward()
    return {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def _options(rank: int, world: int, seed: int) -> None:
    """What plain FSDP2 gives, where the method is the mean: for its dtypes, operations and ways to shard."""
    none = lambda model: None  # noqa: E731
    cases: list[tuple[str, dict[str, Any], Callable[[Any], object], float]] = [
        ("avg", {}, none, 1e-12),
        ("sum", {}, lambda model: model.set_force_sum_reduction_for_comms(True), 1e-12),
        ("divided", {}, lambda model: [m.set_gradient_divide_factor(1.0) for m in _parts(model)], 1e-12),
        ("float32", {"reduce_dtype": torch.float32}, none, 1e-6),
        ("bfloat16", {"reduce_dtype": torch.bfloat16}, none, 2e-2),
        ("float16", {"reduce_dtype": torch.float16}, none, 2e-3),
        ("bfloat16 parameters", {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}, none, 1e-6),
        ("frozen", {}, lambda model: model.blocks[0].up.requires_grad_(False), 1e-12),
        ("sketch", {"gramian": moo.Sketch(64)}, none, 1e-12),
        ("late sketch", {"gramian": moo.Sketch(64, lag=1)}, none, 1e-12),
        ("resharded to 2", {"reshard_after_forward": 2}, none, 1e-12),
    ]
    for name, options, prepare, tolerance in cases:
        models = []
        for _ in range(2):
            model = Transformer(seed)
            if name == "frozen":
                prepare(model)
            policy = {key: options[key] for key in options if key.endswith("dtype")}
            kept = {key: options[key] for key in options if key.startswith("reshard")}
            models.append(shard(model, world, mp_policy=MixedPrecisionPolicy(**policy), **kept))
            if name != "frozen":
                prepare(model)
        plain, ours = models
        state = moo.register(ours, "mean", gramian=options.get("gramian", "exact"))
        got = _gradients(ours, rank, seed)
        # A divide factor of 1 asks for a pre-multiplied sum, which Gloo has not: W times the mean.
        if name == "divided":
            plain = shard(Transformer(seed), world)
        expected = _gradients(plain, rank, seed)
        assert got.keys() == expected.keys()
        factor = world if name == "divided" else 1
        for parameter, gradient in expected.items():
            error = (got[parameter] - factor * gradient).norm()
            assert error <= tolerance * factor * gradient.norm(), (name, parameter, float(error))
        frozen = [p for bucket in state.report().buckets for p in bucket.parameters]
        assert sorted(frozen) == sorted(expected)
        assert any(bucket.width for bucket in state.report().buckets) == ("sketch" in name)


def _parts(model: Transformer) -> list[Any]:
    return [model, *model.blocks]


def test_the_mean_is_plain_fsdp2(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(4, _options, random_seed)


def _replaced(rank: int, world: int, seed: int) -> None:
    """Sharded on the meta device, and then given parameters: new ones, as transformers loads models."""
    torch.manual_seed(seed)
    expected = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()
    mesh = mesh_of(world)
    fully_shard(model, mesh=mesh)
    whole = expected.state_dict()
    for name, values in whole.items():
        part, _, own = name.rpartition(".")
        shards = distribute_tensor(values, mesh, [Shard(0)])
        model.get_submodule(part).register_parameter(own, torch.nn.Parameter(shards))
    state = moo.register(model, "mean")
    inputs = torch.randn(world, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    model(inputs[rank]).square().mean().backward()
    expected(inputs.flatten(0, 1)).square().mean().backward()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(full(model.get_parameter(name).grad), parameter.grad)
    assert sorted(state.report().buckets[0].parameters) == sorted(whole)


def test_parameters_that_were_replaced_after_sharding(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _replaced, random_seed)


def _bfloat16(rank: int, world: int, seed: int) -> None:
    reference = Reference(Transformer(seed), "mgda")
    for dtype, tolerance in ((torch.bfloat16, 3e-2), (torch.float16, 4e-3), (torch.float32, 1e-5)):
        model = shard(Transformer(seed), world, mp_policy=MixedPrecisionPolicy(reduce_dtype=dtype))
        state = moo.register(model, "mgda")
        got = _gradients(model, rank, seed)
        reference.step(_losses(seed, world, 0), 0.0)
        for group in reference.groups:
            expected = torch.cat([reference.update[name].flatten() for name in group])
            result = torch.cat([got[name].flatten() for name in group])
            assert (result - expected).norm() <= tolerance * expected.norm(), (dtype, group)
        assert {bucket.dtype for bucket in state.report().buckets} == {str(dtype).removeprefix("torch.")}


def test_reduction_in_fewer_bits(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _bfloat16, random_seed)


def _one_group_of_two_modules(rank: int, world: int, seed: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    model, reference = Transformer(seed), Reference(Transformer(seed), "mgda")
    fully_shard([*model.blocks], mesh=mesh)
    fully_shard(model, mesh=mesh)
    compiled: Any = torch.compile(model, backend="eager")
    state = moo.register(compiled, "mgda")
    blocks = [name for group in reference.groups[:2] for name in group]
    reference.groups = [blocks, reference.groups[2]]
    got = _gradients(compiled, rank, seed)
    reference.step(_losses(seed, world, 0), 0.0)
    for name, expected in reference.update.items():
        assert (got[f"_orig_mod.{name}"] - expected).norm() <= 1e-7 * expected.norm(), name
    assert sorted(len(bucket.parameters) for bucket in state.report().buckets) == [3, len(blocks)]


@pytest.mark.host
def test_one_group_of_two_modules_in_a_compiled_model(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _one_group_of_two_modules, random_seed)
