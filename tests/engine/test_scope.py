"""What scope= and support= promise beside the numbers: errors, independence of buckets, memories, what goes wrong."""

import contextlib
import copy
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support import scopes
from tests.support.ddp import gradient_digest, same_on_all_ranks
from tests.support.errors import error_of, expect
from tests.support.reference import float64

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]
SEED = 5


def by_layer(name: str) -> str:
    return name.split(".")[0]


def _gradients(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: float64(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def _one_process(
    objectives: int, steps: int = 1, sizes: Any = scopes.SIZES, method: Any = "mgda", **options: Any
) -> tuple[dict[str, np.ndarray], moo.BucketMOO]:
    """A row an objective, by passes."""
    model = scopes.Given(sizes=sizes)
    state = moo.register(model, method, **options)
    for step in range(steps):
        model.zero_grad()
        for k in range(objectives):
            state.objective = k
            with contextlib.nullcontext() if k == objectives - 1 else state.accumulate():
                model(scopes.row(SEED + step, k, 0, k, torch.float64, sizes)).backward()
    return _gradients(model), state


def _same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-11) -> None:
    assert got.keys() == expected.keys()
    for name, values in got.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance * np.abs(expected[name]).max())


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "kind", "pattern"),
    [
        ({"scope": "layer"}, ValueError, "'bucket' or 'model' or 'parameter' or a function.*got 'layer'"),
        ({"scope": 3}, TypeError, "a function of a parameter's name; got int 3"),
        ({"support": 1}, TypeError, "support must be True or False; got int 1"),
        ({"support": True, "private_scale": "none"}, ValueError, "private_scale must be 'mean' or 'active'"),
        ({"scope": "parameter", "gramian": moo.Sketch()}, NotImplementedError, "Sketch"),
        ({"support": True, "gramian": moo.Sketch()}, NotImplementedError, "Sketch"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], pattern: str) -> None:
    expect(error_of(lambda: moo.BucketMOO(**options)), kind, pattern)


def test_a_function_that_gives_no_group() -> None:
    model = scopes.Given()
    expect(
        error_of(lambda: moo.register(model, scope=lambda name: name.split(".")[1])),
        ValueError,
        "the function raised IndexError for parameter 'embed'",
    )
    expect(
        error_of(lambda: moo.register(model, scope=lambda name: None)),  # type: ignore[arg-type, return-value]
        TypeError,
        "a string or an int for a parameter's name; got NoneType None for 'embed'",
    )
    expect(error_of(lambda: moo.register(model, scope=lambda name: "")), ValueError, "not empty; got '' for 'embed'")


def test_a_function_is_asked_for_trained_parameters_only() -> None:
    model = scopes.Given()
    model.get_parameter("embed").requires_grad = False
    asked: list[str] = []
    moo.register(model, scope=lambda name: asked.append(name) or "all")  # type: ignore[func-returns-value]
    assert asked == [name for name in scopes.SIZES if name != "embed"]


def _disagree(rank: int, world: int) -> Any:
    ddp = DDP(scopes.Given())
    moo.register(ddp, scope=by_layer if rank == 0 else "parameter")
    first = error_of(lambda: ddp(scopes.row(SEED, rank, 0, rank, torch.float64)).backward())
    other = DDP(scopes.Given())
    moo.register(other, scope=lambda name: "all" if rank == 0 else name)
    return first, error_of(lambda: other(scopes.row(SEED, rank, 0, rank, torch.float64)).backward())


def test_ranks_that_have_other_groups(run_ranks: RunRanks) -> None:
    for first, second in run_ranks(2, _disagree):
        expect(first, ValueError, "scope", "8 groups|7 groups|groups of 10 parameters", "parameter")
        expect(second, ValueError, "1 groups of 10 parameters", "10 groups of 10 parameters")


