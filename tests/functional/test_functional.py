"""moo.gramian, weights, combine and aggregate against the reference.

Tolerances: see `gramian_error` and `combination_error` in reference.py, which derive them from design.md section 6.
"""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import reference as ref
from tests.support.checks import raw

pytestmark = pytest.mark.device

SIZES = [0, 1, 15, 17, 1023, 1025, 4099]
LARGE = 100_003


def shapes() -> list[tuple[int, int]]:
    """K and n."""
    everything = [(k, n) for k in (*range(1, 9), 33, 64) for n in SIZES]
    return [*everything, (1, LARGE), (3, LARGE), (8, LARGE)]


def draw(rng: np.random.Generator, k: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((k, n))).to(dtype)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_gramian(rng: np.random.Generator, dtype: torch.dtype) -> None:
    for k, n in shapes():
        rows = draw(rng, k, n, dtype)
        values = ref.float64(rows)
        got = moo.gramian(rows)
        assert got.dtype == torch.float64
        assert got.shape == (k, k)
        assert torch.equal(got, got.T)
        error = np.abs(got.numpy() - ref.gramian(values))
        assert (error <= ref.gramian_error(np.linalg.norm(values, axis=1), dtype)).all(), (k, n)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_gramian_of_long_constant_rows(dtype: torch.dtype) -> None:
    """Where a single float32 accumulator would lose 1e-3, sums over short runs lose nothing to speak of."""
    rows = torch.full((2, 1 << 20), 0.1, dtype=dtype)
    exact = float(rows[0, 0].double() ** 2) * (1 << 20)
    assert (moo.gramian(rows) / exact - 1).abs().max() < 6e-7


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_combine(rng: np.random.Generator, dtype: torch.dtype) -> None:
    for k, n in shapes():
        rows = draw(rng, k, n, dtype)
        w = rng.standard_normal(k) / k
        w[rng.random(k) < 0.2] = 0
        got = moo.combine(rows, w)
        assert got.dtype == dtype
        assert got.shape == (n,)
        values = ref.float64(rows)
        error = np.abs(ref.float64(got) - ref.combine(values, w))
        assert (error <= ref.combination_error(values, w, dtype)).all(), (k, n)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("method", ["mean", "mgda", "cagrad", "pcgrad"])
def test_aggregate(rng: np.random.Generator, method: str, dtype: torch.dtype) -> None:
    for k, n in [(1, 17), (2, 1025), (3, 4099), (5, 4099)]:
        rows = draw(rng, k, n, dtype)
        got = moo.aggregate(rows, method, seed=3, step=4)
        w = moo.weights(moo.gramian(rows), method, seed=3, step=4)
        assert raw(got) == raw(moo.combine(rows, w))
        if method == "pcgrad" and k > 2:
            continue  # its order is drawn
        values = ref.float64(rows)
        options = {"orders": [[0, 1], [0, 1]][:k]} if method == "pcgrad" else {}
        expected = ref.weights(values, method, **options)
        # Random rows are nearly orthogonal: weights are as good as the Gramian, up to a small condition number.
        delta = ref.gramian_error(np.ones(k), dtype).max()
        assert np.abs(w.numpy() - expected).max() <= 1000 * delta + 1e-7
        allowed = ref.combination_error(values, expected, dtype)
        allowed = allowed + np.abs(w.numpy() - expected) @ np.abs(values)
        assert (np.abs(ref.float64(got) - ref.combine(values, expected)) <= allowed).all()


# ------------------------------------------------------------------------------ ways to hand over rows


