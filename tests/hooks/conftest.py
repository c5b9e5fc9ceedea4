"""Fixtures of the tests of hooks."""

import numpy as np
import pytest


@pytest.fixture
def seed(rng: np.random.Generator) -> int:
    """What models and batches are drawn from."""
    return int(rng.integers(2**31))
