"""torch.ops.bucket_moo: schemas, fake tensors, torch.compile, and what they refuse."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch._dynamo.testing
from bucket_moo_ext import _C
from bucket_moo_ext.methods import resolve
from torch._subclasses import FakeTensorMode

from tests.support import reference as ref
from tests.support.checks import raw

OPS = torch.ops.bucket_moo
METHODS: dict[str, Any] = {
    "mean": moo.Mean(),
    "weighted mean": moo.Mean([1.0, 2.0, 3.0]),
    "mgda": moo.MGDA(),
    "normalized mgda": moo.MGDA("l2"),
    "cagrad": moo.CAGrad(0.7, True),
    "pcgrad": moo.PCGrad("sum"),
    "ordered pcgrad": moo.PCGrad(permutation=[[0, 2, 1], [2, 1, 0], [1, 0, 2]]),
    "upgrad": moo.UPGrad([3.0, 2.0, 1.0]),
    "dualproj": moo.DualProj([1.0, 1.0, 5.0]),
    "imtlg": moo.IMTLG(),
    "alignedmtl": moo.AlignedMTL([1.0, 2.0, 3.0], "median"),
    "nashmtl": moo.NashMTL(math.inf),
    "fairgrad": moo.FairGrad(2.0),
    "config": moo.ConFIG([1.0, 2.0, 3.0]),
    "gradvac": moo.GradVac(0.3),
    "krum": moo.Krum(1, 2),
    "adasum": moo.Adasum(),
    "normalizedmean": moo.NormalizedMean(),
    "rescaled": moo.Rescaled("config", 2.0),
    "smoothed": moo.Smoothed("cagrad", 0.5),
}


def gramian_of(rng: np.random.Generator, *batch: int, k: int = 3) -> torch.Tensor:
    rows = rng.standard_normal((*batch, k, k + 4))
    return torch.from_numpy(rows @ np.swapaxes(rows, -1, -2))


def rows_of(rng: np.random.Generator, k: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype) for _ in range(k)]


# --- what torch checks of an operator ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*(((17,), dtype) for dtype in ref.DTYPES), *((shape, torch.float32) for shape in [(), (0,), (3, 5)])],
    ids=str,
)
def test_opcheck_of_rows(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for k in (1, 4):
        rows = rows_of(rng, k, *shape, dtype=dtype)
        torch.library.opcheck(OPS.gramian.default, (rows,))
        torch.library.opcheck(OPS.sketch.default, (rows, 64, 1, -1, 2))
        torch.library.opcheck(OPS.combine.default, (rows, torch.from_numpy(rng.standard_normal(k))))
    strided = list(torch.from_numpy(rng.standard_normal((8, 6))).to(dtype).T)
    torch.library.opcheck(OPS.gramian.default, (strided,))
    torch.library.opcheck(OPS.sketch.default, (strided, 128))
    torch.library.opcheck(OPS.combine.default, (strided, torch.from_numpy(rng.standard_normal(12))[::2]))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_opcheck_of_solve(rng: np.random.Generator, name: str) -> None:
    options = METHODS[name]._options()
    for batch in ((), (0,), (5,)):
        arguments = (gramian_of(rng, *batch), *options, 3, -1, METHODS[name]._length())
        torch.library.opcheck(OPS.solve.default, arguments)
    torch.library.opcheck(OPS.solve.default, (gramian_of(rng, 2).float().mT, *options))


def same_form(fake: Any, real: Any) -> None:
    if isinstance(real, tuple):
        assert len(fake) == len(real)
        for pair in zip(fake, real, strict=True):
            same_form(*pair)
        return
    assert fake.shape == real.shape
    assert fake.dtype == real.dtype
    assert fake.stride() == real.stride()


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_results_without_data_have_the_form_of_real_ones(rng: np.random.Generator, device: str) -> None:
    rows = rows_of(rng, 4, 3, 5, dtype=torch.bfloat16)
    grams = [gramian_of(rng), gramian_of(rng, 6).float()]
    w = torch.from_numpy(rng.standard_normal(4))
    calls: list[Callable[..., Any]] = [
        lambda convert: OPS.gramian([convert(row) for row in rows]),
        lambda convert: OPS.combine([convert(row) for row in rows], convert(w)),
        lambda convert: OPS.sketch([convert(row) for row in rows]),
        lambda convert: OPS.sketch([convert(row).double() for row in rows], 64),
        lambda convert: OPS.solve(convert(grams[0])),
        lambda convert: OPS.solve(convert(grams[1]), "cagrad", [0.4, 1.0]),
        lambda convert: moo.gramian([convert(row) for row in rows]),
        lambda convert: moo.sketch([convert(row) for row in rows], 128, seed=2**64 - 1),
        lambda convert: moo.weights(convert(grams[1]), "upgrad", return_certificate=True),
        lambda convert: moo.aggregate([convert(row) for row in rows], "pcgrad", seed=1),
    ]
    for call in calls:
        real = call(lambda tensor: tensor)
        if device == "meta":
            same_form(call(lambda tensor: tensor.to("meta")), real)
            continue
        with FakeTensorMode():
            fake = call(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        same_form(fake, real)
        for tensor in fake if isinstance(fake, tuple) else (fake,):
            assert tensor.device.type == device


# --- torch.compile ---


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_aggregate_compiles(rng: np.random.Generator, name: str) -> None:
    method = METHODS[name]
    rows = torch.stack(rows_of(rng, 3, 100))
    fast = compiled(lambda j: moo.aggregate(j, method, seed=5), backend="aot_eager")
    assert raw(fast(rows)) == raw(moo.aggregate(rows, method, seed=5))


@pytest.mark.parametrize("method", ["mgda", "CAGrad", "mean"])
def test_names_and_lists_compile(rng: np.random.Generator, method: str) -> None:
    rows = rows_of(rng, 3, 4, 5)
    assert raw(compiled(lambda j: moo.aggregate(j, method), backend="aot_eager")(rows)) == raw(
        moo.aggregate(rows, method)
    )

    def certified(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w, certificate = moo.weights(gram, method, return_certificate=True)
        return 2 * w, certificate

    gram = gramian_of(rng, 4)
    for got, expected in zip(compiled(certified, backend="aot_eager")(gram), certified(gram), strict=True):
        assert torch.equal(got, expected)


def test_one_graph_for_every_size_batch_and_step(rng: np.random.Generator) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast = compiled(lambda j: moo.aggregate(j, "pcgrad"), backend=counter, dynamic=True)
    for n in (100, 37, 1025):
        rows = torch.stack(rows_of(rng, 3, n))
        assert raw(fast(rows)) == raw(moo.aggregate(rows, "pcgrad"))
    assert counter.frame_count == 1

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast = compiled(lambda g, step: moo.weights(g, "pcgrad", seed=2**64 - 1, step=step), backend=counter, dynamic=True)
    for size, k, step in ((5, 3, 7), (8, 4, 9), (2, 64, 10)):
        gram = gramian_of(rng, size, k=k)
        assert torch.equal(fast(gram, step), moo.weights(gram, "pcgrad", seed=2**64 - 1, step=step))
    assert counter.frame_count == 1


def test_sketches_compile_to_one_graph(rng: np.random.Generator) -> None:
    """For every size and step."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def estimate(rows: torch.Tensor, step: int) -> torch.Tensor:
        return moo.gramian(moo.sketch(rows, 64, seed=2**64 - 1, step=step, bucket=3))

    fast = compiled(estimate, backend=counter, dynamic=True)
    for n, step in ((100, 7), (37, 9), (1025, 10)):
        rows = torch.stack(rows_of(rng, 3, n))
        assert raw(fast(rows, step)) == raw(estimate(rows, step))
    assert counter.frame_count == 1


