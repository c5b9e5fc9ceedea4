"""moo.Recorder: what it keeps of a training, against the gradients themselves."""

from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support import reference as ref
from tests.support.errors import error_of, expect
from tests.support.recorded import Linear, cosines, draw, train_step

NAMES = ("de", "sw", "tr")
SIZES = (30, 20)
SMALL = 8 * 20 / 2**20  # MB: a bucket for each parameter


def registered(sizes: tuple[int, ...] = SIZES, **options: Any) -> tuple[Linear, moo.BucketMOO]:
    model = Linear(sizes)
    return model, moo.register(model, **{"method": "mgda", "bucket_cap_mb": SMALL, **options})


def test_records_are_what_the_gradients_say(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, every=3)
    steps = [draw(rng, NAMES, SIZES) for _ in range(8)]
    returned = []
    for gradients in steps:
        train_step(model, state, gradients)
        returned.append(recorder.step())
    assert [record is not None for record in returned] == [True, False, False] * 2 + [True, False]
    assert [record.step for record in recorder.history] == [1, 4, 7]
    assert recorder.last is recorder.history[-1] is returned[6]
    assert recorder.every == 3
    for number, record in enumerate(recorder.history):
        assert (record.index, record.passes, record.fallbacks) == (number, 3, 0)
        gradients = steps[3 * number]
        assert [part.key.parameters for part in record.parts] == [("b",), ("a",)]
        assert record.whole.key.parameters == ("a", "b")
        places = [(record.whole, slice(None)), (record.parts[0], slice(1, 2)), (record.parts[1], slice(0, 1))]
        for part, place in places:
            rows = [np.concatenate(gradients[name][place]) for name in NAMES]
            assert part.objectives == NAMES
            expected = cosines(rows)
            np.testing.assert_allclose(part.cosines, expected, atol=1e-12)
            np.testing.assert_allclose(part.norms, [np.linalg.norm(row) for row in rows], rtol=1e-12)
            assert (part.conflicts, part.pairs) == ((expected[np.triu_indices(3, 1)] < 0).sum(), 3)
            assert part.residual == pytest.approx(_residual(rows), abs=1e-6)
            assert part.cosine("tr", "de") == part.cosines[2, 0]
            assert (part.status, part.solved_step) == ("ok", record.step)
            if not part.key.is_whole:
                np.testing.assert_allclose(part.weights, ref.mgda(np.stack(rows)), atol=1e-6)
                assert part.weight("sw") == part.weights[1]
        assert record.whole.weights.isnan().all()
        conflicts = [part.conflicts for part in record.parts]
        assert record.conflict_share == sum(conflicts) / 6
        assert record.global_conflict_share == record.whole.conflicts / 3


def _residual(rows: list[np.ndarray]) -> float:
    matrix = np.stack(rows)
    return float(np.linalg.norm(ref.min_norm_point(matrix) @ matrix) / np.sqrt((matrix**2).sum(1).mean()))


def test_the_whole_has_weights_where_there_is_one_problem(rng: np.random.Generator) -> None:
    model, state = registered(scope="model")
    recorder = moo.Recorder(state, 1)
    gradients = draw(rng, NAMES, SIZES)
    train_step(model, state, gradients)
    record = recorder.step()
    assert record is not None
    rows = np.stack([np.concatenate(gradients[name]) for name in NAMES])
    np.testing.assert_allclose(record.whole.weights, ref.mgda(rows), atol=1e-6)
    assert len(record.parts) == 2


