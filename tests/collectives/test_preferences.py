"""Preferences by the objectives' names, which ranks and passes have in any order."""

import math
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from tests.support import checks
from tests.support.checks import draw
from tests.support.ddp import batch_of, flat, gradients, loss_of, mlp
from tests.support.errors import error_of, expect
from tests.support.reference import Array, float64

Runner = Callable[..., list[Any]]
PREFERENCE = {"sw": 2.0, "de": 1.0, "tr": 0.25}
METHODS: dict[str, Callable[[], Any]] = {
    "mean": lambda: moo.Mean(weights=PREFERENCE),
    "upgrad": lambda: moo.UPGrad(PREFERENCE),
    "dualproj": lambda: moo.DualProj(dict(reversed(PREFERENCE.items()))),
    "alignedmtl": lambda: moo.AlignedMTL(preference=PREFERENCE),
    "config": lambda: moo.ConFIG(PREFERENCE),
    "smoothed upgrad": lambda: moo.Smoothed(moo.UPGrad(PREFERENCE), 0.0),
}
# By step, then pass, then rank.
STEPS = [
    [["tr", "de", "sw"]],
    [["sw", "sw", "de"], ["tr", "de", "de"]],
    [["de", "tr", "sw"]],
]


def _lifted(rows: Array, start: Array) -> Array:
    """The update nearest to start @ rows that conflicts with no row."""
    added, _ = nnls(rows.T, -(start @ rows), maxiter=10_000)
    return np.asarray((start + added) @ rows)


def _expected(method: str, rows: Array, p: Array) -> Array:
    """The update, from its definition on the rows."""
    p = p / p.sum()
    if method == "mean":
        return np.asarray(p @ rows)
    if method == "dualproj":
        return _lifted(rows, p)
    if method == "alignedmtl":
        u, s, vh = np.linalg.svd(rows, full_matrices=False)
        return np.asarray(s.min() * (p @ u) @ vh)
    if method == "config":
        direction = np.linalg.pinv(rows / np.linalg.norm(rows, axis=1)[:, None]) @ p
        direction /= np.linalg.norm(direction)
        return np.asarray((rows @ direction).sum() * direction)
    return np.asarray(sum(_lifted(rows, p_k * e_k) for p_k, e_k in zip(p, np.eye(len(p)), strict=True)))


def _assert_close(got: Array, expected: Array, what: str) -> None:
    assert np.linalg.norm(got - expected) <= 1e-9 * np.linalg.norm(expected), what


def _row(seed: int, name: str, *key: int) -> torch.Tensor:
    shared = draw(seed, (0,), 500, torch.float64) * (-0.6 if name == "tr" else 0.6)  # tr pulls against the others
    return shared + draw(seed, (1, *key), 500, torch.float64)


def rank_names(rank: int, world: int, seed: int) -> list[list[Array]]:
    results = []
    for make in METHODS.values():
        state = moo.BucketMOO(make())
        updates = []
        for step, passes in enumerate(STEPS):
            for p, names in enumerate(passes):
                state.objective = names[rank]
                row = _row(seed, names[rank], step, p, rank)
                if p < len(passes) - 1:
                    with state.accumulate():
                        moo.all_reduce(row, state, bucket="b")
                    other = torch.full((10,), float(rank + 1), dtype=torch.float64)  # a step amid the other
                    state.objective = ("de", "tr", "sw")[rank]
                    moo.all_reduce(other, state, bucket="other")
                else:
                    moo.all_reduce(row, state, bucket="b")
            assert set(state.report().objectives) == set(PREFERENCE)
            updates.append(row.numpy())
        results.append(updates)
    return results


def test_names_in_any_order(run_ranks: Runner, random_seed: int) -> None:
    results = run_ranks(3, rank_names, random_seed)
    for number, method in enumerate(METHODS):
        for step, passes in enumerate(STEPS):
            of_name: dict[str, list[Array]] = {name: [] for name in PREFERENCE}
            for p, names in enumerate(passes):
                for rank, name in enumerate(names):
                    of_name[name].append(float64(_row(random_seed, name, step, p, rank)))
            rows = np.stack([np.mean(rows, axis=0) for rows in of_name.values()])
            assert (rows @ rows.T < 0).any()
            expected = _expected(method.removeprefix("smoothed "), rows, np.array(list(PREFERENCE.values())))
            for result in results:
                _assert_close(result[number][step], expected, f"{method}, step {step}")


