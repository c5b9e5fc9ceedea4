"""TorchJD's weightings and aggregators with our solvers inside.

Every class here derives from TorchJD's class of the same name and replaces ``forward`` alone: options, checks, names
and representations stay TorchJD's. ``install()`` puts them in the places of TorchJD's, so that code which imports
``torchjd.aggregation`` afterwards, TorchJD's own tests among it, runs on ``bucket_moo_ext.weights``.

Aggregators go our whole way, ``gramian``, ``weights`` and ``combine``: TorchJD rounds the Gramian to the dtype of the
gradients, so a float32 Gramian of dependent gradients is indefinite, and what comes out of it depends on a ridge.

Where the two differ by convention, the adapter converts: TorchJD sums where we average (PCGrad, GradVac), does not make
preferences sum to 1, and calls Aligned-MTL's scale mode "mean" "rmse". GradVac's adapter has no memory: `weights` takes
no state, so every call is a first call.
"""

import importlib
import math
import sys
import types
from typing import Any

import bucket_moo_ext as moo
import torch
import torchjd.aggregation as peer
from torch import Tensor

_steps = iter(range(2**62))  # our random orders depend on the step, not on a generator


def _solve(gramian: Tensor, method: Any) -> Tensor:
    solved = moo.weights(gramian, method, step=next(_steps))
    assert isinstance(solved, Tensor)
    return solved.to(dtype=gramian.dtype)


def _preference(preference: Tensor) -> tuple[tuple[float, ...] | None, float]:
    """TorchJD's preference as ours, and the factor between the results."""
    values = [float(value) for value in preference]
    total = sum(values)
    return (None if len(set(values)) == 1 else tuple(values)), total


def _modules() -> dict[str, types.ModuleType]:
    names = ("_aligned_mtl", "_cagrad", "_config", "_dualproj", "_fairgrad", "_gradvac", "_imtl_g", "_krum", "_mean")
    names += ("_mgda", "_nash_mtl", "_pcgrad", "_upgrad")
    return {name: importlib.import_module(f"torchjd.aggregation.{name}") for name in names}


_PEER = _modules()


class MeanWeighting(peer.MeanWeighting):
    def forward(self, matrix: Tensor, /) -> Tensor:
        return _solve(torch.eye(matrix.shape[0], dtype=matrix.dtype), moo.Mean())


