"""Arrays of other libraries, with stand-ins for those that need a GPU: what is refused, and the order of streams."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from bucket_moo_ext import _arrays

from tests.support.checks import raw

without_kernels = pytest.mark.skipif(moo.build_info()["cuda"], reason="this build has CUDA kernels")  # type: ignore[arg-type]


class OnCudaByDLPack:
    """Says by DLPack that it is in CUDA memory."""

    def __dlpack__(self, **options: Any) -> object:
        raise AssertionError("must not be asked for")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


class OnCudaByInterface:
    """Speaks the CUDA array interface alone; the memory is the host's."""

    def __init__(self, array: np.ndarray[Any, Any], stream: int | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = {**array.__array_interface__, "version": 3, "stream": stream}


CALLS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "gramian": ("jacobian", lambda array: moo.gramian(array)),
    "combine": ("jacobian", lambda array: moo.combine(array, [1.0, 2.0])),
    "aggregate": ("jacobian", lambda array: moo.aggregate(array)),
    "a row": ("jacobian[1]", lambda array: moo.gramian([torch.ones(3), array])),
    "weights": ("gramian", lambda array: moo.weights(array)),
    "of combine": ("weights", lambda array: moo.combine(torch.ones(2, 3), array)),
}


def _reversed(array: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    view = np.flip(array, axis)
    assert min(view.strides) < 0
    return view


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_with_negative_strides(dtype: type[np.floating[Any]], axis: int) -> None:
    array = np.arange(1.0, 13.0, dtype=dtype).reshape(3, 4) ** 2
    view = _reversed(array, axis)
    same = view.copy()
    assert torch.equal(moo.gramian(view), moo.gramian(same))
    assert torch.equal(moo.gramian(list(view)), moo.gramian(same))
    assert torch.equal(moo.sketch(view, 64, seed=3), moo.sketch(same, 64, seed=3))
    assert torch.equal(moo.aggregate(view, "upgrad"), moo.aggregate(same, "upgrad"))
    weights = np.arange(1.0, 4.0)
    assert torch.equal(moo.combine(view, _reversed(weights, 0)), moo.combine(same, weights[::-1].copy()))
    gramian = moo.gramian(array).numpy()
    assert torch.equal(moo.weights(_reversed(gramian, axis)), moo.weights(np.flip(gramian, axis).copy()))


@pytest.mark.parametrize("dtype", [">f4", "O", np.longdouble])
def test_arrays_of_numbers_that_torch_does_not_have(dtype: Any) -> None:
    for call in (moo.gramian, moo.weights, moo.aggregate):
        with pytest.raises(TypeError, match=r"^(jacobian|gramian): ndarray of dtype"):
            call(np.ones((2, 2)).astype(dtype))


def test_weights_of_combine() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([7.0, 10.0])
    numbers: tuple[Any, ...] = (1, np.float32(2))
    for weights in (numbers, list(numbers), {"a": 1.0, "b": 2.0}.values(), (x for x in numbers), np.array([1, 2])):
        assert torch.equal(moo.combine(rows, weights), expected)
    for weights in (None, "ab", 1.0, [1.0, "x"], [1.0, None], torch.ones(2, dtype=torch.complex64), np.ones(2) * 1j):  # type: ignore[assignment]
        with pytest.raises(TypeError, match=r"^weights must be"):
            moo.combine(rows, weights)


@without_kernels
@pytest.mark.parametrize("array", [OnCudaByDLPack(), OnCudaByInterface(np.ones((2, 3)))], ids=["DLPack", "interface"])
@pytest.mark.parametrize("call", CALLS)
def test_cuda_memory_is_refused_by_a_build_without_kernels(call: str, array: object) -> None:
    name, function = CALLS[call]
    with pytest.raises(RuntimeError) as caught:
        function(array)
    message = str(caught.value)
    for word in (f"{name} (", type(array).__name__, "build_info()['cuda'] is False", "nvcc", "pip install"):
        assert word in message, message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("array", [OnCudaByDLPack(), OnCudaByInterface(np.ones((2, 3)))], ids=["DLPack", "interface"])
def test_cuda_memory_is_refused_by_a_torch_without_devices(monkeypatch: pytest.MonkeyPatch, array: object) -> None:
    monkeypatch.setattr(_arrays, "_HAS_CUDA", True)
    with pytest.raises(RuntimeError, match=r"jacobian .* is in CUDA memory, but torch .* finds no CUDA device"):
        moo.gramian(array)


# --- streams, recorded ---


class Stream:
    def __init__(self, pointer: int, log: list[str]) -> None:
        self.pointer, self.log = pointer, log

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.pointer} waits for {other.pointer}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to streams, in order; torch's current stream is 7."""
    log: list[str] = []
    current = [Stream(7, log)]

    @contextmanager
    def enter(stream: Stream) -> Iterator[None]:
        log.append(f"enter {stream.pointer}")
        current.append(stream)
        yield
        current.pop()
        log.append(f"leave {stream.pointer}")

    @contextmanager
    def device(index: int) -> Iterator[None]:
        assert index == 0
        yield

    monkeypatch.setattr(_arrays, "_HAS_CUDA", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer: Stream(pointer, log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "device", device)
    return log


@pytest.mark.parametrize(
    ("stream", "expected"), [(None, []), (1, ["7 waits for 0"]), (2, ["7 waits for 2"]), (99, ["7 waits for 99"])]
)
def test_work_waits_for_the_stream_of_the_cuda_array_interface(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, log: list[str], stream: int | None, expected: list[str]
) -> None:
    rows = rng.standard_normal((3, 20))
    as_tensor = torch.as_tensor

    def shares(value: Any, **options: Any) -> torch.Tensor:
        if not isinstance(value, OnCudaByInterface):
            return as_tensor(value, **options)
        assert options == {"device": "cuda"}
        log.append("share")
        return torch.from_numpy(value.array)

    monkeypatch.setattr(torch, "as_tensor", shares)
    assert raw(moo.gramian(OnCudaByInterface(rows, stream))) == raw(moo.gramian(rows))
    assert log == [*expected, "share"]
    log.clear()
    del (without := OnCudaByInterface(rows)).__cuda_array_interface__["stream"]  # before version 3
    moo.gramian(without)
    assert log == ["share"]


class Device:
    """CuPy's device 0."""

    id = 0

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class CupyArray:
    """A stand-in for cupy.ndarray, in host memory."""

    device = Device()

    def __init__(self, tensor: torch.Tensor, log: list[str]) -> None:
        self.tensor, self.log = tensor, log

    def __dlpack__(self, **options: Any) -> object:
        self.log.append("in")
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> ModuleType:
    """A stand-in for CuPy, whose current stream is 5."""
    module = ModuleType("cupy")

    def from_dlpack(tensor: torch.Tensor) -> CupyArray:
        log.append("out")
        return CupyArray(torch.from_dlpack(tensor), log)

    module.ndarray = CupyArray  # type: ignore[attr-defined]
    module.from_dlpack = from_dlpack  # type: ignore[attr-defined]
    module.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=5))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_cupy_arrays_give_cupy_arrays_on_the_stream_of_cupy(
    rng: np.random.Generator, log: list[str], cupy: ModuleType
) -> None:
    rows = torch.from_numpy(rng.standard_normal((3, 20)))
    gram, w = moo.gramian(rows), moo.weights(moo.gramian(rows), "cagrad")

    def array(tensor: torch.Tensor) -> CupyArray:
        return CupyArray(tensor, log)

    def check(got: Any, expected: torch.Tensor, arrays: int = 1, results: int = 1) -> None:
        assert isinstance(got, CupyArray)
        assert raw(got.tensor) == raw(expected)
        assert log == ["enter 5", *["in"] * arrays, *["out"] * results, "leave 5"]
        log.clear()

    check(moo.gramian(array(rows)), gram)
    check(moo.gramian([array(row) for row in rows]), gram, arrays=3)
    check(moo.weights(array(gram), "cagrad"), w)
    certified = moo.weights(array(gram), "cagrad", return_certificate=True)
    assert isinstance(certified, tuple)
    check(certified[0], w, results=2)
    assert isinstance(certified[1], CupyArray)
    check(moo.combine(array(rows), array(w)), moo.combine(rows, w), arrays=2)
    check(moo.combine(array(rows), w.tolist()), moo.combine(rows, w))
    check(moo.combine(array(rows), w.numpy()), moo.combine(rows, w))
    check(moo.combine(array(rows), w), moo.combine(rows, w))
    check(moo.aggregate(array(rows), "pcgrad", seed=3, step=4), moo.aggregate(rows, "pcgrad", seed=3, step=4))

    mixed = moo.gramian([array(rows[0]), rows[1], array(rows[2])])
    assert isinstance(mixed, torch.Tensor)
    assert raw(mixed) == raw(gram)
    assert log == ["in", "in"]


