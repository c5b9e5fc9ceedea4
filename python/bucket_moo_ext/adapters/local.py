"""A plain module in one process: its gradients are put aside as they appear, in buckets."""

import mmap
import warnings
import weakref
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import nn

from bucket_moo_ext import private_torch
from bucket_moo_ext.adapters.parameters import check_parameters
from bucket_moo_ext.gramian_source import Sketch
from bucket_moo_ext.methods import Mean
from bucket_moo_ext.state import BucketMOO


class _Memory:
    """Where buckets lie. What one that is put aside leaves serves the next."""

    def __init__(self, in_pages: bool) -> None:
        """``in_pages``: on the CPU in pages of its own, which go back to the system.

        malloc is faster, and keeps what is in the middle of its heap.
        """
        self._in_pages = in_pages
        self._spare: torch.Tensor | None = None

    def take(self, numel: int, like: torch.Tensor) -> torch.Tensor:
        """``[numel]`` of the dtype and device of ``like``."""
        nbytes = numel * like.element_size()
        spare, self._spare = self._spare, None
        if spare is None or spare.numel() < nbytes:
            if self._in_pages and like.device.type == "cpu" and nbytes > 0:
                spare = torch.frombuffer(
                    mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
                )
            else:
                spare = torch.empty(nbytes, dtype=torch.uint8, device=like.device)
        return spare[:nbytes].view(like.dtype)

    def give(self, taken: torch.Tensor) -> None:
        """Nobody needs what was taken any more."""
        self._spare = torch.empty(0, dtype=torch.uint8, device=taken.device).set_(taken.untyped_storage())

    def clear(self) -> None:
        self._spare = None


class _Bucket:
    """Parameters of one dtype whose gradients are reduced together.

    Gradients go into the bucket as they become ready and are let go of, so that there is one of each at a time. In the
    last pass the result becomes the gradients where it lies.
    """

    def __init__(self, room: int, memory: _Memory) -> None:
        """``room``: at least how many elements it will have. On the CPU what is not written to takes no memory."""
        self._room = room
        self._memory = memory
        self.parameters: list[nn.Parameter] = []  # in the order in which they lie in the bucket
        self.nbytes = 0
        self.waiting: set[nn.Parameter] = set()  # for their gradients, in this pass
        self._start: dict[nn.Parameter, int] = {}
        self._numel = 0
        self._flat: torch.Tensor | None = None  # of this pass
        self._is_taken = False  # from the memory; else it is a gradient's
        self._taken: set[nn.Parameter] = set()  # whose gradients are in it

    def add(self, parameter: nn.Parameter) -> None:
        self.parameters.append(parameter)
        self.nbytes += parameter.nbytes
        self._start[parameter] = self._numel
        self._numel += _real(parameter).numel()

    def close(self) -> None:
        """It takes no more parameters."""
        self._room = self._numel

    def begin_pass(self) -> None:
        self.waiting = set(self.parameters)
        self._flat = None
        self._is_taken = False
        self._taken.clear()

    def take(self, parameter: nn.Parameter) -> None:
        """Moves the parameter's gradient into the bucket, if there is one and it is not sparse."""
        gradient = parameter.grad
        if not _is_dense(gradient):
            return
        plain = _real(gradient)
        if self._room == plain.numel() and plain.is_contiguous():  # all there is
            self._flat = plain.view(-1)
        else:
            self._piece(parameter).view_as(plain).copy_(plain)
        self._taken.add(parameter)
        parameter.grad = None

    def flat(self) -> torch.Tensor:
        """The gradients, one after the other; zeros where there is none, or a sparse one. Once a pass."""
        for parameter in self.parameters:
            if parameter not in self._taken:
                self.take(parameter)
            if parameter not in self._taken:
                self._piece(parameter).zero_()
        assert self._flat is not None
        flat, self._flat = self._flat[: self._numel], None
        if self._is_taken and flat.is_cuda and flat.untyped_storage().nbytes() > flat.nbytes:
            exact = flat.clone()  # a GPU has no memory that takes none; once, in the first pass
            self._memory.give(flat)
            self._is_taken = False
            return exact
        return flat

    def let_go(self, flat: torch.Tensor) -> None:
        """Nobody needs what ``flat()`` gave any more."""
        if self._is_taken:
            self._memory.give(flat)

    def _piece(self, parameter: nn.Parameter, flat: torch.Tensor | None = None) -> torch.Tensor:
        if flat is None and self._flat is None:
            like = _real(parameter)
            self._flat = self._memory.take(self._room, like)
            self._is_taken = True
        whole = self._flat if flat is None else flat
        assert whole is not None
        return whole.narrow(0, self._start[parameter], _real(parameter).numel())

    def put_back(self, flat: torch.Tensor) -> None:
        """Makes the pieces of ``flat`` the gradients, but for sparse ones, and of those that no pass has reached."""
        for parameter in self.parameters:
            piece = self._piece(parameter, flat)
            if parameter in self._taken or (parameter.grad is None and bool(piece.any())):  # of earlier passes alone
                parameter.grad = _as_gradient(piece, parameter)