def _names_on_one_rank(rank: int, world: int) -> Any:
    """Random choices are keyed by names where every parameter is a problem."""
    model = scopes.Given()
    ddp = DDP(model)
    state = moo.BucketMOO(moo.PCGrad(), scope="parameter")
    ddp.register_comm_hook(state, moo.bucket_moo_hook)
    if rank == 0:
        state.name_parameters(model.named_parameters())
    return error_of(lambda: ddp(scopes.row(SEED, rank, 0, rank, torch.float64)).backward())


def test_names_on_one_rank_alone(run_ranks: RunRanks) -> None:
    for error in run_ranks(2, _names_on_one_rank):
        expect(error, ValueError, "scope", "of 10 names", "of 0 names")


def _without_names(rank: int, world: int) -> Any:
    ddp = DDP(scopes.Given())
    state = moo.BucketMOO(scope=by_layer)
    ddp.register_comm_hook(state, moo.bucket_moo_hook)
    return error_of(lambda: ddp(scopes.row(SEED, rank, 0, rank, torch.float64)).backward())


def test_a_function_needs_names(run_ranks: RunRanks) -> None:
    for error in run_ranks(2, _without_names):
        expect(error, ValueError, "in no group", "name_parameters")


# -------------------------------------------------------------------------------------------------------- independence


def _ddp(rank: int, world: int, scope: Any, support: bool, cap: float, way: str = "register") -> Any:
    model = scopes.Given()
    ddp = DDP(model, bucket_cap_mb=cap)
    options: dict[str, Any] = {"scope": scope, "support": support}
    if way == "register":
        state = moo.register(ddp, moo.PCGrad(), **options)
    else:
        state = moo.BucketMOO(moo.PCGrad(), bucket_cap_mb=cap, **options)
        state.name_parameters(model.named_parameters())
        ddp.register_comm_hook(state, moo.bucket_moo_hook)
    for step in range(2):
        model.zero_grad()
        ddp(scopes.row(SEED + step, rank, 0, rank, torch.float64)).backward()
    return _gradients(model)


@pytest.mark.parametrize("support", [False, True])
@pytest.mark.parametrize("scope", ["parameter", by_layer, "model"], ids=["parameter", "layer", "model"])
def test_results_do_not_depend_on_buckets_ranks_or_the_way(run_ranks: RunRanks, scope: Any, support: bool) -> None:
    """PCGrad's random orders among them."""
    reference, _ = _one_process(3, 2, method=moo.PCGrad(), scope=scope, support=support)
    for cap, way in ((0.01, "register"), (25.0, "register"), (0.03, "hook")):
        for got in run_ranks(3, _ddp, scope, support, cap, way):
            _same(got, reference)
    small, state = _one_process(3, 2, method=moo.PCGrad(), scope=scope, support=support, bucket_cap_mb=0.0)
    assert len({bucket.index for bucket in state.report().buckets}) == len(scopes.SIZES)
    _same(small, reference)


def test_private_parameters_do_not_disturb_the_trunk() -> None:
    """Heads and experts beside a trunk: it gets what it gets without them, and they their share of the mean."""
    trunk = {name: size for name, size in scopes.SIZES.items() if not name.startswith(("head", "expert"))}
    alone, _ = _one_process(3, sizes=trunk)
    whole, state = _one_process(3, support=True)
    _same({name: whole[name] for name in trunk}, alone)
    disturbed, _ = _one_process(3)
    assert np.abs(disturbed["embed"] - alone["embed"]).max() > 1e-3 * np.abs(alone["embed"]).max()
    for k in range(3):
        own = scopes.row(SEED, k, 0, k, torch.float64)
        np.testing.assert_allclose(whole[f"head.{k}"], own[f"head.{k}"] / 3, rtol=1e-12)
    supports = {part.support for part in state.report().buckets}
    assert supports == {("0", "1", "2"), ("0", "2"), ("1",), ("0",), ("2",)}
    assert "split by support (0; 0 1 2; 0 2; 1; ...)" in str(state.report())


