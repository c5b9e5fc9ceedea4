"""Every method on Gramians of any bits."""

import math
import struct
from collections.abc import Callable

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rows import uniform
from tests.support.sizes import draws

pytestmark = pytest.mark.device

PATTERNS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1e-308, 1.7e308, -1.7e308, math.nan, math.inf]).map(
        lambda value: struct.unpack("<Q", struct.pack("<d", value))[0]
    ),
    st.integers(0x3FE0000000000000, 0x4010000000000000),  # ordinary sizes
)

VARIANTS: dict[str, Callable[[int], moo.Method]] = {
    "mgda": lambda flags: moo.MGDA("l2" if flags & 1 else "none"),
    "cagrad": lambda flags: moo.CAGrad([0.0, 0.4, 1.0, 1e6][flags % 4], bool(flags & 4)),
    "pcgrad": lambda flags: moo.PCGrad("sum" if flags & 1 else "mean"),
    "alignedmtl": lambda flags: moo.AlignedMTL(None, ("min", "median", "mean")[flags % 3]),
    "nashmtl": lambda flags: moo.NashMTL([1e-6, 1.0, math.inf][flags % 3]),
    "fairgrad": lambda flags: moo.FairGrad([1e-3, 0.5, 1.0, 50.0][flags % 4]),
    "gradvac": lambda flags: moo.GradVac(flags % 3 / 2),
    "krum": lambda flags: moo.Krum(flags % 3, 1 + flags % 4),
}


@pytest.mark.nightly
@pytest.mark.parametrize("method", moo.available_methods())
@settings(max_examples=draws(60, 2000), deadline=None, database=None)
@given(data=st.data())
def test_any_bits(method: str, data: st.DataObject) -> None:
    """No crash, no NaN from finite input, and always a certificate."""
    k = data.draw(st.integers(1, 7))
    half = k * (k + 1) // 2
    symmetric = data.draw(st.booleans())
    patterns = data.draw(st.lists(PATTERNS, min_size=half, max_size=half))
    gram = np.zeros((k, k))
    upper = np.triu_indices(k)
    gram[upper] = np.array(patterns, dtype=np.uint64).view(np.float64)
    if symmetric:
        gram.T[upper] = gram[upper]
    flags = data.draw(st.integers(0, 7))
    chosen = VARIANTS[method](flags) if method in VARIANTS else method
    if data.draw(st.booleans()):
        chosen = moo.Smoothed(chosen, 0.5)  # type: ignore[arg-type]
    w, certificate = moo.weights(gram, chosen, return_certificate=True)
    assert w.shape == (k,)
    assert torch.isfinite(w).all(), f"{gram} -> {w}"
    assert float(certificate) >= 0, f"{gram} -> {certificate}"
    if not np.isfinite(gram).all():
        assert np.array_equal(w.numpy(), uniform(k))
