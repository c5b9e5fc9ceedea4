"""The collective of the C interface over a transport in Python, beside NumPy; ranks are threads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.embedding import c_interface as ci
from tests.embedding import thread_ranks
from tests.embedding.c_interface import Call, Collective, Library, Reduction
from tests.embedding.thread_ranks import Hub
from tests.support import reference as ref

pytestmark = pytest.mark.build

WORLD = 3


@pytest.fixture(scope="module")
def lib(library: Path) -> Library:
    return Library(library)


def _rows(rng: np.random.Generator, n: int, dtype: str = "float32") -> list[ci.Array]:
    rows = rng.normal(size=(WORLD, n))
    rows[1] -= 0.8 * rows[0]
    return [row.astype(dtype) for row in rows]


def _weights(reduction: Reduction) -> ref.Array:
    return np.array(reduction.weights[: reduction.objectives])


def _check(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("n", [1, 100, 20011])
@pytest.mark.parametrize("method", ["mgda", "cagrad"])
def test_an_all_reduce(lib: Library, rng: np.random.Generator, method: str, n: int) -> None:
    rows = _rows(rng, n)
    expected = ref.reduce([row.astype(np.float64) for row in rows], method=method) if n > 1 else None

    def rank_main(rank: int, hub: Hub) -> Any:
        collective = Collective(lib, lib.method(method), hub.transport(rank))
        data = rows[rank].copy()
        done = collective.all_reduce(data, Call(step=1))
        names = [done.objective[i].decode() for i in range(done.objectives)]
        return data, _weights(done), np.array(done.gramian[: done.objectives**2]), names

    results = _check(thread_ranks.run(WORLD, rank_main))
    for data, weights, gramian, names in results:
        assert data.tobytes() == results[0][0].tobytes()
        assert weights.tobytes() == results[0][1].tobytes()
        assert names == ["0", "1", "2"]
        np.testing.assert_allclose(data, sum(w * row for w, row in zip(weights, rows, strict=True)), rtol=0, atol=1e-6)
        if expected is not None:
            np.testing.assert_allclose(gramian, expected.gramian.reshape(-1), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(weights, expected.weights, atol=1e-4)


def test_a_reduce_scatter_in_pieces_is_the_shard_of_the_all_reduce(lib: Library, rng: np.random.Generator) -> None:
    shard = 5000
    rows = _rows(rng, WORLD * shard)

    def rank_main(rank: int, hub: Hub) -> Any:
        collective = Collective(lib, lib.method("mgda"), hub.transport(rank), tile_limit=16384)
        output = np.zeros(shard, np.float32)
        collective.reduce_scatter(output, rows[rank], Call(step=1))
        whole = rows[rank].copy()
        collective.all_reduce(whole, Call(step=2))
        return output, whole

    for rank, (output, whole) in enumerate(_check(thread_ranks.run(WORLD, rank_main))):
        np.testing.assert_allclose(output, whole[rank * shard :][:shard], rtol=1e-5, atol=1e-6)
        assert np.abs(output).max() > 0.1


def test_ranks_share_objectives_with_weights_and_may_be_left_out(lib: Library, rng: np.random.Generator) -> None:
    rows = _rows(rng, 300, "float64")
    rows[2][:] = np.nan  # nobody reads it
    calls = (("de", 1.0, 0), ("de", 3.0, 0), ("sw", 0.0, 1))

    def rank_main(rank: int, hub: Hub) -> Any:
        name, weight, left_out = calls[rank]
        collective = Collective(lib, lib.method("mgda"), hub.transport(rank))
        data = rows[rank].copy()
        done = collective.all_reduce(data, Call(objective=name.encode(), weight=weight, is_left_out=left_out))
        return data, [done.objective[i] for i in range(done.objectives)], done.active

    for data, names, active in _check(thread_ranks.run(WORLD, rank_main)):
        assert names == [b"de", b"sw"]
        assert active == 1
        np.testing.assert_allclose(data, 0.25 * rows[0] + 0.75 * rows[1], rtol=1e-12, atol=1e-14)


def test_a_sketched_reduction_is_a_weighted_sum_of_the_rows(lib: Library, rng: np.random.Generator) -> None:
    rows, width = _rows(rng, 9001), 1024
    sketches = np.stack([ref.sketch(row.astype(np.float64), width, seed=11, step=3, bucket=2) for row in rows])

    def rank_main(rank: int, hub: Hub) -> Any:
        collective = Collective(lib, lib.method("mgda"), hub.transport(rank), seed=11, sketch_width=width)
        data = rows[rank].copy()
        return data, _weights(collective.all_reduce(data, Call(step=3, bucket=2)))

    for data, weights in _check(thread_ranks.run(WORLD, rank_main)):
        np.testing.assert_allclose(weights, ref.mgda(sketches), atol=1e-4)
        np.testing.assert_allclose(data, sum(w * row for w, row in zip(weights, rows, strict=True)), rtol=0, atol=1e-5)


def test_smoothing_is_remembered_by_bucket_and_objectives(lib: Library) -> None:
    def rank_main(rank: int, hub: Hub) -> Any:
        collective = Collective(lib, lib.method("mgda", smoothing=0.5), hub.transport(rank))
        weights = []
        for step, (bucket, size) in enumerate([(0, 1.0), (1, 1.0), (0, 2.0)]):
            data = np.zeros(2)
            data[rank] = size if rank == 0 else 1.0
            weights.append(_weights(collective.all_reduce(data, Call(step=step, bucket=bucket)))[0])
        return weights

    for weights in _check(thread_ranks.run(2, rank_main)):
        # Of lengths 1 and 1: 1/2. Of 2 and 1: 1/5, which is averaged with what was solved for this bucket before.
        np.testing.assert_allclose(weights, [0.5, 0.5, (0.5 + 0.2) / 2], rtol=1e-9)


def test_a_single_rank_needs_no_transport(lib: Library) -> None:
    data = np.array([1.0, -2.0])
    done = Collective(lib, lib.method("mgda"), None).all_reduce(data, Call())
    assert list(data) == [1.0, -2.0]
    assert (done.objectives, done.weights[0]) == (1, 1.0)


# --- errors ---


def _errors(results: list[Any]) -> list[ci.Refused]:
    for result in results:
        assert isinstance(result, ci.Refused), result
    return results


def test_ranks_that_call_differently_hear_of_it_and_go_on(lib: Library) -> None:
    def rank_main(rank: int, hub: Hub) -> Any:
        collective = Collective(lib, lib.method("mgda"), hub.transport(rank))
        with pytest.raises(ci.Refused) as caught:
            collective.all_reduce(np.ones(4 + rank), Call())
        collective.all_reduce(np.ones(4), Call(step=1))
        return caught.value

    for error in (results := thread_ranks.run(2, rank_main)):
        assert error.code == ci.DISAGREEMENT
        assert "rank 0 starts a all_reduce of 4 elements of dtype float64 in step 0, rank 1 a" in str(error)
    assert str(results[0]) == str(results[1])


def test_ranks_that_were_made_differently_hear_of_it(lib: Library) -> None:
    def rank_main(rank: int, hub: Hub) -> Any:
        method = lib.method("cagrad", numbers=[0.1 * (1 + rank), 0.0])
        Collective(lib, method, hub.transport(rank), seed=4).all_reduce(np.ones(4), Call())

    for error in _errors(thread_ranks.run(2, rank_main)):
        assert error.code == ci.DISAGREEMENT
        assert "c: 0.1" in str(error)
        assert "seed" not in str(error)


def test_refused_arguments_reach_the_other_ranks(lib: Library) -> None:
    def rank_main(rank: int, hub: Hub) -> Any:
        collective = Collective(lib, lib.method("mgda"), hub.transport(rank))
        with pytest.raises(ci.Refused) as caught:
            collective.all_reduce(np.ones(4), Call(weight=-1.0 if rank == 1 else 1.0))
        collective.all_reduce(np.ones(4), Call(step=1))
        return caught.value

    first, second = thread_ranks.run(2, rank_main)
    assert (first.code, second.code) == (ci.DISAGREEMENT, ci.INVALID_ARGUMENT)
    assert "rank 1 refused the arguments of its call" in str(first)
    assert "weight must be finite and >= 0; got -1" in str(second)


def test_a_preference_for_other_objectives(lib: Library) -> None:
    def rank_main(rank: int, hub: Hub) -> Any:
        method = lib.method("upgrad", preference=[1.0, 2.0, 3.0])
        Collective(lib, method, hub.transport(rank)).all_reduce(np.ones(4), Call())

    for error in _errors(thread_ranks.run(2, rank_main)):
        assert error.code == ci.DISAGREEMENT
        assert "holds 3 weights, but there are 2 objectives" in str(error)


def test_a_transport_that_fails_spends_the_collective(lib: Library) -> None:
    def rank_main(rank: int, hub: Hub) -> Any:
        collective = Collective(lib, lib.method("mgda"), hub.transport(rank, fails_at=4 if rank == 1 else 0))
        said = []
        for step in range(2):
            with pytest.raises(ci.Refused) as caught:
                collective.all_reduce(np.ones(30000), Call(step=step))
            said.append(caught.value)
        return said

    first, second = thread_ranks.run(2, rank_main)
    assert [error.code for error in first + second] == [ci.TRANSPORT_FAILED] * 4
    assert "all_to_all of the transport returned 17 on rank 1 of 2" in str(second[0])
    assert str(second[1]) == str(second[0])
    assert "returned 18 on rank 0 of 2" in str(first[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile_limit": -1}, "tile_limit must be >= 0; got -1"),
        ({"sketch_width": 100}, "sketch_width must be 0 or a power of two from 64 to 268435456; got 100"),
    ],
)
def test_options_of_a_collective(lib: Library, options: dict[str, int], words: str) -> None:
    with pytest.raises(ci.Refused, match=words):
        Collective(lib, lib.method("mgda"), None, **options)


def test_a_transport_has_to_be_whole(lib: Library) -> None:
    with pytest.raises(ci.Refused, match="all_to_all and all_gather must not be NULL"):
        Collective(lib, lib.method("mgda"), ci.Transport(rank=0, size=2))
    with pytest.raises(ci.Refused, match="rank must be from 0 to 1; got 2"):
        Collective(lib, lib.method("mgda"), ci.Transport(rank=2, size=2))
