"""PCGrad against its algorithm: orders, draws, conflicts."""

import itertools
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support import reference as ref
from tests.support.problems import SIZES, families, gram_of, problems, solve, spread, weights, wide
from tests.support.reference import EPSILON

pytestmark = pytest.mark.device

Random = np.random.Generator


def orders_of(rng: Random, k: int) -> list[list[int]]:
    return [[int(j) for j in rng.permutation(k)] for _ in range(k)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@families
def test_pcgrad_against_the_algorithm(rng: Random, family: str, reduction: Any) -> None:
    for problem in problems(rng, family, sizes=(1, 2, 3, 5, 8, 16)):
        if not problem.on.size:
            continue
        orders = orders_of(rng, len(problem.rows))
        w, certificate = solve(problem.gram, moo.PCGrad(reduction, orders))
        assert certificate == 0
        expected = ref.weights(problem.rows, "pcgrad", orders=orders, reduction=reduction)
        norms = np.linalg.norm(problem.rows, axis=1)
        # Whether a product that is rounding noise counts as negative is anybody's guess, and does not matter: the
        # projection moves the update by that noise. So what each objective contributes is compared, not its weight.
        error = np.abs(w - expected) * norms / (norms.max() * len(norms))
        assert error.max() <= 1e-9, f"{problem.label}: {error.max():.2e}"


@families
def test_pcgrad_permutation(rng: Random, family: str) -> None:
    """w(PGP') = P w, if the orders are permuted and renamed too."""
    for problem in problems(rng, family, sizes=(2, 3, 5, 8, 64), repeat=1):
        k = len(problem.rows)
        orders = orders_of(rng, k)
        w = weights(problem.gram, moo.PCGrad(permutation=orders))
        moved = rng.permutation(k)  # objective moved[i] becomes objective i
        name = np.argsort(moved)
        renamed = [[int(name[j]) for j in orders[i]] for i in moved]
        permuted = weights(problem.gram[np.ix_(moved, moved)], moo.PCGrad(permutation=renamed))
        norms = np.sqrt(np.diagonal(problem.gram))
        assert (np.abs(permuted - w[moved]) * norms[moved]).max() <= 1e-12 * k * max(norms.max(), 1e-300), problem.label


def test_pcgrad_of_two(rng: Random) -> None:
    """Equal to UPGrad: both are the mean of the projections on the other's half-space; no conflict is left."""
    for _ in range(300):
        rows = spread(rng, rng.standard_normal((2, 3)), 4)
        gram = gram_of(rows)
        w = weights(gram, "pcgrad", step=int(rng.integers(1 << 40)))
        overlap = min(gram[0, 1], 0.0)
        assert w == pytest.approx([0.5 - 0.5 * overlap / gram[0, 0], 0.5 - 0.5 * overlap / gram[1, 1]], rel=1e-12)
        product = gram @ w
        assert (product >= -8 * EPSILON * np.sqrt(np.diagonal(gram)) * (w @ np.sqrt(np.diagonal(gram)))).all()


def test_pcgrad_without_conflict_is_the_mean(rng: Random) -> None:
    for k in SIZES:
        gram = gram_of(np.abs(wide(rng, k)))
        np.testing.assert_allclose(weights(gram, "pcgrad"), np.full(k, 1 / k), rtol=4 * EPSILON)
        assert np.array_equal(weights(gram, moo.PCGrad("sum")), np.ones(k))
        diagonal = np.diag(rng.random(k) + 0.1)
        np.testing.assert_allclose(weights(diagonal, "pcgrad"), np.full(k, 1 / k), rtol=4 * EPSILON)


def test_pcgrad_draws_every_order_and_no_other(rng: Random) -> None:
    rows = np.eye(3) - 0.5 + 0.03 * rng.standard_normal((3, 3))  # all conflict
    gram = gram_of(rows)
    assert (gram[np.triu_indices(3, 1)] < 0).all()
    choices = [list(itertools.permutations([j for j in range(3) if j != i])) for i in range(3)]
    possible = {tuple(np.round(ref.pcgrad(rows, orders), 9)) for orders in itertools.product(*choices)}
    assert len(possible) == 8
    drawn = [tuple(np.round(weights(gram, "pcgrad", seed=s, step=t), 9)) for s in range(16) for t in range(16)]
    assert set(drawn) == possible  # missing one of 8 in 256 draws: 1e-14


def test_pcgrad_depends_on_seed_step_and_place(rng: Random) -> None:
    rows = rng.standard_normal((6, 9))
    gram = gram_of(rows - 0.9 * rows.mean(0))
    assert len({weights(gram, "pcgrad", seed=s).tobytes() for s in range(8)}) > 4
    assert len({weights(gram, "pcgrad", step=t).tobytes() for t in range(8)}) > 4
    assert np.array_equal(weights(gram, "pcgrad"), weights(gram, "pcgrad", seed=0, step=0))
    last = 2**64 - 1
    assert np.array_equal(weights(gram, "pcgrad", seed=last), weights(gram, "pcgrad", seed=last))
    batch = moo.weights(torch.from_numpy(np.stack([gram] * 8)), "pcgrad", seed=3)
    assert isinstance(batch, torch.Tensor)
    assert np.array_equal(batch[0].numpy(), weights(gram, "pcgrad", seed=3))
    assert len({w.numpy().tobytes() for w in batch}) > 4


def test_pcgrad_may_conflict_for_three(rng: Random) -> None:
    """Documented: it is why there are other methods."""
    for _ in range(1000):
        gram = gram_of(rng.standard_normal((3, 3)))
        if (gram @ weights(gram, "pcgrad") < 0).any():
            return
    raise AssertionError("no conflict left in 1000 random problems")
