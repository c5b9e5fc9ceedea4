"""The demo's lanes in sharded models: the training of DDP, and checkpoints."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs requirements/demo.txt")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "multilingual"))

import finetune
import models
from sampler import BlockSampler, PassSampler
from settings import Settings
from world import World

LANGUAGES = ("de", "hu")


def _settings(folder: str, **more: Any) -> Settings:
    chosen: dict[str, Any] = {
        "scenarios": (), "languages": LANGUAGES, "layout": "passes", "steps": 4, "lr": 4e-3, "checkpoint_every": 2,
        "output": folder, "probe_steps": (),
    }  # fmt: skip
    return Settings(**chosen | more)


def _base() -> Any:
    preset = models.Preset("llama", hidden=16, layers=2, feed_forward=24, vocabulary=128, heads=2)
    return models.build_preset(preset, length=4, end=99, seed=0)


def _sampler(rank: int, size: int) -> PassSampler:
    tokens = np.arange(80, dtype=np.int32)
    shape: dict[str, Any] = {"length": 4, "batch": 4, "seed": 0, "end": 99}
    samplers = {language: BlockSampler(tokens, stream=language, **shape) for language in LANGUAGES}
    return PassSampler(samplers, part=rank, parts=size)


def _training(rank: int, size: int, folder: str, wrappers: tuple[str, ...]) -> None:
    world = World(rank, size, torch.device("cpu"))
    base, sample, chosen = _base(), _sampler(rank, size), _settings(folder)

    def lane(wrapper: str, method: str, steps: int = 4) -> finetune.Lane:
        settings = replace(chosen, wrapper=wrapper, name=wrapper)
        made = finetune.Lane(settings, method, 0, base, world, sample)
        if steps:
            finetune.train([made], sample, replace(settings, steps=steps), world, wrapper, lambda *_: None)
        return made

    expected = lane("ddp", "ddp")
    for wrapper in wrappers:
        for method in ("ddp", "mean"):
            sharded = lane(wrapper, method)
            np.testing.assert_allclose(sharded.history["losses"], expected.history["losses"], rtol=1e-4)
            whole = sharded.wrapped.whole().state_dict()
            for name, parameter in expected.wrapped.whole().state_dict().items():
                torch.testing.assert_close(whole[name], parameter, rtol=1e-3, atol=1e-4)
        uninterrupted = lane(wrapper, "mgda").history["losses"]
        lane(wrapper, "mgda", steps=2)
        world.barrier()
        resumed = lane(wrapper, "mgda", steps=0)
        assert resumed.resume()
        assert resumed.next_step == 2
        finetune.train([resumed], sample, replace(chosen, wrapper=wrapper, name=wrapper), world, "", lambda *_: None)
        np.testing.assert_allclose(resumed.history["losses"], uninterrupted, rtol=1e-6)
        report = resumed.state.report()
        assert (report.passes, report.objectives, len(report.buckets)) == (2, LANGUAGES, 3)


@pytest.mark.host
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("world", "wrappers"), [(2, ("fsdp2", "fsdp1")), (4, ("hsdp",))], ids=["one copy", "replicas"])
def test_sharded_lanes(
    run_ranks: Callable[..., list[Any]], tmp_path: Path, world: int, wrappers: tuple[str, ...]
) -> None:
    run_ranks(world, _training, str(tmp_path), wrappers)


def _goes_on(rank: int, size: int, folder: str, name: str, until: int) -> list[float]:
    """The losses of all steps so far, of which this job makes those that are missing."""
    world = World(rank, size, torch.device("cpu"))
    chosen, sample = _settings(folder, steps=6, name=name), _sampler(rank, size)
    lane = finetune.Lane(chosen, "gradvac", 0, _base(), world, sample)
    lane.resume()
    finetune.train([lane], sample, replace(chosen, steps=until), world, "", lambda *_: None)
    return [float(np.mean(of_step)) for of_step in lane.history["losses"]]


@pytest.mark.host
@pytest.mark.filterwarnings("ignore")
def test_a_job_goes_on_with_another_number_of_ranks(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    (whole, _) = run_ranks(2, _goes_on, str(tmp_path), "whole", 6)
    for ranks, until in ((2, 2), (4, 4), (1, 6)):
        losses = run_ranks(ranks, _goes_on, str(tmp_path), "moved", until)[0]
        assert len(losses) == until
    np.testing.assert_allclose(losses, whole, rtol=1e-5)