def rank_sketch(rank: int, world: int, seed: int) -> list[Array]:
    state = moo.BucketMOO(moo.Mean(weights=PREFERENCE), gramian=moo.Sketch(64, refresh_every=2, lag=1))
    updates = []
    for step in range(4):
        state.objective = ("tr", "de", "sw")[(rank + step // 2) % 3]
        row = _row(seed, "", step, rank)
        moo.all_reduce(row, state)
        updates.append(row.numpy())
    return updates


def test_weights_that_a_sketch_keeps(run_ranks: Runner, random_seed: int) -> None:
    for result in run_ranks(3, rank_sketch, random_seed):
        for step, update in enumerate(result):
            shares = [PREFERENCE[("tr", "de", "sw")[(rank + step // 2) % 3]] for rank in range(3)]
            rows = np.stack([float64(_row(random_seed, "", step, rank)) for rank in range(3)])
            _assert_close(update, np.array(shares) @ rows / sum(shares), f"step {step}")


@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_one_process(scope: str) -> None:
    model = mlp(1)
    state = moo.register(model, moo.UPGrad(PREFERENCE), scope=scope, bucket_cap_mb=16_000 / 2**20)
    for step, order in enumerate((["tr", "sw", "de"], ["de", "tr", "sw"])):
        model.zero_grad()
        batches = {name: batch_of(5, number, step) for number, name in enumerate(order)}
        local = {name: gradients(model, lambda m, b=batch: loss_of(m, b)) for name, batch in batches.items()}  # type: ignore[misc]
        state.backward({name: loss_of(model, batch) for name, batch in batches.items()})
        buckets = [bucket.parameters for bucket in state.report().buckets]
        assert len(buckets) == 2 or step == 0
        for names in buckets if scope == "bucket" else [sum(buckets, ())]:
            rows = np.stack([np.concatenate([local[x][name] for name in names]) for x in PREFERENCE])
            got = np.concatenate([flat(p.grad, p) for p in (dict(model.named_parameters())[name] for name in names)])
            _assert_close(got, _expected("upgrad", rows, np.array(list(PREFERENCE.values()))), f"{scope}, step {step}")


# --- wrong use ---


def rank_wrong_names(rank: int, world: int) -> list[Any]:
    state = moo.BucketMOO(moo.UPGrad({"sw": 2.0, "de": 1.0}))
    errors = []
    for name in ("tr", "de", "sw"):  # the first has no preference; then sw, then de is missing
        state.objective = name if rank == 1 or name == "tr" else "de" if name == "de" else "sw"
        errors.append(error_of(lambda: moo.all_reduce(torch.ones(9), state)))
    state.objective = ("sw", "de")[rank]
    row = torch.full((9,), float(rank + 1))
    moo.all_reduce(row, state)  # the next step is right
    assert torch.allclose(row, torch.tensor(4 / 3))
    different = moo.BucketMOO(moo.UPGrad({"sw": 2.0 + rank, "de": 1.0}))
    errors.append(error_of(lambda: moo.all_reduce(row, different)))
    return errors


def test_wrong_names_are_errors_of_every_rank(run_ranks: Runner) -> None:
    for unknown, no_sw, no_de, different in run_ranks(2, rank_wrong_names):
        expect(unknown, ValueError, r"UPGrad\(preference=...\) does not name objective 'tr'", "it names de, sw")
        expect(no_sw, ValueError, r"UPGrad\(preference=...\) names objective 'sw', which the step does not have")
        expect(no_de, ValueError, "names objective 'de', which the step does not have; it has sw")
        expect(different, ValueError, "method", "'de': 1.0, 'sw': 3.0")


def rank_on_device(rank: int, world: int) -> None:
    state = moo.BucketMOO(moo.UPGrad(PREFERENCE))
    expect(
        error_of(lambda: moo.all_reduce(torch.ones(9), state)), NotImplementedError, "names objectives", "de, sw, tr"
    )


@pytest.mark.device
@pytest.mark.skipif(not checks.ON_DEVICE, reason="the CPU has it")
def test_names_are_refused_on_a_gpu(run_ranks: Runner) -> None:
    run_ranks(2, rank_on_device)


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: moo.UPGrad({}), ValueError, "preference must be numbers >= 0"),
    (lambda: moo.UPGrad({"sw": -1.0}), ValueError, "preference must be numbers >= 0"),
    (lambda: moo.UPGrad({"sw": math.nan}), ValueError, "preference must be numbers >= 0"),
    (lambda: moo.UPGrad({1.5: 1.0}), ValueError, "by name in a mapping"),  # type: ignore[arg-type]
    (lambda: moo.UPGrad({1: 1.0, "1": 2.0}), ValueError, "names an objective twice"),  # type: ignore[arg-type]
    (lambda: moo.weights(torch.eye(2), moo.UPGrad({"sw": 2, "de": 1})), ValueError, "a Gramian's rows have no names"),
    (lambda: moo.MGDA(preference={"sw": 1.0}), TypeError, "MGDA takes no preference: its update lowers all"),  # type: ignore[call-arg]
    (lambda: moo.PCGrad(preference={"sw": 1.0}), TypeError, "multiplying an objective's loss"),  # type: ignore[call-arg]
    (lambda: moo.IMTLG(preference={"sw": 1.0}), TypeError, "ConFIG"),
    (
        lambda: moo.BucketMOO("mgda", preference={"sw": 1.0}),  # type: ignore[call-arg]
        TypeError,
        r"not of MGDA: its update lowers all",
    ),
]


@pytest.mark.parametrize(("make", "kind", "message"), WRONG)
def test_wrong_preferences(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    expect(error_of(make), kind, message)


def test_a_preference_by_name_is_a_value() -> None:
    method = moo.UPGrad({"sw": 2, "de": 1})
    assert method == moo.UPGrad({"de": 1.0, "sw": 2.0})
    assert hash(method) == hash(moo.UPGrad({"de": 1.0, "sw": 2.0}))
    assert repr(method) == "UPGrad(preference={'de': 1.0, 'sw': 2.0})"
    assert moo.UPGrad({1: 2, 0: 1}) == moo.UPGrad({"0": 1, "1": 2})
