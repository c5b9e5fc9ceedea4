"""The functions and operators on a GPU, against the CPU, which the other tests hold to an independent reference."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE
from tests.support import reference as ref
from tests.support.checks import raw

DTYPES = ref.DTYPES
CYCLES = 20_000_000  # about 10 ms: long enough for what does not wait to come too early
PREFERRED = moo.UPGrad([1.0, 2.0, 3.0])
ORDERED = moo.PCGrad(permutation=[[0, 2, 1], [2, 1, 0], [1, 0, 2]])


def draw(rng: np.random.Generator, k: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((k, n))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gramian_and_combine(rng: np.random.Generator, dtype: torch.dtype) -> None:
    for k in DEVICE.pick((1, 2, 3, 8, 17, 64), dry=(2, 17)):
        for n in DEVICE.pick((0, 1, 17, 4099, 100_003), dry=(0, 1003)):
            rows = draw(rng, k, n, dtype)
            w = torch.from_numpy(rng.standard_normal(k))
            values = ref.float64(rows)
            for given in (
                rows.to(DEVICE.name),
                [row.to(DEVICE.name) for row in rows],
                rows.T.contiguous().to(DEVICE.name).T,
            ):
                got = moo.gramian(given)
                assert got.device.type == DEVICE.name
                assert torch.equal(got, got.T)
                error = np.abs(got.cpu().numpy() - ref.gramian(values))
                assert (error <= ref.gramian_error(np.linalg.norm(values, axis=1), dtype)).all(), (k, n)
                update = moo.combine(given, w.to(DEVICE.name))
                assert update.device.type == DEVICE.name
                assert raw(update.cpu()) == raw(moo.combine(rows, w)), (k, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sketch(rng: np.random.Generator, dtype: torch.dtype) -> None:
    for n in DEVICE.pick((0, 1, 17, 4099, 1_000_003), dry=(0, 4099)):
        for width in DEVICE.pick((64, 1024, 16384), dry=(64,)):
            rows = draw(rng, 2, n, dtype)
            got = moo.sketch(rows.to(DEVICE.name), width, seed=2**64 - 1, step=3, bucket=1)
            assert got.device.type == DEVICE.name
            expected = moo.sketch(rows.double(), width, seed=2**64 - 1, step=3, bucket=1)
            runs = n / width
            scale = 1e-14 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=scale * (1 + runs))


@pytest.mark.parametrize("name", moo.available_methods())
def test_weights(rng: np.random.Generator, name: str) -> None:
    for k in DEVICE.pick((1, 2, 5, 33, 64), dry=(1, 2, 5)):
        rows = rng.standard_normal((9, k, 2 * k + 3))
        batch = torch.from_numpy(rows @ rows.transpose(0, 2, 1))
        expected, _ = moo.weights(batch, name, seed=2**64 - 1, return_certificate=True)
        got, certificate = moo.weights(batch.to(DEVICE.name), name, seed=2**64 - 1, return_certificate=True)
        assert got.device.type == DEVICE.name
        assert certificate.device.type == DEVICE.name
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-7, atol=1e-9)
        assert float(certificate.max()) <= 1e-8
        assert torch.equal(moo.weights(batch.to(DEVICE.name), name, seed=2**64 - 1), got)
    assert int(torch.ops.bucket_moo.solve(torch.full((2, 2), torch.nan).to(DEVICE.name), name)[1]) == 1


@pytest.mark.parametrize("method", [PREFERRED, ORDERED, moo.AlignedMTL([3.0, 2.0, 1.0], "mean")], ids=str)
def test_options_that_are_arrays(rng: np.random.Generator, method: Any) -> None:
    rows = draw(rng, 3, 50)
    gram = moo.gramian(rows - 0.9 * rows.mean(0))
    torch.testing.assert_close(
        moo.weights(gram.to(DEVICE.name), method).cpu(), moo.weights(gram, method), rtol=1e-9, atol=1e-12
    )


def test_a_long_permutation(rng: np.random.Generator) -> None:
    rows = draw(rng, 64, 200)
    gram = moo.gramian(rows - 0.9 * rows.mean(0))
    method = moo.PCGrad(permutation=[[int(j) for j in rng.permutation(64)] for _ in range(64)])
    torch.testing.assert_close(
        moo.weights(gram.to(DEVICE.name), method).cpu(), moo.weights(gram, method), rtol=1e-9, atol=1e-12
    )


def test_rows_on_several_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=f"row 0 is on {DEVICE.name}.*, row 1 on {DEVICE.other_name}"):
        moo.gramian([torch.ones(3, device=DEVICE.name), torch.ones(3, device=DEVICE.other_name)])


@pytest.mark.parametrize("method", ["mgda", PREFERRED, ORDERED], ids=str)
def test_nothing_waits_for_the_device(rng: np.random.Generator, method: Any) -> None:
    rows = draw(rng, 3, 1000).to(DEVICE.name)
    expected = moo.aggregate(rows, method)
    DEVICE.synchronize()
    with DEVICE.no_waiting():
        DEVICE.busy(CYCLES)
        before = DEVICE.record()
        got = moo.aggregate(rows, method)
        assert not before.query(), "returned only after what was enqueued before"
    assert raw(got.cpu()) == raw(expected.cpu())


def test_work_is_on_the_current_stream(rng: np.random.Generator) -> None:
    rows = draw(rng, 3, 1000)
    on_device, source = torch.zeros(3, 1000, device=DEVICE.name), rows.to(DEVICE.name)
    DEVICE.synchronize()
    stream = DEVICE.stream()
    with DEVICE.on(stream):
        DEVICE.busy(CYCLES)
        on_device.copy_(source)
        got = moo.aggregate(on_device)
    stream.synchronize()
    torch.testing.assert_close(got.cpu(), moo.aggregate(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["mgda", PREFERRED, ORDERED], ids=str)
def test_a_captured_graph_replays(rng: np.random.Generator, method: Any) -> None:
    rows = draw(rng, 3, 1000).to(DEVICE.name)
    moo.aggregate(rows, method)
    graph = DEVICE.capture(lambda: moo.aggregate(rows, method))
    for _ in range(3):
        rows.copy_(draw(rng, 3, 1000))
        graph.replay()
        assert raw(graph.output.cpu()) == raw(moo.aggregate(rows, method).cpu())


def test_compile(rng: np.random.Generator) -> None:
    rows = draw(rng, 3, 1000).to(DEVICE.name)
    compiled: Callable[..., torch.Tensor] = torch.compile(
        lambda j: moo.aggregate(j, "cagrad"),  # type: ignore[misc]
        fullgraph=True,
        backend="aot_eager",
    )
    assert raw(compiled(rows).cpu()) == raw(moo.aggregate(rows, "cagrad").cpu())


def test_opcheck(rng: np.random.Generator) -> None:
    rows = [row.to(DEVICE.name) for row in draw(rng, 3, 100)]
    torch.library.opcheck(torch.ops.bucket_moo.gramian.default, (rows,))
    torch.library.opcheck(torch.ops.bucket_moo.combine.default, (rows, torch.ones(3).to(DEVICE.name)))
    torch.library.opcheck(
        torch.ops.bucket_moo.solve.default, (torch.eye(3).to(DEVICE.name), *PREFERRED._options(), 1, 2)
    )


class OnlyInterface:
    """The CUDA array interface of a tensor, with the stream that produces it."""

    def __init__(self, tensor: torch.Tensor, stream: Any) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = {**tensor.__cuda_array_interface__, "version": 3, "stream": stream.cuda_stream}


def test_cuda_array_interface(rng: np.random.Generator) -> None:
    DEVICE.require("CUDA array interface")
    rows = draw(rng, 3, 1000)
    on_device, source = torch.zeros(3, 1000, device=DEVICE.name), rows.to(DEVICE.name)
    DEVICE.synchronize()
    stream = DEVICE.stream()
    with DEVICE.on(stream):
        DEVICE.busy(CYCLES)
        on_device.copy_(source)
    got = moo.aggregate(OnlyInterface(on_device, stream))
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got.cpu(), moo.aggregate(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own_stream", [False, True])
def test_cupy(rng: np.random.Generator, own_stream: bool) -> None:
    DEVICE.require("CuPy")
    cupy = pytest.importorskip("cupy")
    rows = draw(rng, 3, 1000)
    expected = moo.aggregate(rows, "upgrad")
    stream = cupy.cuda.Stream(non_blocking=True) if own_stream else cupy.cuda.Stream.null
    on_device = torch.zeros(3, 1000, device=DEVICE.name)
    source = rows.to(DEVICE.name)
    DEVICE.synchronize()
    with stream:
        array = cupy.from_dlpack(on_device)
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            DEVICE.busy(CYCLES)
        array[...] = cupy.from_dlpack(source)
        gram = moo.gramian(array)
        w = moo.weights(gram, "upgrad")
        results = [moo.aggregate(array, "upgrad"), moo.aggregate(list(array), "upgrad"), moo.combine(array, w)]
        assert all(isinstance(result, cupy.ndarray) for result in (gram, w, *results))
        stream.synchronize()
    for result in results:
        np.testing.assert_allclose(cupy.asnumpy(result), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_cupy_example(repository: Path) -> None:
    DEVICE.require("CuPy")
    pytest.importorskip("cupy")
    example = str(repository / "examples" / "cupy" / "aggregate.py")
    subprocess.run([sys.executable, example, "--size", "100000", "--steps", "6"], check=True)
