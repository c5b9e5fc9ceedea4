"""The whole study on made-up text, and its one process beside ranks under DDP."""

# ruff: noqa: E402
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs requirements/demo.txt")
pytest.importorskip("sklearn", reason="needs requirements/study.txt")
STUDY = Path(__file__).parents[2] / "studies" / "multilingual"
for folder in (STUDY, STUDY.parents[1] / "examples" / "multilingual"):
    sys.path.insert(0, str(folder))

import bucket_moo_ext as moo
import corpus
import models
from arms import Arm
from fine_tuning import Trainer
from registration import read
from sampler import BlockSampler
from scenarios import Scenario
from tasks import Run
from torch.nn.parallel import DistributedDataParallel

from tests.support.ranks import run_ranks


def _write_text(cache: Path) -> None:
    """What the demo's corpus keeps of its wheel: 60 components of 20 sentences."""
    folder = cache / "bucket_moo_ext" / f"segments-v{corpus._VERSION}-{corpus.SHA256[:12]}"
    folder.mkdir(parents=True)
    for language in ("en", "de", "hu", "el", "cs"):
        text = {
            f"part{c}": {f"k{i}": f"{language} sentence {i * c % 11} of many words, number {c} {i}" for i in range(20)}
            for c in range(60)
        }
        (folder / f"{language}.json").write_text(json.dumps(text))


def test_a_study_runs_reports_and_goes_on(tmp_path: Path) -> None:
    _write_text(tmp_path / "cache")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(STUDY / "study.py"), str(STUDY / "smoke.toml"), "--jobs", "1"]
    command += ["--output", str(tmp_path / "runs"), "--publish", str(tmp_path / "published")]
    command += ["--rates", str(tmp_path / "tuned.json")]

    def run() -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "10 runs done, 0 were there" in run()
    first = (tmp_path / "published" / "smoke.md").read_text()
    assert "0 runs done, 10 were there" in run()
    rates = json.loads((tmp_path / "tuned.json").read_text())
    assert [(found["arm"], found["lr"]) for found in rates.values()] == [("mgda_rescaled", 2e-3)]
    results = json.loads((tmp_path / "published" / "smoke.json").read_text())
    assert (tmp_path / "published" / "smoke.png").stat().st_size > 5000
    registration = read(STUDY / "smoke.toml")
    assert results["sha256"] == registration.sha256
    assert results["runs"] == {"tuning": 5, "test": 4, "noise": 1, "diverged": 0}
    cell = results["cells"]["replay, llama"]
    for arm in cell["arms"].values():
        assert set(arm["bits_per_byte"][0]) == {"el", "de", "hu", "cs"}
        expected = [np.mean(list(bits.values())) for bits in arm["bits_per_byte"]]
        np.testing.assert_allclose(arm["measures"]["primary"], expected, rtol=1e-5)
        assert arm["taken"]["count"] == 3 * 2 * 3, "three probed steps of two seeds with three objectives"
    assert {row["part"] for row in cell["noise"]} >= {"embedding", "attention 0", "MLP 3", "whole model"}
    [row] = results["comparisons"]
    assert (row["arm"], row["reference"], row["judged"]) == ("mgda_rescaled", "weighted", True)
    assert {row["when"] for row in results["separability"]} == {"before", "after"}
    assert {row["layer"] for row in results["separability"]} == set(range(5))
    for part in ("Verdicts", "Cells", "The step that is really taken", "Conflicts against noise", "Separability"):
        assert f"## {part}" in first
    assert registration.sha256 in first


OBJECTIVES = ("de", "hu", "tr")
STEPS = 4


def _material(seed: int) -> tuple[torch.nn.Module, dict[str, BlockSampler]]:
    preset = models.Preset("llama", hidden=16, layers=2, feed_forward=24, vocabulary=128, heads=2)
    model = models.build_preset(preset, length=4, end=99, seed=0)
    tokens = np.arange(90, dtype=np.int32)
    shape: dict[str, Any] = {"length": 4, "batch": 3, "seed": seed, "end": 99}
    return model, {name: BlockSampler(tokens, stream=name, **shape) for name in OBJECTIVES}


def _run(arm: Arm) -> Run:
    scenario = Scenario("s", OBJECTIVES, focus="hu")
    return Run("test", scenario, "", arm, lr=5e-3, focus_weight=2.0 if arm.focus_weights else 1.0, seed=3, base=0)


def _registered() -> Any:
    given = read(STUDY / "smoke.toml")
    return replace(given, training=replace(given.training, steps=STEPS))


def _one_process(arm: Arm) -> list[np.ndarray[Any, Any]]:
    model, sample = _material(seed=3)
    trainer = Trainer(model, _run(arm), _registered())
    for step in range(STEPS):
        trainer.step(step, [(name, draw(step)) for name, draw in sample.items()])
    return [p.detach().numpy() for p in model.parameters()]


def _under_ddp(rank: int, size: int, arm: Arm) -> list[np.ndarray[Any, Any]]:
    """Written by hand: one objective a rank, torch's own wrapper, clipping and optimizer."""
    model, sample = _material(seed=3)
    ddp = DistributedDataParallel(model)
    name = OBJECTIVES[rank]
    weights = {"de": 0.75, "hu": 1.5, "tr": 0.75} if arm.focus_weights else dict.fromkeys(OBJECTIVES, 1.0)
    if arm.method != "mean":
        moo.register(ddp, arm.build(), objective=name, scope=arm.scope, seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = models_rate(step)
        optimizer.zero_grad()
        (models.mean_loss(ddp, sample[name](step)) * weights[name]).backward()
        if arm.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), arm.clip)
        optimizer.step()
    return [p.detach().numpy() for p in model.parameters()]


def models_rate(step: int) -> float:
    """Warm-up in the first step, then down to a tenth."""
    return 5e-3 if step < 1 else 5e-3 * (1 - 0.9 * (step - 1) / (STEPS - 1))


ARMS = [
    Arm("mean", "mean", clip=None),
    Arm("weighted", "mean", focus_weights=(2.0,)),
    Arm("normalized", "normalizedmean", scope="model"),
    Arm("mgda", "mgda", scope="model"),
    Arm("rescaled", "nashmtl", scope="model", length="mean", clip=0.5),
]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_one_process_trains_as_ranks_under_ddp_do(arm: Arm) -> None:
    alone = _one_process(arm)
    for ranks in run_ranks(len(OBJECTIVES), _under_ddp, arm):
        for mine, theirs in zip(alone, ranks, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-5)
    untrained = [p.detach().numpy() for p in _material(seed=3)[0].parameters()]
    assert max(np.abs(a - b).max() for a, b in zip(alone, untrained, strict=True)) > 5e-3
