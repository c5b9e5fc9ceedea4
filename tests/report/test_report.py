"""state.report() against what is known of the gradients."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support import reference as ref
from tests.support.reference import Array

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]


class Linear(nn.Module):
    """A loss of Σ <c_p, p>: the gradient of parameter p is c_p, whatever the parameters are."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in sizes])

    def forward(self, coefficients: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([(p * c).sum() for p, c in zip(self.layers, coefficients, strict=True)]).sum()


@dataclass(frozen=True)
class Bucket:
    """BucketReport without tensors."""

    index: int
    group: str
    support: tuple[str, ...]
    parameters: tuple[str, ...]
    numel: int
    dtype: str
    objectives: tuple[str, ...]
    rows: tuple[int, ...]
    width: int
    solved_step: int
    gramian: Array
    signal: Array
    cosines: Array
    cosine_errors: Array
    weights: Array
    status: str
    certificate: float
    iterations: int
    residual: float
    conflicts: int
    pairs: int


@dataclass(frozen=True)
class Step:
    """One step's report, and the gradients after it."""

    step: int
    method: str
    estimator: str
    layout: str
    scope: str
    split_by_support: bool
    mesh: str
    passes: int
    objectives: tuple[str, ...]
    buckets: list[Bucket]
    gramian: Array
    signal: Array
    residual: float
    conflict_share: float
    global_conflict_share: float
    reduced: int
    fallbacks: int
    sparse: int
    text: str
    json: str
    gradients: list[Array]


def numbers(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def step_of(report: moo.Report, model: nn.Module) -> Step:
    fields = {name: numbers(value) for name, value in vars(report).items() if name != "buckets"}
    buckets = [Bucket(**{n: numbers(v) for n, v in vars(bucket).items()}) for bucket in report.buckets]
    text = json.dumps(report.to_dict(), allow_nan=False)
    gradients = [ref.float64(p.grad) for p in model.parameters() if p.grad is not None]
    return Step(**fields, buckets=buckets, text=str(report), json=text, gradients=gradients)


def coefficients(seed: int, step: int, rank: int, sizes: Sequence[int]) -> list[Array]:
    rng = np.random.default_rng([seed, step, rank])
    return [rng.standard_normal(n).astype(np.float32).astype(np.float64) for n in sizes]


SMALL = 400 / 2**20  # bucket_cap_mb: a parameter of 100 float32 or more fills a bucket


def rank_steps(
    rank: int,
    world: int,
    methods: list[str],
    names: list[str],
    sizes: list[int],
    steps: list[list[list[Array]]],
    cap: float = SMALL,
) -> list[list[Step]]:
    """One report a step, for each method; `steps` holds the coefficients of each step and rank."""
    return [reports(rank, method, names, sizes, steps, cap) for method in methods]


def reports(
    rank: int, method: str, names: list[str], sizes: list[int], steps: list[list[list[Array]]], cap: float
) -> list[Step]:
    model = Linear(sizes)
    ddp = DistributedDataParallel(model, bucket_cap_mb=cap)
    state = moo.register(ddp, method, objective=names[rank])
    results = []
    for step in steps:
        ddp.zero_grad()
        ddp([torch.from_numpy(c).float() for c in step[rank]]).backward()
        results.append(step_of(state.report(), model))
    return results


def check_bucket(bucket: Bucket, rows: Array, label: str) -> None:
    """Everything that follows from the objectives' gradients in this bucket."""
    gram = ref.gramian(rows)
    norms = np.sqrt(np.diagonal(gram))
    bound = ref.gramian_error(norms, torch.float32)
    assert (np.abs(bucket.gramian - gram) <= bound).all(), label
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = gram / np.outer(norms, norms)
    np.testing.assert_allclose(bucket.cosines, cosines, atol=1e-5, err_msg=label)
    on = norms > 0
    upper = np.triu_indices(int(on.sum()), 1)
    active = gram[np.ix_(on, on)][upper]
    assert (bucket.pairs, bucket.conflicts) == (active.size, int((active < 0).sum())), label
    assert abs(bucket.residual - residual(rows)) <= 1e-3, label
    assert 0 <= bucket.certificate <= 1e-9, label
    assert bucket.numel == rows.shape[1], label
    assert bucket.dtype == "float32", label


def residual(rows: Array) -> float:
    """|shortest vector in the hull| over the root mean square norm."""
    rows = rows[rows.any(axis=1)]
    if not len(rows):
        return 0.0
    shortest = np.linalg.norm(ref.min_norm_point(rows) @ rows)
    return float(shortest / np.sqrt((rows**2).sum(1).mean()))


METHODS = ["mgda", "mean", "cagrad", "pcgrad"]


def test_report(run_ranks: Runner, random_seed: int) -> None:
    world, sizes, names = 3, [120, 300, 5, 200], ["sw", "deutsch-long-name", "日本"]
    steps = [[coefficients(random_seed, step, rank, sizes) for rank in range(world)] for step in range(4)]
    for rank in range(world):
        steps[3][rank][1][:] = 0  # a parameter that nobody has
    for parameter in range(len(sizes)):
        steps[3][0][parameter][:] = 0  # and a language that has none
    ranks = run_ranks(world, rank_steps, METHODS, names, sizes, steps)
    for index, method in enumerate(METHODS):
        check_reports(method, [results[index] for results in ranks], names, sizes, steps)


def check_reports(
    method: str, ranks: list[list[Step]], names: list[str], sizes: list[int], steps: list[list[list[Array]]]
) -> None:
    world = len(ranks)
    assert all(ranks[0][i].json == other[i].json for other in ranks[1:] for i in range(4)), "ranks report the same"
    reduced = 0
    for number, got in enumerate(ranks[0]):
        label = f"{method}, step {number}"
        reduced += len(got.buckets)
        assert got.step == number + 1, label
        assert got.method.lower().startswith(method), label
        assert got.objectives == tuple(names), label
        assert (got.layout, got.scope, got.passes) == ("ranks", "bucket", 1), label
        assert all(bucket.rows == (1,) * world for bucket in got.buckets), label
        assert (got.reduced, got.fallbacks, got.sparse) == (reduced, 0, 0), label
        assert len(got.buckets) == 1 if number == 0 else len(got.buckets) > 1, label  # DDP rebuilds them once
        assert [bucket.index for bucket in got.buckets] == list(range(len(got.buckets))), label
        held = [name for bucket in got.buckets for name in bucket.parameters]
        assert sorted(held) == [f"layers.{i}" for i in range(len(sizes))], label

        whole = np.zeros((world, 0))
        conflicts = pairs = 0
        for bucket in got.buckets:
            places = [int(name.split(".")[1]) for name in bucket.parameters]
            rows = np.stack([np.concatenate([steps[number][r][p] for p in places]) for r in range(world)])
            whole = np.hstack([whole, rows])
            check_bucket(bucket, rows, label)
            conflicts += bucket.conflicts
            pairs += bucket.pairs
            result = np.concatenate([got.gradients[p] for p in places])
            bound = ref.combination_error(rows, bucket.weights, torch.float32)
            assert (np.abs(result - ref.combine(rows, bucket.weights)) <= bound).all(), label
            if rows.any() or method == "mean":
                assert bucket.status == "ok", label
            else:
                assert bucket.status == "inactive", label
                assert not bucket.weights.any(), label
            if method == "mgda" and rows.any():
                assert ref.mgda_gap(bucket.gramian, bucket.weights) <= 1e-9, label
        assert got.conflict_share == pytest.approx(conflicts / pairs), label
        upper = np.triu_indices(world, 1)
        gram = ref.gramian(whole)
        np.testing.assert_allclose(got.gramian, gram, rtol=1e-5, atol=1e-5 * np.diagonal(gram).max(), err_msg=label)
        active = gram[gram.diagonal() > 0][:, gram.diagonal() > 0]
        upper = np.triu_indices(len(active), 1)
        assert got.global_conflict_share == pytest.approx((active[upper] < 0).mean()), label
        assert abs(got.residual - residual(whole)) <= 1e-3, label
        check_text(got, names)


def check_text(got: Step, names: Sequence[str]) -> None:
    """A table with a column an objective and a line a bucket; and JSON."""
    lines = got.text.splitlines()
    header = next(i for i, line in enumerate(lines) if all(name in line for name in names))
    body = lines[header + 1 :]
    assert len(body) == len(got.buckets)
    for line, bucket in zip(body, got.buckets, strict=True):
        fields = line.split()
        assert fields[0] == str(bucket.index)
        assert fields[1] == str(bucket.numel)
        assert bucket.status in fields
        assert bucket.parameters[0] in line
        for weight in bucket.weights:
            assert f"{weight:.4f}" in fields
    assert str(got.step) in got.text

    plain = json.loads(got.json)
    assert plain["step"] == got.step
    assert plain["objectives"] == list(names)
    assert len(plain["buckets"]) == len(got.buckets)
    for bucket, its in zip(got.buckets, plain["buckets"], strict=True):
        assert its["weights"] == bucket.weights.tolist()
        assert its["parameters"] == list(bucket.parameters)
        undefined = np.isnan(bucket.cosines)
        assert [[x is None for x in row] for row in its["cosines"]] == undefined.tolist()
        assert set(its) == set(vars(bucket))


def test_stationary_buckets_need_not_make_a_stationary_whole(run_ranks: Runner) -> None:
    """The counterexample of design.md: both buckets at residual 0, and yet (1, -0.75) lowers both losses."""
    sizes = [1, 1]
    steps = [[[np.array([1.0]), np.array([2.0])], [np.array([-1.0]), np.array([-1.0])]] for _ in range(3)]
    first, *others = run_ranks(2, rank_steps, ["mgda"], ["a", "b"], sizes, steps, 1 / 2**20)[0][0]
    for got in others:
        assert len(got.buckets) == 2
        for bucket in got.buckets:
            assert bucket.numel == 1
            assert bucket.residual <= 1e-6
            assert (bucket.conflicts, bucket.pairs) == (1, 1)
            assert float(bucket.weights @ bucket.gramian @ bucket.weights) <= 1e-12
        assert all(abs(float(g[0])) <= 1e-6 for g in got.gradients), "the update is zero"
        gram = np.array([[5.0, -3.0], [-3.0, 2.0]])  # of the gradients (1, 2) and (-1, -1)
        np.testing.assert_allclose(got.gramian, gram, rtol=1e-12)
        # The shortest vector in the hull: (5·2 - 9) / (5 + 2 + 6) = 1/13 squared.
        assert got.residual == pytest.approx(math.sqrt((1 / 13) / 3.5), rel=1e-9)
        assert (got.conflict_share, got.global_conflict_share) == (1.0, 1.0)
    gradients = np.array(steps[0])[:, :, 0]  # (1, 2) and (-1, -1)
    assert (gradients @ [1.0, -0.75] < 0).all()
    # In the first step DDP has one bucket, which is the whole.
    assert len(first.buckets) == 1
    assert first.buckets[0].residual == pytest.approx(first.residual)
    assert first.residual > 0.1


def test_nonfinite_gradients_in_the_report(run_ranks: Runner, random_seed: int) -> None:
    sizes, names = [150, 200], ["a", "b"]
    steps = [[coefficients(random_seed, step, rank, sizes) for rank in range(2)] for step in range(4)]
    steps[2][1][0][7] = np.nan  # one bucket of the third step
    ranks = run_ranks(2, rank_steps, ["mgda"], names, sizes, steps)
    for (results,) in ranks:
        good, _, broken, after = results
        assert (good.fallbacks, broken.fallbacks, after.fallbacks) == (0, 1, 1)
        (bucket,) = (b for b in broken.buckets if b.parameters == ("layers.0",))
        assert bucket.status == "nonfinite"
        assert bucket.weights.tolist() == [0.5, 0.5]
        assert math.isnan(bucket.residual)
        assert math.isnan(broken.residual)
        (other,) = (b for b in broken.buckets if b.parameters == ("layers.1",))
        assert other.status == "ok"
        assert math.isfinite(other.residual)
        plain = json.loads(broken.json)
        assert plain["residual"] is None
        assert plain["fallbacks"] == 1
        assert plain["gramian"][0][1] is None
        assert "nonfinite" in broken.text
        assert {b.status for b in after.buckets} == {"ok"}
        assert math.isfinite(after.residual)


def rank_collective(rank: int, world: int) -> tuple[str, list[str], str]:
    state = moo.BucketMOO("mgda", objective=f"task {rank}")
    with pytest.raises(RuntimeError, match="nothing to report"):
        state.report()
    moo.all_reduce(torch.ones(10), state)
    first = state.report()
    moo.all_reduce(torch.zeros(20), state)
    second = state.report()
    assert first.buckets[0].numel == 10, "a report is a snapshot"
    with pytest.raises(AttributeError):
        first.step = 3  # type: ignore[misc]
    assert len(second.buckets) == 1
    (bucket,) = second.buckets
    assert bucket.cosines.isnan().all()
    assert (bucket.residual, bucket.pairs, second.conflict_share) == (0.0, 0, 0.0)
    return str(second), list(bucket.parameters), json.dumps(second.to_dict(), allow_nan=False)


def test_report_of_a_collective(run_ranks: Runner) -> None:
    for text, parameters, plain in run_ranks(2, rank_collective):
        assert "inactive" in text
        assert "task 0" in text
        assert "task 1" in text
        assert parameters == []
        assert json.loads(plain)["buckets"][0]["cosines"] == [[None, None], [None, None]]


def test_nothing_to_report() -> None:
    with pytest.raises(RuntimeError, match="nothing to report"):
        moo.BucketMOO().report()


@pytest.mark.parametrize(("scope", "group"), [("bucket", ""), ("model", "model")])
def test_the_group_that_shares_weights(run_ranks: Runner, scope: str, group: str) -> None:
    assert run_ranks(2, rank_groups, scope) == [([group, group], "")] * 2


def rank_groups(rank: int, world: int, scope: str) -> tuple[list[str], str]:
    """Of the buckets of a module, and of a direct call."""
    ddp = DistributedDataParallel(Linear([100, 100]), bucket_cap_mb=SMALL)
    state = moo.register(ddp, "mgda", scope=scope)
    for _ in range(2):
        ddp([torch.ones(100)] * 2).backward()
        ddp.zero_grad()
    groups = [bucket.group for bucket in state.report().buckets]
    moo.all_reduce(torch.ones(3), state)
    return groups, state.report().buckets[0].group


@pytest.mark.parametrize(
    ("names", "said"),
    [(["sw"], "one objective (sw), so there was nothing to resolve"), (["de", "sw"], "conflicting pairs: 100 %")],
)
def test_a_step_of_one_objective_says_so(names: list[str], said: str) -> None:
    model = nn.Linear(1, 1, bias=False)
    state = moo.register(model, "mgda")
    state.backward({name: model(torch.ones(1)).sum() * sign for name, sign in zip(names, (1, -2), strict=False)})
    line = str(state.report()).splitlines()[1]
    assert line.startswith(said)
    assert "stationarity residual of the whole gradients" in line
