"""What GradVac and Smoothed carry from step to step, and every method by name inside DDP."""

import copy
import hashlib
import io
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.checks import ON_DEVICE

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]

CAP_MB = 0.004  # several buckets for the network below
# IMTL-G's weights follow the norms: unlike PCGrad's, they are not the mean's where a draw holds no conflict.
STATEFUL: dict[str, Callable[[], moo.Method]] = {
    "gradvac": moo.GradVac,
    "smoothed": lambda: moo.Smoothed("imtlg", 0.8),
    "smoothed gradvac": lambda: moo.Smoothed(moo.GradVac(0.3), 0.5),
}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 60), nn.Tanh(), nn.Linear(60, 20), nn.Tanh(), nn.Linear(20, 4)).double()


def wrap(model: nn.Module) -> DistributedDataParallel:
    return DistributedDataParallel(model, bucket_cap_mb=CAP_MB)


def backward(ddp: nn.Module, seed: int, rank: int, step: int) -> None:
    generator = torch.Generator().manual_seed(seed * 1000 + 10 * step + rank)
    x = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(4, generator=generator, dtype=torch.float64)
    ddp.zero_grad()
    (ddp(x) - y).square().mean().backward()


def digest(model: nn.Module) -> str:
    bits = hashlib.sha256()
    for p in model.parameters():
        assert p.grad is not None
        bits.update(p.grad.numpy().tobytes())
    return bits.hexdigest()


def attach(way: str, ddp: DistributedDataParallel, method: str | moo.Method, **options: Any) -> moo.BucketMOO:
    if way == "native":
        return moo.register(ddp, method, **options)
    state = moo.BucketMOO(method, bucket_cap_mb=CAP_MB, **options)
    ddp.register_comm_hook(state, moo.bucket_moo_hook)
    return state


# ---------------------------------------------------------------------------------------------- every method in DDP


def rank_every_method(rank: int, world: int, seed: int) -> dict[str, list[tuple[str, list[str]]]]:
    results: dict[str, list[tuple[str, list[str]]]] = {}
    smoothed: dict[str, moo.Method] = {f"smoothed {name}": moo.Smoothed(name, 0.6) for name in ("upgrad", "gradvac")}
    for name, method in ({name: name for name in moo.available_methods()} | smoothed).items():
        for way in ("native", "python"):
            ddp = wrap(network())
            state = attach(way, ddp, method, objective=f"o{rank}", seed=5)
            seen = []
            for step in range(3):
                backward(ddp, seed, rank, step)
                report = state.report()
                if step == 2:
                    assert len(report.buckets) > 1
                for bucket in report.buckets:
                    assert bucket.status in ("ok", "fallback"), f"{name}: {bucket.status}"
                    assert bucket.certificate >= 0
                    if method != "mean" and not isinstance(method, moo.Smoothed) and name != "gradvac":
                        again = moo.weights(bucket.gramian, method, seed=5, step=report.step)
                        if name != "pcgrad" or bucket.index == 0:  # whose order depends on the bucket
                            # The lanes of a warp add in another order than one thread.
                            same = torch.allclose if ON_DEVICE else torch.equal
                            assert same(again, bucket.weights), name
                seen.append((digest(ddp), [bucket.status for bucket in report.buckets]))
            results[f"{name} {way}"] = seen
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_every_method_in_ddp(run_ranks: Runner, random_seed: int, world: int) -> None:
    ranks = run_ranks(world, rank_every_method, random_seed % 2**20)
    assert all(results == ranks[0] for results in ranks), "every rank has the same bits"
    for name in moo.available_methods():
        assert ranks[0][f"{name} native"] == ranks[0][f"{name} python"], name
    # Two objectives that do not conflict leave some methods nothing to differ in.
    assert len({str(result) for result in ranks[0].values()}) > (10 if world > 2 else 5), "methods differ"


