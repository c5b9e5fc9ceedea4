"""bucket_moo.h by ctypes: no torch, and nothing of the package."""

import ctypes as c
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

OK, INVALID_ARGUMENT, DISAGREEMENT, TRANSPORT_FAILED = range(4)
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "float64": 3}

_DOUBLES = c.POINTER(c.c_double)
ALL_TO_ALL = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t, c.POINTER(c.c_void_p))
ALL_GATHER = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t)


class _Struct(c.Structure):
    """Says how large it is; the rest is zero, or as given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(c.sizeof(type(self)), **fields)


class MethodOptions(_Struct):
    _fields_ = (
        ("struct_size", c.c_size_t), ("name", c.c_char_p), ("numbers", _DOUBLES), ("number_count", c.c_size_t),
        ("mode", c.c_char_p), ("preference", _DOUBLES), ("preference_count", c.c_size_t),
        ("permutation", c.POINTER(c.c_int64)), ("permutation_count", c.c_size_t),
        ("smoothing", c.c_double), ("length", c.c_double),
    )  # fmt: skip


class SolveOptions(_Struct):
    _fields_ = (
        ("struct_size", c.c_size_t), ("seed", c.c_uint64), ("step", c.c_uint64), ("bucket", c.c_uint64),
        ("state", _DOUBLES), ("state_size", c.c_size_t),
    )  # fmt: skip


class Solution(_Struct):
    _fields_ = (
        ("struct_size", c.c_size_t), ("status", c.c_int32), ("iterations", c.c_int32), ("active", c.c_int32),
        ("reserved", c.c_int32), ("residual", c.c_double),
    )  # fmt: skip


class Transport(_Struct):
    _fields_ = (
        ("struct_size", c.c_size_t), ("context", c.c_void_p), ("rank", c.c_int32), ("size", c.c_int32),
        ("all_to_all", ALL_TO_ALL), ("all_gather", ALL_GATHER),
    )  # fmt: skip


class CollectiveOptions(_Struct):
    _fields_ = (
        ("struct_size", c.c_size_t), ("seed", c.c_uint64), ("tile_limit", c.c_int64), ("sketch_width", c.c_int64),
    )  # fmt: skip


class Call(_Struct):
    _fields_ = (
        ("struct_size", c.c_size_t), ("objective", c.c_char_p), ("weight", c.c_double), ("is_left_out", c.c_int32),
        ("reserved", c.c_int32), ("step", c.c_int64), ("bucket", c.c_uint64),
    )  # fmt: skip


class Reduction(_Struct):
    _fields_ = (
        ("struct_size", c.c_size_t), ("objectives", c.c_int32), ("status", c.c_int32), ("iterations", c.c_int32),
        ("active", c.c_int32), ("residual", c.c_double), ("weights", _DOUBLES), ("gramian", _DOUBLES),
        ("objective", c.POINTER(c.c_char_p)),
    )  # fmt: skip
    owner: "Collective"  # whose memory it points to


class Refused(Exception):
    """A call that did not return BUCKET_MOO_OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def doubles(values: Array) -> Any:
    """A pointer to a float64 array, which has to live as long."""
    assert values.dtype == np.float64
    assert values.flags.c_contiguous
    return values.ctypes.data_as(_DOUBLES)


def dtype_of(array: Array) -> int:
    """NumPy has no bfloat16: 16-bit integers stand for it."""
    return DTYPES["bfloat16" if array.dtype == np.uint16 else array.dtype.name]


