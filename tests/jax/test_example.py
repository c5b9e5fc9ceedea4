"""examples/jax: a few steps lower every language's loss, by the plain mean and by a method."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jax.devices import require_jax

require_jax()
pytest.importorskip("optax", reason="optax is not installed (make jax)")


@pytest.mark.slow
def test_a_few_steps_lower_every_loss(repository: Path) -> None:
    command = [sys.executable, str(repository / "examples" / "jax" / "train.py"), "--steps", "40", "--method", "cagrad"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    _, languages, *rows = [line.split() for line in done.stdout.splitlines()]
    assert languages == ["de", "el", "hu", "tr"]
    losses = {name: [float(loss) for loss in given] for name, *given in rows}
    assert losses.keys() == {"plain", "cagrad"}
    assert all(0.5 < loss < 3.178 for given in losses.values() for loss in given)
    assert losses["plain"] != losses["cagrad"]
