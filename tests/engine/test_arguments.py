"""Arguments of states and functions: what is refused with which words, and what is as good as a plain value."""

import enum
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.support.errors import error_of, expect

RunRanks = Callable[..., list[Any]]


class _Language(str, enum.Enum):
    SW = "sw"


class _Number(enum.IntEnum):
    THREE = 3


class _Fraction(enum.Enum):
    HALF = 0.5


class _Word(str, enum.Enum):
    """Words that arguments take."""

    L2 = "l2"
    SUM = "sum"
    EXACT = "exact"
    MGDA = "mgda"


# --- arguments, without a process group ---


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: moo.BucketMOO("adam"), ValueError, ["method='adam'", *moo.available_methods()]),
        (lambda: moo.BucketMOO(3), TypeError, ["method", "name", "MGDA", "3"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(moo.MGDA), TypeError, ["method", "MGDA"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(gramian="sketchy"), ValueError, ["gramian", "exact", "sketchy"]),
        (lambda: moo.BucketMOO(objective=""), ValueError, ["objective", "1 to 63 bytes", "0 bytes"]),
        (lambda: moo.BucketMOO(objective="é" * 32), ValueError, ["objective", "63", "64 bytes"]),
        (lambda: moo.BucketMOO(objective="a\0b"), ValueError, ["objective", "zero byte"]),
        (lambda: moo.BucketMOO(objective=1.5), TypeError, ["objective", "int", "float", "1.5"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(objective=True), TypeError, ["objective", "bool"]),
        (lambda: moo.BucketMOO(objective=b"sw"), TypeError, ["objective", "bytes"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(objective=np.True_), TypeError, ["objective", "bool"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(objective=torch.tensor(True)), TypeError, ["objective", "Tensor"]),
        (lambda: moo.BucketMOO(objective=torch.tensor([1, 2])), TypeError, ["objective", "Tensor"]),
        (lambda: moo.BucketMOO(objective=np.float64(1.0)), TypeError, ["objective", "float64"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(objective=_Fraction.HALF), TypeError, ["objective", "_Fraction.HALF"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(objective=torch.tensor(3, device="meta")), TypeError, ["objective", "Tensor"]),
        (lambda: moo.BucketMOO(weight=-1.0), ValueError, ["weight", ">= 0", "-1.0"]),
        (lambda: moo.BucketMOO(weight=10**400), ValueError, ["weight", "finite"]),
        (lambda: moo.BucketMOO(weight=1j), TypeError, ["weight", "complex"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(weight=np.complex64(1)), TypeError, ["weight", "complex64"]),
        (lambda: moo.BucketMOO(weight=torch.ones(2)), TypeError, ["weight", "Tensor"]),
        (lambda: moo.BucketMOO(weight=torch.ones((), device="meta")), TypeError, ["weight", "Tensor"]),
        (lambda: moo.BucketMOO(weight="2"), TypeError, ["weight", "str"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(bucket_cap_mb=10**400), ValueError, ["bucket_cap_mb", "finite"]),
        (lambda: moo.BucketMOO(weight=float("nan")), ValueError, ["weight", "finite", "nan"]),
        (lambda: moo.BucketMOO(weight=float("inf")), ValueError, ["weight", "finite", "inf"]),
        (lambda: moo.BucketMOO(seed=-1), ValueError, ["seed", "-1", r"2\*\*64"]),
        (lambda: moo.BucketMOO(seed=2**64), ValueError, ["seed", r"2\*\*64"]),
        (lambda: moo.BucketMOO(seed=1.0), ValueError, ["seed", "1.0"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(bucket_cap_mb=-1), ValueError, ["bucket_cap_mb", ">= 0", "-1"]),
        (lambda: moo.BucketMOO(bucket_cap_mb=float("inf")), ValueError, ["bucket_cap_mb", "inf"]),
        (lambda: moo.BucketMOO(bucket_cap_mb="25"), TypeError, ["bucket_cap_mb", "str"]),  # type: ignore[arg-type]
        (lambda: moo.MGDA(normalize="l1"), ValueError, ["MGDA", "normalize", "l1", "none", "l2"]),  # type: ignore[arg-type]
        (lambda: moo.CAGrad(c=-0.1), ValueError, ["CAGrad", "c", "-0.1", ">= 0"]),
        (lambda: moo.CAGrad(c=float("nan")), ValueError, ["CAGrad", "nan", "finite"]),
        (lambda: moo.CAGrad(c="0.4"), ValueError, ["CAGrad", "'0.4'", "number"]),  # type: ignore[arg-type]
        (lambda: moo.CAGrad(rescale=1), ValueError, ["CAGrad", "rescale", "True or False"]),  # type: ignore[arg-type]
        (lambda: moo.PCGrad(reduction="max"), ValueError, ["PCGrad", "max", "mean", "sum"]),  # type: ignore[arg-type]
        (lambda: moo.PCGrad(permutation=[[0, 0], [0, 1]]), ValueError, ["permutation", r"0\.\.K-1"]),
        (lambda: moo.PCGrad(permutation=[[0, 1]]), ValueError, ["permutation", "K rows"]),
        (lambda: moo.PCGrad(permutation=[]), ValueError, ["permutation"]),
        (lambda: moo.Mean(weights=[1.0, -1.0]), ValueError, ["Mean", "weights", ">= 0", "-1.0"]),
        (lambda: moo.Mean(weights=[0.0, 0.0]), ValueError, ["Mean", "weights", "not all zero"]),
        (lambda: moo.Mean(weights=[float("inf")]), ValueError, ["Mean", "inf"]),
        # Options of the method beside the method.
        (lambda: moo.BucketMOO("cagrad", c=0.5), TypeError, ["BucketMOO", "'c'", r"method=moo\.CAGrad\(c=0\.5\)$"]),  # type: ignore[call-arg]
        (lambda: moo.BucketMOO(method="krum", n_selected=2), TypeError, [r"method=moo\.Krum\(n_selected=2\)$"]),  # type: ignore[call-arg]
        (lambda: moo.BucketMOO("mgda", alpha=2), TypeError, ["not of MGDA", r"FairGrad\(alpha=2\) or moo\.Smoothed"]),  # type: ignore[call-arg]
        (
            lambda: moo.BucketMOO("upgrad", preference=[1, 2]), TypeError,  # type: ignore[call-arg]
            [r"method=moo\.UPGrad\(preference=\[1, 2\]\)$"],
        ),
        (lambda: moo.BucketMOO(preference=[1]), TypeError, [r"moo\.UPGrad\(.*\) or moo\.DualProj\("]),  # type: ignore[call-arg]
        (lambda: moo.BucketMOO("cagrad", c=0.5, rescale=True), TypeError, [r"CAGrad\(c=0\.5, rescale=True\)$"]),  # type: ignore[call-arg]
        (lambda: moo.BucketMOO("nonsense", c=0.5), TypeError, [r"moo\.CAGrad"]),  # type: ignore[call-arg]
        (lambda: moo.BucketMOO("cagrad", c=0.5, language="sw"), TypeError, [r"CAGrad\(c=0\.5\); allowed: .*weight"]),  # type: ignore[call-arg]
        (lambda: moo.BucketMOO("cagrad", c=0.5, normalize="l2"), TypeError, [r"CAGrad\(c=0\.5\);.*MGDA\(normal"]),  # type: ignore[call-arg]
        (lambda: moo.BucketMOO("mgda", width=64, lag=1), TypeError, [r"gramian=moo\.Sketch\(width=64, lag=1\)$"]),  # type: ignore[call-arg]
        (lambda: moo.weights(torch.eye(2), width=64), TypeError, ["allowed: gramian, method"]),  # type: ignore[call-overload]
        (lambda: moo.BucketMOO(moo.CAGrad), TypeError, ["an object", r"moo\.MGDA\(\)"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO("cagrad", lr=0.5), TypeError, ["'lr'", "allowed: method, objective", "bucket_cap_mb$"]),  # type: ignore[call-arg]
        (lambda: moo.register(nn.Linear(2, 2), "cagrad", c=0.5), TypeError, ["^register", r"moo\.CAGrad\(c=0\.5\)$"]),  # type: ignore[call-arg]
        (lambda: moo.weights(torch.eye(2), "cagrad", c=0.5), TypeError, ["^weights", r"moo\.CAGrad\(c=0\.5\)$"]),  # type: ignore[call-overload]
        (lambda: moo.aggregate(torch.eye(2), "cagrad", c=0.5), TypeError, ["^aggregate", r"moo\.CAGrad"]),  # type: ignore[call-overload]
    ],
)  # fmt: skip
def test_bad_arguments(make: Callable[[], Any], kind: type[BaseException], words: list[str]) -> None:
    expect(error_of(make), kind, *words)


def test_setters_check_like_the_constructor_and_keep_the_old_value() -> None:
    state = moo.BucketMOO(objective="sw", weight=2.0)
    with pytest.raises(TypeError, match="objective"):
        state.objective = 1.5  # type: ignore[assignment]
    with pytest.raises(ValueError, match="weight"):
        state.weight = -1.0
    assert (state.objective, state.weight) == ("sw", 2.0)


def test_without_a_process_group() -> None:
    assert not dist.is_initialized()
    state = moo.BucketMOO()
    for call in (
        lambda: moo.all_reduce(torch.ones(3), state),
        lambda: moo.reduce_scatter(torch.ones(3), torch.ones(3), state),
    ):
        expect(error_of(call), RuntimeError, "torch.distributed", "init_process_group")
    expect(error_of(state.report), RuntimeError, "nothing to report")
    state.name_parameters(nn.Linear(2, 2).named_parameters())  # needs none


def test_what_is_no_ddp_module_and_no_state() -> None:
    expect(error_of(lambda: moo.register(nn.DataParallel(nn.Linear(2, 2)))), TypeError, "DataParallel", "one process")
    expect(error_of(lambda: moo.register(lambda x: x)), TypeError, "module", "function", "DDP|Dist")
    for call in (
        lambda: moo.all_reduce(torch.ones(3), "mgda"),  # type: ignore[call-overload]
        lambda: moo.bucket_moo_hook("mgda", None),  # type: ignore[arg-type]
    ):
        expect(error_of(call), TypeError, "state", "BucketMOO", "str")


# --- values that are as good as plain ones ---


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (_Language.SW, "sw"),
        (np.str_("sw"), "sw"),
        (_Number.THREE, 3),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.array(3), 3),
        (torch.tensor(3), 3),
        (torch.tensor([3]), 3),
    ],
    ids=repr,
)
def test_objectives_are_what_they_equal(given: Any, plain: str | int) -> None:
    state = moo.BucketMOO(objective=given)
    for _ in range(2):
        assert state.objective == plain
        assert type(state.objective) is type(plain)  # a copy elsewhere needs no enumeration
        state = moo.BucketMOO()
        state.objective = given


def _objectives_by_name(rank: int, world: int) -> tuple[str, ...]:
    state = moo.BucketMOO("mean", objective="sw" if rank == 0 else _Language.SW)
    moo.all_reduce(torch.ones(3), state)
    assert state.report().objectives == ("sw",)
    state.objective = 3 if rank == 0 else (_Number.THREE, np.int32(3))[rank - 1]
    moo.all_reduce(torch.ones(3), state)
    return state.report().objectives


def test_equal_objectives_are_one_objective(run_ranks: RunRanks) -> None:
    assert run_ranks(3, _objectives_by_name) == [("3",)] * 3


def _words_and_numbers(rank: int, world: int) -> None:
    """Ranks that give the same in other types have the same configuration."""
    plain = rank == 0
    states = [
        moo.BucketMOO(moo.MGDA(normalize="l2" if plain else _Word.L2)),  # type: ignore[arg-type]
        moo.BucketMOO(moo.PCGrad(reduction="sum" if plain else np.str_("sum"))),  # type: ignore[arg-type]
        moo.BucketMOO("mgda" if plain else _Word.MGDA, gramian="exact" if plain else _Word.EXACT),
        moo.BucketMOO(moo.CAGrad(c=0.5 if plain else np.float32(0.5))),  # type: ignore[arg-type]
        moo.BucketMOO(seed=7 if plain else np.int64(7), bucket_cap_mb=2.0 if plain else np.float32(2.0)),
        moo.BucketMOO(bucket_cap_mb=2 if plain else np.int64(2)),
        moo.BucketMOO(gramian=moo.Sketch(width=0.5 if plain else np.float32(0.5))),  # type: ignore[arg-type]
        moo.BucketMOO(gramian=moo.Sketch(width=64 if plain else np.int16(64), seed=3 if plain else np.uint8(3))),  # type: ignore[arg-type]
    ]
    for state in states:
        moo.all_reduce(torch.ones(3), state)


def test_configurations_are_compared_by_value(run_ranks: RunRanks) -> None:
    run_ranks(2, _words_and_numbers)


@pytest.mark.parametrize(
    "given",
    [2, np.float32(2.0), np.int8(2), np.array(2.0), np.array([2.0]), torch.tensor(2.0), torch.tensor([2])],
    ids=repr,
)
def test_weights_are_what_they_equal(given: Any) -> None:
    state = moo.BucketMOO(weight=given)
    assert state.weight == 2.0
    assert type(state.weight) is float


def test_functions_take_numpys_numbers() -> None:
    gramian = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 1.0, -1.0], [0.5, -1.0, 3.0]])
    for seed in (np.int64(5), np.uint64(2**64 - 1)):
        given = moo.weights(gramian, "pcgrad", seed=seed, step=np.int32(2))
        assert torch.equal(given, moo.weights(gramian, "pcgrad", seed=int(seed), step=2))


def test_errors_name_no_numpy_surprises() -> None:
    """NumPy's numbers are numbers."""
    state = moo.BucketMOO(weight=np.float64(2.0))
    assert state.weight == 2.0
