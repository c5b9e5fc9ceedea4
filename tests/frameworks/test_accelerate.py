"""Loops with Accelerate and register(), beside the same loops with DDP."""

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("accelerate", reason="needs requirements/frameworks.txt")
pytest.importorskip("deepspeed", reason="needs requirements/frameworks.txt")

from tests.frameworks import deepspeed_engines  # first: it sets up DeepSpeed

# isort: split

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs
from bucket_moo_ext.contrib.accelerate import register

from tests.support.ddp import Batch, batch_of, digest, loss_of, mlp, same_on_all_ranks
from tests.support.errors import Raised, error_of, expect

Runner = Callable[..., list[Any]]
SIZES = (8, 16, 4)
OBJECTIVES = "abc"


class Batches(Dataset[Batch]):
    """Whole batches: number i is that of rank i mod W."""

    def __init__(self, world: int, count: int) -> None:
        self.world, self.count = world, count

    def __len__(self) -> int:
        return self.count * self.world

    def __getitem__(self, index: int) -> Batch:
        return batch_of(1, index % self.world, index // self.world, torch.float32, SIZES)


def accelerator_of(rank: int, world: int, passes: int = 1, **options: Any) -> Accelerator:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # of nobody: the process group is there already
    return Accelerator(cpu=True, gradient_accumulation_steps=passes, **options)


def model_of() -> nn.Module:
    return mlp(1, torch.float32, SIZES)


def prepared(accelerator: Accelerator, world: int, count: int) -> Any:
    model = model_of()
    loader = DataLoader(Batches(world, count), batch_size=1, collate_fn=lambda batches: batches[0])
    return accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)


