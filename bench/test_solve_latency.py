"""Time to solve one Gramian: every method, beside TorchJD's of the same name, on one CPU thread.

`make bench-solve` runs this and renders the table (render_latency.py). Per method and K, all in one run:

- single: ``moo.weights(gramian, method)``, one call a Gramian, the checks in Python included;
- batched: ``moo.weights`` of a [B, K, K] batch, time over B: the solver itself;
- torchjd: TorchJD's public weighting of the same Gramian (NashMTL and ConFIG take the Jacobian and have no weighting of
  their own: there the Jacobian is given and, for ConFIG, its product with the weights is in the time).

Gramians are those of K Gaussian gradients of 2K + 3 elements, float64, 16 different ones in turn. The timer is the CPU
time of the process, because the machine may be shared.
"""

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchjd.aggregation as peer
except ImportError:
    peer = None

SIZES = (2, 4, 8, 16, 32, 64)
BATCH = 1000
POOL = 16

OURS: dict[str, Callable[[], Any]] = {
    "Mean": moo.Mean,
    "MGDA": moo.MGDA,
    "CAGrad": moo.CAGrad,
    "PCGrad": moo.PCGrad,
    "UPGrad": moo.UPGrad,
    "DualProj": moo.DualProj,
    "IMTLG": moo.IMTLG,
    "AlignedMTL": moo.AlignedMTL,
    "NashMTL": moo.NashMTL,
    "FairGrad": moo.FairGrad,
    "ConFIG": moo.ConFIG,
    "GradVac": moo.GradVac,
    "Krum": moo.Krum,
    "Adasum": moo.Adasum,
}
# Whether it takes Jacobians, and how it is made for K objectives, with options like ours.
THEIRS: dict[str, tuple[bool, Callable[[int], Any]]] = {
    "Mean": (False, lambda k: peer.MeanWeighting()),
    "MGDA": (False, lambda k: peer.MGDAWeighting()),
    "CAGrad": (False, lambda k: peer.CAGradWeighting(c=0.4)),
    "PCGrad": (False, lambda k: peer.PCGradWeighting()),
    "UPGrad": (False, lambda k: peer.UPGradWeighting()),
    "DualProj": (False, lambda k: peer.DualProjWeighting()),
    "IMTLG": (False, lambda k: peer.IMTLGWeighting()),
    "AlignedMTL": (False, lambda k: peer.AlignedMTLWeighting()),
    "NashMTL": (True, lambda k: peer.NashMTL(n_tasks=k).weighting),
    "FairGrad": (False, lambda k: peer.FairGradWeighting(alpha=1.0)),
    "ConFIG": (True, lambda k: peer.ConFIG()),
    "GradVac": (False, lambda k: peer.GradVacWeighting()),
    "Krum": (False, lambda k: peer.KrumWeighting(n_byzantine=0)),
}

pytestmark = pytest.mark.filterwarnings("ignore")  # of CVXPY and its solvers


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def jacobians(k: int, count: int) -> torch.Tensor:
    """[count, k, 2k + 3], the same in every run."""
    return torch.from_numpy(np.random.default_rng(k).standard_normal((count, k, 2 * k + 3)))


def measure(benchmark: Any, kind: str, name: str, k: int, call: Callable[[], Any], per_call: int = 1) -> None:
    """Runs `call`, which solves `per_call` Gramians, for about 0.3 s."""
    benchmark.group = f"{name} K={k}"
    benchmark.extra_info.update(kind=kind, method=name, k=k, solves_per_call=per_call)
    call()
    start = time.process_time()
    call()
    once = max(time.process_time() - start, 1e-6)
    # A round is every Gramian of the pool at least once, or one call if that is slow; 5 to 50 rounds.
    iterations = max(POOL, round(3e-3 / once)) if once < 2e-4 else 1
    rounds = min(50, max(5, round(0.3 / (once * iterations))))
    benchmark.pedantic(call, iterations=iterations, rounds=rounds)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("name", OURS)
def test_single(benchmark: Any, name: str, k: int) -> None:
    """One call a Gramian."""
    rows = jacobians(k, POOL)
    pool = itertools.cycle((rows @ rows.mT).unbind())
    method = OURS[name]()
    measure(benchmark, "single", name, k, lambda: moo.weights(next(pool), method))


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("name", OURS)
def test_batched(benchmark: Any, name: str, k: int) -> None:
    """One call for many."""
    rows = jacobians(k, BATCH)
    batch = rows @ rows.mT
    method = OURS[name]()
    measure(benchmark, "batched", name, k, lambda: moo.weights(batch, method), BATCH)


@pytest.mark.skipif(peer is None, reason="TorchJD is not installed")
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("name", THEIRS)
def test_torchjd(benchmark: Any, name: str, k: int) -> None:
    """TorchJD, one call a Gramian."""
    if name == "Krum" and k < 3:
        pytest.skip("Krum needs three objectives")
    rows = jacobians(k, POOL)
    takes_jacobian, make = THEIRS[name]
    pool = itertools.cycle((rows if takes_jacobian else rows @ rows.mT).unbind())
    weighting = make(k)
    measure(benchmark, "torchjd", name, k, lambda: weighting(next(pool)))
