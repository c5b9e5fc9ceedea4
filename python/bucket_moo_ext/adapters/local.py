"""A plain module in one process: its gradients are put aside as they appear, in buckets."""

import weakref
from collections.abc import Callable, Iterable
from typing import TypeGuard

import torch
from torch import nn

from bucket_moo_ext import private_torch
from bucket_moo_ext.adapters.parameters import check_parameters
from bucket_moo_ext.state import BucketMOO


class _Bucket:
    """Parameters of one dtype whose gradients are reduced together."""

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []  # in the order in which they lie in the bucket
        self.nbytes = 0
        self.waiting: set[nn.Parameter] = set()  # for their gradients, in this pass

    def add(self, parameter: nn.Parameter) -> None:
        self.parameters.append(parameter)
        self.nbytes += parameter.nbytes

    def flat(self, take: bool) -> torch.Tensor:
        """The gradients, one after the other; zeros where there is none, or a sparse one.

        ``take``: each is freed as it is copied, but for sparse ones.
        """
        first = self.parameters[0].grad
        if len(self.parameters) == 1 and _is_dense(first) and first.is_contiguous():
            if take:
                self.parameters[0].grad = None
            return _real(first).view(-1)
        like = _real(self.parameters[0])
        flat = torch.empty(sum(self._sizes()), dtype=like.dtype, device=like.device)
        for parameter, piece in zip(self.parameters, torch.split(flat, self._sizes()), strict=True):
            gradient = parameter.grad
            if not _is_dense(gradient):
                piece.zero_()
                continue
            plain = _real(gradient)
            piece.view_as(plain).copy_(plain)  # one by one: on the CPU faster than torch.cat
            if take:
                parameter.grad = None
        return flat

    def _sizes(self) -> list[int]:
        return [_real(parameter).numel() for parameter in self.parameters]

    def put_back(self, flat: torch.Tensor) -> None:
        """Makes the pieces of ``flat`` the gradients, but for sparse ones."""
        pieces = torch.split(flat, self._sizes())
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            if parameter.grad is None and bool(piece.any()):  # of earlier passes alone
                parameter.grad = torch.zeros_like(parameter)
            if _is_dense(parameter.grad):
                gradient = _real(parameter.grad)
                if gradient.data_ptr() != piece.data_ptr():
                    gradient.copy_(piece.view_as(gradient))


def _is_dense(gradient: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    return gradient is not None and gradient.layout == torch.strided


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Without its history; complex numbers as pairs."""
    plain = tensor.detach()
    return torch.view_as_real(plain) if plain.is_complex() else plain


class LocalBuckets:
    """Reduces the gradients of a module that no wrapper reduces.

    A backward pass is a pass. In the first one the order is noted in which gradients become ready, and at its end the
    buckets are made: parameters in that order, up to a number of bytes, each of one dtype. From then on a bucket is
    reduced as soon as its last gradient is there, and what a pass does not reach at its end.

    Sparse gradients are averaged over the passes.
    """

    def __init__(self, module: nn.Module, state: BucketMOO, bucket_cap: int) -> None:
        """``bucket_cap``: bytes from which on a bucket takes no more parameters."""
        self._state = state
        self._cap = bucket_cap
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._device = check_parameters(named, "module")
        self._names = {parameter: name for name, parameter in named}
        state.name_parameters(named)
        self._order: dict[nn.Parameter, None] = {}  # in which gradients became ready, of those in no bucket yet
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._pending: list[_Bucket] = []  # of this pass
        self._deferred: list[tuple[_Bucket, torch.Tensor, torch.futures.Future[torch.Tensor]]] = []
        self._in_pass = False
        self._passes = 0  # of this step
        self._leaves_open = False
        for parameter in self._names:  # which keep this alive
            parameter.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]
        module.register_forward_pre_hook(_weak(self._forget_pass))  # a copy of the module gets this one, too

    def _forget_pass(self, *_: object) -> None:
        """A forward pass: a backward pass that has not come to its end has failed."""
        self._in_pass = False

    def _ready(self, parameter: nn.Parameter) -> None:
        """A gradient was added to ``.grad``."""
        if not self._in_pass:
            self._begin()
        bucket = self._bucket_of.get(parameter)
        if bucket is None:
            self._order[parameter] = None
            return
        bucket.waiting.discard(parameter)
        if not bucket.waiting and bucket in self._pending:
            self._reduce(bucket)

    def _begin(self) -> None:
        engine = self._state._bound(self._device)
        self._passes = engine.open_passes() + 1
        self._leaves_open = self._state._accumulating
        self._pending = list(self._buckets)
        self._deferred.clear()
        for bucket in self._buckets:
            bucket.waiting = set(bucket.parameters)
        engine.begin_pass()
        self._in_pass = True
        private_torch.at_end_of_backward(self._end)

    def _end(self) -> None:
        """The backward pass is over."""
        self._in_pass = False
        if len(self._bucket_of) < len(self._names):
            self._make_buckets([*self._order, *(p for p in self._names if p not in self._order)])
            self._order.clear()
        for bucket in list(self._pending):
            self._reduce(bucket)
        self._state._bound(self._device).end_pass()
        for bucket, flat, done in self._deferred:
            done.wait()
            bucket.put_back(flat)
        self._deferred.clear()
        if not self._leaves_open:
            self._average_sparse()

    def _make_buckets(self, parameters: Iterable[nn.Parameter]) -> None:
        filling: dict[torch.dtype, _Bucket] = {}
        for parameter in parameters:
            dtype = _real(parameter).dtype
            bucket = filling.get(dtype)
            if bucket is None or bucket.nbytes >= self._cap:
                bucket = filling[dtype] = _Bucket()
                self._buckets.append(bucket)
            bucket.add(parameter)
            self._bucket_of[parameter] = bucket
        self._pending = list(self._buckets)

    def _reduce(self, bucket: _Bucket) -> None:
        self._pending.remove(bucket)
        flat = bucket.flat(take=self._leaves_open)
        parameters = [(self._names[parameter], _real(parameter).numel()) for parameter in bucket.parameters]
        done = self._state._bound(self._device).reduce(flat, parameters)
        if self._leaves_open:
            done.wait()
        elif self._state._scope.spans_buckets:
            self._deferred.append((bucket, flat, done))  # weights come with the last bucket
        else:
            done.wait()
            bucket.put_back(flat)

    def _average_sparse(self) -> None:
        for parameter in self._names:
            if self._passes > 1 and parameter.grad is not None and not _is_dense(parameter.grad):
                parameter.grad.mul_(1.0 / self._passes)


def _weak(method: Callable[..., None]) -> Callable[..., None]:
    """The bound method, without keeping its object alive."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: object) -> None:
        alive = reference()
        if alive is not None:
            alive(*arguments)

    return call
