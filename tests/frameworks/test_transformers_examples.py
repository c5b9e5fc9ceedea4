"""The examples with transformers and TRL, as they say to be run, with fewer steps and text made up here."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs requirements/frameworks.txt")

import datasets
import trl  # noqa: F401  # for the processes that run the examples

from tests.frameworks import trainers

Runner = Callable[..., list[Any]]
EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = EXAMPLES / "frameworks"
LANGUAGES = ("de", "hu", "tr", "ja")


def _example(rank: int, world: int, name: str, cache: str, arguments: tuple[str, ...]) -> str:
    """What it prints. In a process that has imported the trainers already, which takes longer than the example."""
    if world > 1:
        trainers.rank_environment(rank, world)
    os.environ.update(XDG_CACHE_HOME=cache, HF_HUB_OFFLINE="1")
    datasets.config.HF_DATASETS_CACHE = Path(cache) / "datasets"
    datasets.disable_progress_bars()
    sys.path.insert(0, str(SMALL))
    sys.argv = [name, "--steps", "10", "--output", f"{cache}/{name}-{rank}", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(SMALL / name), run_name="__main__")
    return printed.getvalue()


def _example_alone(folder: str, name: str, cache: str) -> str:
    return _example(0, 1, name, cache, ())


def test_four_languages_as_the_page_says(cache: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SMALL / "trl_sft.py"), "--steps", "10", "--output", str(cache / "trl_sft")],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "XDG_CACHE_HOME": str(cache),
            "HF_HOME": str(cache / "hf"),
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _check_four_languages(done.stdout)


def _check_four_languages(printed: str) -> None:
    assert "4 objectives" in printed
    assert "2 passes (rows: de 1, hu 1, ja 1, tr 1)" in printed
    assert "moo/conflict_share" in printed
    assert all(f"'{language}': " in printed.split("held-out loss:")[1] for language in LANGUAGES)


def test_four_languages(run_ranks: Runner, cache: Path) -> None:
    printed, _ = run_ranks(2, _example, "transformers_finetune.py", str(cache), ())
    _check_four_languages(printed)


def test_a_language_on_all_ranks(run_ranks: Runner, cache: Path) -> None:
    printed, _ = run_ranks(2, _example, "transformers_finetune.py", str(cache), ("--layout", "passes"))
    assert "4 passes (rows: de 2, hu 2, ja 2, tr 2), layout passes" in printed


def test_tasks(alone: Callable[..., Any], cache: Path) -> None:
    printed = alone(_example_alone, "tasks_sft.py", str(cache))
    assert "step  10: loss" in printed
    assert "cosines of instruction, maths, safety" in printed


def test_replay(run_ranks: Runner, cache: Path) -> None:
    printed, _ = run_ranks(2, _example, "replay.py", str(cache), ())
    assert "after de: de " in printed
    assert "after ja, with de as an objective: de " in printed


@pytest.mark.parametrize("name", ["small", "transformers_finetune", "trl_sft", "tasks_sft", "replay"])
def test_an_example_is_short(name: str) -> None:
    assert len((SMALL / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 80


def test_the_tasks_have_as_many_rows_each() -> None:
    rows = [json.loads(line) for line in (SMALL / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row.keys() == {"prompt", "completion", "task"} for row in rows} == {True}
    assert {task: sum(row["task"] == task for row in rows) for task in ("instruction", "maths", "safety")} == {
        "instruction": 16,
        "maths": 16,
        "safety": 16,
    }