@pytest.mark.parametrize(
    ("method", "share"),
    [
        (moo.PCGrad(reduction="sum"), 1.0),
        (moo.Adasum(), 1.0),
        (moo.ConFIG(), 1.0),
        (moo.Mean(), 1 / 3),
        (moo.UPGrad(), 1 / 3),
        (moo.UPGrad(preference=(1.0, 5.0, 2.0)), 5 / 8),
        (moo.Smoothed(moo.PCGrad(reduction="sum"), 0.0), 1.0),
    ],
    ids=repr,
)
def test_the_scale_of_a_private_parameter(method: Any, share: float) -> None:
    """That of the method's own update of the others: a mean's or a sum's."""
    got, _ = _one_process(3, method=method, support=True)
    own = scopes.row(SEED, 1, 0, 1, torch.float64)["head.1"]
    np.testing.assert_allclose(got["head.1"], share * own, rtol=1e-9)
    if not isinstance(method, moo.Mean):
        got, _ = _one_process(3, method=method, support=True, private_scale="active")
        np.testing.assert_allclose(got["head.1"], own, rtol=1e-9)


def test_more_supports_than_a_group_has_problems_for() -> None:
    sizes = {f"p{i:02}": 11 + i for i in range(40)}
    # Objective k touches parameter i where bit k of i is set.
    rows = [
        {
            name: np.random.default_rng([k, i]).standard_normal(size) * (i >> k & 1)
            for i, (name, size) in enumerate(sizes.items())
        }
        for k in range(6)
    ]
    model = scopes.Given(sizes=sizes)
    state = moo.register(model, "mgda", scope="model", support=True, bucket_cap_mb=0.0005)
    for k, row in enumerate(rows):
        state.objective = k
        with contextlib.nullcontext() if k == 5 else state.accumulate():
            model(row).backward()
    report = state.report()
    assert len({part.index for part in report.buckets}) > 5
    arrival = list(reversed(sizes))  # autograd's order
    gradients = {name: values for name, values in sorted(scopes.means(rows, range(6)).items(), reverse=True)}
    assert list(gradients) == arrival
    assert len(scopes.problems(gradients, lambda name: "", True)) == 16
    _same(_gradients(model), scopes.expected(gradients, "mgda", {}, lambda name: "", support=True), 1e-8)


# ------------------------------------------------------------------------------------------------------- circumstances


@pytest.mark.parametrize("scope", ["bucket", "model", by_layer], ids=["bucket", "model", "layer"])
def test_a_step_that_breaks_off_behind_one_with_other_supports(scope: Any) -> None:
    """The report has nothing of it, and the next step is right."""
    model = scopes.Given()
    state = moo.register(model, "mgda", scope=scope, support=True, bucket_cap_mb=0.03)
    fails = False

    def fail(gradient: torch.Tensor) -> torch.Tensor:
        if fails:
            raise RuntimeError("broken off")
        return gradient

    model.get_parameter("block0.weight").register_hook(fail)
    for step in range(3):
        model.zero_grad()
        rows = [scopes.row(SEED + step, k, 0, k, torch.float64) for k in range(2)]
        if step == 1:
            rows[1]["block1.norm"][:] = 0.0  # which autograd comes to before
        for k, row in enumerate(rows):
            state.objective = k
            fails = step == 1 and k == 1
            with contextlib.nullcontext() if k else state.accumulate():
                error = error_of(lambda row=row: model(row).backward())  # type: ignore[misc]
            assert (error[0] is RuntimeError) == fails
        report = state.report()
        assert all(part.gramian.isfinite().all() for part in report.buckets)
        assert report.step == step + 1 or step == 1
        str(report)
    gradients = scopes.means(rows, range(2))
    groups = {"bucket": None, "model": lambda name: ""}.get(scope, by_layer) if isinstance(scope, str) else by_layer
    if groups is not None:
        _same(_gradients(model), scopes.expected(gradients, "mgda", {}, groups, support=True), 1e-8)


