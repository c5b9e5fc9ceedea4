"""What is refused, where, and with which words: the argument, what was given, what is allowed."""

import enum
import re
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.parallel.distributed import _MixedPrecision

from tests.support.ddp import batch_of, error_of, loss_of, mlp

RunRanks = Callable[..., list[Any]]
SIZES = (4, 6, 2)


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


def _expect(error: tuple[type[BaseException], str], kind: type[BaseException], *patterns: str) -> None:
    """`error` has the type `kind`, exactly, and its message has every pattern."""
    assert error[0] is kind, error
    for pattern in patterns:
        assert re.search(pattern, error[1]), (pattern, error[1])


# --- arguments, without a process group ---


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: moo.BucketMOO("adam"), ValueError, ["method='adam'", *moo.available_methods()]),
        (lambda: moo.BucketMOO(3), TypeError, ["method", "name", "MGDA", "3"]),
        (lambda: moo.BucketMOO(moo.MGDA), TypeError, ["method", "MGDA"]),
        (lambda: moo.BucketMOO(gramian="sketchy"), ValueError, ["gramian", "exact", "sketchy"]),
        (lambda: moo.BucketMOO(objective=""), ValueError, ["objective", "1 to 63 bytes", "0 bytes"]),
        (lambda: moo.BucketMOO(objective="é" * 32), ValueError, ["objective", "63", "64 bytes"]),
        (lambda: moo.BucketMOO(objective="a\0b"), ValueError, ["objective", "zero byte"]),
        (lambda: moo.BucketMOO(objective=1.5), TypeError, ["objective", "int", "float", "1.5"]),
        (lambda: moo.BucketMOO(objective=True), TypeError, ["objective", "bool"]),
        (lambda: moo.BucketMOO(objective=b"sw"), TypeError, ["objective", "bytes"]),
        (lambda: moo.BucketMOO(objective=np.True_), TypeError, ["objective", "bool"]),
        (lambda: moo.BucketMOO(objective=torch.tensor(True)), TypeError, ["objective", "Tensor"]),
        (lambda: moo.BucketMOO(objective=torch.tensor([1, 2])), TypeError, ["objective", "Tensor"]),
        (lambda: moo.BucketMOO(objective=np.float64(1.0)), TypeError, ["objective", "float64"]),
        (lambda: moo.BucketMOO(objective=_Fraction.HALF), TypeError, ["objective", "_Fraction.HALF"]),
        (lambda: moo.BucketMOO(objective=torch.tensor(3, device="meta")), TypeError, ["objective", "Tensor"]),
        (lambda: moo.BucketMOO(weight=-1.0), ValueError, ["weight", ">= 0", "-1.0"]),
        (lambda: moo.BucketMOO(weight=10**400), ValueError, ["weight", "finite"]),
        (lambda: moo.BucketMOO(weight=1j), TypeError, ["weight", "complex"]),
        (lambda: moo.BucketMOO(weight=np.complex64(1)), TypeError, ["weight", "complex64"]),
        (lambda: moo.BucketMOO(weight=torch.ones(2)), TypeError, ["weight", "Tensor"]),
        (lambda: moo.BucketMOO(weight=torch.ones((), device="meta")), TypeError, ["weight", "Tensor"]),
        (lambda: moo.BucketMOO(weight="2"), TypeError, ["weight", "str"]),
        (lambda: moo.BucketMOO(bucket_cap_mb=10**400), ValueError, ["bucket_cap_mb", "finite"]),
        (lambda: moo.BucketMOO(weight=float("nan")), ValueError, ["weight", "finite", "nan"]),
        (lambda: moo.BucketMOO(weight=float("inf")), ValueError, ["weight", "finite", "inf"]),
        (lambda: moo.BucketMOO(seed=-1), ValueError, ["seed", "-1", r"2\*\*64"]),
        (lambda: moo.BucketMOO(seed=2**64), ValueError, ["seed", r"2\*\*64"]),
        (lambda: moo.BucketMOO(seed=1.0), ValueError, ["seed", "1.0"]),
        (lambda: moo.BucketMOO(bucket_cap_mb=-1), ValueError, ["bucket_cap_mb", ">= 0", "-1"]),
        (lambda: moo.BucketMOO(bucket_cap_mb=float("inf")), ValueError, ["bucket_cap_mb", "inf"]),
        (lambda: moo.BucketMOO(bucket_cap_mb="25"), TypeError, ["bucket_cap_mb", "str"]),
        (lambda: moo.MGDA(normalize="l1"), ValueError, ["MGDA", "normalize", "l1", "none", "l2"]),
        (lambda: moo.CAGrad(c=-0.1), ValueError, ["CAGrad", "c", "-0.1", ">= 0"]),
        (lambda: moo.CAGrad(c=float("nan")), ValueError, ["CAGrad", "nan", "finite"]),
        (lambda: moo.CAGrad(c="0.4"), ValueError, ["CAGrad", "'0.4'", "number"]),
        (lambda: moo.CAGrad(rescale=1), ValueError, ["CAGrad", "rescale", "True or False"]),
        (lambda: moo.PCGrad(reduction="max"), ValueError, ["PCGrad", "max", "mean", "sum"]),
        (lambda: moo.PCGrad(permutation=[[0, 0], [0, 1]]), ValueError, ["permutation", r"0\.\.K-1"]),
        (lambda: moo.PCGrad(permutation=[[0, 1]]), ValueError, ["permutation", "K rows"]),
        (lambda: moo.PCGrad(permutation=[]), ValueError, ["permutation"]),
        (lambda: moo.Mean(weights=[1.0, -1.0]), ValueError, ["Mean", "weights", ">= 0", "-1.0"]),
        (lambda: moo.Mean(weights=[0.0, 0.0]), ValueError, ["Mean", "weights", "not all zero"]),
        (lambda: moo.Mean(weights=[float("inf")]), ValueError, ["Mean", "inf"]),
        # Options of the method beside the method.
        (lambda: moo.BucketMOO("cagrad", c=0.5), TypeError, ["BucketMOO", "'c'", r"method=moo\.CAGrad\(c=0\.5\)$"]),
        (lambda: moo.BucketMOO(method="krum", n_selected=2), TypeError, [r"method=moo\.Krum\(n_selected=2\)$"]),
        (lambda: moo.BucketMOO("mgda", alpha=2), TypeError, ["not of MGDA", r"FairGrad\(alpha=2\) or moo\.Smoothed"]),
        (
            lambda: moo.BucketMOO("upgrad", preference=[1, 2]), TypeError,
            [r"method=moo\.UPGrad\(preference=\[1, 2\]\)$"],
        ),
        (lambda: moo.BucketMOO(preference=[1]), TypeError, [r"moo\.UPGrad\(.*\) or moo\.DualProj\("]),
        (lambda: moo.BucketMOO("cagrad", c=0.5, rescale=True), TypeError, [r"CAGrad\(c=0\.5, rescale=True\)$"]),
        (lambda: moo.BucketMOO("nonsense", c=0.5), TypeError, [r"moo\.CAGrad"]),
        (lambda: moo.BucketMOO("cagrad", c=0.5, language="sw"), TypeError, [r"CAGrad\(c=0\.5\); allowed: .*weight"]),
        (lambda: moo.BucketMOO("cagrad", c=0.5, normalize="l2"), TypeError, [r"CAGrad\(c=0\.5\);.*MGDA\(normal"]),
        (lambda: moo.BucketMOO("mgda", width=64, lag=1), TypeError, [r"gramian=moo\.Sketch\(width=64, lag=1\)$"]),
        (lambda: moo.weights(torch.eye(2), width=64), TypeError, ["allowed: gramian, method"]),
        (lambda: moo.BucketMOO(moo.CAGrad), TypeError, ["an object", r"moo\.MGDA\(\)"]),
        (lambda: moo.BucketMOO("cagrad", lr=0.5), TypeError, ["'lr'", "allowed: method, objective", "bucket_cap_mb$"]),
        (lambda: moo.register(nn.Linear(2, 2), "cagrad", c=0.5), TypeError, ["^register", r"moo\.CAGrad\(c=0\.5\)$"]),
        (lambda: moo.weights(torch.eye(2), "cagrad", c=0.5), TypeError, ["^weights", r"moo\.CAGrad\(c=0\.5\)$"]),
        (lambda: moo.aggregate(torch.eye(2), "cagrad", c=0.5), TypeError, ["^aggregate", r"moo\.CAGrad"]),
    ],
)  # fmt: skip
def test_bad_arguments(make: Callable[[], Any], kind: type[BaseException], words: list[str]) -> None:
    _expect(error_of(make), kind, *words)


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
        _expect(error_of(call), RuntimeError, "torch.distributed", "init_process_group")
    _expect(error_of(state.report), RuntimeError, "nothing to report")
    state.name_parameters(nn.Linear(2, 2).named_parameters())  # needs none


