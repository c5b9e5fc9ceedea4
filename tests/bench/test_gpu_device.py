"""What a dry run of `make gpu-check` cannot run, held to what there is: names of torch.cuda, and those of kernels."""

import ast
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.device import Device
from tests.support import emulated_kernels

ROOT = Path(__file__).resolve().parents[2]


def _dotted(node: ast.expr) -> str:
    """`torch.cuda.Stream` for its expression; "" for what is not a name with dots."""
    if isinstance(node, ast.Name):
        return node.id
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _find(name: str) -> object:
    return functools.reduce(getattr, name.split(".")[1:], torch)


def wrong_calls(source: str) -> Iterator[str]:
    """Names of torch that do not exist, and calls whose arguments their functions do not take."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (name := _dotted(node)).startswith("torch."):
            try:
                _find(name)
            except AttributeError:
                yield name
        if isinstance(node, ast.Call) and (name := _dotted(node.func)).startswith("torch."):
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            try:
                inspect.signature(_find(name)).bind(*node.args, **keywords)  # type: ignore[arg-type]
            except TypeError as error:
                yield f"{name}: {error}"
            except (AttributeError, ValueError):
                pass  # reported above; of a builtin, without a signature


@pytest.mark.parametrize("file", sorted((ROOT / "tests" / "gpu").glob("*.py")), ids=lambda file: file.name)
def test_what_is_called_of_torch_exists(file: Path) -> None:
    assert list(wrong_calls(file.read_text())) == []


def test_wrong_names_and_arguments_are_seen() -> None:
    source = (
        "torch.cuda.synchronise()\ntorch.cuda.set_sync_debug_mode()\ntorch.cuda.memory_stats()\ntorch.cuda.graph(g)\n"
    )
    assert sorted(wrong_calls(source)) == [
        "torch.cuda.set_sync_debug_mode: missing a required argument: 'debug_mode'",
        "torch.cuda.synchronise",
    ]


@pytest.mark.parametrize("file", sorted([*(ROOT / "tests" / "gpu").glob("*.py"), ROOT / "bench" / "gpu_kernels.py"]))
def test_only_the_device_knows_cuda(file: Path) -> None:
    """So that a dry run executes all else. CuPy's own stream, which it cannot have, is the exception."""
    uses = [line for line in file.read_text().splitlines() if "torch.cuda." in line and "ExternalStream" not in line]
    assert not uses or file.name == "device.py"


def test_the_stand_in_has_nothing_that_a_gpu_has_not() -> None:
    tree = ast.parse((ROOT / "tests" / "gpu" / "dry_run.py").read_text())
    (stand_in,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DryDevice")
    for method in (node for node in stand_in.body if isinstance(node, ast.FunctionDef) and node.name != "__init__"):
        real = inspect.signature(getattr(Device, method.name))
        assert [argument.arg for argument in method.args.args] == list(real.parameters), method.name


def test_kernels_are_found_in_sources() -> None:
    source = """
      // __global__ void not_this(int a)
      template <int K>
      __global__ void __launch_bounds__(kThreads, resident(K))
          first_kernel(const __grid_constant__ Pass pass) {}
      __global__ void second(const int n, double* __restrict__ out) {}
    """
    assert emulated_kernels.in_source(source) == ["first_kernel", "second"]
    with pytest.raises(ValueError, match="1 times __global__"):
        emulated_kernels.in_source("static __global__ auto third() -> void {}")
    assert {"combine_kernel", "make_table"} <= emulated_kernels.names()
