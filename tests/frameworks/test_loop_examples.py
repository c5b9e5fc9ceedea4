"""The examples with DeepSpeed and Accelerate, with fewer steps and text made up here."""

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

pytest.importorskip("accelerate", reason="needs requirements/frameworks.txt")
pytest.importorskip("deepspeed", reason="needs requirements/frameworks.txt")

import datasets
import transformers.models.llama  # noqa: F401  # for the processes that run the examples

from tests.frameworks import deepspeed_engines  # noqa: F401  # sets up DeepSpeed

Runner = Callable[..., list[Any]]
EXAMPLES = Path(__file__).parents[2] / "examples"
LANGUAGES = ("de", "hu", "tr", "ja")


def run_example(rank: int, world: int, name: str, cache: str, arguments: tuple[str, ...]) -> str:
    """What it prints. In a process that has imported what takes longer than the example."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), XDG_CACHE_HOME=cache)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # of nobody: the process group is there already
    datasets.config.HF_DATASETS_CACHE = Path(cache) / "datasets"
    datasets.disable_progress_bars()
    dist.destroy_process_group = lambda *_: None  # which the test's process does itself
    sys.path.insert(0, str(EXAMPLES / "frameworks"))
    sys.argv = [name, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(EXAMPLES / "frameworks" / name), run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize("name", ["deepspeed_finetune.py", "accelerate_finetune.py"])
def test_an_example_trains_on_four_languages(run_ranks: Runner, cache: Path, tmp_path: Path, name: str) -> None:
    saves = ("--save", str(tmp_path / "saved")) if name == "accelerate_finetune.py" else ()
    printed = run_ranks(2, run_example, name, str(cache), ("--steps", "4", *saves))
    for rank, text in enumerate(printed):
        assert f"step 1, rank {rank}: " in text
        assert f"step 4, rank {rank}: " in text
    assert "MGDA" in printed[0]
    assert "4 objectives" in printed[0]
    assert not saves or (tmp_path / "saved" / "custom_checkpoint_0.pkl").exists()
