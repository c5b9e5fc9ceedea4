"""Our methods against TorchJD 0.18, where its results are right, and by the properties that it documents.

`make peer-test` runs this. Without TorchJD (requirements/peer.txt) everything here is skipped. Gramians are well
conditioned and of unit scale here: TorchJD's solvers have absolute thresholds, ridges and iteration limits that show on
others, see docs/accuracy.md.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    from torchjd.linalg import QuadprogProjector

pytestmark = pytest.mark.filterwarnings("ignore")  # of CVXPY and its solvers

SIZES = (2, 3, 5, 8, 16, 32)
Draw = Callable[[int], Tensor]


@pytest.fixture
def draw(rng: np.random.Generator) -> Draw:
    """A [K, 2K+3] float64 Jacobian with a common component of random size: some pairs conflict, some do not."""

    def jacobian(k: int) -> Tensor:
        n = 2 * k + 3
        rows = rng.standard_normal((k, n)) + rng.uniform(0.0, 0.5) * rng.standard_normal(n)
        return torch.from_numpy(rows) / np.sqrt(n)

    return jacobian


def solve(jacobian: Tensor, method: Any) -> Tensor:
    solved = moo.weights(jacobian @ jacobian.T, method)
    assert isinstance(solved, Tensor)
    return solved


def update(jacobian: Tensor, method: Any) -> Tensor:
    return solve(jacobian, method) @ jacobian


def assert_same(ours: Tensor, theirs: Tensor, relative: float) -> None:
    error = (ours - theirs).norm() / theirs.norm()
    assert error <= relative, f"relative difference {error:.1e}"


# ---------------------------------------------------------------------------------------------------- the same results


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["UPGrad", "DualProj"])
def test_projections(draw: Draw, rng: np.random.Generator, name: str, weighted: bool, k: int) -> None:
    preference = rng.uniform(0.2, 1.0, k)
    preference /= preference.sum()
    ours = getattr(moo, name)(preference=tuple(preference.tolist()) if weighted else None)
    theirs = getattr(peer, f"{name}Weighting")(
        torch.from_numpy(preference) if weighted else None, projector=QuadprogProjector(norm_eps=0.0, reg_eps=0.0)
    )
    for _ in range(5):
        jacobian = draw(k)
        assert_same(solve(jacobian, ours), theirs(jacobian @ jacobian.T), 1e-9)


@pytest.mark.parametrize("c", [0.2, 0.4, 0.9, 1.5])
@pytest.mark.parametrize("k", SIZES)
def test_cagrad(draw: Draw, k: int, c: float) -> None:
    jacobian = draw(k)
    theirs = peer.CAGradWeighting(c=c, norm_eps=0.0)(jacobian @ jacobian.T) @ jacobian
    assert_same(update(jacobian, moo.CAGrad(c=c)), theirs, 2e-3)  # an interior point method stops at about 1e-8 of F


@pytest.mark.parametrize("k", SIZES)
def test_mgda(draw: Draw, k: int) -> None:
    """Frank-Wolfe comes near slowly and from above."""
    jacobian = draw(k)
    ours = update(jacobian, moo.MGDA()).square().sum()
    theirs = (peer.MGDAWeighting(epsilon=1e-7, max_iters=5000)(jacobian @ jacobian.T) @ jacobian).square().sum()
    assert ours <= theirs * (1 + 1e-12)
    assert theirs <= ours + 2e-3 * jacobian.square().sum() / k


@pytest.mark.parametrize("k", SIZES)
def test_imtlg(draw: Draw, k: int) -> None:
    jacobian = draw(k)
    assert_same(solve(jacobian, moo.IMTLG()), peer.IMTLGWeighting()(jacobian @ jacobian.T), 1e-8)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize(("ours", "theirs"), [("min", "min"), ("median", "median"), ("mean", "rmse")])
def test_aligned_mtl(draw: Draw, ours: str, theirs: str, k: int) -> None:
    jacobian = draw(k)
    expected = peer.AlignedMTLWeighting(scale_mode=theirs)(jacobian @ jacobian.T)
    assert_same(solve(jacobian, moo.AlignedMTL(scale_mode=ours)), expected, 1e-9)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_config(draw: Draw, rng: np.random.Generator, weighted: bool, k: int) -> None:
    jacobian = draw(k)
    preference = rng.uniform(0.2, 1.0, k)
    ours = moo.ConFIG(preference=tuple(preference.tolist()) if weighted else None)
    theirs = peer.ConFIG(torch.from_numpy(preference) if weighted else None)
    assert_same(update(jacobian, ours), theirs(jacobian), 1e-8)


@pytest.mark.parametrize("k", SIZES)
def test_pcgrad(draw: Draw, random_seed: int, k: int) -> None:
    jacobian = draw(k)
    torch.manual_seed(random_seed)
    permutation = [torch.randperm(k).tolist() for _ in range(k)]
    torch.manual_seed(random_seed)
    theirs = peer.PCGradWeighting()(jacobian @ jacobian.T)
    assert_same(solve(jacobian, moo.PCGrad(reduction="sum", permutation=permutation)), theirs, 1e-10)


@pytest.mark.parametrize("k", SIZES)
def test_gradvac_first_step(draw: Draw, random_seed: int, k: int) -> None:
    jacobian = draw(k)
    torch.manual_seed(random_seed)
    permutation = []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        permutation.append([i] + [others[place] for place in torch.randperm(k - 1).tolist()])
    torch.manual_seed(random_seed)
    theirs = peer.GradVacWeighting(eps=0.0)(jacobian @ jacobian.T)
    assert_same(k * solve(jacobian, moo.GradVac(permutation=permutation)), theirs, 1e-9)


@pytest.mark.parametrize("k", [5, 8, 16, 32])
def test_krum_leaves_out_the_outliers(draw: Draw, k: int) -> None:
    """TorchJD adds distances, the paper (and we) their squares: the same objectives where the choice is clear."""
    jacobian = draw(k)
    outliers = max(1, (k - 3) // 4)
    jacobian[:outliers] += 100.0
    theirs = peer.KrumWeighting(n_byzantine=outliers, n_selected=k - outliers)(jacobian @ jacobian.T)
    assert_same(solve(jacobian, moo.Krum(n_byzantine=outliers, n_selected=k - outliers)), theirs, 1e-15)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [2, 3, 5, 8, 16])
def test_fairgrad(draw: Draw, k: int, alpha: float) -> None:
    """Least squares stop at about 1e-8 of the residual: ours is nearer to the equation, theirs is near ours."""
    jacobian = draw(k)
    gramian = jacobian @ jacobian.T
    ours = solve(jacobian, moo.FairGrad(alpha=alpha))
    theirs = peer.FairGradWeighting(alpha=alpha)(gramian)

    def residual(w: Tensor) -> float:
        return float((gramian @ w * w ** (1 / alpha) - 1).abs().max())

    assert residual(ours) <= min(1e-8, residual(theirs) + 1e-12)
    if residual(theirs) < 1e-3:
        assert_same(ours, theirs, 1e-2)


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_nash_mtl(draw: Draw, k: int) -> None:
    """TorchJD stops after 20 convex problems: ours is nearer to the equation, theirs is near ours when it is solved."""
    jacobian = draw(k)
    gramian = jacobian @ jacobian.T
    ours = solve(jacobian, moo.NashMTL(max_norm=math.inf))
    theirs = peer.NashMTL(n_tasks=k, max_norm=0.0).weighting(jacobian)
    theirs = theirs * (k / (theirs @ gramian @ theirs)).sqrt()  # its scale is that of a normalised Gramian

    def residual(w: Tensor) -> float:
        return float((gramian @ w * w - 1).abs().max())

    assert residual(ours) <= 1e-8
    assert residual(ours) <= residual(theirs) + 1e-12
    if residual(theirs) < 1e-3:
        assert_same(ours, theirs, 1e-2)


# ------------------------------------------------------------------------------------- the properties TorchJD documents

NON_CONFLICTING = ["MGDA", "UPGrad", "DualProj", "CAGrad, c = 1", "CAGrad, c = 2"]
LINEAR_UNDER_SCALING = ["Mean", "UPGrad", "ConFIG"]
STRONGLY_STATIONARY = ["Mean", "UPGrad", "DualProj"]
ORDERED = ["PCGrad", "GradVac", "Adasum"]  # depend on an order of the objectives


def methods() -> dict[str, Any]:
    plain = ("Mean", "MGDA", "PCGrad", "UPGrad", "DualProj", "IMTLG", "AlignedMTL", "NashMTL", "FairGrad", "ConFIG")
    made = {name: getattr(moo, name)() for name in (*plain, "GradVac", "Adasum")}
    made["Krum"] = moo.Krum(n_byzantine=1)
    return made | {f"CAGrad, c = {c}": moo.CAGrad(c=c) for c in (0.4, 1, 2)}


NAMES = sorted(methods())


def weakly_stationary(rng: np.random.Generator, k: int) -> Tensor:
    """Some positive combination of half of the rows vanishes, and none of all."""
    half = max(2, k // 2)
    rows = rng.standard_normal((k, 2 * k + 3))
    rows[half - 1] = -(rng.uniform(0.1, 1.0, half - 1) @ rows[: half - 1])
    rows[half:] += 3.0 * rng.standard_normal(2 * k + 3)
    return torch.from_numpy(rows)


@pytest.mark.parametrize("k", [*SIZES, 64])
@pytest.mark.parametrize("name", NAMES)
def test_structure(draw: Draw, name: str, k: int) -> None:
    for scale in (0.0, 1e-10, 1.0, 1e10, 1e100):
        weights = solve(scale * draw(k), methods()[name])
        assert weights.shape == (k,)
        assert weights.isfinite().all()


@pytest.mark.parametrize("k", [*SIZES, 64])
@pytest.mark.parametrize("name", NON_CONFLICTING)
def test_non_conflicting(draw: Draw, rng: np.random.Generator, name: str, k: int) -> None:
    for jacobian in (draw(k), weakly_stationary(rng, k), draw(k)[:, : max(1, k // 3)]):
        weights = solve(jacobian, methods()[name])
        size = weights.abs() @ jacobian.norm(dim=1)
        assert (jacobian @ (weights @ jacobian) >= -1e-9 * jacobian.norm(dim=1) * size).all()


@pytest.mark.parametrize("k", [*SIZES, 64])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ORDERED])
def test_permutation_invariant(draw: Draw, rng: np.random.Generator, name: str, k: int) -> None:
    if name == "Krum" and k <= 3:
        pytest.skip("every pair has the same score")
    jacobian = draw(k)
    expected = update(jacobian, methods()[name])
    for _ in range(3):
        order = torch.from_numpy(rng.permutation(k))
        assert_same(update(jacobian[order], methods()[name]), expected, 1e-9)


@pytest.mark.parametrize("k", [*SIZES, 64])
@pytest.mark.parametrize("name", LINEAR_UNDER_SCALING)
def test_linear_under_scaling(draw: Draw, rng: np.random.Generator, name: str, k: int) -> None:
    jacobian = draw(k)
    for _ in range(3):
        c, e = (torch.from_numpy(rng.uniform(0.1, 1.0, k)) for _ in range(2))
        alpha, beta = rng.uniform(0.1, 1.0, 2)
        parts = [update(scale.unsqueeze(1) * jacobian, methods()[name]) for scale in (c, e)]
        whole = update((alpha * c + beta * e).unsqueeze(1) * jacobian, methods()[name])
        assert_same(whole, alpha * parts[0] + beta * parts[1], 1e-9)


@pytest.mark.parametrize("k", [4, 5, 8, 16, 32, 64])
@pytest.mark.parametrize("name", STRONGLY_STATIONARY)
def test_zero_only_where_strongly_stationary(rng: np.random.Generator, name: str, k: int) -> None:
    jacobian = weakly_stationary(rng, k)
    size = jacobian.norm(dim=1).mean()
    assert update(jacobian, moo.MGDA()).norm() <= 1e-7 * size  # weakly stationary it is
    assert update(jacobian, methods()[name]).norm() >= 1e-3 * size
