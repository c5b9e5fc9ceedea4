"""Sketches inside DDP: sent ahead, kept, beside sparse and small buckets."""

import random
import time
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.checks import Outcome, outcome_of
from tests.support.sketches import MANY, Given, Training, digest, row_of, slim, solvers, verify, width_of

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]

Bucket = tuple[int, tuple[str, ...], Outcome | bytes]  # index, parameters, what became of it


def train(training: Training, rank: int, world: int, seed: int) -> list[list[Bucket]]:
    model = Given(training.sizes, training.dtype)
    ddp = DDP(model, bucket_cap_mb=0.016, find_unused_parameters=training.unused)
    method = solvers(world)[training.name].method
    if training.way == "native":
        state = moo.register(ddp, method, gramian=training.sketch)
    else:
        state = moo.BucketMOO(method, gramian=training.sketch, bucket_cap_mb=0.016)
        ddp.register_comm_hook(state, moo.bucket_moo_hook)
        state.name_parameters(model.named_parameters())
    if training.sleepy:
        pauses = random.Random(f"{seed} {rank}")
        for p in model.parameters():
            p.register_hook(lambda _: time.sleep(pauses.choice((0.0, 0.0, 0.002, 0.005))))
    by_name = dict(model.named_parameters())
    results: list[list[Bucket]] = []
    for step in range(1, training.steps + 1):
        ddp.zero_grad()
        with ddp.no_sync():
            for micro in range(training.accumulate - 1):
                ddp(training.coefficients(seed, step, rank, micro)).backward()
        ddp(training.coefficients(seed, step, rank, training.accumulate - 1)).backward()
        report = state.report()
        assert report.step == step
        results.append([])
        for bucket in report.buckets:
            gradients = [by_name[name].grad for name in bucket.parameters]
            whole = torch.cat([g.reshape(-1) for g in gradients if g is not None])
            results[-1].append((bucket.index, bucket.parameters, slim(outcome_of(whole, report, bucket), rank == 0)))
    return results


def rank_trains(rank: int, world: int, seed: int, trainings: list[Training]) -> list[list[list[Bucket]]]:
    return [train(training, rank, world, seed) for training in trainings]


def check_training(label: str, training: Training, ranks: list[list[list[Bucket]]], seed: int) -> set[int]:
    """Every bucket of every step; returns the numbers of steps between solving and use."""
    world = len(ranks)
    sketch = training.sketch
    kept: dict[tuple[str, ...], int] = {}
    ages = set()

    def rows(step: int, parameters: tuple[str, ...]) -> list[torch.Tensor]:
        places = [int(name.split(".")[1]) for name in parameters]
        local = [training.gradients(seed, step, rank) for rank in range(world)]
        return [torch.cat([gradients[place] for place in places]) for gradients in local]

    for step, buckets in enumerate(ranks[0], start=1):
        assert (len(buckets) > 1) == (step > 1 or training.unused), label  # DDP rebuilds them once
        assert [index for index, _, _ in buckets] == list(range(len(buckets))), label
        held = sorted(name for _, parameters, _ in buckets for name in parameters)
        assert held == sorted(f"layers.{i}" for i in range(len(training.sizes))), label
        for place, (index, parameters, got) in enumerate(buckets):
            what = f"{label}, step {step}, bucket {index} {parameters}"
            assert isinstance(got, Outcome)
            for other in ranks[1:]:
                assert other[step - 1][place] == (index, parameters, digest(got)), f"{what}: ranks differ"
            served = step
            if width_of(sketch, got.numel) and parameters in kept:
                due = (step - 1) // sketch.refresh_every != (kept[parameters] - 1) // sketch.refresh_every
                served = kept[parameters] if sketch.lag or not due else step
                if due:
                    kept[parameters] = step
            else:
                kept[parameters] = step
            assert (got.step, got.solved_step) == (step, served), f"{what}: {got.solved_step}, not {served}"
            if got.width:
                ages.add(step - served)
            verify(
                what, rows(step, parameters), got, sketch, solvers(world)[training.name],
                solved=rows(served, parameters), bucket=index,
            )  # fmt: skip
    return ages


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ddp(run_ranks: Runner, random_seed: int, world: int) -> None:
    kinds = [
        Training(moo.Sketch(64, seed=9)),
        Training(moo.Sketch(0.01), name="cagrad", dtype=torch.float64),
        Training(moo.Sketch(2048), name="pcgrad", dtype=torch.bfloat16),
        Training(moo.Sketch(64), name="mean", dtype=torch.float16),
    ]
    trainings = [Training(**{**vars(kind), "way": way}) for kind in kinds for way in ("native", "hook")]
    ranks = run_ranks(world, rank_trains, random_seed, trainings)
    for index, training in enumerate(trainings):
        check_training(f"{training} world={world}", training, [results[index] for results in ranks], random_seed)
    for index in range(0, len(trainings), 2):
        native, hook = ranks[0][index : index + 2]
        same = [[digest(got) for _, _, got in buckets] for buckets in native]
        assert same == [[digest(got) for _, _, got in buckets] for buckets in hook], trainings[index]


