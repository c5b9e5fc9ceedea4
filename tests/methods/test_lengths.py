"""NormalizedMean and Rescaled: what they do to the length of an update."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.support import reference as ref
from tests.support.errors import error_of, expect
from tests.support.rows import SIZES, Array, Random, assert_update, gram_of, rows_of, solve, weights
from tests.support.scopes import Given

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]

RESCALED = [name for name in moo.available_methods() if name != "mean"]
FALLBACK = 4  # the status, as operators give it


def lengths(rows: Array) -> Array:
    return np.linalg.norm(rows, axis=1)


def mean_length(rows: Array) -> float:
    active = rows[lengths(rows) > 0]
    return float(np.linalg.norm(active.mean(axis=0)))


def normalized_mean(rows: Array) -> Array:
    """The weights, in float64."""
    norms = lengths(rows)
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    result: Array = inverse * mean_length(rows) / np.linalg.norm(inverse @ rows)
    return result


def status_of(rows: Array, method: moo.Method) -> int:
    return int(
        torch.ops.bucket_moo.solve(torch.from_numpy(gram_of(rows)), *method._options(), 0, 0, method._length())[1]
    )


# --- NormalizedMean ---


@pytest.mark.parametrize("shared", [-0.3, 0.0, 1.0])
def test_normalized_mean(rng: Random, shared: float) -> None:
    for k in SIZES:
        rows = rows_of(rng, k, shared) * 10 ** rng.uniform(-3, 3, (k, 1))
        assert_update(rows, weights(rows, "normalizedmean"), normalized_mean(rows), 1e-9, f"K={k}")


def test_normalized_mean_hears_all_alike(rng: Random) -> None:
    rows = rows_of(rng, 5)
    longer = rows * np.array([1e6, 1, 1, 1, 1e-6])[:, None]
    direction, other = (r.T @ weights(r, "normalizedmean") for r in (rows, longer))
    cosine = direction @ other / np.linalg.norm(direction) / np.linalg.norm(other)
    assert cosine == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(other) == pytest.approx(mean_length(longer), rel=1e-9)


def test_normalized_mean_leaves_out_what_is_inactive(rng: Random) -> None:
    rows = rows_of(rng, 6)
    rows[[1, 4]] = 0
    w = weights(rows, "normalizedmean")
    assert not w[[1, 4]].any()
    np.testing.assert_allclose(w, normalized_mean(rows), rtol=1e-9)


def test_directions_that_cancel(rng: Random) -> None:
    rows = rng.standard_normal((1, 7))
    opposite = np.concatenate([3 * rows, -rows])
    w, certificate = solve(opposite, "normalizedmean")
    np.testing.assert_allclose(w, [0.25, 0.75], rtol=1e-9)
    assert certificate == 0
    assert status_of(opposite, moo.NormalizedMean()) == FALLBACK


def test_a_mean_that_vanishes() -> None:
    """Lengths are those of the mean: none."""
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    assert not weights(rows, "normalizedmean").any()


# --- Rescaled ---


@pytest.mark.parametrize("to", ["mean", "unit", 0.37])
@pytest.mark.parametrize("method", RESCALED)
def test_the_direction_stays_and_the_length_is_given(rng: Random, method: str, to: str | float) -> None:
    for k in SIZES:
        rows = rows_of(rng, k, 0.3)
        own, certificate = solve(rows, method)
        w, same = solve(rows, moo.Rescaled(method, to))
        target = mean_length(rows) if to == "mean" else 1.0 if to == "unit" else to
        assert np.linalg.norm(w @ rows) == pytest.approx(target, rel=1e-9), k
        np.testing.assert_allclose(w, own * np.linalg.norm(w) / np.linalg.norm(own), rtol=1e-9, atol=1e-12)
        assert same == certificate


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scale(rng: Random, factor: float) -> None:
    for k in (1, 3, 16):
        rows = rows_of(rng, k, 0.3)
        np.testing.assert_allclose(
            weights(factor * rows, moo.Rescaled("upgrad")), weights(rows, moo.Rescaled("upgrad")), rtol=1e-7, atol=1e-9
        )
        unit = weights(factor * rows, moo.Rescaled("upgrad", "unit")) @ rows * factor
        assert np.linalg.norm(unit) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_gramians_near_the_ends_of_float64(scale: float) -> None:
    gram = np.array([[2.0, 0.5], [0.5, 1.0]]) * scale**2
    w = moo.weights(gram, moo.Rescaled("mgda", "unit")).numpy()
    assert w / np.abs(w).max() @ (gram / scale**2) @ w * scale**2 * np.abs(w).max() == pytest.approx(1, rel=1e-9)


def test_the_mean_is_that_of_the_active_objectives(rng: Random) -> None:
    rows = rows_of(rng, 4, 0.3)
    some = np.insert(rows, [1, 3], 0.0, axis=0)
    w = weights(some, moo.Rescaled("cagrad"))
    assert not w[[1, 4]].any()
    np.testing.assert_allclose(w[[0, 2, 3, 5]], weights(rows, moo.Rescaled("cagrad")), rtol=1e-12)


def test_an_update_without_a_direction(rng: Random) -> None:
    """MGDA's where the hull holds the origin."""
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(weights(rows, moo.Rescaled("mgda", "unit")), weights(rows, "mgda"))
    assert status_of(rows, moo.Rescaled("mgda", "unit")) == FALLBACK
    assert not weights(np.zeros((3, 2)), moo.Rescaled("mgda", "unit")).any()


