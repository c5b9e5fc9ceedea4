"""The program over MPI of examples/cpp/mpi, built against the installed libraries, beside the Python package."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.embedding.installation import EMBEDDING, PREFIX, ROOT, Installation, run
from tests.support.ranks import run_ranks

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(
        not (shutil.which("mpirun") and shutil.which("mpicxx")), reason="no MPI (mpirun, mpicxx) on the PATH"
    ),
]

INPUTS, HIDDEN, EXAMPLES, STEPS, LEARNING_RATE = 6, 10, 32, 60, 0.1
# So that Open MPI starts more ranks than there are cores, as root too.
ENVIRONMENT = (
    "OMPI_ALLOW_RUN_AS_ROOT=1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
    "OMPI_MCA_rmaps_base_oversubscribe=1",
    "OMPI_MCA_btl_vader_single_copy_mechanism=none",  # containers may not let a process read another's memory
)


@pytest.fixture(scope="module")
def program(static: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As docs/embedding.md builds it."""
    build = tmp_path_factory.mktemp("mpi")
    (command,) = re.findall(r"^(cmake -S examples/cpp/mpi .*)\nmpirun -n 4 build/mpi/train$", EMBEDDING, re.MULTILINE)
    assert command.count(PREFIX) == 1
    command = command.replace(PREFIX, str(static.prefix)).replace("build/mpi", str(build))
    run("bash", "-ec", command, folder=ROOT)
    return build / "train"


def _mpirun(ranks: int, *command: str | Path) -> str:
    return run("env", *ENVIRONMENT, "mpirun", "-n", str(ranks), *command)


class _Network(nn.Module):
    """That of the program, from the same parameters."""

    def __init__(self) -> None:
        super().__init__()
        first = 0.5 * torch.sin(1.0 + 7.0 * torch.arange(HIDDEN * (INPUTS + 2), dtype=torch.float64))
        inside, bias, out = first.split([HIDDEN * INPUTS, HIDDEN, HIDDEN])
        self.inside, self.bias, self.out = map(nn.Parameter, (inside.view(HIDDEN, INPUTS).clone(), bias, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.inside.T + self.bias) @ self.out


def _data(objective: int) -> tuple[torch.Tensor, torch.Tensor]:
    example, i = np.arange(EXAMPLES)[:, None], np.arange(INPUTS)[None]
    x = np.sin(1.7 * example + 0.9 * i * i + 0.3 * objective)
    y = (1.0 + objective) * np.sin(x.sum(axis=1)) * np.cos(objective)
    return torch.from_numpy(x), torch.from_numpy(y)


def _with_ddp(rank: int, world: int) -> dict[str, Any]:
    model = _Network()
    wrapped = DistributedDataParallel(model)
    state = moo.register(wrapped, "mgda", objective=f"task {rank}")
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=LEARNING_RATE)
    x, y = _data(rank)
    found: dict[str, Any] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (wrapped(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        if step == 0:
            found = {"first": loss.item(), "weights": state.report().buckets[0].weights.tolist()}
    found["last"] = (model(x) - y).square().mean().item()
    found["parameters"] = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    return found


@pytest.mark.parametrize("world", [1, 3, 4])
def test_the_program_trains_like_ddp(world: int, program: Path, tmp_path: Path) -> None:
    out = tmp_path / "parameters"
    printed = _mpirun(world, program, out)
    expected = run_ranks(world, _with_ddp)
    np.testing.assert_allclose(np.loadtxt(out), expected[0]["parameters"], rtol=1e-7, atol=1e-9)
    lines = dict(line.split(": ") for line in printed.splitlines())
    for name, values in (
        ("losses at first", [one["first"] for one in expected]),
        ("weights of the first step", expected[0]["weights"]),
        ("losses at last", [one["last"] for one in expected]),
    ):
        np.testing.assert_allclose([float(value) for value in lines[name].split()], values, rtol=0, atol=6e-5)


def test_the_documented_output(program: Path) -> None:
    (documented,) = re.findall(r"^```text\n(losses at first[^`]*)^```$", EMBEDDING, re.MULTILINE)
    assert _mpirun(4, program) == documented


def test_a_rank_that_fails_ends_the_job(program: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"MPI_ABORT(?s:.*)No such file or directory|No such file(?s:.*)MPI_ABORT"):
        _mpirun(2, program, tmp_path / "no" / "such" / "folder")
    assert os.listdir(tmp_path) == []
