"""MooCallback with models that Lightning's strategies shard, against plain loops on the same batches."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning", reason="needs requirements/frameworks.txt")

import bucket_moo_ext as moo
import torch
from bucket_moo_ext.contrib.lightning import MooCallback
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from tests.frameworks.test_lightning import (
    Module,
    Recorder,
    Sharded,
    _assert_near,
    _loss,
    _net,
    _ranks,
    _replay,
    _trainer,
)

Runner = Callable[..., list[Any]]


def _under_fsdp2(rank: int, world: int, passes: int) -> None:
    _ranks(rank, world)
    recorder, module = Recorder(), Sharded(passes=passes)
    callback = MooCallback("cagrad")
    strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mesh.*")
        _trainer(world, callback, recorder, strategy=strategy, accumulate_grad_batches=passes).fit(module)
    net = _net()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world,))
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    state = moo.register(net, "cagrad")
    expected = list(_replay(recorder.batches, net, net, state, passes, lambda batch: 1.0))
    for got, gradient in zip(recorder.gradients, expected, strict=True):
        _assert_near(got, gradient)
    assert len(callback.report().buckets) == 2
    assert len(expected) == 4


@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_of_a_sharded_model_are_those_of_a_plain_loop(run_ranks: Runner, passes: int) -> None:
    run_ranks(2, _under_fsdp2, passes)


class OnTheCpu(FSDPStrategy):  # type: ignore[misc]
    """Lightning's is for GPUs alone: it gives FSDP a device by its index."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), sharding_strategy=self.sharding_strategy, **self.kwargs
        )


def _flat_gradients(module: nn.Module) -> dict[str, np.ndarray]:
    """Of the parts of parameters that are here."""
    return {
        name.replace("_fsdp_wrapped_module.", "").removeprefix("net."): value.grad.numpy().copy()
        for name, value in module.named_parameters()
        if value.grad is not None
    }


class FlatRecorder(Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.gradients: list[dict[str, np.ndarray]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(_flat_gradients(trainer.model))


def _under_fsdp1(rank: int, world: int) -> None:
    _ranks(rank, world)
    recorder, callback = FlatRecorder(), MooCallback("mgda")
    _trainer(world, callback, recorder, strategy=OnTheCpu(), accumulate_grad_batches=2).fit(Module(passes=2))
    wrapped = FullyShardedDataParallel(_net(), use_orig_params=True, device_id=torch.device("cpu"))
    state = moo.register(wrapped, "mgda")
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.5)
    batches = iter(recorder.batches)
    for got in recorder.gradients:
        for number in range(2):
            batch = next(batches)
            state.objective = batch["language"][0]
            with contextlib.nullcontext() if number else state.accumulate():
                _loss(wrapped, batch).backward()
        _assert_near(got, _flat_gradients(wrapped))
        optimizer.step()
        optimizer.zero_grad()
    assert len(recorder.gradients) == 4
    assert callback.report().passes == 2


def test_gradients_under_fsdp1_are_those_of_a_plain_loop(run_ranks: Runner) -> None:
    run_ranks(2, _under_fsdp1)