def test_what_is_no_ddp_module_and_no_state() -> None:
    _expect(error_of(lambda: moo.register(nn.Linear(2, 2))), TypeError, "module", "Linear", "DDP|Dist")  # type: ignore[arg-type]
    for call in (
        lambda: moo.all_reduce(torch.ones(3), "mgda"),  # type: ignore[call-overload]
        lambda: moo.bucket_moo_hook("mgda", None),  # type: ignore[arg-type]
    ):
        _expect(error_of(call), TypeError, "state", "BucketMOO", "str")


# --- registration ---


def _ddp(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> DDP:
    return DDP(mlp(seed, dtype, SIZES), **options)


def _backward(ddp: nn.Module, rank: int = 0) -> None:
    loss_of(ddp, batch_of(0, rank, 0, torch.float32, SIZES)).backward()


def _registration(rank: int, world: int) -> None:
    # One hook a module, once.
    ddp = _ddp()
    moo.register(ddp)
    _expect(error_of(lambda: moo.register(ddp)), RuntimeError, "already", "hook")
    _backward(ddp, rank)  # the first one still works
    ddp = _ddp()
    ddp.register_comm_hook(moo.BucketMOO(), moo.bucket_moo_hook)
    _expect(error_of(lambda: moo.register(ddp)), RuntimeError, "already", "hook")
    ddp = _ddp()
    moo.register(ddp)
    error = error_of(lambda: ddp.register_comm_hook(moo.BucketMOO(), moo.bucket_moo_hook))
    _expect(error, RuntimeError, "register_comm_hook|once")  # torch's own words
    ddp = _ddp()
    ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    _expect(error_of(lambda: moo.register(ddp)), RuntimeError, "already", "hook")

    # Before the first backward pass.
    ddp = _ddp()
    _backward(ddp, rank)
    _expect(error_of(lambda: moo.register(ddp)), RuntimeError, "backward", "before the first")
    # A bad argument leaves the module as it was.
    ddp = _ddp()
    _expect(error_of(lambda: moo.register(ddp, method="x")), ValueError, "method='x'")
    _expect(error_of(lambda: moo.register(ddp, weight=-2.0)), ValueError, "weight", "-2.0")
    moo.register(ddp)
    _backward(ddp, rank)

    # Options that bypass the hook or bring their own.
    ddp = _ddp(mixed_precision=_MixedPrecision(param_dtype=torch.bfloat16))
    _expect(error_of(lambda: moo.register(ddp)), ValueError, "mixed_precision", "autocast")
    model = mlp(0, torch.float32, SIZES)
    delayed = list(model.named_parameters())[:1]
    ddp = DDP(model, delay_all_reduce_named_params=delayed, param_to_hook_all_reduce=model[2].weight)
    _expect(error_of(lambda: moo.register(ddp)), ValueError, "delay_all_reduce_named_params")
    ddp = _ddp(find_unused_parameters=True, skip_all_reduce_unused_params=True)
    _expect(error_of(lambda: moo.register(ddp)), ValueError, "skip_all_reduce_unused_params")
    # Imported here: torch.distributed.optim warns that torch.jit.script is deprecated.
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = mlp(0, torch.float32, SIZES)
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    ddp = DDP(model)
    _expect(error_of(lambda: moo.register(ddp)), ValueError, "optimizer", "backward")
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        ddp = _ddp()
    _expect(error_of(lambda: moo.register(ddp)), ValueError, "optimize_ddp", "python_reducer")

    # Parameters that cannot be reduced. init_sync=False: torch itself cannot broadcast them.
    float8 = mlp(0, torch.float32, SIZES)
    float8[2].weight = nn.Parameter(float8[2].weight.detach().to(torch.float8_e4m3fn))
    ddp = DDP(float8, init_sync=False)
    _expect(error_of(lambda: moo.register(ddp)), TypeError, "2.weight", "float8", "bfloat16")
    ddp = DDP(mlp(0, torch.float32, SIZES).to("meta"), init_sync=False)
    _expect(error_of(lambda: moo.register(ddp)), ValueError, "0.weight", "meta", "CPU")

    # Another group than DDP's.
    other = dist.new_group(list(range(world)))
    ddp = _ddp()
    error = error_of(lambda: moo.register(ddp, process_group=other))
    _expect(error, ValueError, "process_group", "None")
    error = error_of(lambda: moo.register(ddp, process_group="gloo"))  # type: ignore[arg-type]
    _expect(error, TypeError, "process_group", "str")
    moo.register(ddp, process_group=dist.group.WORLD)


@pytest.mark.parametrize("world", [1, 2])
def test_registration(run_ranks: RunRanks, world: int) -> None:
    run_ranks(world, _registration)


def _outside_the_group(rank: int, world: int) -> None:
    only = dist.new_group([0])
    state = moo.BucketMOO("mean", process_group=only)
    if rank == 0:
        moo.all_reduce(torch.ones(3), state)
    else:
        error = error_of(lambda: moo.all_reduce(torch.ones(3), state))
        _expect(error, ValueError, "process_group", "not a member")


def test_a_rank_outside_the_group(run_ranks: RunRanks) -> None:
    run_ranks(2, _outside_the_group)


# --- inside the hook ---


def _hook_misuse(rank: int, world: int) -> None:
    # The wrong state surfaces from backward().
    ddp = _ddp()
    ddp.register_comm_hook("mgda", moo.bucket_moo_hook)
    _expect(error_of(lambda: _backward(ddp, rank)), TypeError, "state", "BucketMOO", "str")

    # DDP's Python reducer calls hook(state, (gradient, parameter)).
    pair = (torch.ones(3), nn.Parameter(torch.ones(3)))
    error = error_of(lambda: moo.bucket_moo_hook(moo.BucketMOO(), pair))  # type: ignore[arg-type]
    _expect(error, RuntimeError, "python_reducer", "optimize_ddp")

    # A float8 bucket: refused before anything is sent, on every rank, with its type.
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn))
    ddp = DDP(model, init_sync=False)
    ddp.register_comm_hook(moo.BucketMOO(), moo.bucket_moo_hook)
    ddp.reducer.prepare_for_backward([])
    error = error_of(lambda: model.w.backward(torch.ones(4).to(torch.float8_e4m3fn)))
    _expect(error, TypeError, "bucket", "float8|Float8", "float32, bfloat16, float16, float64")


