"""The example with Lightning, as it says to be run, with fewer steps and text made up here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="needs requirements/frameworks.txt")

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = EXAMPLES / "frameworks" / "lightning_finetune.py"
LANGUAGES = ("de", "hu", "tr", "ja")


def test_four_languages(cache: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(PROGRAM), "--steps", "10"],
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
    assert "step 10: MGDA(normalize='none'), 4 objectives" in done.stdout
    assert "2 passes (rows: de 1, hu 1, ja 1, tr 1)" in done.stdout
    assert all(f"'{language}': " in done.stdout.split("held-out loss:")[1] for language in LANGUAGES)


def test_the_example_is_short() -> None:
    assert len(PROGRAM.read_text(encoding="utf-8").splitlines()) < 80
