"""Forked children: what belongs to the parent is neither used, nor destroyed, nor waited for there."""

import atexit
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from tests.support.ddp import CAP_MB, batch_of, hook, loss_of, mlp
from tests.support.errors import error_of

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]
# Children end at once; one that waits for what is not there would wait for ever.
DEADLINE = 30.0
TIMEOUT = 100.0


def _trained(way: str = "register", compiled: bool = False) -> tuple[nn.Module, moo.BucketMOO]:
    """A DDP module and its state, after a step: connections and the worker's thread are there."""
    ddp = DDP(mlp(0, torch.float32), bucket_cap_mb=25 if compiled else CAP_MB)  # the compiler wants 1 MB or more
    state = hook(ddp, way)
    model: nn.Module = torch.compile(ddp, backend="eager") if compiled else ddp  # type: ignore[assignment]
    _step(model)
    return model, state


def _step(ddp: nn.Module) -> None:
    ddp.zero_grad()
    loss_of(ddp, batch_of(0, 0, 0, torch.float32)).backward()


class _Cycle:
    """Holds a run, and itself: only the collector ends it."""

    def __init__(self, *held: Any) -> None:
        self.held = held
        self.itself = self


def _allow_children() -> None:
    """The ranks of these tests are daemons, so that none outlives the tests, and daemons have no children."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def _wait_for(pid: int) -> int:
    """The exit code of a child; one that does not end is killed and fails the test."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("a forked child did not end")


