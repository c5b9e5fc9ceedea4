"""The FSDP2 example, as its page says to run it, with fewer steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2" / "finetune.py"


@pytest.mark.host
def test_fine_tuning() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)]
    done = subprocess.run(
        [*command, "--layout", "passes", "--steps", "3"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step 3, rank 1: sw" in done.stdout
    assert "1.self_attn.in_proj_weight" in done.stdout
