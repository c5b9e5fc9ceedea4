"""Gramian, weights and combination of a Jacobian held by every device that calls."""

from collections.abc import Iterable
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bucket_moo_ext import functional as of_torch
from bucket_moo_ext.gramian_source import check_width
from bucket_moo_ext.jax import handlers
from bucket_moo_ext.jax.derivatives import without_derivative
from bucket_moo_ext.method_options import refuse_method_options
from bucket_moo_ext.methods import Method, resolve
from bucket_moo_ext.methods.base import Options

MAX_OBJECTIVES = of_torch._MAX_OBJECTIVES
_DTYPES = (np.dtype(np.float32), jnp.dtype(jnp.bfloat16), np.dtype(np.float16), np.dtype(np.float64))
_CONSTANT = "a method's weights are constants of a step"


def check_dtype(name: str, array: Any) -> None:
    """Raises TypeError for one that the kernels do not read."""
    if array.dtype not in _DTYPES:
        raise TypeError(
            f"bucket_moo_ext: {name} must have one of the dtypes float32, bfloat16, float16, float64; got {array.dtype}"
        )


def _leaves(jacobian: Any) -> tuple[list[Any], Any]:
    """Arrays ``[K, ...]``, and the tree that they are the leaves of."""
    given, tree = jax.tree.flatten(jacobian)
    if not given:
        raise ValueError("jacobian must be [K, n] or a pytree of [K, ...] arrays; got one without arrays")
    leaves = [jnp.asarray(leaf) for leaf in given]
    for leaf in leaves:
        check_dtype("jacobian", leaf)
    shapes = [leaf.shape for leaf in leaves]
    rows = isinstance(jacobian, list | tuple) and len(leaves) == len(jacobian)
    if rows and all(len(shape) == 1 for shape in shapes):
        raise ValueError(
            "jacobian must be [K, n] or a pytree of [K, ...] arrays; got a list of vectors. If they are K gradients, "
            "stack them: jnp.stack(rows)"
        )
    if jax.tree.structure(0) == tree and len(shapes[0]) != 2:
        raise ValueError(f"jacobian must be [K, n] or a pytree of [K, ...] arrays; got shape {shapes[0]}")
    if any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"jacobian must be a pytree of [K, ...] arrays of one K; got shapes {shapes}")
    if not 1 <= shapes[0][0] <= MAX_OBJECTIVES:
        raise ValueError(f"bucket_moo_ext: jacobian must have 1 to {MAX_OBJECTIVES} rows; got {shapes[0][0]}")
    return leaves, tree


def _matrices(leaves: list[Any]) -> list[Any]:
    return [leaf.reshape(leaf.shape[0], -1) if leaf.size else leaf.reshape(leaf.shape[0], 0) for leaf in leaves]


def _each(k: int) -> tuple[Any, Any]:
    """Every row is an objective of its own: shares and numbers."""
    return np.ones(k, np.float32), np.arange(k, dtype=np.int64)


def gramian(jacobian: Any) -> jax.Array:
    """The inner products of K gradients.

    Args:
        jacobian: ``[K, n]``, or a pytree of ``[K, ...]`` arrays, as ``jax.vmap(jax.grad(...))`` and ``jax.jacobian``
            give it: 1 <= K <= 64; float32, bfloat16, float16 or float64, which leaves may mix. Read once and not
            copied; the Gramians of leaves are added in float64.

    Returns:
        ``[K, K]``, symmetric: float64 with ``jax_enable_x64``, else the float64 sums rounded to float32.
        It has a derivative in both directions.

    Raises:
        TypeError: An unsupported dtype.
        ValueError: A wrong shape.
    """
    leaves, _ = _leaves(jacobian)
    return _gramian(*_matrices(leaves))


@jax.custom_jvp
def _gramian(*matrices: Any) -> Any:
    shares, objective = _each(matrices[0].shape[0])
    return handlers.gramian(shares, matrices, objective, handlers.Floats)


@_gramian.defjvp
def _gramian_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    dtype = handlers.float_dtype()
    half = sum(
        jnp.matmul(tangent.astype(dtype), primal.astype(dtype).T, precision="highest")
        for primal, tangent in zip(primals, tangents, strict=True)
    )
    return _gramian(*primals), half + half.T


