"""Copies of a DDP module (``copy.deepcopy``, ``pickle``, ``torch.save``), which torch makes without its hook."""

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from bucket_moo_ext import _C, private_torch


def watch_copies(is_ours: Callable[[object, object], bool]) -> None:
    """Makes a copy of a DDP module warn, once, when it reduces without a hook.

    A copy builds its reducer in ``DistributedDataParallel.__setstate__``. That is the one place that all ways of
    copying share, and torch has no hook there; so it is wrapped, once. Modules without our hook go through it
    unchanged.

    Args:
        is_ours: Whether a hook, given with its state, reduces with a state of ours.
    """
    original = DistributedDataParallel.__setstate__

    @functools.wraps(original)
    def setstate(self: DistributedDataParallel, state: Any) -> None:
        original(self, state)  # type: ignore[no-untyped-call]
        if any(is_ours(hook, given) for hook, given in private_torch.comm_hooks(self)):
            _Watch(self)

    DistributedDataParallel.__setstate__ = setstate  # type: ignore[method-assign]


class _Watch:
    """Looks at a copy from its gradients until it has reduced once: many copies never train.

    The gradients' hooks are all that refers to it, and are not copied with the parameters.
    """

    def __init__(self, copy: DistributedDataParallel) -> None:
        self._copy = weakref.ref(copy)
        self._handles: list[RemovableHandle] = [
            parameter.register_post_accumulate_grad_hook(self)  # type: ignore[no-untyped-call]
            for parameter in _C.parameters_of(copy.reducer)
        ]

    def __call__(self, parameter: torch.Tensor) -> None:
        """A gradient was added to ``.grad``."""
        copy = self._copy()
        # The parameters of a shallow copy are the original's: only the copy's reducer knows whose pass it is.
        if copy is not None and not _C.backward_has_run(copy.reducer):
            return
        for handle in self._handles:
            handle.remove()
        if copy is not None and not private_torch.comm_hook(copy):
            warnings.warn(
                "this DistributedDataParallel module is a copy of one that reduced with bucket_moo_ext. torch copies "
                "no communication hooks: the copy averages gradients. Register it after copying, as the original was: "
                "moo.register(copy, ...) or copy.register_comm_hook(state, moo.bucket_moo_hook)",
                stacklevel=2,
            )
