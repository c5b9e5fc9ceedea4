"""The kernels at sizes, alignments and scales that the other tests leave out."""

import bucket_moo_ext as moo
import pytest
import torch

from tests.gpu.device import DEVICE


def close_to_float64(rows: torch.Tensor, gramian: torch.Tensor, tolerance: float) -> None:
    """Entries within `tolerance` of |g_i| |g_j|, against a float64 product on the GPU."""
    expected = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=DEVICE.name)
    for part in rows.split(1 << 22, dim=1):
        wide = part.double()
        expected += wide @ wide.T
    norm = expected.diagonal().sqrt()
    assert ((gramian - expected).abs() <= tolerance * norm[:, None] * norm[None, :]).all()


@pytest.mark.parametrize(
    ("k", "n"),
    DEVICE.pick(
        [(1, 10**8), (2, 10**8), (8, 10**8), (16, 10**7 + 3), (33, 10**7 + 1), (64, 10**6)], dry=[(2, 5001), (33, 1001)]
    ),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_rows(k: int, n: int, dtype: torch.dtype) -> None:
    rows = torch.randn(k, n, device=DEVICE.name, dtype=dtype) + 0.1
    close_to_float64(rows, moo.gramian(rows), 1e-6)
    w = torch.rand(k, dtype=torch.float64, device=DEVICE.name)
    combined = moo.combine(rows, w)
    expected = torch.zeros(n, device=DEVICE.name)
    for row, c in zip(rows, w.float(), strict=True):
        expected += c * row.float()
    error = (combined.float() - expected).abs() / expected.abs().clamp(min=1e-2)
    assert error.max().item() <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("k", [2, 8, 20])
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_rows_off_their_alignment(k: int, offset: int) -> None:
    n = DEVICE.pick(100_001, dry=2001)
    whole = torch.randn(k, n + 7, device=DEVICE.name)
    rows = [row[offset : offset + n] for row in whole]
    aligned = torch.stack(rows)
    assert torch.equal(moo.gramian(rows), moo.gramian(aligned))
    w = torch.rand(k, dtype=torch.float64, device=DEVICE.name)
    assert torch.equal(moo.combine(rows, w), moo.combine(aligned, w))


@pytest.mark.parametrize("scale", [1e-25, 1e-40, 1e25])
def test_scales_that_float32_cannot_square(scale: float) -> None:
    rows = torch.randn(5, DEVICE.pick(50_000, dry=2000), device=DEVICE.name).double() * scale
    rows = rows.float()
    close_to_float64(rows, moo.gramian(rows), 1e-6)


def test_memory_that_was_used_before_does_not_show() -> None:
    rows = torch.randn(4, DEVICE.pick(10_000, dry=1000), device=DEVICE.name)
    expected = moo.aggregate(rows, "mgda")
    for _ in range(20):
        poison = [torch.full((size,), torch.nan, device=DEVICE.name) for size in (16, 1000, 10_000, 1 << 20)]
        del poison
        assert torch.equal(moo.aggregate(rows, "mgda"), expected)


def test_bits_are_the_same_in_every_run() -> None:
    rows = torch.randn(8, DEVICE.pick(1_000_003, dry=3001), device=DEVICE.name)
    first = moo.gramian(rows)
    assert all(torch.equal(moo.gramian(rows), first) for _ in range(20))