def test_misuse_of_the_hook(run_ranks: RunRanks) -> None:
    run_ranks(2, _hook_misuse)


def _options_made_for_another_number_of_objectives(rank: int, world: int) -> list[Any]:
    errors = []
    for method in (moo.Mean(weights=[1.0] * 3), moo.PCGrad(permutation=[[0, 1, 2]] * 3)):
        for way in ("register", "hook"):
            ddp = _ddp()
            if way == "register":
                moo.register(ddp, method)
            else:
                ddp.register_comm_hook(moo.BucketMOO(method), moo.bucket_moo_hook)
            errors.append(error_of(lambda ddp=ddp: _backward(ddp, rank)))
    return errors


def test_method_options_for_another_number_of_objectives(run_ranks: RunRanks) -> None:
    for errors in run_ranks(2, _options_made_for_another_number_of_objectives):
        for error in errors[:2]:
            _expect(error, ValueError, "weights", "3", "2 objectives")
        for error in errors[2:]:
            _expect(error, ValueError, "permutation", "3", "2")


# --- ranks that disagree ---
# More than 64 objectives take more than 64 ranks, which no test here starts.


def _configuration_mismatch(rank: int, world: int, way: str) -> list[Any]:
    last = rank == world - 1
    cases: list[dict[str, Any]] = [
        {"method": "pcgrad" if last else "mgda"},
        {"method": moo.CAGrad(c=0.5 if last else 0.25)},
        {"seed": 12 if last else 7},
        {"method": "mean" if last else "mgda", "seed": 5 if rank == 0 else 6},
    ]
    errors = []
    for case in cases:
        ddp = _ddp()
        if way == "register":
            state = moo.register(ddp, **case)
        else:
            state = moo.BucketMOO(**case)
            ddp.register_comm_hook(state, moo.bucket_moo_hook)
        errors.append(error_of(lambda ddp=ddp: _backward(ddp, rank)))
        # And from then on.
        again = error_of(lambda state=state: moo.all_reduce(torch.ones(3), state))
        assert again == errors[-1]
    return errors


