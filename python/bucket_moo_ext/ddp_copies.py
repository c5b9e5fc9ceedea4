"""Copies of a DDP module (``copy.deepcopy``, ``pickle``, ``torch.save``), which torch makes without its hook."""

import functools
import warnings
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from bucket_moo_ext.ddp_module import comm_hook


def _warn_of_averaging(copy: DistributedDataParallel, inputs: object) -> None:
    """Forward pre-hook of a copy: says once that a copy which is about to reduce does so without the hook."""
    if not (torch.is_grad_enabled() and copy.require_backward_grad_sync):
        return
    _stop_watching(copy)
    if not comm_hook(copy):
        warnings.warn(
            "this DistributedDataParallel module is a copy of one that reduced with bucket_moo_ext. torch copies no "
            "communication hooks: the copy averages gradients. Register it again, as the original was: "
            "moo.register(copy, ...) or copy.register_comm_hook(state, moo.bucket_moo_hook)",
            stacklevel=2,
        )


def _stop_watching(copy: DistributedDataParallel) -> None:
    hooks = copy._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _warn_of_averaging]:
        del hooks[key]


def watch_copies(hook: object) -> None:
    """Makes copies of modules that list ``hook`` among their hooks warn when they train without one.

    A copy of a DDP module builds its reducer in ``__setstate__``. That is the one place that all ways of copying share,
    and torch has no hook there; so it is wrapped, once. Modules without our hook go through it unchanged.
    """
    original = DistributedDataParallel.__setstate__

    @functools.wraps(original)
    def setstate(self: DistributedDataParallel, state: Any) -> None:
        original(self, state)  # type: ignore[no-untyped-call]
        if any(listed is hook for listed, _ in getattr(self, "_comm_hooks", ())):
            _stop_watching(self)  # what came along from a copy that was copied
            self.register_forward_pre_hook(_warn_of_averaging)

    DistributedDataParallel.__setstate__ = setstate  # type: ignore[method-assign]
