"""The libraries for other programs, built and installed once for all tests of a run."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.embedding.installation import Installation, install


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _once(folder: Path, kind: str) -> Installation:
    """Whoever comes first builds, and the others wait."""
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return install(folder / kind, kind)


@pytest.fixture(scope="session")
def static(shared_folder: Path) -> Installation:
    """Static libraries, optimized: what the command of docs/embedding.md makes."""
    return _once(shared_folder, "static")


@pytest.fixture(scope="session")
def shared(shared_folder: Path) -> Installation:
    """Shared libraries, not optimized."""
    return _once(shared_folder, "shared")


@pytest.fixture(scope="session")
def clang(shared_folder: Path) -> Installation:
    """The same, compiled by Clang."""
    if not (shutil.which("clang") and shutil.which("clang++")):
        pytest.skip("no clang and clang++ on the PATH")
    return _once(shared_folder, "clang")


@pytest.fixture(scope="session")
def library(static: Installation) -> Path:
    """The C interface."""
    return static.library("bucket_moo_c")