def sketch(
    jacobian: Any,
    width: int = 16384,
    *,
    seed: SupportsIndex | jax.Array = 0,
    step: SupportsIndex | jax.Array = 0,
    bucket: SupportsIndex | jax.Array = 0,
) -> jax.Array:
    """K gradients in few columns: random projections whose inner products are those of the gradients on average.

    Args:
        jacobian: ``[K, n]``, as for ``gramian``.
        width: The number of columns, a power of two from 64 to 2**28.
        seed: With ``step`` and ``bucket``, the key of the random map; each from 0 to 2**64 - 1, or a traced integer
            (a step that is counted under ``jit`` compiles once).
        step: See ``seed``.
        bucket: See ``seed``.

    Returns:
        ``[K, width]`` float32 (float64 for float64 input), the same as of ``bucket_moo_ext.sketch``. No derivative.

    Raises:
        TypeError: An unsupported dtype, or a width that is no integer.
        ValueError: A wrong shape, another width, or a key out of range.
    """
    columns = check_width("width", width)
    leaves, tree = _leaves(jacobian)
    if jax.tree.structure(0) != tree:
        raise ValueError("jacobian must be [K, n]: a sketch is of one matrix; got a pytree")
    return without_derivative(
        "sketch",
        "a sketch is for finding weights, which are constants of a step; use jax.lax.stop_gradient(jacobian)",
        lambda keys, rows: handlers.sketch(keys, rows, columns),
        handlers.key(seed, step, bucket),
        leaves[0],
    )


def checked_options(method: Method, k: int) -> dict[str, Any]:
    """The method as the handler takes it, for K objectives in the order of its preference."""
    if names := method._objectives():
        raise ValueError(
            f"method={method!r} names objectives ({', '.join(names)}), and a Gramian's rows have no names; give one "
            "number an objective, in the order of the rows"
        )
    return checked_plain_options(method._options(), method._length(), k)


def checked_plain_options(options: Options, length: float, k: int) -> dict[str, Any]:
    """The same for options whose preference is by order. Raises ValueError where they are for another K."""
    of_torch._solve(torch.empty((k, k), dtype=torch.float64, device="meta"), *options, 0, 0, length)
    return handlers.options_of(options, length)


@refuse_method_options
def weights(
    gramian: Any,
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex | jax.Array = 0,
    step: SupportsIndex | jax.Array = 0,
    return_certificate: bool = False,
) -> Any:
    """The weights that a method gives to K objectives.

    Remembers nothing: methods that carry a state from step to step (``GradVac``, ``Smoothed``) take every call, and
    every entry of a batch, as a first step.

    Args:
        gramian: ``[K, K]`` or a batch ``[B, K, K]``, 1 <= K <= 64, floating point; solved in float64. Only the
            symmetric part counts. Under ``vmap`` every entry is a call of its own.
        method: A name of ``bucket_moo_ext.available_methods()`` or a method object.
        seed: With ``step`` and the place in the batch, the key of a method's random choices (PCGrad, GradVac);
            integers from 0 to 2**64 - 1, or traced ones.
        step: See ``seed``.
        return_certificate: Return the certificates too.

    Returns:
        ``[K]`` or ``[B, K]``, float64 with ``jax_enable_x64``, else float32. With ``return_certificate`` a pair: the
        weights, and ``[]`` or ``[B]``, the method's relative optimality residual, as of ``bucket_moo_ext.weights``.

    Raises:
        TypeError: ``gramian`` is no floating-point array, ``method`` is no method, or JAX asks for a derivative, which
            weights do not have.
        ValueError: A wrong shape, or an unknown method.
    """
    resolved = resolve(method)
    given = jnp.asarray(gramian)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"bucket_moo_ext: gramian must be floating point; got {given.dtype}")
    if given.ndim not in (2, 3) or given.shape[-1] != given.shape[-2]:
        raise ValueError(f"gramian must be [K, K] or [B, K, K]; got shape {given.shape}")
    k = given.shape[-1]
    if not 1 <= k <= MAX_OBJECTIVES:
        raise ValueError(f"bucket_moo_ext: gramian must have 1 <= K <= {MAX_OBJECTIVES}; got K = {k}")
    options = checked_options(resolved, k)
    keys = handlers.key(seed, step, 0)
    shares, objective = _each(k)
    if given.ndim == 3:
        batch = given.shape[0]
        places = np.zeros((batch, 6), np.uint32)
        places[:, 4] = np.arange(batch)
        keys = keys + places
        shares = np.broadcast_to(shares, (batch, k))
    if given.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        given = given.astype(np.float32)

    def solve(keys: Any, matrices: Any) -> tuple[Any, Any]:
        solved = handlers.solve(keys, matrices[..., None, :, :], shares, objective, options)
        return solved.weights, solved.residual

    found, residual = without_derivative(
        "weights", f"{_CONSTANT}; use weights(jax.lax.stop_gradient(gramian), ...)", solve, keys, given
    )
    return (found, residual) if return_certificate else found