def _fork(run: Callable[[], Any], leave: Callable[[int], Any] = os._exit) -> None:
    """Runs `run` in a forked child, which leaves by `leave`, and checks that both go well."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        leave(code)
    assert _wait_for(pid) == 0


# --- destroying ---


def _collected(rank: int, world: int, way: str, compiled: bool) -> None:
    gc.disable()  # nobody else's collection may come first
    model, state = _trained(way, compiled)
    model.held = _Cycle(model, state)  # type: ignore[assignment]
    before = sum(isinstance(thing, _Cycle) for thing in gc.get_objects())
    assert before == 1
    if way == "register":
        del model, state
    _fork(lambda: gc.collect())
    if way == "hook":
        del model, state
        _fork(lambda: gc.collect())
    gc.enable()
    gc.collect()
    assert not any(isinstance(thing, _Cycle) for thing in gc.get_objects())
    _step(_trained(way)[0])  # and the parent goes on


@pytest.mark.parametrize(("way", "compiled"), [("register", False), ("hook", False), ("register", True)])
def test_a_run_that_the_collector_ends_in_a_child(run_ranks: RunRanks, way: str, compiled: bool) -> None:
    run_ranks(2, _collected, way, compiled, timeout=TIMEOUT)


class _Collecting(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        gc.collect()
        return index


def _data_loader(rank: int, world: int) -> list[int]:
    """The second of two runs, whose loader's workers collect what is left of the first."""
    gc.disable()
    model, state = _trained()
    model.held = _Cycle(model, state)  # type: ignore[assignment]
    del model, state
    second, _ = _trained()
    _allow_children()
    loader = DataLoader(_Collecting(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=DEADLINE)
    seen = []
    for batch in loader:
        _step(second)
        seen += batch.tolist()
    return seen


@pytest.mark.host
def test_data_loader_workers_of_a_second_run(run_ranks: RunRanks) -> None:
    assert run_ranks(2, _data_loader, timeout=TIMEOUT) == [list(range(8))] * 2


def _leave_by_return(code: int) -> None:
    """As a script does that comes to its end: handlers of atexit run, and the interpreter is taken down."""
    atexit._run_exitfuncs()
    gc.collect()
    os._exit(code)


LEAVE: dict[str, Callable[[int], Any]] = {"os._exit": os._exit, "return": _leave_by_return}


def _deleted(rank: int, world: int, leave: str) -> None:
    holder = [_trained(way) for way in ("register", "hook")]
    states = [moo.BucketMOO("mean") for _ in range(2)]
    for state in states:
        moo.all_reduce(torch.ones(20_000), state)

    def delete_all() -> None:
        holder.clear()
        states.clear()
        gc.collect()

    _fork(delete_all, LEAVE[leave])
    _fork(lambda: None, LEAVE[leave])
    for model, _ in holder:
        _step(model)
    moo.all_reduce(torch.ones(20_000), states[0])


@pytest.mark.parametrize("leave", LEAVE)
def test_states_that_a_child_deletes(run_ranks: RunRanks, leave: str) -> None:
    run_ranks(2, _deleted, leave, timeout=TIMEOUT)


def _in_flight(rank: int, world: int, leave: str) -> list[float]:
    """Forks while the worker waits for a peer, and holds its locks and memory."""
    state = moo.BucketMOO("mean")
    moo.all_reduce(torch.ones(10), state)
    tensors = [torch.full((200_000,), float(rank)) for _ in range(2)]
    futures = [moo.all_reduce(tensor, state, async_op=True) for tensor in tensors] if rank == 0 else []
    held = [state]

    def drop() -> None:
        assert not any(future.done() for future in futures)
        assert error_of(lambda: held[0].report())[0] is RuntimeError
        held.clear()
        gc.collect()

    _fork(drop, LEAVE[leave])
    torch.distributed.barrier()
    if rank == 1:
        futures = [moo.all_reduce(tensor, state, async_op=True) for tensor in tensors]
    for future in futures:
        future.wait()
    return [float(tensor.sum()) / tensor.numel() for tensor in tensors]


@pytest.mark.host
@pytest.mark.parametrize("leave", LEAVE)
def test_a_fork_with_a_reduction_in_flight(run_ranks: RunRanks, leave: str) -> None:
    assert run_ranks(2, _in_flight, leave, timeout=TIMEOUT) == [[0.5, 0.5]] * 2


def _child_of_multiprocessing(state: moo.BucketMOO, model: nn.Module, how: str) -> None:
    with pytest.raises(RuntimeError, match="made in process"):
        moo.all_reduce(torch.ones(3), state)
    del state, model
    gc.collect()
    if how == "sys.exit":
        sys.exit(0)
    if how == "os._exit":
        os._exit(0)


def _multiprocessing(rank: int, world: int, how: str) -> None:
    model, state = _trained()
    _allow_children()
    process = multiprocessing.get_context("fork").Process(target=_child_of_multiprocessing, args=(state, model, how))
    process.start()
    process.join(DEADLINE)
    alive = process.is_alive()
    process.kill()
    assert not alive
    assert process.exitcode == 0
    _step(model)


@pytest.mark.parametrize("how", ["return", "sys.exit", "os._exit"])
def test_children_of_multiprocessing(run_ranks: RunRanks, how: str) -> None:
    run_ranks(2, _multiprocessing, how, timeout=TIMEOUT)


# torch's own groups do not survive that: a forked child that takes the interpreter down waits for ever in the
# destructor of the default group. A state's must.
_SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
import bucket_moo_ext as moo

store, rank, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
state = moo.BucketMOO("mean")
moo.all_reduce(torch.ones(1000), state)
dist.destroy_process_group()
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    moo.all_reduce(torch.ones(1000), state)
elif how == "sys.exit":
    sys.exit(0)
"""


@pytest.mark.slow
@pytest.mark.host
@pytest.mark.parametrize("how", ["return", "sys.exit"])
def test_a_forked_script_that_comes_to_its_end(tmp_path: Any, how: str) -> None:
    """The child takes the interpreter down with everything in it."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SCRIPT, str(tmp_path / "store"), str(rank), how],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=DEADLINE)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


# --- using ---


def _uses(state: moo.BucketMOO, model: nn.Module) -> dict[str, Callable[[], Any]]:
    return {
        "all_reduce": lambda: moo.all_reduce(torch.ones(3), state),
        "all_reduce, async": lambda: moo.all_reduce(torch.ones(3), state, async_op=True),
        "reduce_scatter": lambda: moo.reduce_scatter(torch.ones(3), torch.ones(6), state),
        "backward": lambda: _step(model),
        "report": state.report,
        "step": lambda: state.step,
        "memory": state.memory,
        "state_dict": state.state_dict,
        "load_state_dict": lambda: state.load_state_dict({}),
        "objective": lambda: setattr(state, "objective", "other"),
        "weight": lambda: setattr(state, "weight", 2.0),
        "name_parameters": lambda: state.name_parameters([]),
        "pickle": lambda: pickle.dumps(state),
    }


def _used(rank: int, world: int, way: str) -> None:
    model, state = _trained(way)
    _step(model)  # DDP rebuilds its buckets, for which it talks to the other ranks over its own group
    early = moo.BucketMOO("mean")  # without a native part so far
    fresh = DDP(nn.Linear(2, 2))
    parent = os.getpid()

    def use() -> None:
        for name, call in _uses(state, model).items():
            kind, words = error_of(call)
            assert kind is RuntimeError, (name, kind, words)
            assert f"made in process {parent}" in words, name
            assert f"process {os.getpid()} was forked" in words, name
            assert "spawn" in words, name
        # What needs no native part is there.
        assert state.objective is None
        assert state.weight == 1.0
        assert "another process" in repr(state)
        # A new state would take the parent's place among the ranks.
        for new in (moo.BucketMOO(), moo.BucketMOO(process_group=torch.distributed.group.WORLD), early):
            kind, words = error_of(lambda new=new: moo.all_reduce(torch.ones(3), new))  # type: ignore[misc]
            assert kind is RuntimeError, (kind, words)
            assert "before this process was forked" in words
        kind, words = error_of(lambda: moo.register(fresh))
        assert kind is RuntimeError, (kind, words)
        # States of the child's own that reduce nothing do no harm.
        own = moo.BucketMOO(objective="sw")
        assert own.step == 0
        own.objective = "de"
        assert moo.BucketMOO.__getstate__(own)["objective"] == "de"

    _fork(use)
    assert repr(state).endswith("step=2)")
    _step(model)
    assert state.step == 3
    tensor = torch.full((3,), float(rank))
    moo.all_reduce(tensor, early)
    assert tensor.tolist() == [0.5] * 3


@pytest.mark.parametrize("way", ["register", "hook"])
def test_a_state_in_a_child_says_where_it_is_from(run_ranks: RunRanks, way: str) -> None:
    run_ranks(2, _used, way, timeout=TIMEOUT)


def _grandchild(rank: int, world: int) -> None:
    """A state that a child makes is at home there, and not in the child's children."""

    def child() -> None:
        held = [moo.BucketMOO()]  # a group of one rank is nobody else's
        moo.all_reduce(torch.ones(3), held[0])

        def grandchild() -> None:
            assert error_of(lambda: moo.all_reduce(torch.ones(3), held[0]))[0] is RuntimeError
            held.clear()

        _fork(grandchild)
        moo.all_reduce(torch.ones(3), held[0])
        assert held[0].step == 2
        held.clear()

    _fork(child)


def test_a_state_that_a_child_makes(run_ranks: RunRanks) -> None:
    run_ranks(1, _grandchild, timeout=TIMEOUT)
