"""How fast are the kernels on a CPU, beside torch's matrix products and a copy? One thread, processor time."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from harness import repeats_for, timed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = [
    *((4, n) for n in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)),
    (2, 100_000_000),
    *((k, 1_000_000) for k in (2, 8)),
    *((k, 100_000) for k in (2, 8, 16, 32, 64)),
]
LARGE = 100_000_000  # elements from which on fewer rounds are enough


def per_call(ours: Callable[[], object], reference: Callable[[], object]) -> tuple[Any, Any]:
    """Seconds of one call."""
    times = [
        (timed(call, count), count) for call, count in ((ours, repeats_for(ours)), (reference, repeats_for(reference)))
    ]
    return tuple((lambda run=run, count=count: run() / count) for run, count in times)


def rows_of(k: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """[K, n], the same numbers in every run."""
    torch.set_num_threads(1)
    return torch.randn(k, n, generator=torch.Generator().manual_seed(k)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_gramian(paired: Any, k: int, n: int, dtype: str) -> None:
    """Float64 sums of float32 products, beside a product in the rows' dtype."""

    def make() -> tuple[Any, Any]:
        rows = rows_of(k, n, DTYPES[dtype])
        return per_call(lambda: moo.gramian(rows), lambda: rows @ rows.T)

    paired(f"gramian[{dtype},K={k},n={n}]", "torch's rows @ rows.T", make, rounds=3 if n >= LARGE else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_combine(paired: Any, k: int, n: int, dtype: str) -> None:
    """The weighted sum."""

    def make() -> tuple[Any, Any]:
        rows, weights = rows_of(k, n, DTYPES[dtype]), torch.full((k,), 1 / k)
        coefficients = weights.to(rows.dtype)
        return per_call(lambda: moo.combine(rows, weights), lambda: coefficients @ rows)

    paired(f"combine[{dtype},K={k},n={n}]", "torch's weights @ rows", make, rounds=3 if n >= LARGE else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [100_000, 10_000_000, 100_000_000])
def test_sketch(paired: Any, n: int, dtype: str) -> None:
    """16384 columns, beside a copy of the row."""

    def make() -> tuple[Any, Any]:
        row = rows_of(1, n, DTYPES[dtype])
        out = torch.empty_like(row)
        return per_call(lambda: moo.sketch(row), lambda: out.copy_(row))

    paired(f"sketch[{dtype},n={n}]", "a copy", make, rounds=3 if n >= LARGE else None)