def test_parameters_are_not_frozen_into_the_graph(rng: np.random.Generator) -> None:
    rows = torch.stack(rows_of(rng, 3, 20))
    fast = compiled(lambda j, method: moo.aggregate(j, method), backend="aot_eager")
    results = [fast(rows, moo.CAGrad(c)) for c in (0.2, 0.9, 1.7)]
    for c, got in zip((0.2, 0.9, 1.7), results, strict=True):
        assert raw(got) == raw(moo.aggregate(rows, moo.CAGrad(c)))


def test_compiled_calls_make_the_same_mistakes_known() -> None:
    with pytest.raises(Exception, match="one dtype"):
        compiled(lambda a, b: moo.gramian([a, b]), backend="eager")(torch.ones(3), torch.ones(3).double())
    with pytest.raises(Exception, match="holds 2 weights, but there are 3"):
        compiled(lambda g: moo.weights(g, moo.UPGrad([1.0, 1.0])), backend="eager")(torch.eye(3))


# --- values ---


@pytest.mark.device
def test_operators_are_what_the_functions_call(rng: np.random.Generator) -> None:
    rows = rows_of(rng, 3, 50)
    gram = OPS.gramian(rows)
    assert raw(gram) == raw(moo.gramian(rows))
    assert raw(OPS.sketch(rows, 64, 3, 4, 5)) == raw(moo.sketch(rows, 64, seed=3, step=4, bucket=5))
    assert raw(OPS.sketch(rows)) == raw(moo.sketch(rows)), "the same defaults"
    for name, method in METHODS.items():
        w, status, iterations, residual = OPS.solve(gram, *method._options(), 3, 4, method._length())
        expected, certificate = moo.weights(gram, method, seed=3, step=4, return_certificate=True)
        assert raw(w) == raw(expected), name
        assert raw(residual) == raw(certificate), name
        assert status.dtype == iterations.dtype == torch.int64
        assert status.shape == iterations.shape == residual.shape == ()
    assert raw(OPS.combine(rows, w)) == raw(moo.combine(rows, w))


