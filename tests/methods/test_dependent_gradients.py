"""Linearly dependent gradients in float32: the only update without conflict is 0, and rounding must not hide that."""

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch


@pytest.mark.parametrize("method", [moo.UPGrad(), moo.DualProj(), moo.MGDA()])
@pytest.mark.parametrize("family", ["opposite", "more objectives than elements"])
def test_weights_stay_in_proportion(method: moo.Method, family: str, rng: np.random.Generator) -> None:
    for _ in range(300):
        k = int(rng.integers(2, 9))
        if family == "opposite":
            rows = rng.normal(size=(k, 1)) * rng.normal(size=(1, 50))
        else:
            rows = rng.normal(size=(k, int(rng.integers(1, k))))
        jacobian = torch.tensor(rows, dtype=torch.float32)
        weights = moo.weights(moo.gramian(jacobian), method)
        assert isinstance(weights, torch.Tensor)
        norms = jacobian.double().norm(dim=1)
        assert weights.isfinite().all()
        assert float(weights.abs() @ norms) <= 1e4 * float(norms.sum())
