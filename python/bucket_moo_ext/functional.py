"""Gramian, weights and combination of a Jacobian held in one place."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex, overload

import torch

from bucket_moo_ext import _C
from bucket_moo_ext._arrays import ArrayLike, as_tensor, cupy_of, is_array, through_torch
from bucket_moo_ext.gramian_source import check_width
from bucket_moo_ext.method_options import refuse_method_options
from bucket_moo_ext.methods import Method, resolve
from bucket_moo_ext.plain import word

_MAX_OBJECTIVES: int = _C.build_info()["max_objectives"]

# The overloads themselves: their packets would look for the one that fits at every call.
_gramian = torch.ops.bucket_moo.gramian.default
_sketch = torch.ops.bucket_moo.sketch.default
_solve = torch.ops.bucket_moo.solve.default
_combine = torch.ops.bucket_moo.combine.default


def _rows(jacobian: ArrayLike | Sequence[ArrayLike]) -> list[torch.Tensor]:
    """The K gradients; the operators check that they fit together."""
    if isinstance(jacobian, list | tuple):
        rows = [as_tensor(f"jacobian[{i}]", row) for i, row in enumerate(jacobian)]
    else:
        matrix = as_tensor("jacobian", jacobian)
        if matrix.dim() != 2:
            raise ValueError(f"jacobian must be [K, n] or K tensors of one size; got shape {tuple(matrix.shape)}")
        rows = list(matrix.unbind(0))
    if not rows:
        raise ValueError(f"jacobian must have 1 to {_MAX_OBJECTIVES} rows; got 0")
    return rows


@overload
def gramian(jacobian: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor: ...
@overload
def gramian(jacobian: ArrayLike | Sequence[ArrayLike]) -> Any: ...
def gramian(jacobian: ArrayLike | Sequence[ArrayLike]) -> Any:
    """The inner products of K gradients.

    Products are summed in float32 over a few dozen elements (in float64 for float64 input), and in float64 beyond.

    Args:
        jacobian: ``[K, n]``, or K tensors of one size (flattened), 1 <= K <= 64, on one device, the CPU or CUDA;
            float32, bfloat16, float16 or float64 (slow on CUDA). A torch tensor or any array that speaks DLPack or
            ``__cuda_array_interface__``. Read once; rows need not be adjacent. On CUDA work is enqueued on torch's
            current stream, ordered after the array's producer, and nothing waits for it.

    Returns:
        ``[K, K]`` float64, symmetric, a tensor on the jacobian's device. CuPy arrays give a CuPy array, computed on
        CuPy's current stream; nothing is copied either way.

    Raises:
        TypeError: An unsupported or mixed dtype, or no tensor.
        ValueError: A wrong shape, or rows on several devices.
        RuntimeError: CUDA memory, and a build without CUDA kernels.
    """
    cupy = cupy_of(jacobian)
    if cupy is not None:
        return through_torch(cupy, gramian, jacobian)
    return _gramian(_rows(jacobian))


@overload
def sketch(
    jacobian: torch.Tensor | Sequence[torch.Tensor],
    width: int = 16384,
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
    bucket: SupportsIndex = 0,
) -> torch.Tensor: ...
@overload
def sketch(
    jacobian: ArrayLike | Sequence[ArrayLike],
    width: int = 16384,
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
    bucket: SupportsIndex = 0,
) -> Any: ...
def sketch(
    jacobian: ArrayLike | Sequence[ArrayLike],
    width: int = 16384,
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
    bucket: SupportsIndex = 0,
) -> Any:
    """K gradients in few columns: random projections whose inner products are those of the gradients on average.

    ``gramian(sketch(jacobian))`` is what ``Sketch`` solves from, in place of ``gramian(jacobian)``. All rows get the
    same random signs and columns; the same key gives the same map anywhere.

    Args:
        jacobian: As for ``gramian``.
        width: The number of columns, a power of two from 64 to 2**28.
        seed: With ``step`` and ``bucket``, the key of the random map; each from 0 to 2**64 - 1.
        step: See ``seed``.
        bucket: See ``seed``.

    Returns:
        ``[K, width]`` float32 (float64 for float64 input). Of the kind that ``gramian()`` returns.

    Raises:
        TypeError: An unsupported or mixed dtype, no tensor, or a width that is no integer.
        ValueError: A wrong shape, rows on several devices, another width, or a key out of range.
        RuntimeError: As for ``gramian()``.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", ICALP 2002 (CountSketch), with a
    permutation of the columns in each run of ``width`` elements.
    """
    cupy = cupy_of(jacobian)
    if cupy is not None:
        return through_torch(cupy, sketch, jacobian, width, seed=seed, step=step, bucket=bucket)
    columns = check_width("width", width)
    key = [_signed(word(name, value)) for name, value in (("seed", seed), ("step", step), ("bucket", bucket))]
    return _sketch(_rows(jacobian), columns, *key)


@overload
def weights(
    gramian: torch.Tensor,
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
    return_certificate: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def weights(
    gramian: torch.Tensor,
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
    return_certificate: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def weights(
    gramian: ArrayLike,
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
    return_certificate: bool = False,
) -> Any: ...
@refuse_method_options
def weights(
    gramian: ArrayLike,
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
    return_certificate: bool = False,
) -> Any:
    """The weights that a method gives to K objectives.

    Remembers nothing: methods that carry a state from step to step (``GradVac``, ``Smoothed``) take every call, and
    every entry of a batch, as a first step.

    Args:
        gramian: ``[K, K]`` or a batch ``[B, K, K]``, 1 <= K <= 64, on any device that ``gramian()`` takes; solved in
            float64, where it is. Only the symmetric part counts.
        method: A name of ``available_methods()`` or a method object.
        seed: With ``step`` and the place in the batch, the key of a method's random choices (PCGrad, GradVac).
        step: See ``seed``.
        return_certificate: Return the certificates too.

    Returns:
        ``[K]`` or ``[B, K]`` float64, of the kind that ``gramian()`` returns. Objectives with a zero diagonal get 0
        (except by ``Mean``); a Gramian with a NaN or an Inf gets 1/K everywhere. With ``return_certificate`` a pair:
        the weights, and ``[]`` or ``[B]`` float64, the method's relative optimality residual, always >= 0;
        ``available_methods()[name].certificate`` says of what (for MGDA the duality gap over the mean diagonal; 0 for
        direct methods).

    Raises:
        TypeError: ``gramian`` is no floating-point array, or ``method`` is no method.
        ValueError: A wrong shape, or an unknown method.
        RuntimeError: As for ``gramian()``.
    """
    cupy = cupy_of(gramian)
    if cupy is not None:
        return through_torch(
            cupy, weights, gramian, method=method, seed=seed, step=step, return_certificate=return_certificate
        )
    resolved = resolve(method)
    if names := resolved._objectives():
        raise ValueError(
            f"method={resolved!r} names objectives ({', '.join(names)}), and a Gramian's rows have no names; give one "
            "number an objective, in the order of the rows"
        )
    options = resolved._options()
    tensor = as_tensor("gramian", gramian)
    if tensor.dim() not in (2, 3) or tensor.shape[-1] != tensor.shape[-2]:
        raise ValueError(f"gramian must be [K, K] or [B, K, K]; got shape {tuple(tensor.shape)}")
    key = _signed(word("seed", seed)), _signed(word("step", step))
    solved, _, _, residual = _solve(tensor, *options, *key, resolved._length())
    return (solved, residual) if return_certificate else solved


def _signed(key: int) -> int:
    """The 64-bit word as the operators take it: an int64 in two's complement."""
    return key if key < 2**63 else key - 2**64