@pytest.mark.device
def test_solve_tells_status_and_iterations(rng: np.random.Generator) -> None:
    batch = gramian_of(rng, 3)
    batch[1] = 0
    batch[2, 0, 0] = torch.nan
    _, status, iterations, _ = OPS.solve(batch, "mgda")
    assert status.tolist() == [0, 2, 1]
    assert iterations[0] >= 1
    assert iterations[1:].tolist() == [0, 0]


@pytest.mark.device
def test_defaults_are_those_of_the_classes(rng: np.random.Generator) -> None:
    gram = gramian_of(rng, k=5)
    assert raw(OPS.solve(gram)[0]) == raw(moo.weights(gram))
    for name in moo.available_methods():
        assert raw(OPS.solve(gram, name)[0]) == raw(OPS.solve(gram, *resolve(name)._options())[0]), name


@pytest.mark.device
def test_words_are_twos_complement(rng: np.random.Generator) -> None:
    """Of seed and step, which are unsigned in Python and signed in the schema."""
    gram = gramian_of(rng, k=8)
    gram -= 0.9 * gram.mean()
    rows = rows_of(rng, 2, 200)
    drawn = set()
    for word in (0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1):
        signed = word - 2**64 if word >= 2**63 else word
        assert raw(OPS.solve(gram, "pcgrad", seed=signed)[0]) == raw(moo.weights(gram, "pcgrad", seed=word))
        assert raw(OPS.solve(gram, "pcgrad", step=signed)[0]) == raw(moo.weights(gram, "pcgrad", step=word))
        drawn.add(raw(moo.weights(gram, "pcgrad", seed=word)))
        for name in ("seed", "step", "bucket"):
            assert raw(OPS.sketch(rows, 64, **{name: signed})) == raw(moo.sketch(rows, 64, **{name: word}))
    assert len(drawn) > 3


@pytest.mark.device
def test_views_with_a_pending_minus(rng: np.random.Generator) -> None:
    values = torch.from_numpy(rng.standard_normal((3, 40)) + 1j * rng.standard_normal((3, 40)))
    view = values.conj().imag
    assert view.is_neg()
    plain = -values.imag
    assert raw(moo.gramian(view)) == raw(moo.gramian(plain))
    assert raw(moo.sketch(view, 64)) == raw(moo.sketch(plain, 64))
    assert raw(moo.combine(list(view), [0.5, -1.0, 2.0])) == raw(moo.combine(plain, [0.5, -1.0, 2.0]))


# --- mistakes ---

ROWS = [torch.ones(3), torch.ones(3)]
SQUARE = torch.eye(3)

