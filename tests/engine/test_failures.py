"""Ranks that raise, die, hang or leave: the others get an error in time, and every process ends."""

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import CAP_MB, batch_of, loss_of, mlp
from tests.support.errors import error_of

pytestmark = pytest.mark.host

RunRanks = Callable[..., list[Any]]
GROUP_TIMEOUT = timedelta(seconds=5)
# A rank has to notice within the group's timeout; the rest is for a busy machine.
TIMEOUT = 60.0


def _ddp(way: str) -> tuple[DDP, moo.BucketMOO]:
    ddp = DDP(mlp(0, torch.float32), bucket_cap_mb=CAP_MB)
    if way == "register":
        return ddp, moo.register(ddp)
    state = moo.BucketMOO(bucket_cap_mb=CAP_MB)
    ddp.register_comm_hook(state, moo.bucket_moo_hook)
    return ddp, state


def _backward(ddp: DDP, rank: int, step: int) -> None:
    loss_of(ddp, batch_of(0, rank, step, torch.float32)).backward()


class _Raise(torch.autograd.Function):
    """Passes gradients, and raises in the middle of the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("this rank fails in the middle of its backward pass")


def _assert_backend_error(error: tuple[type[BaseException], str], rank: int, world: int) -> None:
    assert error[0] is dist.DistBackendError, error
    assert "bucket_moo_ext" in error[1]
    assert f"on rank {rank} of {world}" in error[1]
    assert "rank" in error[1].split(":", 2)[2]  # which peer


def _one_rank_fails(rank: int, world: int, how: str, way: str) -> Any:
    ddp, state = _ddp(way)
    for step in range(2):
        _backward(ddp, rank, step)
    victim = world - 1
    if rank == victim:
        if how == "exits":
            os._exit(3)
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raises before backward":
            raise ArithmeticError("this rank fails before its backward pass")
        # After the buckets of the last layers were handed over, before those of the first.
        x, y = batch_of(0, rank, 2, torch.float32)
        handle = ddp.module[2].register_forward_pre_hook(lambda module, inputs: (_Raise.apply(inputs[0]),))
        loss = (ddp(x) - y).square().mean()
        handle.remove()
        loss.backward()
        raise AssertionError("the backward pass was to fail")
    began = time.monotonic()
    error = error_of(lambda: _backward(ddp, rank, 2))
    took = time.monotonic() - began
    _assert_backend_error(error, rank, world)  # type: ignore[arg-type]
    assert took < GROUP_TIMEOUT.total_seconds() + 20  # one timeout, not one for each bucket and peer

    # The failure is for good, and costs no second timeout.
    x = torch.ones(1000)
    calls = [
        lambda: moo.all_reduce(x, state),
        lambda: moo.all_reduce(x, state, async_op=True).wait(),
        lambda: moo.reduce_scatter(torch.ones(2), torch.ones(2 * world), state),
    ]
    began = time.monotonic()
    for call in calls:
        assert error_of(call) == error
    assert time.monotonic() - began < GROUP_TIMEOUT.total_seconds()
    assert torch.equal(x, torch.ones(1000))
    return error[1]


@pytest.mark.parametrize(
    ("world", "how", "way"),
    [
        (2, "exits", "register"),
        (3, "exits", "hook"),
        (3, "is killed", "register"),
    ],
)
def test_a_rank_that_dies(run_ranks: RunRanks, world: int, how: str, way: str) -> None:
    errors = run_ranks(
        world,
        _one_rank_fails,
        how,
        way,
        timeout=TIMEOUT,
        group_timeout=GROUP_TIMEOUT,
        may_die=(world - 1,),
    )
    assert errors[-1] is None
    assert all(errors[:-1])


@pytest.mark.parametrize(
    ("how", "way"),
    [
        ("raises before backward", "register"),
        ("raises in backward", "register"),
        ("raises in backward", "hook"),
    ],
)
def test_a_rank_that_raises(run_ranks: RunRanks, how: str, way: str) -> None:
    with pytest.raises(AssertionError, match="this rank fails") as failure:
        run_ranks(2, _one_rank_fails, how, way, timeout=TIMEOUT, group_timeout=GROUP_TIMEOUT)
    # The victim's own error, and nobody else's: rank 0 got its error and ended in time.
    text = str(failure.value)
    assert "rank 1 of 2 error" in text
    assert "ArithmeticError" in text
    assert "rank 0" not in text.split("rank 1 of 2 error")[0]
    assert "did not finish" not in text


def _stuck_peer(rank: int, world: int) -> str:
    state = moo.BucketMOO("mean")
    x = torch.full((1000,), float(rank))
    moo.all_reduce(x, state)
    assert x.tolist() == [(world - 1) / 2] * 1000
    everybody = dist.new_group(list(range(world)), timeout=timedelta(seconds=TIMEOUT))
    message = ""
    if rank != world - 1:
        began = time.monotonic()
        error = error_of(lambda: moo.all_reduce(x, state))
        took = time.monotonic() - began
        _assert_backend_error(error, rank, world)  # type: ignore[arg-type]
        assert "imed out" in error[1], error
        assert took > 0.5 * GROUP_TIMEOUT.total_seconds()
        assert took < GROUP_TIMEOUT.total_seconds() + 20
        message = error[1]
    dist.barrier(everybody)  # the last rank never calls, and stays until the others have given up
    return message


@pytest.mark.slow
def test_a_peer_that_never_calls(run_ranks: RunRanks) -> None:
    run_ranks(3, _stuck_peer, timeout=TIMEOUT, group_timeout=GROUP_TIMEOUT)


def _drop_in_flight(rank: int, world: int) -> None:
    """What is in flight keeps its state alive: a Future outlives the state that made it."""
    state = moo.BucketMOO("mean")
    moo.all_reduce(torch.ones(10), state)
    tensors = [torch.full((10_000,), float(rank)) for _ in range(3)]
    if rank == 0:
        futures = [moo.all_reduce(tensor, state, async_op=True) for tensor in tensors]
        del state
        gc.collect()
        dist.barrier()
        for future in futures:
            future.wait()
    else:
        dist.barrier()
        for tensor in tensors:
            moo.all_reduce(tensor, state)
    assert all(tensor.tolist() == [0.5] * 10_000 for tensor in tensors)


def test_a_state_that_is_dropped_with_an_exchange_in_flight(run_ranks: RunRanks) -> None:
    run_ranks(2, _drop_in_flight, timeout=TIMEOUT)


def _callbacks(rank: int, world: int) -> list[Any]:
    """Callbacks run on the worker's thread: they may drop the last reference to the state, but not wait for it."""

    def last_reference() -> Any:
        state = moo.BucketMOO()
        return moo.all_reduce(torch.ones(5), state, async_op=True).then(lambda _: state.step)

    steps = last_reference().wait()
    state = moo.BucketMOO("mean")
    nested = moo.all_reduce(torch.ones(5), state, async_op=True).then(lambda _: moo.all_reduce(torch.ones(3), state))
    return [steps, error_of(nested.wait)]