def test_ddp_that_keeps_weights_accumulates_or_has_unused_parameters(run_ranks: Runner, random_seed: int) -> None:
    trainings = [
        Training(moo.Sketch(64, refresh_every=3), steps=8),
        Training(moo.Sketch(64, lag=1), steps=5, way="hook"),
        Training(moo.Sketch(64, refresh_every=2, lag=1), steps=6, dtype=torch.bfloat16),
        Training(moo.Sketch(64), accumulate=3),
        Training(moo.Sketch(64), unused=True),
        Training(moo.Sketch(64), unused=True, way="hook", name="cagrad"),
    ]
    ranks = run_ranks(3, rank_trains, random_seed, trainings)
    for index, training in enumerate(trainings):
        ages = check_training(f"{training}", training, [results[index] for results in ranks], random_seed)
        if training.sketch.refresh_every > 1 or training.sketch.lag:
            assert max(ages) == training.sketch.refresh_every - 1 + training.sketch.lag
        if training.unused:
            for _, parameters, got in ranks[0][index][-1]:
                assert isinstance(got, Outcome)
                for rank in range(3):
                    alone = parameters == (f"layers.{rank}",)  # a bucket that this rank does not touch
                    assert not alone or got.weights[rank] == 0


@pytest.mark.slow
@pytest.mark.parametrize("sketch", [moo.Sketch(256), moo.Sketch(256, refresh_every=2, lag=1)], ids=["fresh", "kept"])
def test_sketches_sent_ahead_by_ranks_out_of_step(run_ranks: Runner, random_seed: int, sketch: moo.Sketch) -> None:
    """Which bucket's sketch goes out when depends on when gradients are ready, on every rank apart; bits do not."""
    sleepy, brisk = (Training(sketch, sizes=MANY, steps=4, sleepy=sleepy) for sleepy in (True, False))
    ranks = run_ranks(4, rank_trains, random_seed, [sleepy, brisk, sleepy])
    for index, training in enumerate((sleepy, brisk, sleepy)):
        results = [r[index] for r in ranks]
        if index == 0:
            check_training(f"{training}", training, results, random_seed)
            assert len(results[0][1]) > 15
        same = [[digest(got) for _, _, got in step] for step in results[0]]
        assert same == [[digest(got) for _, _, got in step] for step in ranks[0][0]]
        assert all(other == ranks[1][0] for other in results[1:])


class Mixed(nn.Module):
    """A sparse bucket among sketched ones."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(50, 8, generator=generator, dtype=torch.float64)
        self.first = Given([3001, 4003], torch.float64)
        self.table = nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
        self.last = Given([5003], torch.float64)

    def forward(self, tokens: torch.Tensor, coefficients: list[torch.Tensor | None]) -> torch.Tensor:
        return self.first(coefficients[:2]) + self.table(tokens).square().mean() + self.last(coefficients[2:])


def rank_sparse(rank: int, world: int, seed: int) -> list[list[Bucket]]:
    sketch = moo.Sketch(64, refresh_every=2)
    model = Mixed(seed)
    ddp = DDP(model, bucket_cap_mb=0.016)
    state = moo.register(ddp, "mgda", gramian=sketch)
    results: list[list[Bucket]] = []
    for step in range(1, 4):
        tables = []
        for r in range(world):
            tokens = torch.randint(50, (4 + 3 * r,), generator=torch.Generator().manual_seed(seed + 10 * r + step))
            tables.append(torch.autograd.grad(model.table(tokens).square().mean(), model.table.weight)[0].to_dense())
            if r == rank:
                own = tokens
        ddp.zero_grad()
        ddp(own, [row_of(seed, (step, i), rank, n, torch.float64) for i, n in enumerate((3001, 4003, 5003))]).backward()
        assert model.table.weight.grad is not None
        torch.testing.assert_close(model.table.weight.grad.to_dense(), torch.stack(tables).mean(0))
        report = state.report()
        assert report.sparse == step
        by_name = dict(model.named_parameters())
        results.append([])
        for bucket in report.buckets:
            whole = torch.cat([by_name[name].grad.reshape(-1) for name in bucket.parameters])  # type: ignore[union-attr]
            results[-1].append((bucket.index, bucket.parameters, outcome_of(whole, report, bucket)))
    return results


def test_sparse_buckets_are_averaged_beside_sketched_ones(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(2, rank_sparse, random_seed % 2**31)
    places = {"first.layers.0": (0, 3001), "first.layers.1": (1, 4003), "last.layers.0": (2, 5003)}
    for step in range(1, 4):
        for (index, parameters, got), (_, _, other) in zip(ranks[0][step - 1], ranks[1][step - 1], strict=True):
            assert digest(got) == digest(other)

            def rows(at: int, parameters: tuple[str, ...] = parameters) -> list[torch.Tensor]:
                parts = [places[name] for name in parameters]
                return [
                    torch.cat([row_of(random_seed % 2**31, (at, i), r, n, torch.float64) for i, n in parts])
                    for r in range(2)
                ]

            assert got.width == 64
            verify(
                f"step {step} {parameters}", rows(step), got, moo.Sketch(64, refresh_every=2),
                solved=rows(got.solved_step), bucket=index,
            )  # fmt: skip