@pytest.mark.parametrize("way", ["register", "hook"])
@pytest.mark.parametrize("world", [2, 3])
def test_configurations_that_differ_raise_on_every_rank(run_ranks: RunRanks, world: int, way: str) -> None:
    last = world - 1
    others = " ".join(str(r) for r in range(last))
    for errors in run_ranks(world, _configuration_mismatch, way):
        method, parameter, seed, both = errors
        same = "same on every rank"
        _expect(method, ValueError, same, "method:", rf"MGDA.* on rank {others};", f"rank {last};")
        assert "seed" not in method[1]
        _expect(parameter, ValueError, rf"c=0.25.* on rank {others};", rf"c=0.5.* on rank {last};")
        _expect(seed, ValueError, "seed:", f"7 on rank {others};", f"12 on rank {last};")
        _expect(both, ValueError, "method:", "seed:", "5 on rank 0;")


def _caps_that_differ(rank: int, world: int) -> list[Any]:
    state = moo.BucketMOO(bucket_cap_mb=1 + rank)
    by_hand = error_of(lambda: moo.all_reduce(torch.ones(3), state))
    ddp = _ddp(bucket_cap_mb=1 + rank)
    moo.register(ddp)
    return [by_hand, error_of(lambda: _backward(ddp, rank))]


