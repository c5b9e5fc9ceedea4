"""The collectives themselves, for those who reduce outside DDP."""

from typing import Literal, overload

import torch
from torch.futures import Future

from bucket_moo_ext.plain import text
from bucket_moo_ext.state import BucketMOO


def _check_state(state: object) -> BucketMOO:
    if not isinstance(state, BucketMOO):
        raise TypeError(f"state must be a BucketMOO; got {type(state).__name__}")
    return state


def _check_bucket(bucket: object) -> str | None:
    plain = text(bucket) if isinstance(bucket, str) else bucket
    if plain is not None and not isinstance(plain, str):
        raise TypeError(f"bucket must be a string or None; got {type(bucket).__name__} {bucket!r}")
    if plain == "":
        raise ValueError("bucket must be a name or None; got an empty string")
    if plain is not None and not plain.isprintable():
        raise ValueError(f"bucket must be a name of printable characters or None; got {bucket!r}")
    return plain


def _device(name: str, tensor: object) -> torch.device:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
    return tensor.device


@overload
def all_reduce(
    tensor: torch.Tensor, state: BucketMOO, *, bucket: str | None = None, async_op: Literal[False] = False
) -> None: ...
@overload
def all_reduce(
    tensor: torch.Tensor, state: BucketMOO, *, bucket: str | None = None, async_op: Literal[True]
) -> Future[torch.Tensor]: ...
def all_reduce(
    tensor: torch.Tensor, state: BucketMOO, *, bucket: str | None = None, async_op: bool = False
) -> Future[torch.Tensor] | None:
    """Replaces every rank's ``tensor`` by the conflict-aware combination of all ranks' tensors, in place.

    The counterpart of ``torch.distributed.all_reduce`` with ``ReduceOp.AVG``; each call is a step of its own, in which
    the ranks tell each other their objectives and weights. Under ``state.accumulate()`` it is a pass: ``tensor``
    becomes zeros, and the first call for the bucket outside brings the combination of all passes.

    Args:
        tensor: Contiguous, dense, on the CPU or a GPU, any shape; float32, bfloat16, float16 or float64. The same size
            and dtype on every rank.
        state: Holds method, objective, weight and group.
        bucket: A name of printable characters, the same on every rank. What outlives a call goes by it: the memory of
            ``GradVac`` and ``Smoothed``, weights that serve for several steps, and the line of the report. None: all
            calls on this number of elements are one bucket.
        async_op: Return at once; the tensor must not be touched until the Future is done.

    Returns:
        None, or a Future of ``tensor``.

    Raises:
        TypeError, ValueError: Bad arguments, before anything is sent (for tensors on the CPU the other ranks get a
            ValueError that says so; else they wait for the group's timeout); ranks that make different calls, on every
            rank.
        RuntimeError: A peer failed or the group's timeout passed.
    """
    name = _check_bucket(bucket)
    engine = _check_state(state)._bound(_device("tensor", tensor))
    if async_op:
        return engine.all_reduce_async(tensor, name)
    engine.all_reduce(tensor, name)
    return None


@overload
def reduce_scatter(
    output: torch.Tensor,
    input: torch.Tensor,
    state: BucketMOO,
    *,
    bucket: str | None = None,
    async_op: Literal[False] = False,
) -> None: ...
@overload
def reduce_scatter(
    output: torch.Tensor,
    input: torch.Tensor,
    state: BucketMOO,
    *,
    bucket: str | None = None,
    async_op: Literal[True],
) -> Future[torch.Tensor]: ...
def reduce_scatter(
    output: torch.Tensor,
    input: torch.Tensor,
    state: BucketMOO,
    *,
    bucket: str | None = None,
    async_op: bool = False,
) -> Future[torch.Tensor] | None:
    """Writes this rank's shard of the conflict-aware combination of all ranks' ``input`` to ``output``.

    The counterpart of ``torch.distributed.reduce_scatter_tensor`` with ``ReduceOp.AVG``: the weights are solved for the
    whole of ``input``, over all shards.

    Args:
        output: Contiguous, n / world_size elements. May be this rank's shard of ``input``, and must not overlap it
            otherwise.
        input: Contiguous, n elements: world_size shards, one after another. Not written to.
        state, bucket: As for ``all_reduce``.
        async_op: As for ``all_reduce``; the Future is of ``output``.

    Raises:
        As ``all_reduce``; ValueError also if ``input`` does not hold world_size times the elements of ``output``.
    """
    name = _check_bucket(bucket)
    engine = _check_state(state)._bound(_device("input", input))
    if async_op:
        return engine.reduce_scatter_async(output, input, name)
    engine.reduce_scatter(output, input, name)
    return None
