"""FSDP1: training of a sharded transformer against the same training in one process, and against plain FSDP1."""

from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffload, MixedPrecision

from tests.support.flat import FULL_SHARD, NO_SHARD, SHARD_GRAD_OP, assert_same_parameters, whole_parameters, wrap
from tests.support.sharded import Reference, Transformer, groups_of, loss_of, tokens_of

Runner = Callable[..., list[Any]]
Loss = Callable[[nn.Module], torch.Tensor]
RATE = 0.5

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore")]


def _losses(seed: int, count: int, step: int) -> list[Loss]:
    return [lambda model, row=row: loss_of(model, tokens_of(seed, row, step)) for row in range(count)]  # type: ignore[misc]


def _mean(losses: Sequence[Loss]) -> Loss:
    return lambda model: torch.stack([loss(model) for loss in losses]).mean()


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _training(rank: int, world: int, seed: int) -> None:
    cases = [
        ("mgda", FULL_SHARD, True, 1e-7),
        ("mgda", NO_SHARD, False, 1e-7),
        ("cagrad", SHARD_GRAD_OP, False, 1e-5),
        ("upgrad", FULL_SHARD, False, 1e-5),
    ]
    for method, strategy, use_orig_params, tolerance in cases:
        reference = Reference(Transformer(seed), method)
        model = wrap(Transformer(seed), strategy, use_orig_params=use_orig_params)
        state = moo.register(model, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(3):
            losses = _losses(seed, world, step)
            optimizer.zero_grad()
            losses[rank](model).backward()
            optimizer.step()
            reference.step(losses, RATE)
            report = state.report()
            assert (report.step, report.passes, state.step) == (step + 1, 1, step + 1)
            names = sorted(sorted(bucket.parameters) for bucket in report.buckets)
            assert names == sorted(map(sorted, groups_of(reference.model)))
        assert_same_parameters(model, _parameters(reference.model), tolerance)
        assert state.memory() > 0


def test_training_is_that_of_one_process(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(3, _training, random_seed)


def _passes(rank: int, world: int, seed: int, layout: str) -> None:
    for strategy in (FULL_SHARD, NO_SHARD):
        reference = Reference(Transformer(seed), "mgda")
        model = wrap(Transformer(seed), strategy)
        state = moo.register(model, "mgda", layout=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(2):
            losses = _losses(seed, 3 * world, step)  # row p * world + rank is that of a rank in pass p
            optimizer.zero_grad()
            for p in range(3):
                # "ranks": rank r is objective (r + p) % 3 of its pass; "passes": every pass one objective.
                state.objective = (rank + p) % 3 if layout == "ranks" else p
                if p < 2:
                    with state.accumulate():
                        losses[p * world + rank](model).backward()
                    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
                else:
                    losses[p * world + rank](model).backward()
            optimizer.step()
            objective = [(r + p) % 3 if layout == "ranks" else p for p in range(3) for r in range(world)]
            of_objective = [
                [loss for loss, of in zip(losses, objective, strict=True) if of == k] for k in sorted(set(objective))
            ]
            reference.step([_mean(rows) for rows in of_objective], RATE)
            report = state.report()
            assert (report.passes, report.layout, report.step) == (3, layout, step + 1)
        assert_same_parameters(model, _parameters(reference.model), 1e-7)


@pytest.mark.host
@pytest.mark.parametrize("layout", ["ranks", "passes"])
def test_steps_of_several_passes(run_ranks: Runner, random_seed: int, layout: str) -> None:
    run_ranks(2, _passes, random_seed, layout)


def _let_offload_without_gpu() -> None:
    """FSDP1's CPU offloading asks for what a machine without a GPU has not."""
    torch.Tensor.pin_memory = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    torch.cpu.Stream.synchronize = lambda stream: None  # type: ignore[attr-defined]


def _options(rank: int, world: int, seed: int) -> None:
    """What plain FSDP1 gives, where the method is the mean."""
    _let_offload_without_gpu()
    bfloat16, float16, float32 = torch.bfloat16, torch.float16, torch.float32
    cases: list[tuple[str, dict[str, Any], str, float]] = [
        ("whole", {}, "float64", 1e-12),
        ("sharded gradients", {"strategy": SHARD_GRAD_OP, "use_orig_params": False}, "float64", 1e-12),
        ("replicated", {"strategy": NO_SHARD}, "float64", 1e-12),
        ("float32", {"mixed_precision": MixedPrecision(reduce_dtype=float32)}, "float32", 1e-6),
        ("bfloat16", {"mixed_precision": MixedPrecision(reduce_dtype=bfloat16)}, "bfloat16", 3e-2),
        ("float16", {"mixed_precision": MixedPrecision(reduce_dtype=float16), "strategy": NO_SHARD}, "float16", 3e-3),
        ("bfloat16 parameters", {"mixed_precision": MixedPrecision(bfloat16, float32)}, "float32", 1e-6),
        ("frozen", {}, "float64", 1e-12),
        ("offloaded", {"cpu_offload": CPUOffload(offload_params=True)}, "float64", 1e-12),
        ("not synchronised", {}, "float64", 1e-12),
        ("sketch", {}, "float64", 1e-12),
    ]
    for name, options, dtype, tolerance in cases:
        models = []
        before = _parameters(Transformer(seed))
        for is_ours in (False, True):
            model: Any = Transformer(seed)
            if name == "frozen":
                model.blocks[0].up.requires_grad_(False)
                model.embedding.requires_grad_(False)
            model = wrap(model, **options)
            if is_ours:
                state = moo.register(model, "mean", gramian=moo.Sketch(64) if name == "sketch" else "exact")
            if name == "not synchronised":
                with model.no_sync():
                    loss_of(model, tokens_of(seed, rank, 1)).backward()
            loss_of(model, tokens_of(seed, rank, 0)).backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.data.sub_(parameter.grad)
            models.append(whole_parameters(model))
        plain, ours = models
        for parameter, expected in plain.items():
            change = expected - before[parameter]
            error = (ours[parameter] - expected).norm()
            assert error <= tolerance * change.norm(), (name, parameter, float(error), float(change.norm()))
        assert {bucket.dtype for bucket in state.report().buckets} == {dtype}, name
        assert any(bucket.width for bucket in state.report().buckets) == (name == "sketch")


def test_the_mean_is_plain_fsdp1(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(4, _options, random_seed)


def _frozen(rank: int, world: int, seed: int) -> None:
    """Frozen parameters, whose gradients FSDP1 computes beside trained ones, have no part in the weights."""

    def freeze(model: Transformer) -> Transformer:
        model.blocks[0].up.requires_grad_(False)
        model.embedding.requires_grad_(False)
        return model

    for strategy in (FULL_SHARD, NO_SHARD):
        reference = Reference(freeze(Transformer(seed)), "mgda")
        model = wrap(freeze(Transformer(seed)), strategy)
        state = moo.register(model, "mgda")
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        losses = _losses(seed, world, 0)
        losses[rank](model).backward()
        optimizer.step()
        reference.step(losses, RATE)
        assert_same_parameters(model, _parameters(reference.model), 1e-7)
        names = [name for bucket in state.report().buckets for name in bucket.parameters]
        assert sorted(names) == sorted(name for group in groups_of(reference.model) for name in group)


def test_frozen_parameters(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _frozen, random_seed)


def _fewer_bits(rank: int, world: int, seed: int) -> None:
    before = _parameters(Transformer(seed))
    reference = Reference(Transformer(seed), "mgda")
    losses = _losses(seed, world, 0)
    reference.step(losses, RATE)
    for dtype, tolerance in ((torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
        model = wrap(Transformer(seed), mixed_precision=MixedPrecision(reduce_dtype=dtype))
        state = moo.register(model, "mgda")
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        losses[rank](model).backward()
        optimizer.step()
        after = whole_parameters(model)
        for group in reference.groups:
            expected = torch.cat([RATE * reference.update[name].flatten() for name in group])
            change = torch.cat([(before[name] - after[name]).flatten() for name in group])
            assert (change - expected).norm() <= tolerance * expected.norm(), (dtype, group)
        assert {bucket.dtype for bucket in state.report().buckets} == {str(dtype).removeprefix("torch.")}


def test_reduction_in_fewer_bits(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _fewer_bits, random_seed)