def test_results_for_cupy_share_the_memory_of_the_tensor(log: list[str], cupy: ModuleType) -> None:
    given: list[torch.Tensor] = []
    from_dlpack = cupy.from_dlpack
    cupy.from_dlpack = lambda tensor: given.append(tensor) or from_dlpack(tensor)  # type: ignore[attr-defined, func-returns-value]
    got = moo.aggregate(CupyArray(torch.ones(2, 50), log))
    assert got.tensor.data_ptr() == given[0].data_ptr()


def test_mistakes_of_cupy_users_name_the_argument(log: list[str], cupy: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"jacobian must be \[K, n\]"):
        moo.gramian(CupyArray(torch.ones(3), log))
    with pytest.raises(ValueError, match=r"weights must be \[2\]"):
        moo.combine(CupyArray(torch.ones(2, 3), log), CupyArray(torch.ones(3), log))
    with pytest.raises(TypeError, match="int32"):
        moo.weights(CupyArray(torch.eye(3, dtype=torch.int32), log))


@without_kernels
def test_cupy_itself_is_refused_by_a_build_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("cupy")
    module.ndarray = OnCudaByDLPack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)
    with pytest.raises(RuntimeError, match=r"jacobian .*build_info\(\)\['cuda'\] is False"):
        moo.aggregate(OnCudaByDLPack())


# --- the example ---

STAND_IN = """
class cuda:
    class runtime:
        class CUDARuntimeError(RuntimeError): pass
        @staticmethod
        def getDeviceCount(): {count}
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("raise ImportError('not here')", ["CuPy", "not here", "pip install cupy-cuda13x"]),
        (STAND_IN.format(count="return 0"), ["finds no GPU"]),
        (STAND_IN.format(count="raise cuda.runtime.CUDARuntimeError('no driver')"), ["finds no GPU", "no driver"]),
        pytest.param(STAND_IN.format(count="return 1"), ["no CUDA kernels", "nvcc"], marks=without_kernels),
    ],
    ids=["no CuPy", "no device", "no driver", "no kernels"],
)
def test_the_example_says_what_is_missing(tmp_path: Path, repository: Path, module: str, words: list[str]) -> None:
    (tmp_path / "cupy.py").write_text(module)
    script = repository / "examples" / "cupy" / "aggregate.py"
    run = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['aggregate.py']; import runpy; "
    run += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr
