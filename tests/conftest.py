"""Fixtures of all tests."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import ranks
from tests.support.checks import ON_DEVICE

# `make gpu-check` runs these with settings of their own; so does its dry run, over emulated kernels.
collect_ignore = [] if torch.cuda.is_available() or "GPU_CHECK_DRY" in os.environ else ["gpu"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ON_DEVICE:
        for item in items:
            if item.get_closest_marker("host"):
                item.add_marker(pytest.mark.skip(reason="not for reductions on a device"))


def pytest_collection_finish(session: pytest.Session) -> None:
    items = [item for item in session.items if isinstance(item, pytest.Function)]
    modules = {item.module.__name__ for item in items if "run_ranks" in item.fixturenames}
    ranks.preload(sorted(modules))


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """``run_ranks(world, function, *arguments, timeout=120.0, group_timeout=..., may_die=())``; see there."""
    return ranks.run_ranks


@pytest.fixture
def random_seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own, by its name: the same in every run, unless BUCKET_MOO_TEST_SEED says otherwise."""
    base = os.environ.get("BUCKET_MOO_TEST_SEED", "0")
    print(f"BUCKET_MOO_TEST_SEED={base}")
    return int.from_bytes(hashlib.sha256(f"{base} {request.node.name}".encode()).digest()[:4], "little")


@pytest.fixture
def rng(random_seed: int) -> np.random.Generator:
    """NumPy's generator over `random_seed`."""
    return np.random.default_rng(random_seed)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent
