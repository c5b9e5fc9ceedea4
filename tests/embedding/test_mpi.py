"""The program over MPI of examples/cpp/mpi, built against the installed libraries, beside the Python package."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.embedding.installation import EMBEDDING, PREFIX, ROOT, Installation, run
from tests.embedding.small_network import assert_trained_like_ddp

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(
        not (shutil.which("mpirun") and shutil.which("mpicxx")), reason="no MPI (mpirun, mpicxx) on the PATH"
    ),
]

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


@pytest.mark.parametrize("world", [1, 3, 4])
def test_the_program_trains_like_ddp(world: int, program: Path, tmp_path: Path) -> None:
    out = tmp_path / "parameters"
    printed = _mpirun(world, program, out)
    assert_trained_like_ddp(printed, out, world)


def test_the_documented_output(program: Path) -> None:
    (documented,) = re.findall(r"^```text\n(losses at first[^`]*)^```$", EMBEDDING, re.MULTILINE)
    assert _mpirun(4, program) == documented


def test_a_rank_that_fails_ends_the_job(program: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"MPI_ABORT(?s:.*)No such file or directory|No such file(?s:.*)MPI_ABORT"):
        _mpirun(2, program, tmp_path / "no" / "such" / "folder")
    assert os.listdir(tmp_path) == []