def rank_fallback(rank: int, world: int) -> tuple[str, str]:
    state = moo.BucketMOO("nashmtl")
    moo.all_reduce(torch.tensor([1.0, 2.0]) * (-1) ** rank, state)
    (bucket,) = state.report().buckets
    return bucket.status, str(state.report())


def test_fallback_is_reported(run_ranks: Runner) -> None:
    for status, text in run_ranks(2, rank_fallback):
        assert status == "fallback"
        assert "fallback" in text


# ---------------------------------------------------------------------------------------------- objectives by name

NAMES = [["a", "b", "c"], ["c", "a", "b"], ["a", "b", "d"], ["b", "d", "d"], ["e", "c", "a"], ["a", "b", "c"]]


def row_of(seed: int, step: int, rank: int) -> torch.Tensor:
    draws = np.random.default_rng([seed, step]).standard_normal((3, 11))
    draws += 0.4 * draws[0]  # cosines that GradVac has something to remember of
    return torch.from_numpy(draws[rank])


def rank_names(rank: int, world: int, seed: int, method: moo.Method) -> list[Any]:
    state = moo.BucketMOO(method)
    steps = []
    for step, names in enumerate(NAMES):
        state.objective = names[rank]
        moo.all_reduce(row_of(seed, step, rank), state)
        (bucket,) = state.report().buckets
        steps.append((bucket.objectives, bucket.gramian.numpy(), bucket.weights.numpy(), state.state_dict()))
    return steps


def means_of(seed: int, step: int) -> tuple[list[str], np.ndarray]:
    rows = np.stack([row_of(seed, step, rank).numpy() for rank in range(3)])
    names = list(dict.fromkeys(NAMES[step]))
    return names, np.stack([rows[[n == name for n in NAMES[step]]].mean(0) for name in names])


def gradvac(rows: np.ndarray, orders: Sequence[Sequence[int]], names: list[str], phi: dict[Any, float]) -> np.ndarray:
    """Algorithm 1 of the paper with beta = 0.3; targets by pairs of names, changed."""
    norms = np.linalg.norm(rows, axis=1)
    coefficients = np.eye(len(rows))
    for i, order in enumerate(orders):
        g = rows[i].copy()
        for j in order:
            if i == j:
                continue
            pair = (names[i], names[j])
            size = np.linalg.norm(g)
            rho, target = g @ rows[j] / size / norms[j], phi.get(pair, 0.0)
            if rho < target:
                factor = size * (target * math.sqrt(1 - rho**2) - rho * math.sqrt(1 - target**2))
                factor /= norms[j] * math.sqrt(1 - target**2)
                g += factor * rows[j]
                coefficients[i, j] += factor
            phi[pair] = 0.7 * target + 0.3 * rho
    return coefficients.mean(0)


def test_gradvac_by_names(run_ranks: Runner, random_seed: int) -> None:
    """Objectives change places, leave, come back and share ranks. With two objectives only one order exists; with three
    the explicit one is by place."""
    orders = [[1, 2, 0], [2, 0, 1], [1, 0, 2]]
    seen = run_ranks(3, rank_names_gradvac, random_seed, orders)
    phi: dict[Any, float] = {}
    for step, (objectives, weights) in enumerate(seen[0]):
        names, rows = means_of(random_seed, step)
        assert list(objectives) == names
        expected = gradvac(rows, orders if len(names) == 3 else [[1], [0]], names, phi)
        np.testing.assert_allclose(weights, expected, rtol=1e-10, atol=1e-12, err_msg=f"step {step}")
        assert all(np.array_equal(other[step][1], weights) for other in seen)