def combine(jacobian: Any, weights: Any | Iterable[float]) -> Any:
    """The weighted sum of K gradients.

    Args:
        jacobian: As for ``gramian``.
        weights: ``[K]`` real numbers, an array or an iterable. A row of weight 0 is not read.

    Returns:
        ``[n]`` in the jacobian's dtype, or the pytree without the leading axes; summed in float32 (float64 for float64)
        and rounded once. It has derivatives with respect to both.

    Raises:
        TypeError: An unsupported dtype.
        ValueError: A wrong shape.
    """
    leaves, tree = _leaves(jacobian)
    coefficients = _coefficients(weights)
    if coefficients.shape != (leaves[0].shape[0],):
        raise ValueError(f"weights must be [{leaves[0].shape[0]}], one a row; got shape {coefficients.shape}")
    sums = [_combine(coefficients, matrix) for matrix in _matrices(leaves)]
    return _like_rows(sums, leaves, tree)


def _like_rows(sums: list[Any], leaves: list[Any], tree: Any) -> Any:
    return jax.tree.unflatten(tree, [total.reshape(leaf.shape[1:]) for total, leaf in zip(sums, leaves, strict=True)])


def _coefficients(weights: Any) -> Any:
    if not isinstance(weights, jax.Array | np.ndarray):
        try:
            weights = np.array([float(weight) for weight in weights])
        except jax.errors.JAXTypeError:
            weights = jnp.stack(list(weights))
        except (TypeError, ValueError) as error:
            raise TypeError(f"weights must be K numbers; got {type(weights).__name__} {weights!r:.200}") from error
    given = jnp.asarray(weights)
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise TypeError(f"weights must be real numbers; got dtype {given.dtype}")
    return given if given.dtype == np.float64 else given.astype(np.float32)


@jax.custom_jvp
def _combine(coefficients: Any, matrix: Any) -> Any:
    return handlers.combine(coefficients, matrix)


@_combine.defjvp
def _combine_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    dtype = np.float64 if primals[1].dtype == np.float64 else np.float32
    (weights, rows), (weights_dot, rows_dot) = ([x.astype(dtype) for x in xs] for xs in (primals, tangents))
    total = jnp.matmul(weights, rows_dot, precision="highest") + jnp.matmul(weights_dot, rows, precision="highest")
    return _combine(*primals), total.astype(primals[1].dtype)


@refuse_method_options
def aggregate(
    jacobian: Any,
    method: str | Method = "mgda",
    *,
    seed: SupportsIndex | jax.Array = 0,
    step: SupportsIndex | jax.Array = 0,
) -> Any:
    """The conflict-aware update of K gradients: ``combine(jacobian, weights(gramian(jacobian), method))``.

    The Gramian and the weights stay in float64 between the three, with ``jax_enable_x64`` or without.

    Args and errors: as there. No derivative.
    """
    resolved = resolve(method)
    leaves, tree = _leaves(jacobian)
    k = leaves[0].shape[0]
    options = checked_options(resolved, k)

    def update(keys: Any, *matrices: Any) -> list[Any]:
        shares, objective = _each(k)
        products = handlers.gramian(shares, matrices, objective, handlers.Words)
        solved = handlers.solve(keys, products[None], shares, objective, options)
        return [handlers.combine(solved.coefficients, matrix) for matrix in matrices]

    why = f"{_CONSTANT}; use combine(jacobian, weights(jax.lax.stop_gradient(gramian(jacobian)), ...))"
    sums = without_derivative("aggregate", why, update, handlers.key(seed, step, 0), *_matrices(leaves))
    return _like_rows(sums, leaves, tree)
