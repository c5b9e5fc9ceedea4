"""Which parameters can be reduced."""

from collections.abc import Iterable, Sequence

import torch

from bucket_moo_ext import _C, private_torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_whole(named_parameters: Iterable[tuple[object, torch.Tensor]]) -> None:
    """Refuses parameters of which other ranks hold other pieces, as tensor parallelism leaves them.

    Raises:
        ValueError: There is one, and more than one rank to hold pieces.
    """
    for name, parameter in named_parameters:
        mesh = private_torch.mesh_of(parameter)
        if mesh is not None and mesh.size() > 1:
            dimensions = ", ".join(mesh.mesh_dim_names or ("unnamed",))
            raise ValueError(
                f"parameter {name!r} is a piece of a DTensor over the mesh dimension {dimensions}: tensor parallelism "
                "beside data parallelism needs model_parallel_group, the group of that dimension. Without it its ranks "
                "would solve for weights of their own, and parameters that they hold copies of would drift apart"
            )


def check_parameters(
    reduced: Sequence[tuple[str, torch.Tensor]], reducer: str, may_be_pieces: bool = False
) -> torch.device:
    """The one device of parameters that can be reduced there.

    Args:
        reduced: Names and parameters.
        reducer: Who reduces them, for errors.
        may_be_pieces: Whether it is known which ranks hold the other pieces.

    Raises:
        TypeError: A parameter of an unsupported dtype.
        ValueError: One on an unsupported device, on several devices, or of which other ranks hold other pieces.
    """
    if not may_be_pieces:
        check_whole(reduced)
    devices: dict[torch.device, str] = {}
    for name, parameter in reduced:
        device = parameter.device
        check_device(device, f"module: parameter {name!r} is on {device}")
        devices.setdefault(device, name)
        real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter
        check_dtype(f"parameter {name!r} has dtype", real.dtype)
    if len(devices) != 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in devices.items()) or "no parameter"
        raise ValueError(f"module: all parameters that {reducer} reduces must be on one device; got {places}")
    return next(iter(devices))


def check_device(device: torch.device, what: str) -> None:
    """Raises ValueError, beginning with ``what``, for a device on which nothing can be reduced."""
    if device.type != "cpu" and not _C.reduces_on_device(device):
        raise ValueError(f"{what}; {_where()}")


def check_dtype(what: str, dtype: torch.dtype) -> None:
    """Raises TypeError for a dtype that cannot be reduced; ``what`` has it."""
    if dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(f"module: {what} {dtype}; allowed: {allowed}")


def _where() -> str:
    if _C.build_info()["cuda"]:
        return "gradients are reduced on the CPU and on CUDA devices"
    return (
        "this build reduces CPU gradients only (build_info()['cuda'] is False); rebuild it with nvcc on the PATH for "
        "CUDA"
    )