def rank_names_gradvac(rank: int, world: int, seed: int, orders: list[list[int]]) -> list[Any]:
    state = moo.BucketMOO(moo.GradVac(0.3, orders))
    steps = []
    for step, names in enumerate(NAMES):
        if len(set(names)) != 3:  # a permutation is for one number of objectives: go on with another method object
            other = moo.BucketMOO(moo.GradVac(0.3))
            other.load_state_dict(other.state_dict() | {key: state.state_dict()[key] for key in ("step", "buckets")})
        else:
            other = state
        other.objective = names[rank]
        moo.all_reduce(row_of(seed, step, rank), other)
        (bucket,) = other.report().buckets
        steps.append((bucket.objectives, bucket.weights.numpy()))
        if other is not state:
            state.load_state_dict(state.state_dict() | {key: other.state_dict()[key] for key in ("step", "buckets")})
    return steps


def test_smoothed_by_names(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_names, random_seed, moo.Smoothed("upgrad", 0.75))
    past: dict[str, float] = {}
    for step, (objectives, gramian, weights, saved) in enumerate(ranks[0]):
        names, rows = means_of(random_seed, step)
        assert list(objectives) == names
        np.testing.assert_allclose(gramian, rows @ rows.T, rtol=1e-12, atol=1e-12)
        plain = moo.weights(gramian, "upgrad").numpy()
        for name, new, got in zip(names, plain, weights, strict=True):
            expected = 0.75 * past[name] + 0.25 * new if name in past else new
            assert got == pytest.approx(expected, rel=1e-14)
            past[name] = got
        (bucket,) = saved["buckets"]
        assert bucket["parameters"] == ["all_reduce[11]"]
        assert dict(zip(bucket["objectives"], bucket["values"], strict=False)) == past
        assert all(other[step][3] == saved for other in ranks), "every rank saves the same"