def test_nan_stays_in_its_part() -> None:
    model = scopes.Given()
    state = moo.register(model, "mgda", scope="parameter")
    rows = [scopes.row(SEED, k, 0, k, torch.float64) for k in range(2)]
    rows[1]["block0.norm"][3] = np.nan
    for k, row in enumerate(rows):
        state.objective = k
        with contextlib.nullcontext() if k else state.accumulate():
            model(row).backward()
    status = {part.parameters[0]: part.status for part in state.report().buckets}
    assert status.pop("block0.norm") == "nonfinite"
    assert "nonfinite" not in status.values()
    got = _gradients(model)
    assert np.isnan(got["block0.norm"]).any()
    assert np.isfinite(got["block0.weight"]).all()


def _direct(rank: int, world: int) -> Any:
    answers = []
    for options in ({}, {"scope": "parameter"}, {"scope": by_layer}, {"scope": "model", "support": True}):
        state = moo.BucketMOO("mgda", **options)
        tensor = torch.from_numpy(scopes.row(SEED, rank, 0, rank, torch.float64)["block0.weight"])
        shard = torch.empty(1500, dtype=torch.float64)
        moo.reduce_scatter(shard, tensor[:4500].clone(), state)
        moo.all_reduce(tensor, state, bucket="mine")
        assert state.report().buckets[0].parameters == ("mine",)
        answers.append((tensor.numpy().tobytes(), shard.numpy().tobytes()))
    assert answers[1:] == answers[:1] * 3
    state = moo.BucketMOO("mgda", support=True)
    tensor = torch.full((9000,), float(rank != 2))
    moo.all_reduce(tensor, state)
    return float(tensor[0])


def test_direct_calls_are_problems_of_their_own(run_ranks: RunRanks) -> None:
    assert run_ranks(3, _direct) == [pytest.approx(2 / 3)] * 3


