"""The C interface from another language: Gramian, methods, solve and combination, beside NumPy."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.embedding import c_interface as ci
from tests.embedding.c_interface import Library
from tests.support import reference as ref

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[2]
SHARES = [0.5, 1.0, 2.0]


@pytest.fixture(scope="module")
def lib(library: Path) -> Library:
    return Library(library)


@pytest.fixture
def rows(rng: np.random.Generator) -> ref.Array:
    """Three gradients, two of them in conflict."""
    rows = rng.normal(size=(3, 40))
    rows[1] -= 0.8 * rows[0]
    return rows


def test_it_needs_neither_torch_nor_the_package(library: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from tests.embedding import c_interface as ci\n"
        "lib = ci.Library(sys.argv[1])\n"
        "print(*lib.solve(np.diag([1.0, 3.0]), 'mgda'))\n"
        "assert not {'torch', 'bucket_moo_ext'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(library)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert [float(word) for word in done.stdout.split()] == pytest.approx([0.75, 0.25])


def test_versions(lib: Library) -> None:
    assert lib.raw.bucket_moo_abi_version() == 1
    assert lib.raw.bucket_moo_version().decode() == moo.__version__
    assert lib.raw.bucket_moo_max_objectives() == moo.build_info()["max_objectives"]


def test_the_methods_are_those_of_the_package(lib: Library) -> None:
    assert lib.method_names() == list(moo.available_methods())
    assert lib.raw.bucket_moo_method_name(-1) is None
    assert lib.raw.bucket_moo_method_name(len(lib.method_names())) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_gramian_and_combination(lib: Library, rows: ref.Array, dtype: str) -> None:
    tensor = torch.from_numpy(rows).to(getattr(torch, dtype))
    exact = ref.float64(tensor)
    given = [row.view(torch.uint16).numpy() if dtype == "bfloat16" else row.numpy() for row in tensor]
    gramian = lib.gramian(given)
    sizes = np.linalg.norm(exact, axis=1)
    assert (np.abs(gramian - ref.gramian(exact)) <= ref.gramian_error(sizes, tensor.dtype)).all()
    assert (gramian == gramian.T).all()
    weights = np.array([0.3, -1.5, 0.0])
    out = torch.from_numpy(lib.combine(given, weights)).view(tensor.dtype)
    error = np.abs(ref.float64(out) - ref.combine(exact, weights))
    assert (error <= ref.combination_error(exact, weights, tensor.dtype)).all()


# --- methods, from what the papers ask for ---


def test_mgda_and_cagrad_and_pcgrad(lib: Library, rows: ref.Array) -> None:
    gramian = rows @ rows.T
    orders = [[1, 2, 0], [2, 0, 1], [0, 1, 2]]
    for got, expected in (
        (lib.solve(gramian, "mgda"), ref.mgda(rows)),
        (lib.solve(gramian, "mgda", mode="l2"), ref.mgda(rows, "l2")),
        (lib.solve(gramian, "cagrad", numbers=[0.3, 1.0]), ref.cagrad(rows, 0.3, True)),
        (lib.solve(gramian, "pcgrad", permutation=orders), ref.pcgrad(rows, orders)),
        (lib.solve(gramian, "pcgrad", permutation=orders, mode="sum"), ref.pcgrad(rows, orders, "sum")),
        (lib.solve(gramian, "mean", preference=SHARES), np.array(SHARES) / sum(SHARES)),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)


def test_nashmtl_and_fairgrad_solve_their_equations(lib: Library, rows: ref.Array) -> None:
    gramian = rows @ rows.T
    w = lib.solve(gramian, "nashmtl", numbers=[0.0])
    np.testing.assert_allclose(w * (gramian @ w), np.ones(3), rtol=1e-6)
    w = lib.solve(gramian, "fairgrad", numbers=[2.0])
    np.testing.assert_allclose(w**0.5 * (gramian @ w), np.ones(3), rtol=1e-6)


def test_config_has_equal_cosines_in_proportion_to_the_preference(lib: Library, rows: ref.Array) -> None:
    update = lib.solve(rows @ rows.T, "config", preference=SHARES) @ rows
    cosines = rows @ update / np.linalg.norm(rows, axis=1) / np.linalg.norm(update)
    np.testing.assert_allclose(cosines / cosines[1], np.array(SHARES), rtol=1e-6)


def test_imtlg_has_equal_projections(lib: Library, rows: ref.Array) -> None:
    projections = (rows @ (lib.solve(rows @ rows.T, "imtlg") @ rows)) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-6)


def test_dualproj_and_upgrad_conflict_with_nobody(lib: Library, rows: ref.Array) -> None:
    for name in ("dualproj", "upgrad"):
        inner = rows @ (lib.solve(rows @ rows.T, name, preference=SHARES) @ rows)
        assert inner.min() >= -1e-6 * np.abs(inner).max(), name


def test_the_length_of_an_update(lib: Library, rows: ref.Array) -> None:
    gramian = rows @ rows.T
    update = lib.solve(gramian, "mgda", length=3.0) @ rows
    assert np.linalg.norm(update) == pytest.approx(3.0)
    update = lib.solve(gramian, "mgda", length=-1.0) @ rows
    assert np.linalg.norm(update) == pytest.approx(np.linalg.norm(rows.mean(0)))


def test_every_method_gives_what_the_package_gives(lib: Library, rows: ref.Array) -> None:
    gramian = rows @ rows.T
    names = lib.method_names()
    assert len(names) >= 15
    for name in names:
        options = ci.SolveOptions(seed=5, step=7, bucket=0)
        got = lib.solve(gramian, name, options=options)
        expected = moo.weights(torch.from_numpy(gramian), name, seed=5, step=7)
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


def test_smoothing_keeps_its_state_with_the_caller(lib: Library, rows: ref.Array) -> None:
    method = lib.method("mgda", smoothing=0.5)
    state = np.zeros(method.state_size(3))
    assert state.size == 6
    options = ci.SolveOptions(state=ci.doubles(state), state_size=state.size)
    first, later = rows @ rows.T, np.diag([1.0, 2.0, 4.0])
    w1, w2 = ref.mgda(rows), np.array([4.0, 2.0, 1.0]) / 7
    np.testing.assert_allclose(lib.solve_with(method, first, options)[0], w1, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(lib.solve_with(method, later, options)[0], (w1 + w2) / 2, rtol=1e-6, atol=1e-8)


def test_what_a_solve_says(lib: Library) -> None:
    weights, solution = lib.solve_with(lib.method("mgda"), np.diag([1.0, 0.0]))
    assert (solution.status, solution.active) == (0, 1)
    assert list(weights) == [1.0, 0.0]
    weights, solution = lib.solve_with(lib.method("mgda"), np.array([[1.0, np.nan], [np.nan, 1.0]]))
    assert solution.status == 1
    assert list(weights) == [0.5, 0.5]


# --- errors ---


def refused(call: Callable[[], Any]) -> ci.Refused:
    with pytest.raises(ci.Refused) as caught:
        call()
    return caught.value


def test_wrong_arguments_are_named(lib: Library) -> None:
    square, row = np.eye(2), [np.ones(3), np.ones(3)]
    for call, words in (
        (lambda: lib.method("nothing"), ["'nothing' is unknown"]),
        (lambda: lib.method("cagrad", numbers=[-1.0, 0.0]), ["CAGrad(c=-1)", ">= 0"]),
        (lambda: lib.method("cagrad", numbers=[1.0]), ["CAGrad takes 2 numbers or none; got 1"]),
        (lambda: lib.method("mgda", mode="l1"), ["normalize", "'none' or 'l2'"]),
        (lambda: lib.method("mgda", preference=[1.0]), ["MGDA takes no preference"]),
        (lambda: lib.method("mgda", smoothing=1.0), ["smoothing must be >= 0 and < 1; got 1"]),
        (lambda: lib.method("mgda", length=-2.0), ["length must be", "got -2"]),
        (lambda: lib.solve(square, "mean", preference=[1.0]), ["holds 1 weights, but there are 2 objectives"]),
        (lambda: lib.solve(np.eye(65), "mgda"), ["k must be from 1 to 64; got 65"]),
        (
            lambda: lib.check(lib.raw.bucket_moo_gramian(None, 2, 3, 0, None)),
            ["rows must not be NULL"],
        ),
        (lambda: lib.check(lib.raw.bucket_moo_combine(None, 0, 3, 0, None, None)), ["k must be from 1 to 64; got 0"]),
        (lambda: lib.check(lib.raw.bucket_moo_gramian(None, 2, 3, 9, None)), ["dtype", "float32", "got 9"]),
    ):
        error = refused(call)
        assert error.code == ci.INVALID_ARGUMENT, words
        for word in words:
            assert word in str(error)
    assert lib.gramian(row)[0, 1] == 3.0  # and it goes on


def test_a_state_of_another_size_is_refused(lib: Library) -> None:
    state = np.zeros(3)
    options = ci.SolveOptions(state=ci.doubles(state), state_size=3)
    assert "state_size must be 4 for 2 objectives; got 3" in str(
        refused(lambda: lib.solve_with(lib.method("mgda", smoothing=0.5), np.eye(2), options))
    )


# --- structs of other versions ---


def test_a_struct_of_an_older_header_has_the_defaults_of_what_it_lacks(lib: Library) -> None:
    options = ci.MethodOptions(name=b"mgda", smoothing=7.0, length=-5.0)  # behind the end of the struct
    options.struct_size = ci.MethodOptions.smoothing.offset
    handle = ctypes.c_void_p()
    lib.check(lib.raw.bucket_moo_method_create(ctypes.byref(options), ctypes.byref(handle)))
    lib.raw.bucket_moo_method_destroy(handle)

    solution = ci.Solution(residual=-3.0)
    solution.struct_size = ci.Solution.residual.offset
    weights = np.zeros(2)
    method = lib.method("mgda")
    code = lib.raw.bucket_moo_solve(
        method.handle, 2, ci.doubles(np.eye(2)), None, ci.doubles(weights), ctypes.byref(solution)
    )
    assert code == ci.OK
    assert (solution.active, solution.residual) == (2, -3.0)


def test_a_struct_of_a_newer_header_must_not_ask_for_more(lib: Library) -> None:
    class Newer(ctypes.Structure):
        _fields_ = (("known", ci.MethodOptions), ("new", ctypes.c_double))

    handle = ctypes.c_void_p()
    options = Newer(ci.MethodOptions(name=b"mgda"), 0.0)
    options.known.struct_size = ctypes.sizeof(Newer)
    lib.check(lib.raw.bucket_moo_method_create(ctypes.byref(options), ctypes.byref(handle)))
    lib.raw.bucket_moo_method_destroy(handle)
    options.new = 1.0
    error = refused(lambda: lib.check(lib.raw.bucket_moo_method_create(ctypes.byref(options), ctypes.byref(handle))))
    assert "a field set that this library does not know" in str(error)


def test_a_struct_without_a_size_is_refused(lib: Library) -> None:
    options = ci.MethodOptions(name=b"mgda")
    options.struct_size = 0
    handle = ctypes.c_void_p()
    error = refused(lambda: lib.check(lib.raw.bucket_moo_method_create(ctypes.byref(options), ctypes.byref(handle))))
    assert "bucket_moo_method_options.struct_size must be sizeof(struct bucket_moo_method_options); got 0" in str(error)