def test_steps_that_are_not_recorded_do_not_ask_for_a_report(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, state = registered()
    asked = []
    report = state.report

    def ask() -> moo.Report:
        asked.append(state.step)
        return report()

    monkeypatch.setattr(state, "report", ask)
    recorder = moo.Recorder(state, every=4)
    for _ in range(10):
        train_step(model, state, draw(rng, NAMES, SIZES))
        recorder.step()
    recorder.summary()
    assert asked == [1, 5, 9]


def test_nothing_new_is_not_recorded_twice(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1)
    train_step(model, state, draw(rng, NAMES, SIZES))
    assert recorder.step() is not None
    assert recorder.step() is None
    assert len(recorder.history) == 1


def test_as_a_hook_of_an_optimizer(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(recorder)
    for _ in range(3):
        train_step(model, state, draw(rng, NAMES, SIZES))
        optimizer.step()
    assert [record.step for record in recorder.history] == [1, 2, 3]


@pytest.mark.parametrize("keep", [2, 5, 8])
def test_thinned_records_are_spread_evenly(rng: np.random.Generator, keep: int) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1, keep=keep)
    gradients = draw(rng, NAMES, SIZES)
    for number in range(40):
        train_step(model, state, gradients)
        record = recorder.step()
        kept = [record.index for record in recorder.history]
        stride = kept[1] - kept[0] if len(kept) > 1 else 1
        assert kept == list(range(0, number + 1, stride))
        assert keep / 2 <= len(kept) <= keep or number < keep
        assert recorder.last is record


def test_dropped_records_are_the_oldest(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1, keep=4, when_full="drop")
    for _ in range(9):
        train_step(model, state, draw(rng, NAMES, SIZES))
        recorder.step()
    assert [record.step for record in recorder.history] == [6, 7, 8, 9]
    assert recorder.summary().records == 9


def test_parts_that_come_and_go_are_forgotten(rng: np.random.Generator, single_rank: None) -> None:
    """Direct calls under ever new names: a part each."""
    state = moo.BucketMOO("mgda", objective="de")
    recorder = moo.Recorder(state, 1, keep=5)
    for number in range(20):
        moo.all_reduce(torch.from_numpy(rng.standard_normal(7)), state, bucket=f"bucket {number}")
        recorder.step()
        assert len(recorder._seen) <= 2 * 5  # a part and the whole of it
    assert len(recorder.history) <= 5
    moo.all_reduce(torch.ones(7), moo.BucketMOO("mgda"))
    assert recorder.last is not None
    assert recorder.last.parts[0].key.parameters == ("bucket 19",)


@pytest.fixture
def single_rank(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_direct_calls_without_names_are_known_by_their_size(single_rank: None) -> None:
    state = moo.BucketMOO("mgda", objective="de")
    recorder = moo.Recorder(state, 1)
    for size in (7, 9, 7):
        moo.all_reduce(torch.ones(size), state)
        recorder.step()
    assert [record.parts[0].key.numel for record in recorder.history] == [7, 9, 7]
    assert recorder.history[0].parts[0].key is recorder.history[2].parts[0].key


def test_objectives_that_change(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1)
    sampled = [("de", "sw"), ("sw", "tr"), ("tr", "de"), ("sw", "de"), ("el", "de", "sw")]
    of_pair: dict[frozenset[str], list[float]] = {}
    for names in sampled:
        gradients = draw(rng, names, SIZES)
        train_step(model, state, gradients)
        recorder.step()
        matrix = cosines([np.concatenate(gradients[name]) for name in names])
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
            of_pair.setdefault(frozenset((names[i], names[j])), []).append(matrix[i, j])
    found = {frozenset(pair.objectives): pair for pair in recorder.summary(minimum=2).whole}
    assert found.keys() == of_pair.keys()
    assert max(map(len, of_pair.values())) == 3
    for two, values in of_pair.items():
        assert found[two].records == len(values)
        assert (found[two].verdict == "undecided") == (len(values) < 2)


def test_objectives_without_number_are_bounded() -> None:
    model, state = registered(sizes=(3,))
    recorder = moo.Recorder(state, 1)
    for number in range(300):
        gradients = {"de": [np.ones(3)], f"task {number}": [np.ones(3)]}
        train_step(model, state, gradients)
        recorder.step()
    summary = recorder.summary()
    names = {name for pair in summary.whole for name in pair.objectives}
    assert len(names) == 256
    assert {"de", "task 299"} < names
    assert "task 0" not in names


def test_a_state_that_is_restored(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1)
    train_step(model, state, draw(rng, NAMES, SIZES))
    recorder.step()
    saved = state.state_dict()
    for _ in range(2):
        train_step(model, state, draw(rng, NAMES, SIZES))
        recorder.step()
    state.load_state_dict(saved)
    train_step(model, state, draw(rng, NAMES, SIZES))
    recorder.step()
    assert [record.step for record in recorder.history] == [1, 2, 3, 2]
    assert {pair.records for pair in recorder.summary().parts} == {4}


def test_zero_and_nan_gradients_have_no_cosine(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1)
    plain = draw(rng, NAMES, SIZES)
    zero = {**plain, "sw": [np.zeros(30), np.zeros(20)]}
    nan = {**plain, "tr": [np.full(30, np.nan), plain["tr"][1]]}
    for gradients in (plain, zero, nan, plain):
        train_step(model, state, gradients)
        recorder.step()
    _, second, third, _ = recorder.history
    assert second.whole.pairs == 1
    assert second.whole.cosines[1].isnan().all()
    assert [third.whole.status, *(part.status for part in third.parts)] == ["nonfinite", "ok", "nonfinite"]
    assert third.fallbacks == 1
    counts = {pair.objectives: pair.records for pair in recorder.summary().whole}
    assert counts == {("de", "sw"): 3, ("de", "tr"): 3, ("sw", "tr"): 2}


def test_weights_that_a_sketch_keeps_are_not_new_cosines(rng: np.random.Generator) -> None:
    sizes = (400,)
    model, state = registered(sizes, gramian=moo.Sketch(64, refresh_every=3))
    recorder = moo.Recorder(state, 1)
    for _ in range(7):
        train_step(model, state, draw(rng, NAMES, sizes))
        recorder.step()
    assert [record.parts[0].solved_step for record in recorder.history] == [1, 1, 1, 4, 4, 4, 7]
    assert {pair.records for pair in recorder.summary().parts} == {3}
    assert {pair.records for pair in recorder.summary().whole} == {3}


# --- errors ---


@pytest.mark.parametrize(
    ("options", "kind", "patterns"),
    [
        ({"state": 3}, TypeError, ["state must be a BucketMOO", "int"]),
        ({"every": 0}, ValueError, ["every must be from 1", "got 0"]),
        ({"every": 1.5}, TypeError, ["every must be an integer"]),
        ({"keep": 1}, ValueError, ["keep must be from 2"]),
        ({"when_full": "stop"}, ValueError, ["when_full must be 'thin' or 'drop'", "'stop'"]),
        ({"window": 1}, ValueError, ["window must be from 2"]),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], patterns: list[str]) -> None:
    given = {"state": moo.BucketMOO(), **options}
    expect(error_of(lambda: moo.Recorder(**given)), kind, *patterns)


def test_too_early(rng: np.random.Generator) -> None:
    model, state = registered()
    recorder = moo.Recorder(state, 1)
    expect(error_of(recorder.step), RuntimeError, "no bucket was reduced yet")
    expect(error_of(recorder.summary), RuntimeError, "no step was recorded yet")
    expect(error_of(moo.Recorder(None).step), RuntimeError, r"no state.*Recorder\.load")
    gradients = draw(rng, NAMES, SIZES)
    with state.accumulate():
        model(gradients["de"]).backward()
        expect(error_of(recorder.step), RuntimeError, "the step is open")
    model(gradients["de"]).backward()
    record = recorder.step()
    assert record is not None
    assert record.passes == 2
    expect(error_of(lambda: record.whole.cosine("de", "sw")), ValueError, "objective must be one of 0; got 'de'")
    for bad, kind in ((0, ValueError), ("3", TypeError), (True, TypeError), (float("nan"), ValueError)):
        expect(error_of(lambda z=bad: recorder.summary(z=z)), kind, "z must be")  # type: ignore[misc]
    expect(error_of(lambda: recorder.summary(minimum=1)), ValueError, "minimum must be from 2")