def test_nonfinite_gradients_have_the_mean() -> None:
    gram = np.array([[1.0, np.nan], [np.nan, 1.0]])
    assert moo.weights(gram, moo.Rescaled("mgda", 5.0)).tolist() == [0.5, 0.5]


def test_a_batch(rng: Random) -> None:
    grams = np.stack([gram_of(rows_of(rng, 4, 0.3)) for _ in range(3)])
    batch = moo.weights(grams, moo.Rescaled("imtlg", 2.0)).numpy()
    for gram, w in zip(grams, batch, strict=True):
        assert w @ gram @ w == pytest.approx(4, rel=1e-9)


# --- in reductions ---


def _updates(rank: int, world: int, seed: int, scope: str, support: bool, names: list[str]) -> dict[str, Any]:
    methods: dict[str, moo.Method] = {
        "normalized": moo.NormalizedMean(),
        "rescaled": moo.Rescaled("mgda"),
        "unit": moo.Rescaled(moo.PCGrad(reduction="sum"), "unit"),
        "smoothed": moo.Rescaled(moo.Smoothed("mgda", 0.5), 3.0),
    }
    results: dict[str, Any] = {}
    for name in names:
        model = Given(sizes={"a": 5003, "b": 17, "c": 300})
        ddp = DistributedDataParallel(model, bucket_cap_mb=0.001)
        state = moo.register(ddp, methods[name], scope=scope, support=support)
        for step in range(2):
            ddp.zero_grad()
            ddp(given(seed, rank, step)).backward()
        results[name] = {n: ref.float64(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        results[name]["status"] = [bucket.status for bucket in state.report().buckets]
        results[name]["parts"] = [bucket.parameters for bucket in state.report().buckets]
    return results


def given(seed: int, rank: int, step: int) -> dict[str, Array]:
    """Parameter "c" is rank 0's alone."""
    rng = np.random.default_rng([seed, rank, step])
    row = {name: rng.standard_normal(n) * (1 + 3 * rank) for name, n in (("a", 5003), ("b", 17), ("c", 300))}
    row["c"] *= rank == 0
    return row


def expected(seed: int, name: str, parts: list[str]) -> Array:
    """The update of some parameters together in the second step, of two ranks."""
    before, rows = (
        np.stack([np.concatenate([given(seed, r, step)[p] for p in parts]) for r in range(2)]) for step in range(2)
    )
    active = lengths(rows) > 0
    on = rows[active]
    if name == "normalized":
        update = normalized_mean(rows) @ rows
    elif name == "unit":
        update = ref.pcgrad(on, [list(range(len(on)))] * len(on), "sum") @ on  # of two, whatever the order
        update = update / np.linalg.norm(update)
    elif name == "rescaled":
        update = ref.mgda(on) @ on
        update = update * mean_length(rows) / np.linalg.norm(update)
    else:
        old, new = (ref.mgda(r[active]) for r in (before, rows))
        update = (old + new) / 2 @ on
        update = update * 3 / np.linalg.norm(update)
    return update


@pytest.mark.parametrize(("scope", "support"), [("bucket", False), ("model", False), ("parameter", False)])
def test_in_ddp(run_ranks: Runner, random_seed: int, scope: str, support: bool) -> None:
    names = ["normalized", "rescaled", "unit", "smoothed"]
    if scope != "model":
        names.remove("smoothed")  # it remembers DDP's first buckets; and a device refuses it for parameters
    for result in run_ranks(2, _updates, random_seed, scope, support, names):
        for name in names:
            assert result[name]["status"] == ["ok"] * len(result[name]["status"])
            parts = [[n.removeprefix("module.") for n in part] for part in result[name]["parts"]]
            for part in [[n for p in parts for n in p]] if scope == "model" else parts:
                got = np.concatenate([result[name][n] for n in part])
                want = expected(random_seed, name, part)
                assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want), (name, part)


def test_parts_by_support_are_on_the_scale_of_the_mean(run_ranks: Runner, random_seed: int) -> None:
    """The mean over all: a parameter that one of two objectives has gets half of its gradient. A given length stays."""
    names = ["normalized", "rescaled", "unit"]
    for result in run_ranks(2, _updates, random_seed, "bucket", True, names):
        own = given(random_seed, 0, 1)["c"]
        for name in names:
            want = own / np.linalg.norm(own) if name == "unit" else own / 2
            np.testing.assert_allclose(result[name]["c"], want, rtol=1e-9)


# --- as objects ---


def test_what_it_is() -> None:
    method = moo.Rescaled("nash-mtl", to="unit")
    assert method == moo.Rescaled(moo.NashMTL(), "unit")
    assert pickle.loads(pickle.dumps(method)) == method
    assert method.info.name == "rescaled nashmtl"
    assert method.info.guarantees == ("non-conflicting", "permutation equivariant")
    assert moo.Rescaled(moo.Smoothed("mgda", 0.5)).info.stateful
    assert repr(moo.Rescaled("mgda", 2)) == "Rescaled(method=MGDA(normalize='none'), to=2.0)"
    assert moo.BucketMOO(moo.Rescaled("gradvac")).state_dict()["buckets"] == []
    assert "buckets" not in moo.BucketMOO(method).state_dict()


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: moo.Rescaled("adam"), ValueError, ["'adam'", "available"]),
        (lambda: moo.Rescaled(3), TypeError, ["method must be"]),  # type: ignore[arg-type]
        (lambda: moo.Rescaled(moo.Rescaled("mgda")), TypeError, ["rescaled itself"]),  # type: ignore[arg-type]
        (lambda: moo.Smoothed(moo.Rescaled("mgda"), 0.5), TypeError, [r"Rescaled\(Smoothed\(MGDA", "0.5", "'mean'"]),  # type: ignore[arg-type]
        *(
            (lambda to=to: moo.Rescaled("mgda", to), ValueError, ["to=", "'mean', 'unit' or a finite number > 0"])
            for to in ("sum", 0, -1.0, math.inf, math.nan, None, True)
        ),
        (lambda: moo.NormalizedMean(preference=[1.0]), TypeError, ["takes no preference", "Mean"]),
        (lambda: moo.BucketMOO("mgda", to="unit"), TypeError, [r"Rescaled\(method, to='unit'\)"]),  # type: ignore[call-arg]
    ],
)
def test_bad_arguments(make: Callable[[], object], kind: type[Exception], words: list[str]) -> None:
    expect(error_of(make), kind, *words)
