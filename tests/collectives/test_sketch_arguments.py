"""What a Sketch is, and what is refused: by itself, on one rank, between ranks."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.support.checks import outcome
from tests.support.errors import Raised, error_of
from tests.support.sketches import digest, row_of, rows_of, verify, width_of

Runner = Callable[..., list[Any]]


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: moo.Sketch(100), ValueError, ["width", "power of two from 64 to 268435456", "100", "64 and 128"]),
        (lambda: moo.Sketch(32), ValueError, ["width", "64 to 268435456", "32"]),
        (lambda: moo.Sketch(2**29), ValueError, ["width", "64 to 268435456", str(2**29)]),
        (lambda: moo.Sketch(-64), ValueError, ["width", "-64"]),
        (lambda: moo.Sketch(0.0), ValueError, ["width", "above 0 and up to 1", "0.0"]),
        (lambda: moo.Sketch(1.5), ValueError, ["width", "above 0 and up to 1", "1.5"]),
        (lambda: moo.Sketch(float("nan")), ValueError, ["width", "above 0 and up to 1", "nan"]),
        (lambda: moo.Sketch("64"), TypeError, ["width", "integer", "str '64'"]),  # type: ignore[arg-type]
        (lambda: moo.Sketch(True), TypeError, ["width", "integer", "bool True"]),
        (lambda: moo.Sketch(None), TypeError, ["width", "integer", "None"]),  # type: ignore[arg-type]
        (lambda: moo.Sketch(seed=-1), ValueError, ["seed", f"0 to {2**64 - 1}", "-1"]),
        (lambda: moo.Sketch(seed=2**64), ValueError, ["seed", f"0 to {2**64 - 1}", str(2**64)]),
        (lambda: moo.Sketch(seed=1.0), TypeError, ["seed", "integer", "float 1.0"]),  # type: ignore[arg-type]
        (lambda: moo.Sketch(refresh_every=0), ValueError, ["refresh_every", "from 1", "0"]),
        (lambda: moo.Sketch(refresh_every=2**31), ValueError, ["refresh_every", str(2**31)]),
        (lambda: moo.Sketch(refresh_every=2.0), TypeError, ["refresh_every", "integer", "float"]),  # type: ignore[arg-type]
        (lambda: moo.Sketch(lag=2), ValueError, ["lag", "0 to 1", "2"]),  # type: ignore[arg-type]
        (lambda: moo.Sketch(lag=True), TypeError, ["lag", "integer", "bool"]),  # type: ignore[arg-type]
        (lambda: moo.Sketch(64).width_for(-1), ValueError, ["numel", "-1"]),
        (lambda: moo.BucketMOO(gramian="sketchy"), ValueError, ["gramian", "'exact', 'auto' or a Sketch", "'sketchy'"]),
        (lambda: moo.BucketMOO(gramian=64), TypeError, ["gramian", "'exact', 'auto' or a Sketch", "int 64"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(gramian=moo.Sketch), TypeError, ["gramian", "a Sketch", "Sketch'>"]),  # type: ignore[arg-type]
        (lambda: moo.BucketMOO(gramian=None), TypeError, ["gramian", "None"]),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Callable[[], Any], kind: type[BaseException], words: list[str]) -> None:
    given, text = error_of(make)
    assert given is kind
    assert not [word for word in words if word not in text], text


def test_a_sketch_is_a_value() -> None:
    sketch = moo.Sketch(np.int64(128), seed=np.uint64(2**63), refresh_every=np.int32(2), lag=1)  # type: ignore[arg-type]
    assert sketch == moo.Sketch(128, 2**63, 2, 1) == pickle.loads(pickle.dumps(sketch)) == copy.deepcopy(sketch)
    assert eval(repr(sketch), {"Sketch": moo.Sketch}) == sketch
    assert sketch != moo.Sketch(128)
    assert len({sketch, copy.copy(sketch), moo.Sketch(128)}) == 2
    with pytest.raises(AttributeError):
        sketch.width = 64  # type: ignore[misc]
    for width in (64, 16384, 2**28, 1e-12, 0.003, 0.5, 1.0):
        for n in (0, 1, 127, 128, 129, 32_768, 32_769, 10**6, 10**9):
            assert moo.Sketch(width).width_for(n) == width_of(moo.Sketch(width), n), (width, n)


MISMATCHES: list[list[str | moo.Sketch]] = [
    [moo.Sketch(64), moo.Sketch(128)],
    [moo.Sketch(64), moo.Sketch(64, seed=1)],
    [moo.Sketch(64), moo.Sketch(64, refresh_every=2)],
    [moo.Sketch(64), moo.Sketch(64, lag=1)],
    [moo.Sketch(0.5), moo.Sketch(0.25)],
    ["exact", moo.Sketch(64)],
    ["exact", "auto"],
    ["auto", moo.Sketch()],
]


def rank_mismatch(rank: int, world: int) -> list[Raised]:
    errors = []
    for first, last in MISMATCHES:
        state = moo.BucketMOO(gramian=last if rank == world - 1 else first)
        x = torch.ones(100_000)
        errors.append(error_of(lambda state=state, x=x: moo.all_reduce(x, state)))  # type: ignore[misc]
        assert error_of(lambda state=state: moo.all_reduce(torch.ones(300), state)) == errors[-1]  # type: ignore[misc]
        assert bool((x == 1).all())
    return errors


@pytest.mark.device
def test_sketches_that_differ_raise_on_every_rank(run_ranks: Runner) -> None:
    for errors in run_ranks(3, rank_mismatch):
        for (kind, text), (first, last) in zip(errors, MISMATCHES, strict=True):
            assert kind is ValueError
            for word in ("same on every rank", "gramian:", f"{first} on rank 0 1;", f"{last} on rank 2;"):
                assert word in text, (word, text)


def rank_refused(rank: int, world: int, seed: int) -> list[Any]:
    sketch = moo.Sketch(64, refresh_every=2)
    state = moo.BucketMOO("mgda", gramian=sketch)
    results: list[Any] = []
    for step in range(1, 4):
        bad = torch.ones(400, 400).t()[:, ::2] if rank == step % world else torch.ones(80_000)
        results.append(error_of(lambda bad=bad: moo.all_reduce(bad, state)))  # type: ignore[misc]
        row = row_of(seed, (step,), rank, 5000)
        moo.all_reduce(row, state)
        results.append(outcome(row, state))
    return results


@pytest.mark.host
def test_a_tensor_refused_on_one_rank_raises_on_all(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_refused, random_seed)
    for step in range(1, 4):
        for rank in range(3):
            kind, text = ranks[rank][2 * step - 2]
            assert kind is ValueError
            assert ("contiguous" if rank == step % 3 else f"rank {step % 3} refused") in text
        got = ranks[0][2 * step - 1]
        assert got.step == 2 * step
        assert got.solved_step == got.step, "every second step is a new period here"
        assert digest(ranks[1][2 * step - 1]) == digest(got)
        verify(f"step {step}", rows_of(random_seed, (step,), 3, 5000), got, moo.Sketch(64, refresh_every=2))