def train(accelerator: Accelerator, model: Any, optimizer: Any, loader: Any, state: Any, rank: int) -> list[bool]:
    """An epoch, as Accelerate's own examples have it; which passes closed a step."""
    closed = []
    for number, batch in enumerate(loader):
        with accelerator.accumulate(model):
            if state is not None:
                state.objective = OBJECTIVES[(rank + number) % 3]
            accelerator.backward(loss_of(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 100.0)
            optimizer.step()
            optimizer.zero_grad()
            closed.append(accelerator.sync_gradients)
    return closed


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def beside_ddp(rank: int, world: int, method: str, passes: int, count: int) -> list[Any]:
    accelerator = accelerator_of(rank, world, passes)
    model, optimizer, loader = prepared(accelerator, world, count)
    state = register(accelerator, model, method)
    closed = train(accelerator, model, optimizer, loader, state, rank)

    ddp = DistributedDataParallel(model_of())
    expected = moo.register(ddp, method)
    plain = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for number, closes in enumerate(closed):
        expected.objective = OBJECTIVES[(rank + number) % 3]
        with contextlib.nullcontext() if closes else expected.accumulate():
            loss_of(ddp, batch_of(1, rank, number, torch.float32, SIZES)).backward()
        if closes:
            plain.step()
            plain.zero_grad()
    error, way = flat(model) - flat(ddp), flat(ddp) - flat(model_of())
    return [closed, float(error.norm()), float(way.norm()), state.report().passes]


@pytest.mark.parametrize(
    ("method", "passes", "count", "last"),
    [("mgda", 1, 3, 1), ("mgda", 3, 6, 3), ("cagrad", 3, 7, 1), ("mean", 2, 4, 2)],
)
def test_passes_that_accumulate_are_one_step(
    run_ranks: Runner, method: str, passes: int, count: int, last: int
) -> None:
    for closed, error, way, passes_of_last_step in run_ranks(2, beside_ddp, method, passes, count):
        assert closed == [(number + 1) % passes == 0 or number + 1 == count for number in range(count)]
        assert passes_of_last_step == last
        assert error <= 1e-5 * way


def plain_and_mean(rank: int, world: int, one_row: bool) -> list[float]:
    """How far a loop with method mean is from one without register(); all ranks and passes have one objective."""
    found = []
    for registered in (False, True):
        accelerator = accelerator_of(rank, world, 2)
        model, optimizer, loader = prepared(accelerator, world, 4)
        if registered:
            state = register(accelerator, model, "mean", objective="all")
        if not one_row:
            train(accelerator, model, optimizer, loader, None, rank)
        else:
            for number, batch in enumerate(loader):
                with contextlib.nullcontext() if number % 2 else accelerator.no_sync(model):
                    accelerator.backward(loss_of(model, batch))
                if number % 2:
                    optimizer.step()
                    optimizer.zero_grad()
            if registered:
                assert state.report().passes == 1
        found.append(flat(model))
    return [float((found[1] - found[0]).norm()), float((found[0] - flat(model_of())).norm())]


@pytest.mark.parametrize("one_row", [False, True])
def test_mean_trains_as_accelerate_alone(run_ranks: Runner, one_row: bool) -> None:
    for error, way in run_ranks(2, plain_and_mean, one_row):
        assert error <= 1e-5 * way


def resume(rank: int, world: int, folder: str) -> list[Any]:
    bits: list[Any] = []
    for loads in (False, True):
        accelerator = accelerator_of(rank, world, 3)
        model, optimizer, loader = prepared(accelerator, world, 6)
        state = register(accelerator, model, moo.PCGrad(), seed=3)
        if loads:
            accelerator.load_state(folder)
            bits.append(state.step)
        else:
            train(accelerator, model, optimizer, loader, state, rank)
            accelerator.save_state(folder)
            bits.append(state.step)
        train(accelerator, model, optimizer, loader, state, rank)
        bits.append(digest(model.parameters()))
    return bits


def test_a_resumed_run_has_the_same_bits(run_ranks: Runner, tmp_path: Any) -> None:
    found = run_ranks(2, resume, str(tmp_path))
    same_on_all_ranks(found)
    step, uninterrupted, loaded_step, resumed = found[0]
    assert step == loaded_step > 0
    assert uninterrupted == resumed


def alone(rank: int, world: int) -> list[float]:
    """One process: passes of a plain module, beside moo.register()."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    model, optimizer, loader = prepared(accelerator, 1, 6)
    train(accelerator, model, optimizer, loader, register(accelerator, model, "mgda"), 0)
    twin = model_of()
    state = moo.register(twin, "mgda")
    for step in range(2):
        losses = {
            o: loss_of(twin, batch_of(1, 0, 3 * step + k, torch.float32, SIZES)) for k, o in enumerate(OBJECTIVES)
        }
        state.backward(losses)
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
        twin.zero_grad()
    return [float((flat(model) - flat(twin)).norm()), float((flat(twin) - flat(model_of())).norm())]


def test_one_process(run_ranks: Runner) -> None:
    ((error, way),) = run_ranks(1, alone)
    assert error <= 1e-5 * way


def engine_beside_ddp(rank: int, world: int, stage: int) -> list[float]:
    """How far an engine that Accelerate has made is from DDP. On the CPU it does not deal batches to ranks."""
    accelerator_of(rank, world)  # for its environment
    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_engines.config_of(3, stage=stage))
    accelerator = Accelerator(gradient_accumulation_steps=3, deepspeed_plugin=plugin)
    model, optimizer, loader = prepared(accelerator, world, 3)
    state = register(accelerator, model, "mgda")
    train(accelerator, model, optimizer, loader, state, rank)
    ddp = DistributedDataParallel(model_of())
    expected = moo.register(ddp, "mgda")
    plain = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for number, batch in enumerate(loader):
        expected.objective = OBJECTIVES[(rank + number) % 3]
        with contextlib.nullcontext() if number % 3 == 2 else expected.accumulate():
            loss_of(ddp, batch).backward()
        if number % 3 == 2:
            plain.step()
            plain.zero_grad()
    assert state.report().passes == 3
    return [float((flat(model) - flat(ddp)).norm()), float((flat(ddp) - flat(model_of())).norm())]


@pytest.mark.parametrize("stage", [1, 2])
def test_an_engine_that_accelerate_makes(run_ranks: Runner, stage: int) -> None:
    for error, way in run_ranks(2, engine_beside_ddp, stage):
        assert error <= 1e-5 * way


def refuse(rank: int, world: int) -> tuple[list[Raised], list[str]]:
    found = [error_of(lambda: register(model_of(), model_of(), "mgda"))]
    accelerator = accelerator_of(rank, world, kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=1)])
    model = accelerator.prepare(model_of())
    assert model.bucket_bytes_cap == 2**20
    found.append(error_of(lambda: register(accelerator, model_of(), "mgda")))
    register(accelerator, model, "mgda")
    found.append(error_of(lambda: register(accelerator, model, "mgda")))
    other = accelerator.prepare(model_of())
    found.append(error_of(lambda: accelerator.accumulate(model, other).__enter__()))
    with accelerator.accumulate(other):  # as it was
        pass
    sharded = accelerator_of(rank, world, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        register(sharded, sharded.prepare(model_of()), "mgda")
    return found, [str(warning.message) for warning in caught if "bucket_moo_ext" in str(warning.message)]


def test_register_refuses_and_warns(run_ranks: Runner) -> None:
    for found, warned in run_ranks(2, refuse):
        expect(found[0], TypeError, "accelerator must be an accelerate.Accelerator; got Sequential")
        expect(found[1], TypeError, "Sequential")  # not prepared
        expect(found[2], RuntimeError, "already has a communication hook")
        expect(found[3], ValueError, "must be given alone; got 2 models")
        assert len(warned) == 1
        assert "FSDP was asked for, but Accelerate made it MULTI_CPU" in warned[0]


def test_without_accelerate_the_import_says_what_to_install() -> None:
    code = (
        "import sys, bucket_moo_ext; assert 'accelerate' not in sys.modules; sys.modules['accelerate'] = None\n"
        "try:\n    import bucket_moo_ext.contrib.accelerate\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bucket_moo_ext[accelerate]'" in done.stdout