def test_callbacks_of_a_future(run_ranks: RunRanks) -> None:
    for steps, (kind, text) in run_ranks(2, _callbacks, timeout=TIMEOUT):
        assert steps == 1
        assert issubclass(kind, RuntimeError)
        assert "wait for itself" in text


def _refused_on_one_rank(rank: int, world: int) -> list[Any]:
    state = moo.BucketMOO("mean")
    tensor = torch.ones(4, 4).t()[:, ::2] if rank == 1 else torch.ones(8)
    errors = [error_of(lambda: moo.all_reduce(tensor, state))]
    good = torch.full((8,), float(rank))
    moo.all_reduce(good, state)
    return [*errors, good.tolist()]


def test_arguments_refused_on_one_rank_raise_on_all(run_ranks: RunRanks) -> None:
    for rank, ((kind, text), good) in enumerate(run_ranks(3, _refused_on_one_rank, timeout=TIMEOUT)):
        assert kind is ValueError
        assert ("contiguous" if rank == 1 else "rank 1 refused") in text
        assert good == [1.0] * 8


def _dies_between_steps(rank: int, world: int) -> tuple[Any, str]:
    state = moo.BucketMOO("mean")
    moo.all_reduce(torch.ones(10), state)
    if rank == 0:
        os._exit(0)
    for _ in range(100):  # until the closed connection is noticed
        error = error_of(lambda: moo.all_reduce(torch.ones(10), state))
        if error[0] is not type(None):
            break
    return error


