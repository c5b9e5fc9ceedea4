"""Steps of several passes through DistributedDataParallel: state.accumulate()."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import (
    CAP_MB,
    WAYS,
    assert_close,
    assert_mgda,
    batch_of,
    check_buckets,
    flat,
    gradient_digest,
    gradients,
    hook,
    loss_of,
    mgda_weights,
    mlp,
    rows_of,
    same_on_all_ranks,
)
from tests.support.errors import error_of, expect

RunRanks = Callable[..., list[Any]]

# By pass, then rank: three objectives; ranks change theirs, some share one, an objective has more rows than others.
SCHEDULES = {
    1: [[0], [1], [2], [0]],
    2: [[0, 1], [2, 2], [1, 0]],
    3: [[0, 1, 2], [2, 0, 0]],
    4: [[0, 0, 1, 2], [2, 1, 1, 0], [1, 1, 1, 1]],
}


def _row(rank: int, step: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return batch_of(3, 10 * number + rank, step)


def _loss_on(batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[nn.Module], torch.Tensor]:
    return lambda model: loss_of(model, batch)


def _step(ddp: nn.Module, state: moo.BucketMOO, schedule: Sequence[Sequence[int]], rank: int, step: int) -> None:
    for number, objectives in enumerate(schedule):
        is_last = number == len(schedule) - 1
        state.objective = objectives[rank]
        with contextlib.nullcontext() if is_last else state.accumulate():
            loss_of(ddp, _row(rank, step, number)).backward()
        if not is_last:
            assert not any(p.grad.any() for p in ddp.parameters() if p.grad is not None)


def _local(model: nn.Module, schedule: Sequence[Sequence[int]], step: int) -> list[dict[str, np.ndarray]]:
    return [
        gradients(model, _loss_on(_row(r, step, number)))
        for number, objectives in enumerate(schedule)
        for r in range(len(objectives))
    ]


def _in_turn(schedule: Sequence[Sequence[int]]) -> list[int]:
    """Objectives of the rows, numbered in the order in which they come up."""
    flat_schedule = [objective for objectives in schedule for objective in objectives]
    order = list(dict.fromkeys(flat_schedule))
    return [order.index(objective) for objective in flat_schedule]


def _train(rank: int, world: int, way: str, settings: dict[str, Any]) -> str:
    schedule = SCHEDULES[world]
    ddp = DDP(mlp(1), bucket_cap_mb=CAP_MB, **settings)
    state = hook(ddp, way)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    if settings.get("static_graph"):  # rebuilds its buckets after its second pass
        for _ in range(2):
            ddp.zero_grad()
            loss_of(ddp, _row(rank, 9, 9)).backward()
    for step in range(4):  # the first ends with other buckets than it begins with
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        local = _local(ddp.module, schedule, step)
        _step(ddp, state, schedule, rank, step)
        check_buckets(ddp, state, local, 1e-9, groups=_in_turn(schedule))
        assert state.report().passes == len(schedule)
        optimizer.step()
    assert state.step == 4 + 2 * bool(settings.get("static_graph"))
    return gradient_digest(ddp)


@pytest.mark.device
@pytest.mark.parametrize("world", SCHEDULES)
def test_rows_of_all_passes_are_one_step(run_ranks: RunRanks, world: int) -> None:
    same_on_all_ranks(run_ranks(world, _train, "register", {}))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"static_graph": True},
        {"static_graph": True, "gradient_as_bucket_view": True},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_with_every_setting_of_ddp(run_ranks: RunRanks, way: str, settings: dict[str, Any]) -> None:
    same_on_all_ranks(run_ranks(2, _train, way, settings))


def _amid(rank: int, world: int) -> str:
    """As without them: they have a step and objectives of their own."""
    ddp, twin = (DDP(mlp(1), bucket_cap_mb=CAP_MB) for _ in range(2))
    state, _ = moo.register(ddp, "mgda"), moo.register(twin, "mgda")
    others: list[torch.Tensor] = []

    def reduce_another(_: torch.Tensor) -> None:
        mine, state.objective = state.objective, "of all ranks"
        others.append(torch.full((4,), float(rank)))
        moo.all_reduce(others[-1], state, bucket="another")
        state.objective = mine

    for number in (0, 2):
        ddp.module[number].weight.register_hook(reduce_another)
    for step in range(3):
        others.clear()
        for model in (ddp, twin):
            model.zero_grad()
            loss_of(model, _row(rank, step, 0)).backward()
        assert len(others) == 2
        assert all(other.eq((world - 1) / 2).all() for other in others)
        for parameter, expected in zip(ddp.parameters(), twin.parameters(), strict=True):
            assert parameter.grad is not None
            assert expected.grad is not None
            assert torch.equal(parameter.grad, expected.grad)
    return gradient_digest(ddp)


@pytest.mark.device
def test_direct_calls_amid_a_backward_pass(run_ranks: RunRanks) -> None:
    same_on_all_ranks(run_ranks(2, _amid))


# --- what the last pass does not use ---


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(1, sizes=(40, 60, 60))
        self.a, self.b = mlp(2, sizes=(60, 50, 5)), mlp(3, sizes=(60, 40, 5))
        self.branch = "a"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self, self.branch)(self.trunk(x))
        return result


def _leave_out(rank: int, world: int, view: bool) -> str:
    ddp = DDP(_Branches(), bucket_cap_mb=CAP_MB, find_unused_parameters=True, gradient_as_bucket_view=view)
    state = hook(ddp, "register")
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    branches = ("a", "b")
    for step in range(3):
        optimizer.zero_grad()
        local = []
        for number, branch in enumerate(branches):
            ddp.module.branch = branch
            local += [gradients(ddp.module, _loss_on(_row(r, step, number))) for r in range(world)]
        for number, branch in enumerate(branches):
            ddp.module.branch, state.objective = branch, f"{branch}{rank}"
            with state.accumulate() if number == 0 else contextlib.nullcontext():
                loss_of(ddp, _row(rank, step, number)).backward()
        check_buckets(ddp, state, local, 1e-9)
        assert all(p.grad is not None and p.grad.any() for p in ddp.module.a.parameters())  # of the first pass alone
        optimizer.step()
    return gradient_digest(ddp)


@pytest.mark.device
@pytest.mark.parametrize("view", [False, True])
def test_what_the_last_pass_does_not_use_gets_its_answer(run_ranks: RunRanks, view: bool) -> None:
    same_on_all_ranks(run_ranks(2, _leave_out, view))


def _fails_once(rank: int, world: int) -> None:
    ddp = DDP(_Branches(), bucket_cap_mb=CAP_MB, find_unused_parameters=True)
    state = moo.BucketMOO("mgda")
    fails = False

    def fail(_: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
        raise ValueError

    def reduce(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        future = moo.bucket_moo_hook(state, bucket)
        return future.then(fail) if fails else future

    ddp.register_comm_hook(state, reduce)
    for step in range(4):
        ddp.zero_grad(set_to_none=False)  # DDP has not forgotten what the pass that failed used
        for number, branch in enumerate("ab"):
            ddp.module.branch, state.objective = branch, f"{branch}{rank}"
            fails = step == 2 and number == 1
            with state.accumulate() if number == 0 else contextlib.nullcontext():
                error = error_of(loss_of(ddp, _row(rank, step, number)).backward)
            assert error[0] is (RuntimeError if fails else type(None)), error
        if step != 2:
            assert all(p.grad is not None and p.grad.any() for p in ddp.module.a.parameters())


def test_a_last_pass_that_fails_does_not_stop_those_after_it(run_ranks: RunRanks) -> None:
    run_ranks(2, _fails_once)


# --- beside other tools ---


def _micro_batches(rank: int, world: int) -> None:
    ddp = DDP(mlp(1), bucket_cap_mb=CAP_MB)
    state = hook(ddp, "register")
    for step in range(2):
        ddp.zero_grad()
        parts = [_local(ddp.module, [[0, 1]], step), _local(ddp.module, [[0, 1], [0, 1]], step)[2:]]
        with state.accumulate():
            with ddp.no_sync():
                loss_of(ddp, _row(rank, step, 0)).backward()
            state.objective = f"first {rank}"
            loss_of(ddp, _row(rank, step, 1)).backward()
        state.objective = f"second {rank}"
        loss_of(ddp, _row(rank, step, 1)).backward()
        sums = [{name: one[name] + two[name] for name in one} for one, two in zip(*parts, strict=True)]
        check_buckets(ddp, state, [*sums, *parts[1]], 1e-9)


def test_no_sync_makes_one_row_of_several_batches(run_ranks: RunRanks) -> None:
    run_ranks(2, _micro_batches)


def _scaled(rank: int, world: int) -> None:
    ddp = DDP(mlp(1, torch.float32), bucket_cap_mb=CAP_MB)
    state = hook(ddp, "register")
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        before = [p.detach().clone() for p in ddp.parameters()]
        local = [
            gradients(ddp.module, _loss_on(batch_of(3, 10 * n + r, step, torch.float32)))
            for n in range(2)
            for r in range(world)
        ]
        for number in range(2):
            state.objective = f"{number} {rank}"
            loss = loss_of(ddp, batch_of(3, 10 * number + rank, step, torch.float32))
            if step == 1 and number == 0 and rank == 1:
                loss = loss * torch.inf
            with state.accumulate() if number == 0 else contextlib.nullcontext():
                scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if step == 1:
            assert {bucket.status for bucket in state.report().buckets} == {"nonfinite"}
        else:
            check_buckets(ddp, state, local, 1e-4)
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(p, was) for p, was in zip(ddp.parameters(), before, strict=True))
        assert moved == (step != 1)  # skipped


def test_a_pass_that_is_not_finite_skips_the_step(run_ranks: RunRanks) -> None:
    run_ranks(2, _scaled)


# --- one problem for the model ---


def _one_problem(rank: int, world: int, passes: int, between: bool) -> str:
    schedule = [[10 * number + r for r in range(world)] for number in range(passes)]
    ddp = DDP(mlp(1), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp, "mgda", scope="model")
    if between:  # a collective amid the backward pass, which is none of its buckets
        weight = next(ddp.module.parameters())
        weight.register_hook(lambda _: moo.all_reduce(torch.full((4,), float(rank)), state, bucket="another"))
    for step in range(3):
        ddp.zero_grad()
        local = _local(ddp.module, schedule, step)
        _step(ddp, state, schedule, rank, step)
        names = list(local[0])
        rows = rows_of(local, names, None)
        parameters = dict(ddp.module.named_parameters())
        got = np.concatenate([flat(parameters[name].grad, parameters[name]) for name in names])
        assert_mgda(rows, got, 1e-8, f"step {step}")
        if between:  # which is the newest step may be the other one
            continue
        report = state.report()
        assert report.scope == "model"
        assert len({tuple(bucket.weights.tolist()) for bucket in report.buckets}) == 1
        np.testing.assert_allclose(report.gramian.numpy(), rows @ rows.T, rtol=0, atol=1e-9 * (rows**2).sum(1).max())
    return gradient_digest(ddp)


@pytest.mark.device
@pytest.mark.parametrize(
    ("world", "passes", "between"), [(1, 3, False), (2, 1, False), (2, 2, False), (3, 1, False), (2, 1, True)]
)
def test_one_problem_for_all_buckets(run_ranks: RunRanks, world: int, passes: int, between: bool) -> None:
    same_on_all_ranks(run_ranks(world, _one_problem, passes, between))


def _more_later(rank: int, world: int) -> str:
    ddp = DDP(mlp(1), bucket_cap_mb=CAP_MB)
    state = moo.register(ddp, "mgda", scope="model")
    for step, schedule in enumerate([[[0, 0]], [[0, 1], [2, 0]], [[1, 1]], [[0, 1], [2, 1]]]):
        ddp.zero_grad()
        _step(ddp, state, schedule, rank, step)
        assert len(state.report().objectives) == len({objective for row in schedule for objective in row})
    return gradient_digest(ddp)


@pytest.mark.device
def test_the_first_step_of_one_pass_does_not_bound_those_of_several(run_ranks: RunRanks) -> None:
    same_on_all_ranks(run_ranks(2, _more_later))


class _Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, slope: torch.Tensor) -> torch.Tensor:
        return self.a * slope[0] + self.b * slope[1]


def _no_counterexample(rank: int, world: int) -> None:
    """Two buckets of one element: each is stationary, the model is not (docs/semantics.md)."""
    for scope, moves in (("bucket", False), ("model", True)):
        module = _Slope()
        ddp = DDP(module, bucket_cap_mb=1e-6)
        state = moo.register(ddp, "mgda", scope=scope)
        for _ in range(2):  # the second time with a bucket for each
            ddp.zero_grad()
            ddp(torch.tensor([[1.0, 2.0], [-1.0, -1.0]][rank])).sum().backward()
        assert len(state.report().buckets) == 2
        gradient = torch.cat([p.grad for p in module.parameters() if p.grad is not None])
        assert bool(gradient.abs().max() > 0.1) == moves
        if moves:
            expected = mgda_weights(np.array([[1.0, 2.0], [-1.0, -1.0]])) @ np.array([[1.0, 2.0], [-1.0, -1.0]])
            assert_close(gradient.double().numpy(), expected, 1e-6)


@pytest.mark.device
def test_the_counterexample_moves(run_ranks: RunRanks) -> None:
    run_ranks(2, _no_counterexample)


def _discards(rank: int, world: int, in_last: bool) -> None:
    ddp, twin = (DDP(mlp(1), bucket_cap_mb=CAP_MB) for _ in range(2))
    state = moo.BucketMOO()
    gives_up = False

    def reduce(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        future = moo.bucket_moo_hook(state, bucket)
        if gives_up and bucket.index() == rank:
            state.discard()
        return future

    ddp.register_comm_hook(state, reduce)
    twin_state = hook(twin, "register")
    for step in range(4):
        for model, its_state in ((ddp, state), (twin, twin_state)):
            model.zero_grad()
            for is_last in (False, True) if step else (True,):
                gives_up = step == 2 and is_last == in_last
                with contextlib.nullcontext() if is_last else its_state.accumulate():
                    loss_of(model, _row(rank, step, int(is_last))).backward()
                if gives_up:
                    twin_state.discard()
        assert gradient_digest(ddp) == gradient_digest(twin)
    assert state.step == twin_state.step == (4 if in_last else 5)


@pytest.mark.parametrize("in_last", [False, True], ids=["leaving open", "closing"])
@pytest.mark.device
def test_a_step_given_up_amid_a_backward_pass(run_ranks: RunRanks, in_last: bool) -> None:
    """The pass ends as it would have, whichever bucket a rank was at; the next one begins a step."""
    run_ranks(2, _discards, in_last)


# --- wrong use ---


def _wrong_use(rank: int, world: int) -> list[Any]:
    errors = []
    ddp = DDP(mlp(1), bucket_cap_mb=CAP_MB)
    state = hook(ddp, "register")
    loss_of(ddp, _row(rank, 0, 0)).backward()
    loss = loss_of(ddp, _row(rank, 0, 0))
    with state.accumulate() if rank == 0 else contextlib.nullcontext():
        errors.append(error_of(loss.backward))
    state = hook(other := DDP(mlp(1), bucket_cap_mb=CAP_MB), "register")
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with state.accumulate():
        loss_of(other, _row(rank, 0, 0)).backward()
    errors.append(error_of(optimizer.step))
    torch.optim.SGD(mlp(2).parameters(), lr=0.1).step()  # of no concern
    loss_of(other, _row(rank, 0, 0)).backward()
    optimizer.step()
    static = DDP(mlp(1), bucket_cap_mb=CAP_MB, static_graph=True)
    state = hook(static, "register")
    with state.accumulate():
        for _ in range(2):
            loss_of(static, _row(rank, 0, 0)).backward()
        loss = loss_of(static, _row(rank, 0, 0))
        errors.append(error_of(loss.backward))
    return errors


def test_wrong_use_is_said_on_every_rank(run_ranks: RunRanks) -> None:
    for disagree, too_early, rebuilt in run_ranks(2, _wrong_use):
        expect(disagree, ValueError, "leaves it open")
        expect(too_early, RuntimeError, r"optimizer.step\(\): the step is open, 1 pass put aside")
        expect(rebuilt, ValueError, "static_graph", "run two outside of accumulate")
