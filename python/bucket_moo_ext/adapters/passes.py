"""The backward passes of a module whose wrapper hands over one bucket after the other, each to be reduced at once."""

import contextlib
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import nn

from bucket_moo_ext import _C, private_torch
from bucket_moo_ext.state import BucketMOO

Parameters = list[tuple[str, int]]
"""Of a bucket: names and elements of those that are trained."""

Places = list[tuple[int, int]]
"""Where these lie, in what is scattered to each rank or in the whole: beginning and size of each."""


class Passes:
    """Finds where backward passes begin and end: all buckets that one of them reduces are one pass of the engine.

    A pass begins with the first bucket, and ends behind the wrapper's own end of the backward pass. On the host all
    reductions and the end are compared across ranks. A subclass knows the wrapper.

    Where one problem is solved for the model, weights come with the last bucket, and no wrapper waits that long for
    one: in the pass that closes a step it gets zeros, as in those before, and its gradients the results at the end.
    """

    BUCKET: ClassVar[str]  # what the wrapper's is
    IF_TWICE: ClassVar[str]  # why a pass may reduce a bucket twice, and what to do
    IF_UNREACHED: ClassVar[str]  # what makes every pass reduce every bucket
    IF_RANKS_DIFFER: ClassVar[str]  # what makes ranks reduce the same buckets

    def __init__(self, state: BucketMOO, root: nn.Module, device: torch.device) -> None:
        """Collective over the state's group."""
        self._state = state
        self._device = device
        self._in_pass = False
        self._leaves_open = False
        self._reduced: set[tuple[str, ...]] = set()  # buckets of this pass
        self._put_aside: set[tuple[str, ...]] = set()  # of the passes of this step before
        # Results, what adds them, and on a GPU the stream that waits for them.
        self._late: list[tuple[torch.Tensor, Callable[[torch.Tensor], None], torch.cuda.Stream | None]] = []
        state._bound(device)
        root.register_forward_pre_hook(self._forget_broken_pass)

    def _check_begin(self) -> None:
        """Raises where a pass cannot begin."""

    def _is_in_backward(self) -> bool:
        """Whether the wrapper has not come to its end of the backward pass yet."""
        raise NotImplementedError

    def _recover(self) -> None:
        """Makes the wrapper ready to go on after a backward pass that failed. Raises where it cannot."""

    @contextlib.contextmanager
    def _reduction(self, parameters: Parameters) -> Iterator[_C.Engine]:
        """The engine, for the reduction of one bucket in a pass."""
        bucket = tuple(name for name, _ in parameters)
        if not self._in_pass:
            self._begin()
        if bucket in self._reduced:
            raise RuntimeError(
                f"bucket_moo_ext: the {self.BUCKET} of parameter {bucket[0]!r} was reduced twice in one backward pass, "
                f"with a part of its gradient each time. {self.IF_TWICE}"
            )
        self._reduced.add(bucket)
        with self._explaining():
            yield self._state._bound(self._device)

    def _begin(self) -> None:
        self._check_begin()
        engine = self._state._bound(self._device)
        if engine.open_passes() == 0:  # also after discard()
            self._put_aside.clear()
        self._reduced.clear()
        self._late.clear()
        self._leaves_open = self._state._accumulating
        engine.begin_pass()
        self._in_pass = True
        private_torch.at_end_of_backward(self._end)

    @property
    def _is_late(self) -> bool:
        """Whether results come at the end of this pass."""
        return self._state._scope.spans_buckets and not self._leaves_open

    def _add_at_end(self, result: torch.Tensor, add: Callable[[torch.Tensor], None]) -> None:
        """``result``: memory that will have it when the pass is over; ``add``: adds it to gradients then."""
        stream = torch.cuda.current_stream(result.device) if result.is_cuda else None
        self._late.append((result, add, stream))

    def _end(self) -> None:
        """The backward pass is over; where it failed on some rank, no rank goes on without ``_recover()``."""
        if self._is_in_backward():
            raise RuntimeError(
                "bucket_moo_ext: a backward pass inside another one reduced gradients, as activation checkpointing "
                "with use_reentrant=True makes them; use use_reentrant=False"
            )
        with self._explaining():
            self._state._bound(self._device).end_compared_pass()
        self._in_pass = False
        self._add_late()
        if self._leaves_open:
            self._put_aside |= self._reduced
            return
        missing = self._put_aside - self._reduced
        self._put_aside.clear()
        if missing:
            raise RuntimeError(
                f"bucket_moo_ext: the pass that closes a step did not reach the {self.BUCKET} of parameter "
                f"{min(missing)[0]!r}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, whose gradients "
                f"earlier passes put aside: they are lost. {self.IF_UNREACHED}"
            )

    @torch.no_grad()
    def _add_late(self) -> None:
        """On a GPU it is enqueued on the current stream, which waits for the results."""
        for result, add, stream in self._late:
            if stream is not None:
                current = torch.cuda.current_stream(result.device)
                current.wait_stream(stream)  # where the wrapper wrote zeros, too
                result.record_stream(current)
            add(result)
        self._late.clear()

    @private_torch.not_compiled
    def _forget_broken_pass(self, *_: object) -> None:
        """A forward pass outside of a backward pass: one that has not come to its end has failed."""
        if self._in_pass and not private_torch.is_in_backward():
            self._recover()
            self._late.clear()
            self._in_pass = False

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Says what to do where ranks have made different calls."""
        try:
            yield
        except ValueError as error:
            if "the same calls in the same order" not in str(error):
                raise
            raise ValueError(f"{error}. If ranks use different parameters in a pass: {self.IF_RANKS_DIFFER}") from error