BAD: dict[str, tuple[Callable[[], object], type[Exception], list[str]]] = {
    "65 rows": (lambda: OPS.gramian([torch.ones(2)] * 65), ValueError, ["jacobian", "1 to 64", "65"]),
    "dtype": (lambda: OPS.gramian([torch.ones(2, dtype=torch.int8)]), TypeError, ["float32", "row 0", "int8"]),
    "dtypes": (lambda: OPS.gramian([ROWS[0], ROWS[1].half()]), TypeError, ["row 0", "float32", "row 1", "float16"]),
    "sizes": (lambda: OPS.combine([ROWS[0], torch.ones(2)], torch.ones(2)), ValueError, ["row 1", "3", "2"]),
    "devices": (lambda: moo.gramian([ROWS[0], ROWS[1].to("meta")]), ValueError, ["row 0", "cpu", "row 1", "meta"]),
    "sketch: dtypes": (lambda: OPS.sketch([ROWS[0], ROWS[1].half()]), TypeError, ["row 1", "float32", "float16"]),
    "sketch: sizes": (lambda: OPS.sketch([ROWS[0], torch.ones(2)], 64), ValueError, ["row 1", "3", "2"]),
    "width": (lambda: OPS.sketch(ROWS, 96), ValueError, ["width", "power of two", "96"]),
    "width: small": (lambda: OPS.sketch(ROWS, 32), ValueError, ["width", "64", "32"]),
    "width: large": (lambda: OPS.sketch(ROWS, 2**29), ValueError, ["width", str(2**28), str(2**29)]),
    "width: meta": (lambda: OPS.sketch([ROWS[0].to("meta")], 65), ValueError, ["width", "65"]),
    "weights": (lambda: OPS.combine(ROWS, torch.ones(3)), ValueError, ["weights", "[2]", "[3]"]),
    "weights elsewhere": (
        lambda: OPS.combine(ROWS, torch.ones(2, device="meta")),
        ValueError,
        ["weights", "jacobian", "cpu", "meta"],
    ),
    "integers": (lambda: OPS.solve(SQUARE.int()), TypeError, ["gramian", "floating", "int32"]),
    "vector": (lambda: OPS.solve(torch.ones(3)), ValueError, ["gramian", "[K, K]", "[3]"]),
    "not square": (lambda: OPS.solve(torch.ones(3, 2)), ValueError, ["gramian", "[K, K]", "[3, 2]"]),
    "K = 0": (lambda: OPS.solve(torch.ones(0, 0)), ValueError, ["gramian", "K = 0", "64"]),
    "K = 65": (lambda: OPS.solve(torch.eye(65)), ValueError, ["gramian", "K = 65", "64"]),
    "method": (lambda: OPS.solve(SQUARE, "sgd"), ValueError, ["method", "'sgd'"]),
    "spelling": (lambda: OPS.solve(SQUARE, "MGDA"), ValueError, ["method", "'MGDA'", "small"]),
    "no name": (lambda: OPS.solve(SQUARE, ""), ValueError, ["method", "''"]),
    "one number": (lambda: OPS.solve(SQUARE, "cagrad", [0.4]), ValueError, ["CAGrad", "2 numbers", "1"]),
    "three numbers": (lambda: OPS.solve(SQUARE, "krum", [1, 1, 1]), ValueError, ["Krum", "2 numbers", "3"]),
    "number": (lambda: OPS.solve(SQUARE, "mgda", [1.0]), ValueError, ["MGDA", "0 numbers", "1"]),
    "c": (lambda: OPS.solve(SQUARE, "cagrad", [-1.0, 0]), ValueError, ["CAGrad(c=-1)", ">= 0"]),
    "c: nan": (lambda: OPS.solve(SQUARE, "cagrad", [math.nan, 0]), ValueError, ["CAGrad(c=", ">= 0"]),
    "rescale": (lambda: OPS.solve(SQUARE, "cagrad", [0.4, 2]), ValueError, ["CAGrad(rescale=2)", "0 or 1"]),
    "max_norm": (lambda: OPS.solve(SQUARE, "nashmtl", [math.inf]), ValueError, ["NashMTL(max_norm=inf)", ">= 0"]),
    "alpha": (lambda: OPS.solve(SQUARE, "fairgrad", [0.0]), ValueError, ["FairGrad(alpha=0)", "> 0"]),
    "beta": (lambda: OPS.solve(SQUARE, "gradvac", [1.5]), ValueError, ["GradVac(beta=1.5)", "0 to 1"]),
    "n_selected": (lambda: OPS.solve(SQUARE, "krum", [0, 0]), ValueError, ["Krum(n_selected=0)", ">= 1"]),
    "n_byzantine": (lambda: OPS.solve(SQUARE, "krum", [0.5, 1]), ValueError, ["Krum(n_byzantine=0.5)", "integer"]),
    "large": (lambda: OPS.solve(SQUARE, "krum", [2.0**31, 1]), ValueError, ["Krum(n_byzantine=", "2**31"]),
    "mode": (lambda: OPS.solve(SQUARE, "pcgrad", mode="max"), ValueError, ["reduction='max'", "'mean' or 'sum'"]),
    "no mode": (lambda: OPS.solve(SQUARE, "mean", mode="l2"), ValueError, ["Mean", "no mode", "'l2'"]),
    "preference": (lambda: OPS.solve(SQUARE, "upgrad", preference=[1, -1, 1]), ValueError, ["UPGrad", "-1", ">= 0"]),
    "preference: sum": (lambda: OPS.solve(SQUARE, "mean", preference=[0, 0, 0]), ValueError, ["Mean(weights", "sum"]),
    "preference: K": (lambda: OPS.solve(SQUARE, "upgrad", preference=[1, 1]), ValueError, ["UPGrad", "2", "3"]),
    "no preference": (lambda: OPS.solve(SQUARE, "krum", preference=[1, 1, 1]), ValueError, ["Krum", "no preference"]),
    "permutation: size": (
        lambda: OPS.solve(SQUARE, "pcgrad", permutation=[0] * 7),
        ValueError,
        ["PCGrad", "K rows", "7"],
    ),
    "permutation: twice": (
        lambda: OPS.solve(torch.eye(2), "gradvac", permutation=[0, 1, 1, 1]),
        ValueError,
        ["GradVac", "permutation of 0..1", "row 1"],
    ),
    "permutation: range": (
        lambda: OPS.solve(torch.eye(2), "gradvac", permutation=[0, 2, 1, 0]),
        ValueError,
        ["GradVac", "permutation of 0..1", "row 0"],
    ),
    "permutation: too many": (
        lambda: OPS.solve(torch.eye(2), "pcgrad", permutation=list(range(65)) * 65),
        ValueError,
        ["PCGrad", "64"],
    ),
    "permutation: K": (lambda: OPS.solve(SQUARE, "pcgrad", permutation=[0, 1, 1, 0]), ValueError, ["PCGrad", "2", "3"]),
    "no permutation": (lambda: OPS.solve(SQUARE, "mgda", permutation=[0]), ValueError, ["MGDA", "no permutation"]),
    "native method": (lambda: _C.Method("adam"), ValueError, ["method", "'adam'"]),
}