@overload
def combine(jacobian: torch.Tensor | Sequence[torch.Tensor], weights: ArrayLike | Iterable[float]) -> torch.Tensor: ...
@overload
def combine(jacobian: ArrayLike | Sequence[ArrayLike], weights: ArrayLike | Iterable[float]) -> Any: ...
def combine(jacobian: ArrayLike | Sequence[ArrayLike], weights: ArrayLike | Iterable[float]) -> Any:
    """The weighted sum of K gradients.

    Args:
        jacobian: As for ``gramian``.
        weights: ``[K]``. A row of weight 0 is not read. Weights on the jacobian's device stay there; others are copied
            to it, which on CUDA waits for the copy.

    Returns:
        ``[n]`` in the jacobian's dtype, or the shape of the first of the K tensors; summed in float32 (float64 for
        float64) and rounded once. Of the kind that ``gramian()`` returns.

    Raises:
        TypeError: An unsupported or mixed dtype.
        ValueError: A wrong shape, or rows on several devices.
        RuntimeError: As for ``gramian()``.
    """
    cupy = cupy_of(jacobian)
    if cupy is not None:
        return through_torch(cupy, combine, jacobian, weights)
    rows = _rows(jacobian)
    coefficients = _coefficients(weights).to(rows[0].device)
    if coefficients.shape != (len(rows),):
        raise ValueError(f"weights must be [{len(rows)}], one a row; got shape {tuple(coefficients.shape)}")
    return _combine(rows, coefficients)


def _coefficients(weights: ArrayLike | Iterable[float]) -> torch.Tensor:
    if not is_array(weights):
        try:
            return torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"weights must be K numbers; got {type(weights).__name__} {weights!r:.200}") from error
    given = as_tensor("weights", weights)
    if given.is_complex():
        raise TypeError(f"weights must be real numbers; got dtype {given.dtype}")
    return given


@overload
def aggregate(
    jacobian: torch.Tensor | Sequence[torch.Tensor],
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
) -> torch.Tensor: ...
@overload
def aggregate(
    jacobian: ArrayLike | Sequence[ArrayLike],
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
) -> Any: ...
@refuse_method_options
def aggregate(
    jacobian: ArrayLike | Sequence[ArrayLike],
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex = 0,
    step: SupportsIndex = 0,
) -> Any:
    """The conflict-aware update of K gradients: ``combine(jacobian, weights(gramian(jacobian), method))``.

    Args, returns and errors: as there.
    """
    cupy = cupy_of(jacobian)
    if cupy is not None:
        return through_torch(cupy, aggregate, jacobian, method=method, seed=seed, step=step)
    rows = _rows(jacobian)
    solved = weights(_gramian(rows), method, seed=seed, step=step)
    return _combine(rows, solved)
