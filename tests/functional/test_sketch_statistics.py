"""moo.sketch: the map itself against the reference, and what docs/sketch.md says of its inner products."""

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import reference as ref
from tests.support.sizes import draws

WORDS = ("seed", "step", "bucket")


def draw_key(rng: np.random.Generator) -> dict[str, int]:
    return {name: int(rng.integers(0, 2**64, dtype=np.uint64)) for name in WORDS}


@pytest.mark.device
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_definition(rng: np.random.Generator, dtype: torch.dtype) -> None:
    """Small integers, whose sums are exact in any order."""
    for n in (0, 1, 63, 64, 65, 100, 4095, 4097, 70_001):
        for width in (64, 128, 1024, 16384):
            key = draw_key(rng)
            values = rng.integers(-8, 9, (3, n)).astype(np.float64)
            got = moo.sketch(torch.from_numpy(values).to(dtype), width, **key)
            assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            expected = np.stack([ref.sketch(row, width, **key) for row in values])
            assert (ref.float64(got) == expected).all(), (n, width, key)


@pytest.mark.device
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_rounding(rng: np.random.Generator, dtype: torch.dtype) -> None:
    """A column has an element of every run, summed 64 runs at a time: an element goes through at most 64 additions in
    its chunk and one for each chunk, each of which rounds the accumulator once, relative to at most the sum of sizes.
    """
    for n in (100, 4097, 70_001, 300_000):
        for width in (64, 1024, 16384):
            key = draw_key(rng)
            rows = torch.from_numpy(rng.standard_normal((2, n))).to(dtype)
            values = ref.float64(rows)
            expected = np.stack([ref.sketch(row, width, **key) for row in values])
            error = np.abs(ref.float64(moo.sketch(rows, width, **key)) - expected)
            runs = -(-n // width)
            accumulator = ref.unit_roundoff(torch.float64 if dtype == torch.float64 else torch.float32)
            roundings = min(runs, 64) + -(-runs // 64)
            if dtype == torch.float64:
                roundings *= 2  # the reference rounds as well, in an order of its own
                roundings += runs
            assert error.max() <= roundings * accumulator * runs * np.abs(values).max(), (n, width, key)


def estimates(rows: np.ndarray, width: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws, K, K]: the Gramians of as many sketches."""
    given, first = torch.from_numpy(rows), int(rng.integers(0, 2**62))
    return np.stack([moo.gramian(moo.sketch(given, width, seed=first + i)).numpy() for i in range(draws)])


def gradients(kind: str, rng: np.random.Generator, k: int, n: int, width: int) -> np.ndarray:
    x = rng.standard_normal((k, n))
    if kind == "heavy":
        x = rng.standard_t(2.5, (k, n))
    elif kind == "constant":
        x = np.ones((k, n))
    elif kind == "periodic":
        x = np.tile(x[:, :width], n // width + 1)[:, :n]
    elif kind == "one residue class":
        x[:, np.arange(n) % width >= 4] = 0
    elif kind == "spikes":  # one element in each of 8 runs, some of which the gradients share
        at = rng.permutation(n // width)[:8] * width + rng.integers(0, width, 8)
        values = x[:, at] + np.sign(x[:, at])
        x = np.zeros((k, n))
        for row, spikes in enumerate(values):
            some = rng.permutation(8)[:5]
            x[row, at[some]] = spikes[some]
    elif kind == "blocks":  # over a border of two runs, and at the same place of other runs
        inside = np.zeros(n, dtype=bool)
        for run in rng.permutation(np.arange(1, n // width))[:6]:
            inside[run * width - 5 : run * width + 7] = True
        x[:, ~inside] = 0
    return x


def variance(x: np.ndarray, width: int) -> np.ndarray:
    """[K, K]: sum over pairs i < j of different runs of (x_i y_j + x_j y_i)^2 / width, that is over all pairs less
    those of one run; terms with i = j are in both."""

    def pairs(part: np.ndarray) -> np.ndarray:
        gram = part @ part.T
        return np.outer(np.diag(gram), np.diag(gram)) + gram**2

    return (pairs(x) - sum(pairs(x[:, at : at + width]) for at in range(0, x.shape[1], width))) / width


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "width"),
    [
        ("normal", 64),
        ("normal", 256),
        ("heavy", 64),
        ("constant", 64),
        ("constant", 256),
        ("periodic", 64),
        ("periodic", 256),
        ("one residue class", 64),
        ("spikes", 64),
        ("blocks", 64),
    ],
)
def test_mean_and_variance(rng: np.random.Generator, kind: str, width: int) -> None:
    """The mean error is within 6 of its standard errors. So is the mean squared error of the exact variance, with a
    standard error from the measured fourth moment: in the sparsest case two elements still meet about 30 times, so
    that what happens rarely has been seen."""
    count = draws(2000, 20_000)
    x = gradients(kind, rng, 2, (64 if width == 64 else 20) * width - 7, width)
    exact, expected = x @ x.T, variance(x, width)
    errors = estimates(x, width, count, rng) - exact
    rounding = ref.gramian_error(np.linalg.norm(x, axis=1), torch.float64)
    assert (np.abs(errors.mean(0)) <= 6 * np.sqrt(expected / count) + rounding).all()
    scatter = np.sqrt((errors**4).mean(0) / count)
    assert (np.abs((errors**2).mean(0) - expected) <= 6 * scatter + rounding**2).all()
    squares = np.diag(exact)
    assert (expected <= (np.outer(squares, squares) + exact**2) / width).all()


@pytest.mark.parametrize("cosine", [0.0, 0.3, -0.7, 0.95, -0.999])
def test_cosine_errors(rng: np.random.Generator, cosine: float) -> None:
    """The rms of 1000 errors near normal is within sqrt(1 / 2000) = 2.2 % of the standard error: 15 % leave room for 6
    of these and for the second order, a few times 1 / width. With 32 runs the bound itself is met up to 2 %."""
    width, draws = 256, 1000
    basis = np.linalg.qr(rng.standard_normal((32 * width, 2)))[0].T
    x = np.stack([basis[0], cosine * basis[0] + np.sqrt(1 - cosine**2) * basis[1]])
    got = estimates(x, width, draws, rng)
    rms = np.sqrt(((got[:, 0, 1] / np.sqrt(got[:, 0, 0] * got[:, 1, 1]) - cosine) ** 2).mean())
    bound = (1 - cosine**2) / np.sqrt(width)
    assert 0.8 * bound <= rms <= 1.15 * bound


@pytest.mark.device
def test_parallel_gradients_have_parallel_sketches(rng: np.random.Generator) -> None:
    x = rng.standard_normal(20_000)
    for got in estimates(np.stack([x, 3 * x, -x]), 64, 20, rng):
        root = np.sqrt(np.diag(got))
        assert np.abs(got / np.outer(root, root) - np.outer([1, 1, -1], [1, 1, -1])).max() < 1e-12


SPANS = ["normal", "heavy", "periodic", "one residue class", "spikes", "blocks"]


def basis_of(x: np.ndarray) -> np.ndarray:
    """Orthonormal rows with the span of x's."""
    return np.linalg.qr(x.T)[0].T


@pytest.mark.nightly
@pytest.mark.parametrize("kind", SPANS)
def test_embedding_bound(rng: np.random.Generator, kind: str) -> None:
    """E ||U'S'SU - I||_F^2 <= (K^2 + K) / p, up to 6 standard errors of its mean over the draws."""
    width, count = 64, draws(1000, 10_000)
    for k in (2, 5):
        basis = basis_of(gradients(kind, rng, k, 64 * width, width))
        squares = ((estimates(basis, width, count, rng) - np.eye(k)) ** 2).sum((1, 2))
        assert squares.mean() <= (k * k + k) / width + 6 * squares.std() / np.sqrt(count)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("kind", SPANS)
def test_mgda_keeps_its_guarantee(rng: np.random.Generator, kind: str) -> None:
    """In every draw, whatever it is. With d solved from the sketch, <Sg_k, Sd> >= |Sd|^2, and S changes the inner
    products of the span by at most eps times the norms."""
    width, seen, count = 256, 0, draws(30, 300)
    for draw in range(count):
        k = int(rng.integers(2, 9))
        x = gradients(kind, rng, k, 64 * width, width)
        x = x + rng.uniform(-1, 1) * x[:1]
        x *= 10 ** rng.uniform(-1, 1, (k, 1))
        sketches = [moo.sketch(torch.from_numpy(rows), width, seed=draw) for rows in (x, basis_of(x))]
        eps = np.linalg.norm(moo.gramian(sketches[1]).numpy() - np.eye(k), 2)
        w = moo.weights(moo.gramian(sketches[0])).numpy()
        d = w @ x
        square, norms = d @ d, np.linalg.norm(x, axis=1)
        slack = 1e-8 * (norms**2).mean()  # the solver's residual is at most 1e-9 of this, and rounding less
        assert (x @ d >= (1 - eps) * square - eps * norms * np.sqrt(square) - slack).all(), draw
        if eps < 0.9:
            best = ref.min_norm_point(x) @ x
            assert square <= (1 + eps) / (1 - eps) * (best @ best) + slack / (1 - eps), draw
            seen += 1
    assert seen >= count // 2, "the embedding is good more often than not"


@pytest.mark.device
def test_key(rng: np.random.Generator) -> None:
    """The same draw for the same key, another for another seed, step or bucket."""
    rows, key = torch.from_numpy(rng.standard_normal((1, 5000))), draw_key(rng)
    first = moo.sketch(rows, 64, **key)
    assert torch.equal(first, moo.sketch(rows, 64, **key))
    for name in WORDS:
        assert not torch.equal(first, moo.sketch(rows, 64, **{**key, name: key[name] ^ 1}))


@pytest.mark.device
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_zero_and_non_finite(rng: np.random.Generator, value: float) -> None:
    rows = torch.zeros(2, 5000)
    rows[1, int(rng.integers(5000))] = value
    got = moo.sketch(rows, 64, **draw_key(rng))
    assert (got[0] == 0).all()
    assert not got[1].isfinite().all()


def test_errors() -> None:
    rows = torch.zeros(2, 100)
    for width in (0, 32, 96, 2**29):
        with pytest.raises(ValueError, match="width"):
            moo.sketch(rows, width)
    for name in WORDS:
        for word in (-1, 2**64):
            with pytest.raises(ValueError, match=name):
                moo.sketch(rows, 64, **{name: word})
