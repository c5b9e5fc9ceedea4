"""What DDP modules, hooks and calls of several ranks are refused, where, and with which words."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.parallel.distributed import _MixedPrecision

from tests.support.ddp import batch_of, loss_of, mlp
from tests.support.errors import error_of, expect

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]

SIZES = (4, 6, 2)


# --- registration ---


def _ddp(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> DDP:
    return DDP(mlp(seed, dtype, SIZES), **options)


def _backward(ddp: nn.Module, rank: int = 0) -> None:
    loss_of(ddp, batch_of(0, rank, 0, torch.float32, SIZES)).backward()


def _registration(rank: int, world: int) -> None:
    # One hook a module, once.
    ddp = _ddp()
    moo.register(ddp)
    expect(error_of(lambda: moo.register(ddp)), RuntimeError, "already", "hook")
    _backward(ddp, rank)  # the first one still works
    ddp = _ddp()
    ddp.register_comm_hook(moo.BucketMOO(), moo.bucket_moo_hook)
    expect(error_of(lambda: moo.register(ddp)), RuntimeError, "already", "hook")
    ddp = _ddp()
    moo.register(ddp)
    error = error_of(lambda: ddp.register_comm_hook(moo.BucketMOO(), moo.bucket_moo_hook))
    expect(error, RuntimeError, "register_comm_hook|once")  # torch's own words
    ddp = _ddp()
    ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    expect(error_of(lambda: moo.register(ddp)), RuntimeError, "already", "hook")

    # Before the first backward pass.
    ddp = _ddp()
    _backward(ddp, rank)
    expect(error_of(lambda: moo.register(ddp)), RuntimeError, "backward", "before the first")
    # A bad argument leaves the module as it was.
    ddp = _ddp()
    expect(error_of(lambda: moo.register(ddp, method="x")), ValueError, "method='x'")
    expect(error_of(lambda: moo.register(ddp, weight=-2.0)), ValueError, "weight", "-2.0")
    moo.register(ddp)
    _backward(ddp, rank)

    # Options that bypass the hook or bring their own.
    ddp = _ddp(mixed_precision=_MixedPrecision(param_dtype=torch.bfloat16))
    expect(error_of(lambda: moo.register(ddp)), ValueError, "mixed_precision", "autocast")
    model = mlp(0, torch.float32, SIZES)
    delayed = list(model.named_parameters())[:1]
    ddp = DDP(model, delay_all_reduce_named_params=delayed, param_to_hook_all_reduce=model[2].weight)  # type: ignore[index]
    expect(error_of(lambda: moo.register(ddp)), ValueError, "delay_all_reduce_named_params")
    ddp = _ddp(find_unused_parameters=True, skip_all_reduce_unused_params=True)
    expect(error_of(lambda: moo.register(ddp)), ValueError, "skip_all_reduce_unused_params")
    # Imported here: torch.distributed.optim warns that torch.jit.script is deprecated.
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = mlp(0, torch.float32, SIZES)
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    ddp = DDP(model)
    expect(error_of(lambda: moo.register(ddp)), ValueError, "optimizer", "backward")
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        ddp = _ddp()
    expect(error_of(lambda: moo.register(ddp)), ValueError, "optimize_ddp", "python_reducer")

    # Parameters that cannot be reduced. init_sync=False: torch itself cannot broadcast them.
    float8 = mlp(0, torch.float32, SIZES)
    float8[2].weight = nn.Parameter(float8[2].weight.detach().to(torch.float8_e4m3fn))  # type: ignore[index]
    ddp = DDP(float8, init_sync=False)
    expect(error_of(lambda: moo.register(ddp)), TypeError, "2.weight", "float8", "bfloat16")
    ddp = DDP(mlp(0, torch.float32, SIZES).to("meta"), init_sync=False)
    expect(error_of(lambda: moo.register(ddp)), ValueError, "0.weight", "meta", "CPU")

    # Another group than DDP's.
    other = dist.new_group(list(range(world)))
    ddp = _ddp()
    error = error_of(lambda: moo.register(ddp, process_group=other))
    expect(error, ValueError, "process_group", "None")
    error = error_of(lambda: moo.register(ddp, process_group="gloo"))  # type: ignore[arg-type]
    expect(error, TypeError, "process_group", "str")
    moo.register(ddp, process_group=dist.group.WORLD)


@pytest.mark.host
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
        expect(error, ValueError, "process_group", "not a member")


@pytest.mark.host
def test_a_rank_outside_the_group(run_ranks: RunRanks) -> None:
    run_ranks(2, _outside_the_group)


# --- inside the hook ---


def _hook_misuse(rank: int, world: int) -> None:
    # The wrong state surfaces from backward().
    ddp = _ddp()
    ddp.register_comm_hook("mgda", moo.bucket_moo_hook)
    expect(error_of(lambda: _backward(ddp, rank)), TypeError, "state", "BucketMOO", "str")

    # DDP's Python reducer calls hook(state, (gradient, parameter)).
    pair = (torch.ones(3), nn.Parameter(torch.ones(3)))
    error = error_of(lambda: moo.bucket_moo_hook(moo.BucketMOO(), pair))  # type: ignore[arg-type]
    expect(error, RuntimeError, "python_reducer", "optimize_ddp")

    # A float8 bucket: refused before anything is sent, on every rank, with its type.
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn))
    ddp = DDP(model, init_sync=False)
    ddp.register_comm_hook(moo.BucketMOO(), moo.bucket_moo_hook)
    ddp.reducer.prepare_for_backward([])
    error = error_of(lambda: model.w.backward(torch.ones(4).to(torch.float8_e4m3fn)))  # type: ignore[operator]
    expect(error, TypeError, "bucket", "float8|Float8", "float32, bfloat16, float16, float64")


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
            errors.append(error_of(lambda ddp=ddp: _backward(ddp, rank)))  # type: ignore[misc]
    return errors


def test_method_options_for_another_number_of_objectives(run_ranks: RunRanks) -> None:
    for errors in run_ranks(2, _options_made_for_another_number_of_objectives):
        for error in errors[:2]:
            expect(error, ValueError, "weights", "3", "2 objectives")
        for error in errors[2:]:
            expect(error, ValueError, "permutation", "3", "2")


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
        errors.append(error_of(lambda ddp=ddp: _backward(ddp, rank)))  # type: ignore[misc]
        # And from then on.
        again = error_of(lambda state=state: moo.all_reduce(torch.ones(3), state))  # type: ignore[misc]
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
        expect(method, ValueError, same, "method:", rf"MGDA.* on rank {others};", f"rank {last};")
        assert "seed" not in method[1]
        expect(parameter, ValueError, rf"c=0.25.* on rank {others};", rf"c=0.5.* on rank {last};")
        expect(seed, ValueError, "seed:", f"7 on rank {others};", f"12 on rank {last};")
        expect(both, ValueError, "method:", "seed:", "5 on rank 0;")


def _caps_that_differ(rank: int, world: int) -> list[Any]:
    state = moo.BucketMOO(bucket_cap_mb=1 + rank)
    by_hand = error_of(lambda: moo.all_reduce(torch.ones(3), state))
    ddp = _ddp(bucket_cap_mb=1 + rank)
    moo.register(ddp)
    return [by_hand, error_of(lambda: _backward(ddp, rank))]


@pytest.mark.host
def test_bucket_caps_that_differ_raise_on_every_rank(run_ranks: RunRanks) -> None:
    for errors in run_ranks(2, _caps_that_differ):
        for error in errors:
            expect(error, ValueError, "bucket_cap_mb", "1.0 on rank 0", "2.0 on rank 1")


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
        after = error_of(lambda state=state: moo.all_reduce(torch.ones(12), state))  # type: ignore[misc]
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
            expect(error, ValueError, "same calls", "rank 0", "rank 1", *patterns)


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
    expect(error_of(reduce(torch.ones(3, dtype=torch.int32))), TypeError, "tensor", "Int", allowed)
    expect(error_of(reduce(torch.ones(3, dtype=torch.complex64))), TypeError, "tensor", "Complex")
    float8 = torch.ones(3).to(torch.float8_e4m3fn)
    expect(error_of(reduce(float8)), TypeError, "tensor", "Float8", allowed)
    expect(error_of(reduce(torch.ones(3, device="meta"))), ValueError, "tensor", "(?i)CPU", "meta")
    expect(error_of(reduce(torch.ones(4, 4).t()[1:])), ValueError, "tensor", "contiguous", "strides")
    expect(error_of(reduce(torch.ones(3).to_sparse())), ValueError, "tensor", "dense", "Sparse")
    assert error_of(reduce([1.0, 2.0]))[0] is TypeError
    expect(
        error_of(scatter(torch.ones(n), torch.ones(n * world + 1))),
        ValueError, "input", "output", rf"{world} \* {n} = |{world} \* {n}", str(n * world + 1),
    )  # fmt: skip
    expect(error_of(scatter(torch.ones(n, dtype=torch.float64), full)), TypeError, "output", "input")
    expect(error_of(scatter(torch.ones(n, device="meta"), full)), ValueError, "output", "meta")
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
        expect(error_of(call), ValueError, *words)


@pytest.mark.host
def test_state_dicts_of_other_states(run_ranks: RunRanks) -> None:
    run_ranks(1, _resume)