@pytest.mark.device
@pytest.mark.parametrize("name", BAD)
def test_mistakes(name: str) -> None:
    call, error, words = BAD[name]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert "bucket_moo_ext" in message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in {message!r}"


@pytest.mark.host
@pytest.mark.skipif(moo.build_info()["cuda"], reason="this build has CUDA kernels")  # type: ignore[arg-type]
def test_without_cuda_kernels_cuda_tensors_are_refused() -> None:
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for operator, arguments in (
        (OPS.gramian, (ROWS,)),
        (OPS.sketch, (ROWS,)),
        (OPS.combine, (ROWS, torch.ones(2))),
        (OPS.solve, (SQUARE,)),
    ):
        with pytest.raises(RuntimeError, match=r"build_info\(\)\['cuda'\] is False.*pip install"):
            operator.default.redispatch(cuda, *arguments)


def test_the_library_alone_brings_the_operators() -> None:
    """Without the package: who loads the library needs nothing of ours in Python, and may load it twice."""
    program = (
        "import sys, torch\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "print(torch.ops.bucket_moo.gramian([torch.ones(3)]).tolist())\n"
        "assert not [name for name in sys.modules if name.startswith('bucket_moo_ext')]\n"
    )
    command = [sys.executable, "-c", program, str(moo.build_info()["library"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[[3.0]]\n"), done.stderr