class MGDAWeighting(peer.MGDAWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        return _solve(gramian, moo.MGDA())


class CAGradWeighting(peer.CAGradWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        return _solve(gramian, moo.CAGrad(c=float(self.c)))


class PCGradWeighting(peer.PCGradWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        return _solve(gramian, moo.PCGrad(reduction="sum"))


class GradVacWeighting(peer.GradVacWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        return (torch.diagonal(gramian) > 0).sum() * _solve(gramian, moo.GradVac(beta=self.beta))


class _Preferring:
    """UPGrad and DualProj."""

    ours: Any

    def __init__(self, pref_vector: Tensor | None = None, projector: Any = None, **ridge: Any) -> None:
        # Older versions took norm_eps, reg_eps and solver here; our solvers have none of these.
        assert ridge.keys() <= {"norm_eps", "reg_eps", "solver"}, ridge
        super().__init__(pref_vector, projector)  # type: ignore[call-arg]

    def forward(self, gramian: Tensor, /) -> Tensor:
        preference, total = _preference(self.weighting(gramian))  # type: ignore[attr-defined]
        return total * _solve(gramian, self.ours(preference=preference))


class UPGradWeighting(_Preferring, peer.UPGradWeighting):
    ours = moo.UPGrad


class DualProjWeighting(_Preferring, peer.DualProjWeighting):
    ours = moo.DualProj


class IMTLGWeighting(peer.IMTLGWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        return _solve(gramian, moo.IMTLG())


class AlignedMTLWeighting(peer.AlignedMTLWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        if self.scale_mode not in ("min", "median", "rmse"):
            raise ValueError(f"Invalid scale_mode={self.scale_mode!r}. Expected 'min', 'median', or 'rmse'.")
        preference, total = _preference(self.weighting(gramian))
        mode = "mean" if self.scale_mode == "rmse" else self.scale_mode
        return total * _solve(gramian, moo.AlignedMTL(preference=preference, scale_mode=mode))


class KrumWeighting(peer.KrumWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        self._check_matrix_shape(gramian)
        return _solve(gramian, moo.Krum(n_byzantine=self.n_byzantine, n_selected=self.n_selected))


class FairGradWeighting(peer.FairGradWeighting):
    def forward(self, gramian: Tensor, /) -> Tensor:
        if self.alpha == 0:  # ours wants a positive alpha; the limit is the mean
            return _solve(gramian, moo.Mean())
        return _solve(gramian, moo.FairGrad(alpha=float(self.alpha)))


class _NashMTLWeighting(_PEER["_nash_mtl"]._NashMTLWeighting):  # type: ignore[misc, name-defined]
    def forward(self, matrix: Tensor, /) -> Tensor:
        if self.step % self.update_weights_every == 0:
            solved = _solve(moo.gramian(matrix), moo.NashMTL(max_norm=float(self.max_norm) or math.inf))
            self.prvs_alpha = solved.numpy()
        self.step += 1
        return torch.from_numpy(self.prvs_alpha)


class ConFIG(peer.ConFIG):
    def forward(self, matrix: Tensor, /) -> Tensor:
        preference, _ = _preference(self.weighting(matrix))
        return moo.combine(matrix, _solve(moo.gramian(matrix), moo.ConFIG(preference=preference)))


_REPLACED = {
    "_aligned_mtl": AlignedMTLWeighting,
    "_cagrad": CAGradWeighting,
    "_config": ConFIG,
    "_dualproj": DualProjWeighting,
    "_fairgrad": FairGradWeighting,
    "_gradvac": GradVacWeighting,
    "_imtl_g": IMTLGWeighting,
    "_krum": KrumWeighting,
    "_mean": MeanWeighting,
    "_mgda": MGDAWeighting,
    "_nash_mtl": _NashMTLWeighting,
    "_pcgrad": PCGradWeighting,
    "_upgrad": UPGradWeighting,
}


def install() -> None:
    """Replaces TorchJD's classes by ours, in this process. Aggregators find their weighting by its name: ours."""
    for name, ours in _REPLACED.items():
        setattr(_PEER[name], ours.__name__, ours)
        if hasattr(peer, ours.__name__):
            setattr(peer, ours.__name__, ours)
    bases = importlib.import_module("torchjd.aggregation._aggregator_bases")
    bases.compute_gramian = _gramian  # type: ignore[attr-defined]
    bases.WeightedAggregator._combine = staticmethod(_combine)  # type: ignore[attr-defined]
    for name in ("UPGrad", "DualProj"):
        setattr(peer, name, _with_ridge(getattr(peer, name)))


def _gramian(matrix: Tensor) -> Tensor:
    return moo.gramian(matrix)  # float64; to the dtype of the Jacobian only in _combine


def _combine(matrix: Tensor, weights: Tensor) -> Tensor:
    return moo.combine(matrix, weights) if matrix.shape[1] > 0 else matrix.sum(dim=0)


def _with_ridge(aggregator: type) -> type:
    """The aggregator that also takes, and ignores, the options of older versions."""

    def initialise(self: Any, pref_vector: Tensor | None = None, projector: Any = None, **ridge: Any) -> None:
        assert ridge.keys() <= {"norm_eps", "reg_eps", "solver"}, ridge
        aggregator.__init__(self, pref_vector, projector)  # type: ignore[misc]

    return type(aggregator.__name__, (aggregator,), {"__init__": initialise, "__module__": aggregator.__module__})


def stub_imports() -> None:
    """Modules that TorchJD's test utilities import and solvers do not need."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
    name = "torchjd.aggregation._utils.non_differentiable"
    try:
        importlib.import_module(name)
    except ImportError:  # older versions had an error of their own for a backward pass; now it is torch's
        module = types.ModuleType(name)
        module.NonDifferentiableError = RuntimeError  # type: ignore[attr-defined]
        sys.modules[name] = module