def test_a_peer_that_died_before_the_exchange_is_named(run_ranks: RunRanks) -> None:
    for kind, text in run_ranks(3, _dies_between_steps, timeout=TIMEOUT, may_die=(0,))[1:]:
        assert kind is dist.DistBackendError
        assert "bucket_moo_ext" in text
        assert "rank" in text


_kept: list[Any] = []  # alive until the process ends


def _leave_the_group_in_flight(rank: int, world: int) -> None:
    """Rank 0 destroys the default group and ends while its exchange waits for rank 1, which never joins it."""
    state = moo.BucketMOO("mean")
    moo.all_reduce(torch.ones(10), state)
    if rank == 0:
        _kept.append((state, moo.all_reduce(torch.ones(10_000), state, async_op=True)))


def test_leaving_with_an_exchange_in_flight(run_ranks: RunRanks) -> None:
    began = time.monotonic()
    run_ranks(2, _leave_the_group_in_flight, timeout=TIMEOUT)
    assert time.monotonic() - began < 50  # the group's timeout is 60 s


_SCRIPT = """
import sys
import torch
import torch.distributed as dist
import bucket_moo_ext as moo

store, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
state = moo.BucketMOO("mean")
moo.all_reduce(torch.ones(10), state)
if rank == 0:
    futures = [moo.all_reduce(torch.ones(10_000), state, async_op=True) for _ in range(2)]
else:
    sys.stdin.read()  # stays, without taking part, until the test has seen rank 0 end
"""


@pytest.mark.slow
def test_the_interpreter_ends_with_an_exchange_in_flight(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(tmp_path / "store"), str(rank)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:  # rank 0 first: closing its stdin means nothing, rank 1's lets it end
            _, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, (process.args[-1], errors)  # type: ignore[index]
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _hold_the_gil(rank: int, world: int) -> list[bool]:
    hold = ctypes.PyDLL(None).usleep  # PyDLL: called without releasing the GIL
    state = moo.BucketMOO()
    x = torch.randn(20_000)
    moo.all_reduce(x, state)  # the worker runs
    done = []
    kept = []  # as DDP keeps its buckets and Futures: to drop the last C++ reference to a Python tensor takes the GIL
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # nobody takes the GIL from this thread between two calls either
    try:
        for _ in range(3):
            x = torch.randn(20_000)
            future = moo.all_reduce(x, state, async_op=True)
            for _ in range(100):  # 20 ms each; a peer on a busy machine may come late
                hold(20_000)
                if future.done():
                    break
            done.append(future.done())
            kept.append((x, future))
            future.wait()
    finally:
        sys.setswitchinterval(interval)
    return done


def test_the_worker_needs_no_gil(run_ranks: RunRanks) -> None:
    assert run_ranks(3, _hold_the_gil) == [[True] * 3] * 3


def _threads_left(rank: int, world: int) -> int:
    """States that come and go leave no thread behind."""

    def native_threads() -> list[str]:
        tasks = Path("/proc/self/task").iterdir()
        return [t for t in ((p / "comm").read_text().strip() for p in tasks) if t == "bucket_moo"]

    for _ in range(3):
        state = moo.BucketMOO()
        moo.all_reduce(torch.ones(10), state)
        assert len(native_threads()) == 1
        del state
        gc.collect()
        assert native_threads() == []
    return threading.active_count()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_thread_is_left_behind(run_ranks: RunRanks) -> None:
    run_ranks(2, _threads_left)