def _mesh(rank: int, world: int, scope: Any) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "gpu"))
    answers = []
    for options in ({"mesh": mesh, "objectives": "node"}, {"objective": rank // 2}):
        model = scopes.Given()
        ddp = DDP(model, bucket_cap_mb=0.03)
        moo.register(ddp, "mgda", scope=scope, support=True, **options)
        for step in range(2):
            model.zero_grad()
            ddp(scopes.row(SEED + step, rank, 0, rank // 2, torch.float64)).backward()
        answers.append(_gradients(model))
    _same(answers[0], answers[1])
    return gradient_digest(model)


@pytest.mark.parametrize("scope", ["bucket", by_layer], ids=["bucket", "layer"])
def test_in_two_levels(run_ranks: RunRanks, scope: Any) -> None:
    same_on_all_ranks(run_ranks(4, _mesh, scope))


def _passes(rank: int, world: int, scope: Any) -> Any:
    answers = []
    for layout in ("ranks", "passes"):
        model = scopes.Given()
        ddp = DDP(model, bucket_cap_mb=0.03)
        state = moo.register(ddp, "mgda", scope=scope, support=True, layout=layout)
        for step in range(2):
            model.zero_grad()
            for number in range(3):
                state.objective = number
                with contextlib.nullcontext() if number == 2 else state.accumulate():
                    ddp(scopes.row(SEED + step, rank, number, number, torch.float64)).backward()
        answers.append(_gradients(model))
    _same(answers[0], answers[1])
    return gradient_digest(model)


@pytest.mark.parametrize("scope", ["bucket", by_layer], ids=["bucket", "layer"])
def test_one_objective_a_pass(run_ranks: RunRanks, scope: Any) -> None:
    same_on_all_ranks(run_ranks(2, _passes, scope))


class _Mixed(nn.Module):
    """A dense and a sparse parameter, and one that a pass may leave out, in one group."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3, sparse=True)
        self.used = nn.Linear(3, 2)
        self.rarely = nn.Linear(2, 2)

    def forward(self, index: torch.Tensor, deep: bool) -> torch.Tensor:
        out = self.used(self.table(index))
        return (self.rarely(out) if deep else out).square().sum()


def _never_complete(rank: int, world: int) -> Any:
    torch.manual_seed(1)
    model = _Mixed()
    ddp = DDP(model, find_unused_parameters=True, bucket_cap_mb=0.00001)
    state = moo.register(ddp, "mgda", scope=lambda name: "all")
    for step in range(3):
        model.zero_grad()
        ddp(torch.tensor([rank, 2 + step]), deep=step == 2).backward()
    report = state.report()
    assert {part.group for part in report.buckets} == {"all"}
    assert len({tuple(part.weights.tolist()) for part in report.buckets}) == 1
    return gradient_digest(model)


def test_a_group_whose_parameters_do_not_all_come(run_ranks: RunRanks) -> None:
    """It is solved at the end of the step: nothing waits for a sparse bucket's."""
    same_on_all_ranks(run_ranks(2, _never_complete))


class _Die(torch.autograd.Function):
    """Passes gradients, and ends the process in the middle of the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        os._exit(1)


class _Interleaved(nn.Module):
    """Each bucket but the last finishes a group and begins the next; `dies`: with the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList([torch.ones(4099, dtype=torch.float64) for _ in range(8)])

    def forward(self, x: torch.Tensor, dies: bool) -> torch.Tensor:
        for number, parameter in enumerate(self.layers):
            x = (x * parameter).sin()
            x = _Die.apply(x) if dies and number == 3 else x
        return x.sum()


def _lose_a_rank(rank: int, world: int, groups: list[int]) -> Any:
    ddp = DDP(_Interleaved(), bucket_cap_mb=0.05)
    moo.register(ddp, "mgda", scope=lambda name: groups[int(name.split(".")[1])])
    for step in range(3):
        ddp.zero_grad()
        x = torch.linspace(0, 1 + rank, 4099, dtype=torch.float64)
        dies = rank == 1 and step == 2
        error = error_of(lambda: ddp(x, dies).backward())  # noqa: B023
    return error


@pytest.mark.parametrize("groups", [[0] * 8, [0, 1, 1, 2, 2, 3, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3]], ids=str)
def test_a_lost_rank_is_an_error_for_the_others(run_ranks: RunRanks, groups: list[int]) -> None:
    errors = run_ranks(3, _lose_a_rank, groups, timeout=60.0, group_timeout=timedelta(seconds=5), may_die=(1,))
    for rank in (0, 2):
        assert issubclass(errors[rank][0], RuntimeError), errors[rank]


def test_a_state_with_a_function_is_copied_with_it() -> None:
    state = moo.BucketMOO("mgda", scope=by_layer, support=True, private_scale="active")
    twin = copy.deepcopy(state)
    assert (twin.scope, twin.support, twin.private_scale) == (by_layer, True, "active")


def test_the_example_of_the_documentation() -> None:
    """A trunk in balance, and heads of other norms."""
    sizes = {"trunk.weight": 1, "heads.0": 2, "heads.1": 2}
    rows = [
        {"trunk.weight": np.array([1.0]), "heads.0": np.array([3.0, 0.0]), "heads.1": np.zeros(2)},
        {"trunk.weight": np.array([-1.0]), "heads.0": np.zeros(2), "heads.1": np.array([0.0, 0.1])},
    ]
    for support, moved in ((False, -0.691), (True, 0.0)):
        model = scopes.Given(sizes=sizes)
        state = moo.register(model, "mgda", support=support)
        with state.accumulate():
            state.objective = 0
            model(rows[0]).backward()
        state.objective = 1
        model(rows[1]).backward()
        assert _gradients(model)["trunk.weight"][0] == pytest.approx(moved, abs=1e-3)