def rank_calls(rank: int, world: int, seed: int) -> dict[str, list[float]]:
    state = moo.BucketMOO(moo.Smoothed("mgda", 0.9))

    def run(scatter: bool, n: int, step: int) -> list[float]:
        row = torch.from_numpy(np.random.default_rng([seed, step, rank]).standard_normal(n))
        if scatter:
            moo.reduce_scatter(torch.empty(n // world, dtype=row.dtype), row, state)
        else:
            moo.all_reduce(row, state)
        (bucket,) = state.report().buckets
        new = moo.weights(bucket.gramian, "mgda")
        return [*bucket.weights.tolist(), *new.tolist()]

    results = {
        "first": run(False, 10, 0),
        "other size": run(False, 12, 1),
        "other operation": run(True, 10, 2),
        "again": run(False, 10, 3),
    }
    assert [bucket["parameters"] for bucket in state.state_dict()["buckets"]] == [
        ["all_reduce[10]"],
        ["all_reduce[12]"],
        ["reduce_scatter[10]"],
    ]
    return results


def test_direct_calls_have_a_state_each(run_ranks: Runner, random_seed: int) -> None:
    results = run_ranks(2, rank_calls, random_seed)[0]
    for name in ("first", "other size", "other operation"):
        assert results[name][:2] == results[name][2:], f"{name}: a first step"
    expected = 0.9 * np.array(results["first"][:2]) + 0.1 * np.array(results["again"][2:])
    np.testing.assert_allclose(results["again"][:2], expected, rtol=1e-14)


def rank_nonfinite(rank: int, world: int) -> None:
    state = moo.BucketMOO(moo.Smoothed(moo.GradVac(0.5), 0.5))
    moo.all_reduce(torch.tensor([1.0, 2.0 - 5 * rank]), state)
    saved = state.state_dict()["buckets"]
    moo.all_reduce(torch.tensor([1.0, math.nan]), state)
    (bucket,) = state.report().buckets
    assert bucket.status == "nonfinite"
    assert bucket.weights.tolist() == [0.5, 0.5]
    assert state.state_dict()["buckets"] == saved


def test_nonfinite_leaves_the_state_alone(run_ranks: Runner) -> None:
    run_ranks(2, rank_nonfinite)


# ---------------------------------------------------------------------------------------------- buckets


def rank_rebuild(rank: int, world: int, seed: int, way: str) -> list[dict[str, Any]]:
    """Every bucket of the second step goes on from the single one of the first."""
    ddp = wrap(network())
    state = attach(way, ddp, moo.Smoothed("upgrad", 0.75))
    saves = []
    past: torch.Tensor | None = None
    for step in range(2):
        backward(ddp, seed, rank, step)
        buckets = state.report().buckets
        assert (len(buckets) == 1) == (step == 0)
        for bucket in buckets:
            new = moo.weights(bucket.gramian, "upgrad")
            expected = new if past is None else 0.75 * past + 0.25 * new
            torch.testing.assert_close(bucket.weights, expected, rtol=1e-14, atol=0)
        past = buckets[0].weights if step == 0 else None
        saved = state.state_dict()
        assert len(saved["buckets"]) == len(buckets), "the old bucket is forgotten"
        names = sorted(name for bucket in saved["buckets"] for name in bucket["parameters"])
        known = [name for name, _ in network().named_parameters()]
        assert names == (sorted(known) if way == "native" else sorted(f"#{i}" for i in range(len(known))))
        saves.append(saved)
    return saves


@pytest.mark.parametrize("way", ["native", "python"])
def test_bucket_rebuild(run_ranks: Runner, random_seed: int, way: str) -> None:
    ranks = run_ranks(2, rank_rebuild, random_seed % 2**20, way)
    assert ranks[0] == ranks[1]


def rank_inherits(rank: int, world: int, seed: int) -> None:
    """A bucket goes on from the one that held the most of its elements; of several, from that met first."""
    for sizes, winner in (([3, 5], "b"), ([5, 3], "a"), ([4, 4], "first")):
        module = nn.ParameterDict({n: nn.Parameter(torch.ones(s)) for n, s in zip("ab", sizes, strict=True)})

        class Sum(nn.Module):
            def __init__(self, parameters: nn.ParameterDict) -> None:
                super().__init__()
                self.p = parameters

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return (self.p["a"] * x[0]).sum() + (self.p["b"] * x[1]).sum()

        ddp = DistributedDataParallel(Sum(module))
        state = moo.register(ddp, moo.Smoothed("mean", 0.5))
        values = {"a": [0.25, 0.75, 1.0, 1.0], "b": [1.0, 0.0, 1.0, 1.0]}
        buckets = [{"parameters": [f"p.{n}"], "objectives": ["0", "1"], "values": values[n]} for n in ("b", "a")]
        state.load_state_dict(state.state_dict() | {"buckets": buckets})
        ddp(torch.tensor([1.0, 2.0 + rank])).backward()
        (bucket,) = state.report().buckets
        name = bucket.parameters[0].removeprefix("p.") if winner == "first" else winner
        expected = [0.5 * value + 0.25 for value in values[name][:2]]
        assert bucket.weights.tolist() == expected, (sizes, bucket)
        (saved,) = state.state_dict()["buckets"]
        assert saved == {"parameters": ["p.a", "p.b"], "objectives": ["0", "1"], "values": [*expected, 1.0, 1.0]}


def test_new_bucket_inherits_from_the_largest(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_inherits, random_seed)


# ---------------------------------------------------------------------------------------------- resume


def rank_resume(rank: int, world: int, seed: int, name: str, way: str) -> list[str]:
    def start() -> tuple[DistributedDataParallel, moo.BucketMOO]:
        ddp = wrap(network())
        return ddp, attach(way, ddp, STATEFUL[name](), seed=7)

    def run(ddp: DistributedDataParallel, steps: range) -> list[str]:
        digests = []
        for step in steps:
            backward(ddp, seed, rank, step)
            digests.append(digest(ddp))
        return digests

    ddp, state = start()
    run(ddp, range(3))
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    whole = run(ddp, range(3, 6))
    end = state.state_dict()

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    ddp, state = start()
    run(ddp, range(1))  # DDP rebuilds its buckets after this one
    state.load_state_dict(saved)
    assert state.state_dict() == saved
    assert run(ddp, range(3, 6)) == whole
    assert state.state_dict() == end

    ddp, state = start()
    run(ddp, range(1))
    state.load_state_dict(saved | {"buckets": []})
    run(ddp, range(3, 6))
    assert state.state_dict() != end, "what was forgotten is missing, whether or not these gradients show it"
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("way", ["native", "python"])
@pytest.mark.parametrize("name", STATEFUL)
def test_resume_gives_the_same_bits(run_ranks: Runner, random_seed: int, name: str, way: str) -> None:
    ranks = run_ranks(2, rank_resume, random_seed % 2**20, name, way)
    assert ranks[0] == ranks[1]


def rank_copies(rank: int, world: int, seed: int) -> None:
    state = moo.BucketMOO(moo.Smoothed(moo.GradVac(0.5), 0.5), objective=f"o{rank}")
    for step in range(3):
        moo.all_reduce(row_of(seed, step, rank), state)
    others = [pickle.loads(pickle.dumps(state)), copy.deepcopy(state), copy.copy(state)]
    row = row_of(seed, 3, rank)
    moo.all_reduce(row, state)
    for other in others:
        assert other.step == 3
        assert len(other.state_dict()["buckets"]) == 1
        again = row_of(seed, 3, rank)
        moo.all_reduce(again, other)
        assert torch.equal(row, again)
        assert other.state_dict() == state.state_dict()


def test_copies_keep_the_state(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, rank_copies, random_seed)


BUCKET = {"parameters": ["p"], "objectives": ["a", "b"], "values": [0.5, 0.5, 1.0, 1.0]}


def test_state_dict_round_trip() -> None:
    """Also without a process group."""
    state = moo.BucketMOO(moo.Smoothed("mgda", 0.5))
    assert state.state_dict()["buckets"] == []
    saved = state.state_dict() | {"step": 4, "buckets": [BUCKET, BUCKET | {"parameters": ["q", "r"]}]}
    state.load_state_dict(saved)
    assert state.state_dict() == saved
    assert pickle.loads(pickle.dumps(state)).state_dict() == saved
    assert "buckets" not in moo.BucketMOO("mgda").state_dict()
    assert "buckets" not in moo.BucketMOO(moo.Smoothed("mgda", 0.0)).state_dict()


@pytest.mark.parametrize(
    ("buckets", "words"),
    [
        (None, ["lacks", "buckets"]),
        ({}, ["buckets", "list", "dict"]),
        ([3], ["buckets[0]", "dict", "3"]),
        ([{"parameters": ["p"]}], ["buckets[0]", "values"]),
        ([BUCKET | {"parameters": "p"}], ["parameters", "list of strings", "'p'"]),
        ([BUCKET | {"parameters": []}], ["parameters", "at least one"]),
        ([BUCKET | {"parameters": ["p", "p"]}], ["parameters", "distinct"]),
        ([BUCKET, BUCKET], ["buckets[1]", "in no other bucket"]),
        ([BUCKET | {"objectives": ["a", 1]}], ["objectives", "list of strings"]),
        ([BUCKET | {"objectives": ["a", "a"]}], ["objectives", "distinct"]),
        ([BUCKET | {"values": [0.5]}], ["values", "4 finite numbers", "2 objectives"]),
        ([BUCKET | {"values": [0.5, math.nan, 1.0, 1.0]}], ["values", "finite", "nan"]),
        ([BUCKET | {"values": ["x"] * 4}], ["values", "'x'"]),
        ([BUCKET | {"values": 1.0}], ["values", "1.0"]),
    ],
)
def test_bad_state_dict(buckets: Any, words: list[str]) -> None:
    state = moo.BucketMOO(moo.Smoothed("mgda", 0.5))
    before = state.state_dict()
    saved = before | {"step": 3, "buckets": buckets}
    if buckets is None:
        del saved["buckets"]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        state.load_state_dict(saved)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {str(caught.value)!r}"
    assert state.state_dict() == before
