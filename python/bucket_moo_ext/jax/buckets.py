"""Gradients as the collectives move them: one bucket a dtype."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bucket_moo_ext.jax.functional import check_dtype

Rows: TypeAlias = Any
"""[P, n]: P gradients of one dtype."""


class Buckets:
    """The arrays of a pytree, those of one dtype one after another."""

    def __init__(self, gradients: Any, passes: int | None) -> None:
        """`passes`: how many gradients the leading axis of every array has; None: they have no such axis.

        Raises TypeError or ValueError for what cannot be reduced.
        """
        given, self._tree = jax.tree.flatten(gradients)
        if not given:
            raise ValueError("gradients must be an array or a pytree of arrays; got one without arrays")
        leaves = [jnp.asarray(leaf) for leaf in given]
        for leaf in leaves:
            check_dtype("gradients", leaf)
            if passes is not None and (leaf.ndim == 0 or leaf.shape[0] != passes):
                raise ValueError(f"gradients must be arrays [{passes}, ...], one row a pass; got shape {leaf.shape}")
        self._shapes = [leaf.shape if passes is None else leaf.shape[1:] for leaf in leaves]
        self._dtypes = list(dict.fromkeys(leaf.dtype for leaf in leaves))
        self._members = [[i for i, leaf in enumerate(leaves) if leaf.dtype == dtype] for dtype in self._dtypes]
        count = 1 if passes is None else passes
        flat = [leaf.reshape(count, int(np.prod(shape))) for leaf, shape in zip(leaves, self._shapes, strict=True)]
        self.rows: list[Rows] = [jnp.concatenate([flat[i] for i in members], axis=1) for members in self._members]

    @property
    def is_array(self) -> bool:
        """Whether the gradients are one array."""
        return bool(self._tree == jax.tree.structure(0))

    def restore(self, updates: list[Any]) -> Any:
        """The pytree of one gradient, from ``[n]`` of each bucket."""
        leaves: list[Any] = [None] * len(self._shapes)
        for members, update in zip(self._members, updates, strict=True):
            ends = np.cumsum([int(np.prod(self._shapes[i])) for i in members])
            for i, piece in zip(members, jnp.split(update, ends[:-1]), strict=True):
                leaves[i] = piece.reshape(self._shapes[i])
        return jax.tree.unflatten(self._tree, leaves)