def _as_gradient(piece: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """In the layout in which autograd keeps gradients: where it lies if that is its layout already."""
    if parameter.is_contiguous() and not parameter.is_complex():
        return piece.view_as(parameter)
    gradient = torch.empty_like(parameter)
    plain = _real(gradient)
    plain.copy_(piece.view_as(plain))
    return gradient


def _is_dense(gradient: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    return gradient is not None and gradient.layout == torch.strided


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Without its history; complex numbers as pairs."""
    plain = tensor.detach()
    return torch.view_as_real(plain) if plain.is_complex() else plain


class LocalBuckets:
    """Reduces the gradients of a module that no wrapper reduces.

    A backward pass is a pass. The first one makes the buckets: parameters in the order in which their gradients become
    ready, up to a number of bytes, each of one dtype. A bucket is reduced as soon as its last gradient is there, and
    what a pass does not reach at its end.

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
        self._buckets: list[_Bucket] = []
        self._memory = _Memory(in_pages=isinstance(state.gramian, Sketch))  # where memory is the point
        self._filling: dict[torch.dtype, _Bucket] = {}  # those that take more parameters, in the first pass
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._pending: list[_Bucket] = []  # of this pass
        self._deferred: list[tuple[_Bucket, torch.Tensor, torch.futures.Future[torch.Tensor]]] = []
        self._in_pass = False
        self._passes = 0  # of this step
        self._leaves_open = False
        self._answers: dict[nn.Parameter, tuple[weakref.ref[torch.Tensor], int]] = {}  # with their versions
        self._has_warned = False
        # Hooks of tensors are out of the garbage collector's sight: with a strong reference the parameters, which this
        # has, would live for ever.
        for parameter in self._names:
            parameter.register_post_accumulate_grad_hook(_Weak(self._ready))  # type: ignore[no-untyped-call]
        module.register_forward_pre_hook(_Weak(self._forget_pass))
        for part in module.modules():
            _Owner.of(part).buckets.append(self)

    def _forget_pass(self, *_: object) -> None:
        """A forward pass: a backward pass that has not come to its end has failed."""
        self._in_pass = False

    def _ready(self, parameter: nn.Parameter) -> None:
        """A gradient was added to ``.grad``."""
        if not self._in_pass:
            self._begin()
            self._check_zeroed(parameter)
        bucket = self._bucket_of.get(parameter)
        if bucket is None:
            self._place(parameter)
            return
        bucket.waiting.discard(parameter)
        bucket.take(parameter)
        if not bucket.waiting and bucket in self._pending:
            self._reduce(bucket)

    def _begin(self) -> None:
        engine = self._state._bound(self._device)
        self._passes = engine.open_passes() + 1
        self._leaves_open = self._state._accumulating
        if self._filling:  # the first pass has failed
            self._filling.clear()
            self._buckets.clear()
            self._bucket_of.clear()
        self._pending = list(self._buckets)
        self._deferred.clear()
        for bucket in self._buckets:
            bucket.begin_pass()
        engine.begin_pass()
        self._in_pass = True
        private_torch.at_end_of_backward(self._end)

    def _check_zeroed(self, parameter: nn.Parameter) -> None:
        """Warns where the first gradient of a step was added to the answer of the step before, and to nothing else."""
        answer, version = self._answers.get(parameter, (None, 0))
        if answer is None or self._has_warned or self._state.method == Mean():
            return
        gradient = parameter.grad
        if gradient is not None and answer() is gradient and gradient._version == version + 1:
            self._has_warned = True
            warnings.warn(
                f"bucket_moo_ext: .grad of {self._names[parameter]!r} was not zeroed between two backward passes, so "
                "the update of the first is a part of the second's gradients. Passes of one step, with an objective "
                "each, belong under state.accumulate(), all but the last, or into state.backward({...}); between steps "
                "call zero_grad(). This is said once",
                stacklevel=2,
            )
        self._answers.clear()

    def _end(self) -> None:
        """The backward pass is over."""
        self._in_pass = False
        if private_torch.is_end_of_nested_backward():
            raise RuntimeError(
                "bucket_moo_ext: a backward pass inside another one gave gradients, as activation checkpointing with "
                "use_reentrant=True and losses that cache gradients (GradCache) make them: each would be a pass of its "
                "own. Use use_reentrant=False; with such losses, DDP or a loss that does not cache"
            )
        for parameter in self._names:
            if parameter not in self._bucket_of:
                self._place(parameter)
        for bucket in self._filling.values():
            bucket.close()
        self._filling.clear()
        for bucket in list(self._pending):
            self._reduce(bucket)
        self._state._bound(self._device).end_pass()
        for bucket, flat, done in self._deferred:
            done.wait()
            bucket.put_back(flat)
        self._deferred.clear()
        if not self._leaves_open:
            self._memory.clear()
            self._average_sparse()
            self._answers = {p: (weakref.ref(p.grad), p.grad._version) for p in self._names if p.grad is not None}

    def _place(self, parameter: nn.Parameter) -> None:
        """Puts a parameter that is in no bucket yet into one. A bucket that is full is reduced."""
        dtype = _real(parameter).dtype
        bucket = self._filling.get(dtype)
        if bucket is None:
            bucket = self._filling[dtype] = _Bucket(self._room_of(dtype), self._memory)
            self._buckets.append(bucket)
            self._pending.append(bucket)
        bucket.add(parameter)
        self._bucket_of[parameter] = bucket
        is_full = bucket.nbytes >= self._cap
        if is_full:
            del self._filling[dtype]
            bucket.close()
        bucket.take(parameter)
        if is_full:
            self._reduce(bucket)

    def _room_of(self, dtype: torch.dtype) -> int:
        """Elements of the largest bucket that parameters in none can make."""
        left = [p.nbytes for p in self._names if p not in self._bucket_of and _real(p).dtype == dtype]
        return min(sum(left), self._cap + max(left)) // dtype.itemsize

    def _reduce(self, bucket: _Bucket) -> None:
        self._pending.remove(bucket)
        flat = bucket.flat()
        parameters = [(self._names[parameter], _real(parameter).numel()) for parameter in bucket.parameters]
        done = self._state._bound(self._device).reduce(flat, parameters)
        if self._leaves_open:
            done.wait()
            bucket.let_go(flat)
        elif self._state._scope.spans_buckets:
            self._deferred.append((bucket, flat, done))  # weights come with the last bucket
        else:
            done.wait()
            bucket.put_back(flat)

    def _average_sparse(self) -> None:
        for parameter in self._names:
            if self._passes > 1 and parameter.grad is not None and not _is_dense(parameter.grad):
                parameter.grad.mul_(1.0 / self._passes)


class _Owner:
    """Keeps buckets alive as long as the module that has it; copies of the module, and files, get none."""

    _NAME = "_bucket_moo_owner"

    def __init__(self) -> None:
        self.buckets: list[LocalBuckets] = []

    @classmethod
    def of(cls, module: nn.Module) -> "_Owner":
        owner: _Owner = module.__dict__.setdefault(cls._NAME, cls())
        return owner

    def __reduce__(self) -> tuple[type["_Owner"], tuple[()]]:
        return _Owner, ()


class _Weak:
    """Calls a bound method as long as its object lives. Copies of a module, and files, get one that does nothing."""

    def __init__(self, method: Callable[..., None] | None = None) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)

    def __call__(self, *arguments: object) -> None:
        alive = None if self._method is None else self._method()
        if alive is not None:
            alive(*arguments)

    def __reduce__(self) -> tuple[type["_Weak"], tuple[()]]:
        return _Weak, ()
