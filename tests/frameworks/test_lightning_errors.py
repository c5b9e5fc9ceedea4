"""What MooCallback refuses, and what it says."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs requirements/frameworks.txt")

import bucket_moo_ext as moo
import torch
from bucket_moo_ext.contrib import _lightning_checks
from bucket_moo_ext.contrib.lightning import MooCallback
from bucket_moo_ext.data import ObjectiveBatchSampler, ObjectiveSampler
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader

from tests.frameworks.test_lightning import LABELS, Examples, Module, Recorder, Sharded, _ddp, _ranks, _trainer
from tests.support.errors import error_of, expect

Runner = Callable[..., list[Any]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "best"}, ValueError, "method"),
        ({"objective": 3}, TypeError, "objective must be a key of a batch or a function of a batch; got 3"),
        ({"objective": ""}, TypeError, "objective must be a key"),
        ({"weight": 2.0}, TypeError, "weight must be None, a key of a batch or a function of a batch; got 2.0"),
        ({"log_every": -1}, ValueError, "log_every must be None or an int >= 0; got -1"),
        ({"log_every": True}, ValueError, "log_every"),
        ({"layout": "rows"}, ValueError, "layout"),
        ({"bucket_cap_mb": "many"}, TypeError, "bucket_cap_mb"),
        ({"shares": "equal"}, TypeError, "MooCallback has no option 'shares'; those of moo.register are gramian, "),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MooCallback(**arguments)


def test_before_training_there_is_no_state() -> None:
    with pytest.raises(RuntimeError, match="there is no state yet"):
        MooCallback().report()
    assert MooCallback().state_dict() == {}


def _fit(world: int, module: Any, loader: Any = None, callback: Any = None, **options: Any) -> Callable[[], None]:
    callbacks = options.pop("callbacks", [])
    return lambda: _trainer(world, callback or MooCallback(), *callbacks, **options).fit(module, loader)


def _loader(kind: Any = ObjectiveBatchSampler, **options: Any) -> Any:
    sampler = kind(LABELS, 4, **options)
    return DataLoader(Examples(), **({"batch_sampler" if kind is ObjectiveBatchSampler else "sampler": sampler}))


def _two_ranks(rank: int, world: int) -> None:
    _ranks(rank, world)
    early = _loader(rank=0, world_size=1)
    expect(error_of(_fit(world, Module(), early)), ValueError, f"this is rank {rank} of 2", r"train_dataloader\(\)")
    wrong_here = _loader(rank=0, world_size=2)
    message = "another rank's" if rank == 0 else "deals to rank 0 of 2, but this is rank 1 of 2"
    expect(error_of(_fit(world, Module(), wrong_here)), ValueError, message)
    several = error_of(_fit(world, Module(passes=2), accumulate_grad_batches=3))
    expect(several, ValueError, "passes=2", "accumulate_grad_batches=3")
    hook = error_of(_fit(world, Module(), strategy=_ddp(ddp_comm_hook=moo.bucket_moo_hook)))
    expect(hook, ValueError, "DDPStrategy has a ddp_comm_hook")
    pieces = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    expect(error_of(_fit(world, Sharded(), strategy=pieces)), NotImplementedError, "tensor_parallel_size 2")
    mixed = DataLoader(Examples(), batch_size=48, shuffle=False)
    expect(error_of(_fit(world, Module(), mixed)), ValueError, "a batch must have one objective; got 'de', 'sw'")
    injected = error_of(_fit(world, Module(), use_distributed_sampler=True))
    expect(injected, TypeError, "use_distributed_sampler=False")  # Lightning's own words

    class Unsharded(Module):
        def configure_model(self) -> None: ...

    replicas = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    expect(error_of(_fit(world, Unsharded(), strategy=replicas)), TypeError, r"fully_shard\(\)")


def test_two_ranks(run_ranks: Runner) -> None:
    run_ranks(2, _two_ranks)


def _one_process(folder: str) -> None:
    sampler = error_of(_fit(1, Module(), _loader(ObjectiveSampler)))
    expect(sampler, ValueError, r"ObjectiveSampler leaves dealing .* batch_sampler=ObjectiveBatchSampler")
    scheduler = GradientAccumulationScheduler({0: 1, 4: 2})
    expect(error_of(_fit(1, Module(), callbacks=[scheduler])), ValueError, "changes the passes of a step")
    twice = error_of(_fit(1, Module(), callbacks=[MooCallback()]))
    expect(twice, RuntimeError, "more than one stateful callback of type `MooCallback`")  # Lightning's own words
    unknown = error_of(_fit(1, Module(), callback=MooCallback(objective="tongue")))
    expect(unknown, ValueError, "objective='tongue': the batch has 'x', 'y', 'language', 'index'")
    tuples = DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 8), torch.zeros(4, 4)))
    expect(error_of(_fit(1, Module(), tuples)), TypeError, "is a list, no mapping; give a function of the batch")
    weight = error_of(_fit(1, Module(), callback=MooCallback(weight=lambda batch: -1.0)))
    expect(weight, ValueError, "weight must be finite and >= 0")

    class Several(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[0].parameters()), torch.optim.SGD(self.net[3].parameters())]

    expect(error_of(_fit(1, Several())), NotImplementedError, "automatic_optimization=False with 2 optimizers")

    class Searching(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    searching = error_of(_fit(1, Searching(passes=2), accumulate_grad_batches=2))
    expect(searching, NotImplementedError, "LBFGS with accumulate_grad_batches=2")

    class Skipping(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    callback = MooCallback()
    skipped = error_of(_fit(1, Skipping(passes=2), callback=callback, accumulate_grad_batches=2))
    expect(skipped, RuntimeError, "training_step returned None in the pass that closes a step", "1 passes before")
    recorder = Recorder()
    _trainer(1, callback, recorder, accumulate_grad_batches=2).fit(Module(passes=2))  # the step was given up
    assert callback.report().passes == 2


def test_one_process(alone: Callable[..., None]) -> None:
    alone(_one_process)


def test_strategies_that_reduce_themselves() -> None:
    deepspeed = object.__new__(DeepSpeedStrategy)  # which cannot be made without DeepSpeed
    with pytest.raises(NotImplementedError, match=r"DeepSpeedStrategy: .*bucket_moo_ext.contrib.deepspeed"):
        _lightning_checks.check_strategy(deepspeed)


def test_a_private_name_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    fit_loop = type(_trainer(1).fit_loop)
    monkeypatch.delattr(fit_loop, "_should_accumulate")
    with pytest.raises(RuntimeError, match=r"lightning .*: Trainer.fit_loop has no _should_accumulate any more"):
        _fit(1, Module())()


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import importlib
    import sys

    known = builtins.__import__

    def without_lightning(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "lightning":
            raise ImportError("No module named 'lightning'")
        return known(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_lightning)
    monkeypatch.delitem(sys.modules, "bucket_moo_ext.contrib.lightning")
    with pytest.raises(ImportError, match=r"needs Lightning .*: pip install 'lightning>=2.6,<2.7'"):
        importlib.import_module("bucket_moo_ext.contrib.lightning")
