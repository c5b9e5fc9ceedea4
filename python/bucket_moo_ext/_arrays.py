"""Arrays of other libraries as tensors, and back, without a copy and in the order of their streams."""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import torch

from bucket_moo_ext import _C

ArrayLike: TypeAlias = Any  # a torch tensor, or anything that speaks DLPack or the CUDA array interface

_HAS_CUDA: bool = _C.build_info()["cuda"]
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_LEGACY_STREAM = 1  # in the CUDA array interface and DLPack; 0 in torch and CuPy


def as_tensor(name: str, value: ArrayLike) -> torch.Tensor:
    """The array as a dense tensor that shares its memory and requires no gradient.

    What is then enqueued on torch's current stream is ordered after what the array's producer had enqueued.

    Raises:
        TypeError: No array, or one of a kind of numbers that torch does not have.
        ValueError: Not dense.
        RuntimeError: In CUDA memory, which this build or this torch does not support.
    """
    if isinstance(value, torch.Tensor):
        if type(value) is not torch.Tensor and hasattr(type(value), "to_local"):
            raise ValueError(f"{name} must hold its elements itself; got a {type(value).__name__}: give its to_local()")
        tensor = value.detach()
    elif hasattr(value, "__dlpack__"):
        if value.__dlpack_device__()[0] in _DLPACK_CUDA:
            _require_cuda(name, value)
        tensor = _from_dlpack(name, value)
    elif hasattr(value, "__cuda_array_interface__"):
        _require_cuda(name, value)
        tensor = _from_cuda_array(value)
    else:
        raise TypeError(
            f"{name} must be a tensor or an array that supports DLPack or __cuda_array_interface__; "
            f"got {type(value).__name__}"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be dense; got layout {tensor.layout}")
    return tensor


def _from_dlpack(name: str, value: ArrayLike) -> torch.Tensor:
    if any(stride < 0 for stride in getattr(value, "strides", None) or ()):
        value = value.copy()  # tensors have no negative strides, and torch aborts the process over them
    try:
        return torch.from_dlpack(value)  # which hands torch's current stream to the producer
    except BufferError as error:
        raise TypeError(f"{name}: {type(value).__name__} of dtype {value.dtype} is no tensor: {error}") from error


def is_array(value: object) -> bool:
    """Whether ``as_tensor`` takes it."""
    return hasattr(value, "__dlpack__") or hasattr(value, "__cuda_array_interface__")


def _require_cuda(name: str, value: ArrayLike) -> None:
    where = f"{name} ({type(value).__module__}.{type(value).__name__}) is in CUDA memory, but"
    if not _HAS_CUDA:
        raise RuntimeError(
            f"{where} this build has no CUDA kernels (build_info()['cuda'] is False); rebuild it where nvcc is on the "
            "PATH: pip install --no-build-isolation --force-reinstall --no-deps . (in its source folder)"
        )
    if not torch.cuda.is_available():
        raise RuntimeError(f"{where} torch {torch.__version__} finds no CUDA device")


def _from_cuda_array(value: ArrayLike) -> torch.Tensor:
    producer = value.__cuda_array_interface__.get("stream")  # since version 3; None: nothing to wait for
    if producer is not None:
        stream = _stream(0 if producer == _LEGACY_STREAM else producer)
        torch.cuda.current_stream().wait_stream(stream)
    return torch.as_tensor(value, device="cuda")  # shares the memory, and leaves ordering to us


def _stream(pointer: int) -> torch.cuda.Stream:
    """A stream of another library on the current device."""
    return torch.cuda.ExternalStream(pointer)  # type: ignore[no-untyped-call]


def cupy_of(array: ArrayLike | Sequence[ArrayLike]) -> ModuleType | None:
    """CuPy, if this is one of its arrays or a list of nothing else, and they can be worked on."""
    arrays = array if isinstance(array, list | tuple) else (array,)
    if not arrays or isinstance(arrays[0], torch.Tensor):
        return None
    cupy = sys.modules.get("cupy")  # whoever has an array of its has imported it
    if cupy is None or not all(isinstance(each, cupy.ndarray) for each in arrays):
        return None
    return cupy if _HAS_CUDA and torch.cuda.is_available() else None


def through_torch(
    cupy: ModuleType, function: Callable[..., Any], *arguments: ArrayLike | Sequence[ArrayLike], **options: Any
) -> Any:
    """``function`` with CuPy arrays as tensors and its results as CuPy arrays, on the stream that is current for CuPy.

    The memory of the results is torch's; when CuPy drops them it is used again on the same stream.
    """
    first: Any = arguments[0][0] if isinstance(arguments[0], list | tuple) else arguments[0]
    with first.device, torch.cuda.device(first.device.id):
        before = torch.cuda.current_stream()
        stream = _stream(cupy.cuda.get_current_stream().ptr)
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.is_cuda:
                stream.wait_stream(before)
                argument.record_stream(stream)
        with torch.cuda.stream(stream):
            result = function(*(_tensors(cupy, argument) for argument in arguments), **options)
            if isinstance(result, tuple):
                return tuple(cupy.from_dlpack(tensor) for tensor in result)
            return cupy.from_dlpack(result)


def _tensors(cupy: ModuleType, argument: ArrayLike | Sequence[ArrayLike]) -> Any:
    if isinstance(argument, list | tuple):
        return [_tensors(cupy, array) for array in argument]
    return torch.from_dlpack(argument) if isinstance(argument, cupy.ndarray) else argument