class OnlyDLPack:
    """Speaks DLPack and nothing else."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.tensor.__dlpack_device__()


def numpy_rows(rows: torch.Tensor) -> Any:
    return OnlyDLPack(rows) if rows.dtype == torch.bfloat16 else rows.numpy()


def strided(rows: torch.Tensor) -> torch.Tensor:
    wide = torch.full((rows.shape[0], 3 * rows.shape[1]), torch.nan, dtype=rows.dtype)
    wide[:, 1::3] = rows
    return wide[:, 1::3]


WAYS: dict[str, Callable[[torch.Tensor], Any]] = {
    "list": lambda rows: [row.clone() for row in rows],
    "tuple": lambda rows: tuple(rows),
    "transposed": lambda rows: rows.T.contiguous().T,
    "strided": strided,
    "reversed twice": lambda rows: rows.flip(0).flip(0),
    "not adjacent": lambda rows: torch.stack([rows, rows], 1).reshape(-1, rows.shape[1])[::2],
    "requires grad": lambda rows: rows.clone().requires_grad_(),
    "numpy": numpy_rows,
    "numpy rows": lambda rows: [numpy_rows(row) for row in rows],
    "DLPack": OnlyDLPack,
    "DLPack rows": lambda rows: [OnlyDLPack(row) for row in rows],
    "unaligned": lambda rows: [torch.cat([row[:1], row])[1:] for row in rows],
}


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_rows_come_in_many_ways(rng: np.random.Generator, way: str, dtype: torch.dtype) -> None:
    for k, n in [(1, 1), (3, 17), (5, 1025)]:
        rows = draw(rng, k, n, dtype)
        given = WAYS[way](rows)
        w = rng.random(k)
        assert raw(moo.gramian(given)) == raw(moo.gramian(rows))
        assert raw(moo.sketch(given, 64, seed=k)) == raw(moo.sketch(rows, 64, seed=k))
        if way.startswith(("DLPack", "numpy")) and "rows" not in way:
            before = raw(rows)
        combined = moo.combine(given, w)
        assert raw(combined) == raw(moo.combine(rows, w))
        assert combined.shape == (n,)
        assert not combined.requires_grad
        if way.startswith(("DLPack", "numpy")) and "rows" not in way:
            assert raw(rows) == before, "rows are only read"


def test_tensors_of_any_shape(rng: np.random.Generator) -> None:
    rows = [torch.from_numpy(rng.standard_normal((3, 5, 7))) for _ in range(4)]
    flat = [row.reshape(-1) for row in rows]
    assert torch.equal(moo.gramian(rows), moo.gramian(flat))
    assert torch.equal(moo.sketch(rows, 64), moo.sketch(flat, 64))
    for result in (moo.combine(rows, [0.1, 0.2, 0.3, 0.4]), moo.aggregate(rows)):
        assert result.shape == (3, 5, 7)
    assert torch.equal(moo.aggregate(rows).reshape(-1), moo.aggregate(flat))
    scalars = [torch.tensor(1.0), torch.tensor(-3.0)]
    assert moo.combine(scalars, [0.5, 0.5]).shape == ()
    assert float(moo.combine(scalars, [0.5, 0.5])) == -1.0


def test_weights_come_in_many_ways(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(rng.standard_normal((3, 100)))
    w = rng.standard_normal(3)
    expected = moo.combine(rows, torch.from_numpy(w))
    for given in (w, w.tolist(), tuple(w), torch.tensor(w, requires_grad=True), torch.tensor(np.repeat(w, 2))[::2]):
        assert torch.equal(moo.combine(rows, given), expected)
    single = torch.tensor(w, dtype=torch.float32)
    assert torch.equal(moo.combine(rows, single), moo.combine(rows, single.double()))


def test_read_only_numpy(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((3, 100))
    expected = moo.gramian(rows)
    rows.setflags(write=False)
    assert torch.equal(moo.gramian(rows), expected)
    assert torch.equal(moo.weights(rows[:, :3] @ rows[:, :3].T), moo.weights(rows[:, :3] @ rows[:, :3].T))


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_rows_of_weight_zero_are_not_read(rng: np.random.Generator, dtype: torch.dtype) -> None:
    rows = draw(rng, 3, 1025, dtype)
    rows[1] = torch.nan
    assert torch.equal(moo.combine(rows, [0.25, 0.0, 0.75]), moo.combine(rows[[0, 2]], [0.25, 0.75]))
    assert not moo.combine(rows, [0.0, 0.0, 0.0]).any()
    assert bool(moo.combine(rows, [0.25, 1e-3, 0.75]).isnan().all())


def test_values_at_the_ends_of_the_range() -> None:
    small, large = torch.full((2, 1000), 1e-25), torch.full((2, 1000), 1e25)
    exact = 1000 * float(small[0, 0].double()) ** 2
    assert (moo.gramian(small) / exact - 1).abs().max() < 1e-6  # products underflow in float32
    exact = 1000 * float(large[0, 0].double()) ** 2
    assert (moo.gramian(large) / exact - 1).abs().max() < 1e-6  # and overflow
    tiny = torch.full((1, 40), 2.0**-149)
    assert float(moo.gramian(tiny)) == 40 * 2.0**-298
    w = torch.tensor([1e40, 1e40], dtype=torch.float64)  # not a float32
    assert torch.allclose(moo.combine(small * 1e-10, w), torch.full((1000,), 2e5), rtol=1e-3)
    half = torch.full((1, 3), 60_000.0, dtype=torch.float16)
    assert moo.combine(half, [2.0]).tolist() == [float("inf")] * 3
    assert float(moo.gramian(half)) == 3 * 60_000.0**2


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_nonfinite_rows(rng: np.random.Generator, dtype: torch.dtype) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        for at in (0, 600, 1024):
            rows = draw(rng, 3, 1025, dtype)
            rows[1, at] = bad
            gramian = moo.gramian(rows)
            assert not gramian[1, 1].isfinite()
            assert bool(gramian[[0, 0, 2], [0, 2, 2]].isfinite().all())
            result = moo.aggregate(rows)
            expected = moo.aggregate(rows, "mean")
            assert torch.equal(result, expected) or (torch.isnan(result[at]) and torch.isnan(expected[at]))
            assert not result[at].isfinite()
            assert bool(torch.cat([result[:at], result[at + 1 :]]).isfinite().all())


# ---------------------------------------------------------------------------------- batches of weights


@pytest.mark.parametrize("method", ["mean", "mgda", "cagrad"])
def test_batch(rng: np.random.Generator, method: str) -> None:
    for k in (1, 2, 5, 33, 64):
        rows = rng.standard_normal((6, k, 2 * k))
        batch = torch.from_numpy(rows @ rows.transpose(0, 2, 1))
        w, certificate = moo.weights(batch, method, return_certificate=True)
        assert w.shape == (6, k)
        assert certificate.shape == (6,)
        assert w.dtype == certificate.dtype == torch.float64
        for b in range(6):
            single, its = moo.weights(batch[b], method, return_certificate=True)
            assert single.shape == (k,)
            assert its.shape == ()
            assert torch.equal(w[b], single)
            assert torch.equal(certificate[b], its)
        assert torch.equal(moo.weights(batch, method), w)
        assert torch.equal(moo.weights(batch.numpy(), method), w)
        assert torch.equal(moo.weights(OnlyDLPack(batch), method), w)
        assert torch.equal(moo.weights(batch.transpose(1, 2), method), w)
        wide = torch.stack([batch, batch], 3)[..., 0]
        assert torch.equal(moo.weights(wide, method), w)
        assert moo.weights(batch[:0], method).shape == (0, k)
    single = batch.float()
    assert torch.equal(moo.weights(single, method), moo.weights(single.double(), method))


def test_one_broken_gramian_in_a_batch(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((3, 4, 9))
    batch = torch.from_numpy(rows @ rows.transpose(0, 2, 1))
    expected = moo.weights(batch)
    batch[1, 2, 3] = torch.nan
    w = moo.weights(batch)
    assert torch.equal(w[[0, 2]], expected[[0, 2]])
    assert w[1].tolist() == [0.25] * 4


# --------------------------------------------------------------------------------------- bad arguments

ROWS = torch.ones(2, 3)
SQUARE = torch.eye(3)

# What is called, the error, and words that its message must have: the argument, what was given, what is allowed.
BAD: dict[str, tuple[Callable[[], object], type[Exception], list[str]]] = {
    "text": (lambda: moo.gramian("rows"), TypeError, ["jacobian", "str", "tensor", "DLPack"]),
    "number": (lambda: moo.gramian(3.0), TypeError, ["jacobian", "float", "tensor"]),
    "none": (lambda: moo.aggregate(None), TypeError, ["jacobian", "NoneType", "tensor"]),
    "text in list": (lambda: moo.gramian([ROWS[0], "x"]), TypeError, ["jacobian[1]", "str"]),
    "vector": (lambda: moo.gramian(torch.ones(3)), ValueError, ["jacobian", "(3,)", "[K, n]"]),
    "scalar": (lambda: moo.gramian(torch.tensor(3.0)), ValueError, ["jacobian", "()", "[K, n]"]),
    "cube": (lambda: moo.combine(torch.ones(2, 3, 4), [1, 1]), ValueError, ["jacobian", "(2, 3, 4)", "[K, n]"]),
    "no rows": (lambda: moo.gramian([]), ValueError, ["jacobian", "0", "1 to 64"]),
    "no rows, matrix": (lambda: moo.gramian(torch.ones(0, 5)), ValueError, ["jacobian", "0", "1 to 64"]),
    "65 rows": (lambda: moo.gramian(torch.ones(65, 5)), ValueError, ["jacobian", "65", "1 to 64"]),
    "integers": (lambda: moo.gramian(torch.ones(2, 3, dtype=torch.int64)), TypeError, ["jacobian", "int64", "float32"]),
    "complex": (lambda: moo.gramian(torch.ones(2, 3) * 1j), TypeError, ["jacobian", "complex64", "bfloat16"]),
    "booleans": (lambda: moo.combine(torch.ones(2, 3) > 0, [1, 1]), TypeError, ["jacobian", "bool", "float16"]),
    "two dtypes": (
        lambda: moo.gramian([ROWS[0], ROWS[1].double()]),
        TypeError,
        ["jacobian", "float32", "float64", "row 1"],
    ),
    "two sizes": (lambda: moo.gramian([torch.ones(3), torch.ones(4)]), ValueError, ["jacobian", "3", "4", "row 1"]),
    "devices": (lambda: moo.gramian([ROWS[0], ROWS[1].to("meta")]), ValueError, ["row 0", "cpu", "row 1", "meta"]),
    "sparse": (
        lambda: moo.gramian([ROWS[0].to_sparse(), ROWS[1].to_sparse()]),
        ValueError,
        ["jacobian", "sparse", "dense"],
    ),
    "sparse matrix": (lambda: moo.gramian(ROWS.to_sparse()), ValueError, ["jacobian", "sparse", "dense"]),
    "sketch: text": (lambda: moo.sketch("rows"), TypeError, ["jacobian", "str", "tensor", "DLPack"]),
    "sketch: vector": (lambda: moo.sketch(torch.ones(3)), ValueError, ["jacobian", "(3,)", "[K, n]"]),
    "sketch: no rows": (lambda: moo.sketch([]), ValueError, ["jacobian", "0", "1 to 64"]),
    "sketch: integers": (lambda: moo.sketch(ROWS.int()), TypeError, ["jacobian", "int32", "float32"]),
    "sketch: two dtypes": (lambda: moo.sketch([ROWS[0], ROWS[1].half()]), TypeError, ["jacobian", "float16", "row 1"]),
    "sketch: two sizes": (lambda: moo.sketch([torch.ones(3), torch.ones(4)]), ValueError, ["jacobian", "3", "4"]),
    "width: small": (lambda: moo.sketch(ROWS, 32), ValueError, ["width", "32", "64"]),
    "width: large": (lambda: moo.sketch(ROWS, 2**29), ValueError, ["width", str(2**29), str(2**28)]),
    "width: no power": (lambda: moo.sketch(ROWS, 96), ValueError, ["width", "96", "power of two", "64", "128"]),
    "width: fraction": (lambda: moo.sketch(ROWS, 64.0), TypeError, ["width", "64.0"]),  # type: ignore[call-overload]
    "width: bool": (lambda: moo.sketch(ROWS, True), TypeError, ["width", "True"]),
    "width: text": (lambda: moo.sketch(ROWS, "64"), TypeError, ["width", "'64'"]),  # type: ignore[call-overload]
    "sketch: seed": (lambda: moo.sketch(ROWS, seed=-1), ValueError, ["seed", "-1", "2**64"]),
    "sketch: step": (lambda: moo.sketch(ROWS, step=2**64), ValueError, ["step", str(2**64), "2**64"]),
    "sketch: bucket": (lambda: moo.sketch(ROWS, bucket=1.5), ValueError, ["bucket", "1.5", "integer"]),  # type: ignore[call-overload]
    "weights: too few": (lambda: moo.combine(ROWS, [1.0]), ValueError, ["weights", "(1,)", "[2]"]),
    "weights: too many": (lambda: moo.combine(ROWS, torch.ones(3)), ValueError, ["weights", "(3,)", "[2]"]),
    "weights: matrix": (lambda: moo.combine(ROWS, torch.ones(2, 1)), ValueError, ["weights", "(2, 1)", "[2]"]),
    "gramian: text": (lambda: moo.weights("G"), TypeError, ["gramian", "str"]),
    "gramian: list": (lambda: moo.weights([[1.0]]), TypeError, ["gramian", "list"]),
    "gramian: integers": (lambda: moo.weights(torch.eye(3, dtype=torch.int32)), TypeError, ["gramian", "int32"]),
    "gramian: vector": (lambda: moo.weights(torch.ones(3)), ValueError, ["gramian", "(3,)", "[K, K]"]),
    "gramian: not square": (lambda: moo.weights(torch.ones(3, 2)), ValueError, ["gramian", "(3, 2)", "[K, K]"]),
    "gramian: 4-d": (lambda: moo.weights(torch.ones(1, 1, 2, 2)), ValueError, ["gramian", "(1, 1, 2, 2)", "[B, K, K]"]),
    "gramian: empty": (lambda: moo.weights(torch.ones(0, 0)), ValueError, ["gramian", "K = 0", "64"]),
    "gramian: 65": (lambda: moo.weights(torch.eye(65)), ValueError, ["gramian", "K = 65", "64"]),
    "gramian: complex": (lambda: moo.weights(SQUARE * 1j), TypeError, ["gramian", "complex"]),
    "method: unknown": (lambda: moo.weights(SQUARE, "sgd"), ValueError, ["method", "'sgd'", "mgda", "pcgrad"]),
    "method: class": (lambda: moo.weights(SQUARE, moo.MGDA), TypeError, ["method", "MGDA"]),  # type: ignore[call-overload]
    "method: number": (lambda: moo.aggregate(ROWS, 3), TypeError, ["method", "3", "CAGrad"]),  # type: ignore[call-overload]
    "seed: negative": (lambda: moo.weights(SQUARE, seed=-1), ValueError, ["seed", "-1", "2**64"]),
    "seed: large": (lambda: moo.weights(SQUARE, seed=2**64), ValueError, ["seed", str(2**64), "2**64"]),
    "seed: fraction": (lambda: moo.aggregate(ROWS, seed=1.5), ValueError, ["seed", "1.5", "integer"]),  # type: ignore[call-overload]
    "step: negative": (lambda: moo.weights(SQUARE, step=-3), ValueError, ["step", "-3", "2**64"]),
    "step: bool": (lambda: moo.weights(SQUARE, step=True), ValueError, ["step", "True", "integer"]),
    "permutation: other K": (
        lambda: moo.weights(SQUARE, moo.PCGrad(permutation=[[0, 1], [1, 0]])),
        ValueError,
        ["permutation", "2", "3"],
    ),
    "mean: other K": (lambda: moo.weights(SQUARE, moo.Mean([1.0, 2.0])), ValueError, ["weights", "2", "3"]),
}


@pytest.mark.host
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    call, error, words = BAD[name]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in {message!r}"
