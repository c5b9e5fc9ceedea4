"""How fast are solves and steps of one process beside TorchJD's of the same name? `make bench-peer` installs TorchJD.

Gramians are those of K Gaussian gradients of 2K + 3 elements, float64, 16 of them in turn. Ours are single calls of
``moo.weights``, the checks in Python included. Theirs are the public weightings; NashMTL and ConFIG take the Jacobian
and have none, so there the Jacobian is given and, for ConFIG, its product with the weights is in the time.
"""

import itertools
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from harness import timed
from test_kernels import per_call
from workloads import Steps, loss_of, one_process, transformer

autojac = pytest.importorskip("torchjd.autojac", reason="TorchJD is not installed: make bench-peer")
peer = pytest.importorskip("torchjd.aggregation")

POOL = 16
# Ours; whether theirs takes Jacobians; and how it is made for K objectives, with options like ours.
METHODS: dict[str, tuple[Callable[[], Any], bool, Callable[[int], Any]]] = {
    "Mean": (moo.Mean, False, lambda k: peer.MeanWeighting()),
    "MGDA": (moo.MGDA, False, lambda k: peer.MGDAWeighting()),
    "CAGrad": (moo.CAGrad, False, lambda k: peer.CAGradWeighting(c=0.4)),
    "PCGrad": (moo.PCGrad, False, lambda k: peer.PCGradWeighting()),
    "UPGrad": (moo.UPGrad, False, lambda k: peer.UPGradWeighting()),
    "DualProj": (moo.DualProj, False, lambda k: peer.DualProjWeighting()),
    "IMTLG": (moo.IMTLG, False, lambda k: peer.IMTLGWeighting()),
    "AlignedMTL": (moo.AlignedMTL, False, lambda k: peer.AlignedMTLWeighting()),
    "NashMTL": (moo.NashMTL, True, lambda k: peer.NashMTL(n_tasks=k).weighting),
    "FairGrad": (moo.FairGrad, False, lambda k: peer.FairGradWeighting(alpha=1.0)),
    "ConFIG": (moo.ConFIG, True, lambda k: peer.ConFIG()),
    "GradVac": (moo.GradVac, False, lambda k: peer.GradVacWeighting()),
    "Krum": (moo.Krum, False, lambda k: peer.KrumWeighting(n_byzantine=0)),
}


@pytest.mark.parametrize("k", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("name", METHODS)
def test_solve(paired: Any, name: str, k: int) -> None:
    """One call a Gramian, one thread."""
    if name == "Krum" and k < 3:
        pytest.skip("TorchJD's Krum needs three objectives")
    ours, takes_jacobian, theirs = METHODS[name]

    def make() -> tuple[Any, Any]:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        rows = torch.from_numpy(np.random.default_rng(k).standard_normal((POOL, k, 2 * k + 3)))
        gramians = itertools.cycle((rows @ rows.mT).unbind())
        given = itertools.cycle((rows if takes_jacobian else rows @ rows.mT).unbind())
        method, weighting = ours(), theirs(k)
        return per_call(lambda: moo.weights(next(gramians), method), lambda: weighting(next(given)))

    paired(f"peer[solve,{name},K={k}]", "TorchJD", make, rounds=5)


def torchjd(k: int) -> Steps:
    """A step whose backward pass gets all losses at once."""
    model = transformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        autojac.backward([loss_of(model, number) for number in range(k)])
        autojac.jac_to_grad(model.parameters(), peer.MGDA())
        optimizer.step()

    return Steps(step, None)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_step_of_one_process(paired: Any, k: int) -> None:
    """A forward and a backward pass for each objective, MGDA, SGD."""

    def make() -> tuple[Any, Any]:
        torch.set_num_threads(1)
        return timed(one_process(k, "exact").step), timed(torchjd(k).step)

    paired(f"peer[one process,K={k}]", "TorchJD", make, rounds=4)