class Library:
    """The functions of the header, with arrays for pointers and exceptions for numbers."""

    def __init__(self, path: Path) -> None:
        self.raw = c.CDLL(str(path))
        self.raw.bucket_moo_last_error.restype = c.c_char_p
        self.raw.bucket_moo_version.restype = c.c_char_p
        self.raw.bucket_moo_method_name.restype = c.c_char_p
        self.raw.bucket_moo_method_destroy.argtypes = [c.c_void_p]
        self.raw.bucket_moo_collective_destroy.argtypes = [c.c_void_p]

    def check(self, code: int) -> None:
        if code != OK:
            raise Refused(code, self.raw.bucket_moo_last_error().decode())

    def method_names(self) -> list[str]:
        return [self.raw.bucket_moo_method_name(i).decode() for i in range(self.raw.bucket_moo_method_count())]

    def gramian(self, rows: Sequence[Array]) -> Array:
        out = np.full((len(rows), len(rows)), np.nan)
        pointers = (c.c_void_p * len(rows))(*[row.ctypes.data for row in rows])
        self.check(
            self.raw.bucket_moo_gramian(pointers, len(rows), c.c_int64(rows[0].size), dtype_of(rows[0]), doubles(out))
        )
        return out

    def combine(self, rows: Sequence[Array], weights: Array) -> Array:
        out = np.empty_like(rows[0])
        pointers = (c.c_void_p * len(rows))(*[row.ctypes.data for row in rows])
        where = c.c_void_p(out.ctypes.data)
        size, dtype = c.c_int64(rows[0].size), dtype_of(rows[0])
        self.check(self.raw.bucket_moo_combine(pointers, len(rows), size, dtype, doubles(weights), where))
        return out

    def method(self, name: str, **options: Any) -> "Method":
        return Method(self, name, **options)

    def solve(self, gramian: Array, name: str, *, options: SolveOptions | None = None, **of_method: Any) -> Array:
        """Weights alone."""
        return self.solve_with(self.method(name, **of_method), gramian, options)[0]

    def solve_with(
        self, method: "Method", gramian: Array, options: SolveOptions | None = None
    ) -> tuple[Array, Solution]:
        out, solution = np.full(len(gramian), np.nan), Solution()
        given = c.byref(options) if options is not None else None
        self.check(
            self.raw.bucket_moo_solve(
                method.handle, len(gramian), doubles(gramian), given, doubles(out), c.byref(solution)
            )
        )
        return out, solution


class Method:
    """A method, freed with the object. Arrays as NumPy has them."""

    def __init__(
        self, library: Library, name: str, *, numbers: Sequence[float] = (), mode: str = "",
        preference: Sequence[float] = (), permutation: Sequence[Sequence[int]] = (), smoothing: float = 0.0,
        length: float = 0.0,
    ) -> None:  # fmt: skip
        self.library, self.handle = library, c.c_void_p()
        some, shares = np.array(numbers, np.float64), np.array(preference, np.float64)
        orders = np.array(permutation, np.int64)
        options = MethodOptions(
            name=name.encode(), numbers=doubles(some), number_count=some.size, mode=mode.encode(),
            preference=doubles(shares), preference_count=shares.size,
            permutation=orders.ctypes.data_as(c.POINTER(c.c_int64)), permutation_count=orders.size,
            smoothing=smoothing, length=length,
        )  # fmt: skip
        library.check(library.raw.bucket_moo_method_create(c.byref(options), c.byref(self.handle)))

    def __del__(self) -> None:
        self.library.raw.bucket_moo_method_destroy(self.handle)

    def state_size(self, k: int) -> int:
        size = c.c_size_t()
        self.library.check(self.library.raw.bucket_moo_state_size(self.handle, k, c.byref(size)))
        return size.value


class Collective:
    """One rank's; `functions` are kept as long as it lives."""

    def __init__(self, library: Library, method: Method, transport: Transport | None, **options: int) -> None:
        self.library, self.handle, self.transport = library, c.c_void_p(), transport
        given = c.byref(CollectiveOptions(**options))
        network = c.byref(transport) if transport is not None else None
        library.check(library.raw.bucket_moo_collective_create(network, method.handle, given, c.byref(self.handle)))

    def __del__(self) -> None:
        self.library.raw.bucket_moo_collective_destroy(self.handle)

    def all_reduce(self, data: Array, call: Call) -> Reduction:
        reduction = Reduction()
        where = c.c_void_p(data.ctypes.data)
        size, dtype = c.c_int64(data.size), dtype_of(data)
        self.library.check(
            self.library.raw.bucket_moo_all_reduce(self.handle, c.byref(call), where, size, dtype, c.byref(reduction))
        )
        return self._owned(reduction)

    def reduce_scatter(self, output: Array, data: Array, call: Call) -> Reduction:
        reduction = Reduction()
        places = (c.c_void_p(output.ctypes.data), c.c_void_p(data.ctypes.data))
        self.library.check(
            self.library.raw.bucket_moo_reduce_scatter(
                self.handle, c.byref(call), *places, c.c_int64(output.size), dtype_of(data), c.byref(reduction)
            )
        )
        return self._owned(reduction)

    def _owned(self, reduction: Reduction) -> Reduction:
        reduction.owner = self
        return reduction
