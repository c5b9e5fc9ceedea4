"""How long does a solve take? A batch on one thread, beside Cholesky factors of as many matrices.

peer.py times them beside TorchJD's.
"""

from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from test_kernels import per_call

BATCH = 64


@pytest.mark.parametrize("k", [2, 4, 16, 64])
@pytest.mark.parametrize("method", moo.available_methods())
def test_solve(paired: Any, method: str, k: int) -> None:
    """Gramians of K Gaussian gradients of 2K + 3 elements."""

    def make() -> tuple[Any, Any]:
        torch.set_num_threads(1)
        rows = torch.from_numpy(np.random.default_rng(k).standard_normal((BATCH, k, 2 * k + 3)))
        gramians = rows @ rows.mT
        return per_call(lambda: moo.weights(gramians, method), lambda: torch.linalg.cholesky(gramians))

    paired(f"solve[{method},K={k}]", f"{BATCH} Cholesky factors", make, rounds=7, solves=BATCH)
