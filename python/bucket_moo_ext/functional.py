"""Gramian, weights and combination of a Jacobian held in one place."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch

from bucket_moo_ext import _C
from bucket_moo_ext.methods import Method, resolve

ArrayLike: TypeAlias = Any  # a torch tensor, a NumPy array, or anything that speaks DLPack

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_OBJECTIVES: int = _C.build_info()["max_objectives"]


def _tensor(name: str, value: ArrayLike) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
    elif hasattr(value, "__dlpack__"):
        tensor = torch.from_dlpack(value)
    else:
        raise TypeError(f"{name} must be a tensor or an array that supports DLPack; got {type(value).__name__}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be dense; got layout {tensor.layout}")
    return tensor.resolve_neg()


def _rows(jacobian: ArrayLike | Sequence[ArrayLike]) -> tuple[list[torch.Tensor], torch.Size]:
    """The K gradients as contiguous one-dimensional CPU tensors of one size and dtype, and the shape of the first."""
    if isinstance(jacobian, list | tuple):
        rows = [_tensor(f"jacobian[{i}]", row) for i, row in enumerate(jacobian)]
    else:
        matrix = _tensor("jacobian", jacobian)
        if matrix.dim() != 2:
            raise ValueError(f"jacobian must be [K, n] or K tensors of one size; got shape {tuple(matrix.shape)}")
        rows = list(matrix.unbind(0))
    if not 1 <= len(rows) <= _MAX_OBJECTIVES:
        raise ValueError(f"jacobian must have 1 to {_MAX_OBJECTIVES} rows; got {len(rows)}")
    for i, row in enumerate(rows):
        if row.device.type != "cpu":
            raise ValueError(f"jacobian must be on the CPU in this build; row {i} is on {row.device}")
        if row.dtype not in _DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise TypeError(f"jacobian must have one of the dtypes {allowed}; row {i} has {row.dtype}")
        if row.dtype != rows[0].dtype:
            raise TypeError(f"jacobian rows must have one dtype; row 0 has {rows[0].dtype}, row {i} {row.dtype}")
        if row.numel() != rows[0].numel():
            raise ValueError(
                f"jacobian rows must have one size; row 0 has {rows[0].numel()} elements, row {i} {row.numel()}"
            )
    return [row.reshape(-1).contiguous() for row in rows], rows[0].shape


def gramian(jacobian: ArrayLike | Sequence[ArrayLike]) -> torch.Tensor:
    """The inner products of K gradients.

    Products are summed in float32 over a few dozen elements (in float64 for float64 input), and in float64 beyond.

    Args:
        jacobian: ``[K, n]``, or K tensors of one size (flattened), 1 <= K <= 64; float32, bfloat16, float16 or float64,
            on the CPU; a torch tensor or any DLPack array. Read once; rows need not be adjacent.

    Returns:
        ``[K, K]`` float64, symmetric.

    Raises:
        TypeError: An unsupported or mixed dtype, or no tensor.
        ValueError: A wrong shape or device.
    """
    rows, _ = _rows(jacobian)
    return _C.gramian(rows)


def weights(
    gramian: ArrayLike,
    method: str | Method = "mgda",
    *,
    seed: int = 0,
    step: int = 0,
    return_certificate: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The weights that a method gives to K objectives.

    Remembers nothing: methods that carry a state from step to step (``GradVac``, ``Smoothed``) take every call, and
    every entry of a batch, as a first step.

    Args:
        gramian: ``[K, K]`` or a batch ``[B, K, K]``, 1 <= K <= 64; solved in float64. Only the symmetric part counts.
        method: A name of ``available_methods()`` or a method object.
        seed: With ``step`` and the place in the batch, the key of a method's random choices (PCGrad, GradVac).
        step: See ``seed``.
        return_certificate: Return the certificates too.

    Returns:
        ``[K]`` or ``[B, K]`` float64. Objectives with a zero diagonal get 0 (except by ``Mean``); a Gramian with a NaN
        or an Inf gets 1/K everywhere. With ``return_certificate`` a pair: the weights, and ``[]`` or ``[B]`` float64,
        the method's relative optimality residual, always >= 0; ``available_methods()[name].certificate`` says of what
        (for MGDA the duality gap over the mean diagonal; 0 for direct methods).

    Raises:
        TypeError: ``gramian`` is no floating-point array, or ``method`` is no method.
        ValueError: A wrong shape or device, or an unknown method.
    """
    chosen = resolve(method)
    tensor = _tensor("gramian", gramian)
    if not tensor.is_floating_point():
        raise TypeError(f"gramian must be floating point; got {tensor.dtype}")
    if tensor.device.type != "cpu":
        raise ValueError(f"gramian must be on the CPU in this build; it is on {tensor.device}")
    batched = tensor.dim() == 3
    if tensor.dim() not in (2, 3) or tensor.shape[-1] != tensor.shape[-2]:
        raise ValueError(f"gramian must be [K, K] or [B, K, K]; got shape {tuple(tensor.shape)}")
    if not 1 <= tensor.shape[-1] <= _MAX_OBJECTIVES:
        raise ValueError(f"gramian must have 1 <= K <= {_MAX_OBJECTIVES}; got K = {tensor.shape[-1]}")
    batch = tensor.double() if batched else tensor.double().unsqueeze(0)
    solved, _, _, residual = _C.solve(batch, chosen._native(), _word("seed", seed), _word("step", step))
    if not batched:
        solved, residual = solved[0], residual[0]
    return (solved, residual) if return_certificate else solved


def _word(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise ValueError(f"{name} must be an integer from 0 to 2**64 - 1; got {value!r}")
    return value


def combine(jacobian: ArrayLike | Sequence[ArrayLike], weights: ArrayLike | Iterable[float]) -> torch.Tensor:
    """The weighted sum of K gradients.

    Args:
        jacobian: As for ``gramian``.
        weights: ``[K]``. A row of weight 0 is not read.

    Returns:
        ``[n]`` in the jacobian's dtype, or the common shape of the K tensors; summed in float32 (float64 for float64)
        and rounded once.

    Raises:
        TypeError: An unsupported or mixed dtype.
        ValueError: A wrong shape or device.
    """
    rows, shape = _rows(jacobian)
    coefficients = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach().contiguous()
    if coefficients.shape != (len(rows),):
        raise ValueError(f"weights must be [{len(rows)}], one a row; got shape {tuple(coefficients.shape)}")
    out = torch.empty_like(rows[0])
    _C.combine(rows, coefficients, out)
    return out.reshape(shape)


def aggregate(
    jacobian: ArrayLike | Sequence[ArrayLike],
    method: str | Method = "mgda",
    *,
    seed: int = 0,
    step: int = 0,
) -> torch.Tensor:
    """The conflict-aware update of K gradients: ``combine(jacobian, weights(gramian(jacobian), method))``.

    Args, returns and errors: as there.
    """
    solved = weights(gramian(jacobian), method, seed=seed, step=step)
    assert isinstance(solved, torch.Tensor)
    return combine(jacobian, solved)
