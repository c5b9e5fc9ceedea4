"""The collectives inside ``jax.shard_map``: ``jax.lax``'s exchanges around our kernels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from bucket_moo_ext.gramian_source import Sketch, check_source
from bucket_moo_ext.jax import handlers
from bucket_moo_ext.jax.buckets import Buckets, Rows
from bucket_moo_ext.jax.derivatives import without_derivative
from bucket_moo_ext.jax.functional import checked_plain_options
from bucket_moo_ext.jax.objectives import Objectives, read_objectives
from bucket_moo_ext.method_options import refuse_method_options
from bucket_moo_ext.methods import Method, resolve
from bucket_moo_ext.plain import flag, number

AxisName = str | tuple[str, ...]
_WHY = "it is for gradients, after they were taken; use jax.lax.stop_gradient(gradients)"


class Solution(NamedTuple):
    """What was solved, the same on every device.

    Attributes:
        gramian: ``[K, K]``, of the objectives in the order in which they first come: pass by pass, and in a pass device
            by device.
        weights: ``[K]``.
        status: ``[]`` int32: 0 ok, 1 not finite, 2 inactive, 3 not converged, 4 fallback.
        iterations: ``[]`` int32.
        residual: ``[]``, the method's relative certificate.
    """

    gramian: jax.Array
    weights: jax.Array
    status: jax.Array
    iterations: jax.Array
    residual: jax.Array


@refuse_method_options
def all_reduce(
    gradients: Any,
    method: str | Method = "mgda",
    *,
    axis_name: AxisName,
    objectives: Sequence[Any] | None = None,
    weight: Any = 1.0,
    passes: int | None = None,
    gramian: str | Sketch = "exact",
    seed: SupportsIndex | jax.Array = 0,
    step: SupportsIndex | jax.Array = 0,
    bucket: SupportsIndex | jax.Array = 0,
    return_solution: bool = False,
) -> Any:
    """The conflict-aware combination of all devices' gradients, on every device. Inside ``jax.shard_map``.

    Where ``jax.lax.pmean`` would take the mean. Remembers nothing: methods that carry a state from step to step
    (``GradVac``, ``Smoothed``) take every call as a first step.

    Args:
        gradients: This device's: an array or a pytree of arrays of any shapes; float32, bfloat16, float16 or float64.
            All of them share one vector of weights. They must be this device's own: inside a ``shard_map`` that checks
            what varies (``check_vma``, the default), take them with respect to
            ``jax.lax.pcast(parameters, axis_name, to="varying")``, since JAX adds up the gradients of parameters that
            are the same on all devices by itself.
        method: A name of ``bucket_moo_ext.available_methods()`` or a method object; preferences may be by name.
        axis_name: The axis or axes of the mesh over which is reduced, W devices.
        objectives: W names (strings or integers), that of each device, in the order of
            ``jax.lax.axis_index(axis_name)``; devices of one name form one objective, whose gradient is their mean.
            With ``passes`` an entry may be a sequence of so many names. None: each device is an objective of its own.
            At most 64.
        weight: Of this device in the mean of its objective, a number or an array ``[]`` (with ``passes`` also
            ``[passes]``), finite and >= 0; 0 leaves it out.
        passes: A number P: every array has a leading axis of P gradients, one a pass.
        gramian: ``"exact"``, or a ``Sketch`` without ``refresh_every`` and ``lag``; it wants gradients of one dtype.
        seed: With ``step`` and ``bucket``, the key of random choices (PCGrad, GradVac; a sketch has a seed of its own
            in its place). Integers from 0 to 2**64 - 1, or traced ones; the same on every device.
        step: See ``seed``. A ``Sketch`` wants another one in every step.
        bucket: See ``seed``.
        return_solution: Return the ``Solution`` too.

    Returns:
        The update, like the gradients of one pass; with ``return_solution`` a pair. The same bits on every device.

    Raises:
        TypeError, ValueError: Bad arguments, when the function is traced; JAX asks for a derivative.
        jax.errors.JaxRuntimeError: On the CPU, a weight that is not finite or below 0; on a GPU the update is NaN then.
    """
    call = _Call(method, axis_name, objectives, weight, passes, gramian, (seed, step, bucket))
    buckets = call.bucket(gradients)
    updates, solution = call.reduce(buckets.rows, scatter=False)
    update = buckets.restore(updates)
    return (update, solution) if flag("return_solution", return_solution) else update


@refuse_method_options
def reduce_scatter(
    input: Any,
    method: str | Method = "mgda",
    *,
    axis_name: AxisName,
    objectives: Sequence[Any] | None = None,
    weight: Any = 1.0,
    passes: int | None = None,
    gramian: str | Sketch = "exact",
    seed: SupportsIndex | jax.Array = 0,
    step: SupportsIndex | jax.Array = 0,
    bucket: SupportsIndex | jax.Array = 0,
    return_solution: bool = False,
) -> Any:
    """This device's shard of the conflict-aware combination. Inside ``jax.shard_map``.

    Where ``jax.lax.psum_scatter`` would take the sum: the weights are solved for the whole of ``input``.

    Args:
        input: This device's gradient, an array of n elements (``[passes, ...]`` with ``passes``): W shards, one after
            another.
        method, axis_name, objectives, weight, passes, gramian, seed, step, bucket, return_solution: As for
            ``all_reduce``.

    Returns:
        ``[n / W]``, the shard of this device's place along the axis; with ``return_solution`` a pair.

    Raises:
        As ``all_reduce``; ValueError also if W does not divide n.
    """
    call = _Call(method, axis_name, objectives, weight, passes, gramian, (seed, step, bucket))
    buckets = call.bucket(input)
    if not buckets.is_array:
        raise ValueError("input must be an array; got a pytree")
    if buckets.rows[0].shape[1] % call.world:
        raise ValueError(
            f"input must have a multiple of {call.world} elements, the devices of axis {axis_name!r}; got "
            f"{buckets.rows[0].shape[1]}"
        )
    updates, solution = call.reduce(buckets.rows, scatter=True)
    return (updates[0], solution) if flag("return_solution", return_solution) else updates[0]


class _Call:
    """Checked arguments of one reduction."""

    def __init__(
        self,
        method: str | Method,
        axis_name: AxisName,
        objectives: Sequence[Any] | None,
        weight: Any,
        passes: int | None,
        gramian: str | Sketch,
        key: tuple[Any, Any, Any],
    ) -> None:
        try:
            self.world = int(jax.lax.axis_size(axis_name))
        except NameError as error:
            raise ValueError(
                f"axis_name must be an axis of the shard_map that this is called in; got {axis_name!r} ({error})"
            ) from error
        self.axis = axis_name
        # Of these JAX knows whether a value differs between their devices; none with check_vma=False.
        self.checked_axes = handlers.axes_of(jax.lax.axis_index(axis_name))
        self.passes = passes
        self.objectives: Objectives = read_objectives(objectives, self.world, 1 if passes is None else passes)
        self.sketch = _checked_sketch(gramian)
        resolved = resolve(method)
        options = self.objectives.in_order(resolved)
        self.options = checked_plain_options(options, resolved._length(), self.objectives.k)
        self.key = handlers.key(*key)
        self.sketch_key = handlers.key(self.sketch.seed, *key[1:]) if self.sketch else None
        self.weight = self._weights(weight)

    def _weights(self, weight: Any) -> Any:
        """``[P]`` of this device; None where all rows count alike."""
        plain = number(weight) if not isinstance(weight, jax.Array) else None
        if plain is not None:
            if not 0 <= plain < np.inf:
                raise ValueError(f"weight must be a finite number >= 0; got {weight!r}")
            weight = np.float64(plain)
        given = jnp.asarray(weight)
        rows = 1 if self.passes is None else self.passes
        if given.shape not in ((), (rows,) if self.passes is not None else ()):
            allowed = "[]" if self.passes is None else f"[] or [{rows}]"
            raise ValueError(f"weight must be a number or an array {allowed}; got shape {given.shape}")
        if jnp.issubdtype(given.dtype, jnp.complexfloating):
            raise TypeError(f"weight must be a real number; got dtype {given.dtype}")
        return jnp.broadcast_to(given.astype(handlers.float_dtype()), (rows,))

    def bucket(self, gradients: Any) -> Buckets:
        """The gradients, which must be this device's own as far as JAX keeps account of that."""
        for leaf in jax.tree.leaves(gradients):
            if not self.checked_axes <= handlers.axes_of(leaf):
                raise ValueError(
                    f"gradients must be each device's own; of shape {np.shape(leaf)} there are some that are the same "
                    f"on all devices of axis {self.axis!r}, as JAX keeps account: it adds up gradients with respect "
                    "to parameters that all devices share. Take them with respect to "
                    f"jax.lax.pcast(parameters, {self.axis!r}, to='varying')"
                )
        return Buckets(gradients, self.passes)

    def reduce(self, rows: list[Rows], scatter: bool) -> tuple[list[Any], Solution]:
        """``[n]`` of each bucket ``[P, n]``, or this device's shard of it."""
        name = "reduce_scatter" if scatter else "all_reduce"

        def run(key: Any, sketch_key: Any, weight: Any, rows: list[Rows]) -> Any:
            reduction = self._exact if self.sketch is None else self._sketched
            return reduction(key, sketch_key, self._shares(weight), rows, scatter)

        operands = (self.key, self.sketch_key, self.weight, rows)
        updates, solved = without_derivative(name, _WHY, run, *operands)
        return updates, Solution(*solved[1:])

    def _gather(self, value: Any, axis: int = 0, tiled: bool = False) -> Any:
        """Of all devices, the same on all of them."""
        own = handlers.varying(value, handlers.axes_of(value) | self.checked_axes)
        return jax.lax.all_gather(own, self.axis, axis=axis, tiled=tiled, to="invarying")

    def _shares(self, weight: Any) -> Any:
        """[P W] of every row in its objective."""
        gathered = self._gather(weight, axis=1).reshape(-1)
        shares = handlers.Words(gathered.shape)
        return handlers.call("shares", [shares], gathered, objective=self.objectives.numbers)[0]

    def _solve(self, key: Any, parts: Any, shares: Any) -> handlers.Solved:
        return handlers.solve(key, parts, shares, self.objectives.numbers, self.options)

    def _exact(self, key: Any, _: Any, shares: Any, rows: list[Rows], scatter: bool) -> tuple[list[Any], Any]:
        shards = [self._exchange(bucket) for bucket in rows]
        part = handlers.gramian(shares, shards, self.objectives.numbers, handlers.Words)
        solved = self._solve(key, self._gather(part), shares)
        updates = [handlers.combine(solved.coefficients, shard) for shard in shards]
        if not scatter:
            sizes = [bucket.shape[1] for bucket in rows]
            updates = [self._gather(u, tiled=True)[:size] for u, size in zip(updates, sizes, strict=True)]
        return updates, solved

    def _exchange(self, bucket: Rows) -> Any:
        """[P W, s]: this device's shard of every row, passes outermost; the last shards may be padded with zeros."""
        passes, size = bucket.shape
        shard = -(-size // self.world)
        padded = jnp.pad(bucket, ((0, 0), (0, shard * self.world - size)))
        pieces = padded.reshape(passes, self.world, shard)
        return jax.lax.all_to_all(pieces, self.axis, split_axis=1, concat_axis=1).reshape(passes * self.world, shard)

    def _sketched(
        self, key: Any, sketch_key: Any, shares: Any, rows: list[Rows], scatter: bool
    ) -> tuple[list[Any], Any]:
        if len(rows) != 1:
            raise ValueError(
                "gradients must have one dtype for a Sketch; got several (cast them, or reduce them apart)"
            )
        assert self.sketch is not None
        bucket = rows[0]
        width = self.sketch.width_for(bucket.shape[1])
        if width == 0:  # a bucket of at most 2 * width elements
            return self._exact(key, sketch_key, shares, rows, scatter)
        sketches = self._gather(handlers.sketch(sketch_key, bucket, width), axis=1).reshape(-1, width)
        products = handlers.gramian(shares, [sketches], self.objectives.numbers, handlers.Words, replicated=True)
        solved = self._solve(key, products[None], shares)
        coefficients = solved.coefficients.reshape(bucket.shape[0], self.world, 2)
        own = jax.lax.dynamic_index_in_dim(coefficients, jax.lax.axis_index(self.axis), axis=1, keepdims=False)
        part = handlers.combine(own, bucket)
        if scatter:
            return [jax.lax.psum_scatter(part, self.axis, tiled=True)], solved
        return [jax.lax.psum(part, self.axis)], solved


def _checked_sketch(gramian: object) -> Sketch | None:
    source = check_source(gramian)
    if source == "auto":
        raise ValueError("gramian='auto' is not for JAX, which does not say where devices are; use 'exact' or a Sketch")
    if not isinstance(source, Sketch):
        return None
    if source.refresh_every > 1 or source.lag:
        raise ValueError(
            f"gramian={source!r}: refresh_every and lag keep weights from step to step, which JAX does not"
        )
    return source
