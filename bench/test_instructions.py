"""How many instructions do kernels, solvers and the collective take? Counted by valgrind: no noise, no caches."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result


def test_instructions(request: pytest.FixtureRequest, tmp_path: Path, keep: Callable[[Result], None]) -> None:
    """Every case of bench/cpp/instructions.cpp."""
    program = request.config.getoption("--instructions")
    if program is None or not program.is_file():
        pytest.skip("no program bench/cpp/instructions (--instructions)")
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind on the PATH")
    out = tmp_path / "counts"
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = done.stdout.split()
    for number, name in enumerate(names, 1):
        text = Path(f"{out}.{number}").read_text()
        assert f"Trigger: Client Request: {name}\n" in text, name
        found = re.search(r"^(?:summary|totals): (\d+)$", text, re.MULTILINE)
        assert found, name
        keep(Result(name, "", "instructions", float(found[1]), 0.0, 1))