def test_bucket_caps_that_differ_raise_on_every_rank(run_ranks: RunRanks) -> None:
    for errors in run_ranks(2, _caps_that_differ):
        for error in errors:
            _expect(error, ValueError, "bucket_cap_mb", "1.0 on rank 0", "2.0 on rank 1")


def _different_calls(rank: int, world: int, asynchronous: bool) -> list[Any]:
    def reduce(n: int, dtype: torch.dtype = torch.float32) -> Callable[[moo.BucketMOO], Any]:
        return lambda s: moo.all_reduce(torch.ones(n, dtype=dtype), s, async_op=asynchronous)  # type: ignore[call-overload]

    def scatter(n: int) -> Callable[[moo.BucketMOO], Any]:
        return lambda s: moo.reduce_scatter(  # type: ignore[call-overload]
            torch.ones(n), torch.ones(n * world), s, async_op=asynchronous
        )

    def more_steps(state: moo.BucketMOO) -> Any:
        state.load_state_dict({**state.state_dict(), "step": 5})
        return reduce(12)(state)

    cases = [
        (reduce(12), reduce(13)),
        (reduce(100_000), reduce(3)),
        (reduce(12), reduce(12, torch.float64)),
        (reduce(12), scatter(12 // world)),
        (reduce(12), more_steps),
    ]
    errors = []
    for case in cases:
        state = moo.BucketMOO()

        def run(call: Any = case[rank % 2], state: moo.BucketMOO = state) -> None:
            future = call(state)
            if future is not None:
                future.wait()

        errors.append(error_of(run))
        # Nothing was sent, so the next step may be right again; only states that count differently stay apart.
        after = error_of(lambda state=state: moo.all_reduce(torch.ones(12), state))
        assert after[0] is (ValueError if case is cases[-1] else type(None)), after
    return errors


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_different_calls_raise_on_every_rank(run_ranks: RunRanks, world: int, asynchronous: bool) -> None:
    by_rank = run_ranks(world, _different_calls, asynchronous)
    words = [
        ["12 elements", "13 elements"],
        ["100000 elements", " 3 elements"],
        ["dtype float32", "dtype float64"],
        ["all_reduce", "reduce_scatter"],
        ["step 1", "step 6"],
    ]
    for errors in by_rank:
        for error, patterns in zip(errors, words, strict=True):
            _expect(error, ValueError, "same calls", "rank 0", "rank 1", *patterns)


def _bad_tensors(rank: int, world: int) -> None:
    state = moo.BucketMOO("mean")
    moo.all_reduce(torch.ones(3), state)
    n = 4
    full = torch.ones(n * world)

    def reduce(tensor: Any) -> Callable[[], Any]:
        return lambda: moo.all_reduce(tensor, state)

    def scatter(output: Any, source: Any) -> Callable[[], Any]:
        return lambda: moo.reduce_scatter(output, source, state)

    allowed = "float32, bfloat16, float16, float64"
    _expect(error_of(reduce(torch.ones(3, dtype=torch.int32))), TypeError, "tensor", "Int", allowed)
    _expect(error_of(reduce(torch.ones(3, dtype=torch.complex64))), TypeError, "tensor", "Complex")
    float8 = torch.ones(3).to(torch.float8_e4m3fn)
    _expect(error_of(reduce(float8)), TypeError, "tensor", "Float8", allowed)
    _expect(error_of(reduce(torch.ones(3, device="meta"))), ValueError, "tensor", "(?i)CPU", "meta")
    _expect(error_of(reduce(torch.ones(4, 4).t()[1:])), ValueError, "tensor", "contiguous", "strides")
    _expect(error_of(reduce(torch.ones(3).to_sparse())), ValueError, "tensor", "dense", "Sparse")
    assert error_of(reduce([1.0, 2.0]))[0] is TypeError
    _expect(
        error_of(scatter(torch.ones(n), torch.ones(n * world + 1))),
        ValueError, "input", "output", rf"{world} \* {n} = |{world} \* {n}", str(n * world + 1),
    )  # fmt: skip
    _expect(error_of(scatter(torch.ones(n, dtype=torch.float64), full)), TypeError, "output", "input")
    _expect(error_of(scatter(torch.ones(n, device="meta"), full)), ValueError, "output", "meta")
    # All that was refused before anything was sent: the state goes on.
    x = torch.full((3,), float(rank))
    moo.all_reduce(x, state)
    assert x.tolist() == [(world - 1) / 2] * 3


@pytest.mark.parametrize("world", [1, 2])
def test_tensors_that_cannot_be_reduced(run_ranks: RunRanks, world: int) -> None:
    run_ranks(world, _bad_tensors)


def _resume(rank: int, world: int) -> None:
    state = moo.BucketMOO("pcgrad", seed=3)
    for call, words in (
        (lambda: state.load_state_dict({"step": 1}), ["state_dict", "method", "seed"]),
        (lambda: state.load_state_dict({**state.state_dict(), "seed": 4}), ["seed", "4", "3"]),
        (
            lambda: state.load_state_dict(moo.BucketMOO("mgda", seed=3).state_dict()),
            ["method", "MGDA", "PCGrad"],
        ),
    ):
        _expect(error_of(call), ValueError, *words)


def test_state_dicts_of_other_states(run_ranks: RunRanks) -> None:
    run_ranks(1, _resume)


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
        moo.BucketMOO(moo.CAGrad(c=0.5 if plain else np.float32(0.5))),
        moo.BucketMOO(seed=7 if plain else np.int64(7), bucket_cap_mb=2.0 if plain else np.float32(2.0)),
        moo.BucketMOO(bucket_cap_mb=2 if plain else np.int64(2)),
        moo.BucketMOO(gramian=moo.Sketch(width=0.5 if plain else np.float32(0.5))),
        moo.BucketMOO(gramian=moo.Sketch(width=64 if plain else np.int16(64), seed=3 if plain else np.uint8(3))),
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
