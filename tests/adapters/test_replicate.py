"""replicate(), which runs a DDP module behind the module that it is called on."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.nn.parallel import DistributedDataParallel

from tests.support.errors import error_of, expect
from tests.support.sharded import Reference, Transformer, loss_of, tokens_of

Runner = Callable[..., list[Any]]
RATE = 0.5

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]


def _backward(model: nn.Module, rank: int, seed: int, step: int) -> None:
    loss_of(model, tokens_of(seed, rank, step)).backward()


def _training(rank: int, world: int, seed: int) -> None:
    for method in ("mgda", "cagrad", "upgrad"):
        reference = Reference(Transformer(seed), method)
        names = [name for name, _ in reference.model.named_parameters()]
        reference.groups = [names]  # all in one bucket
        model: Any = replicate(Transformer(seed))
        state = moo.register(model, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(3):
            optimizer.zero_grad()
            _backward(model, rank, seed, step)
            optimizer.step()
            reference.step([lambda m, r=r, s=step: loss_of(m, tokens_of(seed, r, s)) for r in range(world)], RATE)  # type: ignore[misc]
            report = state.report()
            assert report.step == step + 1
            assert [sorted(bucket.parameters) for bucket in report.buckets] == [sorted(names)]
        expected = dict(reference.model.named_parameters())
        for name, parameter in model.named_parameters():
            error = (parameter - expected[name]).norm()
            assert error <= (1e-7 if method == "mgda" else 1e-5) * expected[name].norm(), (method, name)


def test_training_is_that_of_one_process(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(3, _training, random_seed)


def _same_bits(rank: int, world: int, seed: int) -> None:
    """As under DDP; with the mean, to rounding, as plain replicate()."""
    gradients: dict[str, list[torch.Tensor]] = {}
    for wrapper in ("ddp", "replicate", "plain", "mean"):
        whole = Transformer(seed)
        model: Any = DistributedDataParallel(whole) if wrapper == "ddp" else replicate(whole)
        if wrapper == "replicate":  # it may have run
            with torch.no_grad():
                model(tokens_of(seed, rank, 0))
        state = moo.register(model, "mean" if wrapper == "mean" else "mgda") if wrapper != "plain" else None
        got = gradients.setdefault(wrapper, [])
        for step in range(2):
            whole.zero_grad()
            if wrapper == "ddp":
                with model.no_sync():
                    _backward(model, rank, seed, 3 * step)
            else:
                model.set_requires_gradient_sync(False)
                _backward(model, rank, seed, 3 * step)
                model.set_requires_gradient_sync(True)
            if state is not None and "mean" not in wrapper:
                with state.accumulate():
                    _backward(model, rank, seed, 3 * step + 1)
            _backward(model, rank, seed, 3 * step + 2)
            got.extend(p.grad.clone() for p in whole.parameters() if p.grad is not None)
    assert all(map(torch.equal, gradients["ddp"], gradients["replicate"]))
    for mean, plain in zip(gradients["mean"], gradients["plain"], strict=True):
        assert (mean - plain).norm() <= 1e-12 * plain.norm()


def test_same_bits_as_ddp(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _same_bits, random_seed)


def _refusals(rank: int, world: int, seed: int) -> None:
    def refused(module: Any, kind: type[BaseException], *words: str, **options: Any) -> None:
        expect(error_of(lambda: moo.register(module, **options)), kind, *words)

    model: Any = replicate(Transformer(seed))
    moo.register(model)
    refused(model, RuntimeError, "bucket_moo", "takes one, once")
    model = replicate(Transformer(seed))
    _backward(model, rank, seed, 0)
    refused(model, RuntimeError, "backward pass")
    model = replicate(Transformer(seed), skip_all_reduce_unused_params=True)
    refused(model, ValueError, "skip_all_reduce_unused_params")
    refused(replicate(Transformer(seed)), ValueError, "bucket_cap_mb", bucket_cap_mb=1)


def test_refusals(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _refusals, random_seed)
