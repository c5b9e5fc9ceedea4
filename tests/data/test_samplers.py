"""Samplers over labels: schedules, orders of examples, several ranks, resuming, DataLoaders, what is refused."""

import collections
import functools
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from bucket_moo_ext.data import ObjectiveBatchSampler, ObjectiveSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.support.errors import error_of, expect

LABELS = ["de"] * 50 + ["sw"] * 9 + ["tr"] * 20 + ["de"] * 13


def _all_ranks(labels: Sequence[Hashable], batch_size: int, world: int, **options: Any) -> list[ObjectiveBatchSampler]:
    return [ObjectiveBatchSampler(labels, batch_size, rank=r, world_size=world, **options) for r in range(world)]


def _label_of(batch: list[int], labels: Sequence[Hashable] = LABELS) -> Hashable:
    """The one label of a batch."""
    (label,) = {labels[index] for index in batch}
    return label


@pytest.mark.parametrize(
    ("world", "passes", "per"), [(1, 1, "rank"), (1, 3, "pass"), (3, 1, "rank"), (4, 3, "pass"), (5, 3, "rank")]
)
def test_batches_have_one_objective_in_turn(world: int, passes: int, per: str) -> None:
    """Round robin: turns 0, 1, 2, 0, ... over passes and ranks, or over passes, where there is room for all."""
    ranks = _all_ranks(LABELS, 4, world, passes=passes, per=per, steps=7)
    batches = [list(sampler) for sampler in ranks]
    turns = itertools.cycle(["de", "sw", "tr"])
    for number in range(7 * passes):
        expected = [next(turns)] * world if per == "pass" else list(itertools.islice(turns, world))
        for rank, (sampler, name) in enumerate(zip(ranks, expected, strict=True)):
            assert len(batches[rank][number]) == 4
            assert _label_of(batches[rank][number]) == name
            assert {s.objective(number // passes, number % passes, rank) for s in ranks} == {name}
            assert len(sampler) == len(batches[rank]) == 7 * passes


@pytest.mark.parametrize(("world", "per"), [(6, 2), (6, 3), (4, 4), (4, 1), (np.int64(8), np.int64(4))])
def test_neighbouring_ranks_share_an_objective(world: int, per: int) -> None:
    """A node's ranks go as one rank of a smaller world, and no two of them have the same examples."""
    ranks = _all_ranks(LABELS, 2, world, passes=2, per=per, steps=9)
    smaller = _all_ranks(LABELS, 2, world // per, passes=2, steps=9)
    batches = [list(sampler) for sampler in ranks]
    for number in range(18):
        for rank in range(world):
            name = smaller[rank // per].objective(number // 2, number % 2)
            assert _label_of(batches[rank][number]) == name
            assert ranks[0].objective(number // 2, number % 2, rank) == name
    drawn = collections.Counter(index for of_rank in batches for batch in of_rank for index in batch)
    for name in ("de", "sw", "tr"):
        times = [drawn[index] for index, label in enumerate(LABELS) if label == name]
        assert max(times) - min(times) <= 1
    flat = list(ObjectiveSampler(LABELS, 2, world_size=world, passes=2, per=per, steps=9))
    assert flat == [index for step in zip(*batches, strict=True) for batch in step for index in batch]


def test_one_and_all_neighbours_are_the_words() -> None:
    for word, per in (("rank", 1), ("pass", 4)):
        for sampler, same in zip(
            _all_ranks(LABELS, 2, 4, passes=3, per=word), _all_ranks(LABELS, 2, 4, passes=3, per=per), strict=True
        ):
            assert list(sampler) == list(same)


def test_a_corpus_smaller_than_a_batch_is_warned_of_once() -> None:
    with pytest.warns(UserWarning, match="'sw' has 9, batch_size is 10") as caught:
        sampler = ObjectiveBatchSampler(LABELS, 10, passes=3)
    list(sampler)  # a warning would be an error
    (warning,) = caught
    assert "'tr'" not in str(warning.message)
    assert warning.filename == __file__
    ObjectiveBatchSampler(LABELS, 9)  # as many as a batch
    ObjectiveBatchSampler(LABELS, 10, passes=3, rank=1, world_size=2)  # rank 0 says it


def test_where_there_is_room_for_some_all_pairs_meet() -> None:
    """Each round is of all objectives; no two of them are kept apart."""
    names = [f"o{i}" for i in range(6)]
    ranks = _all_ranks(names, 1, 2, steps=300)
    turns = [sampler.objective(step) for step in range(300) for sampler in ranks]
    assert all(set(turns[at : at + 6]) == set(names) for at in range(0, 600, 6))
    assert {frozenset(turns[at : at + 2]) for at in range(0, 600, 2)} == set(
        map(frozenset, itertools.combinations(names, 2))
    )


def test_every_objective_is_in_every_step_where_there_is_room() -> None:
    for world, passes in ((3, 1), (4, 1), (2, 2), (1, 5)):
        ranks = _all_ranks(LABELS, 2, world, passes=passes, steps=11)
        for step in range(11):
            met = {s.objective(step, p) for s in ranks for p in range(passes)}
            assert met == {"de", "sw", "tr"}


def test_examples_are_taken_without_replacement_over_epochs_and_ranks() -> None:
    """Every objective's draws, on all ranks and over epochs, are whole walks through its examples and a begun one."""
    ranks = _all_ranks(LABELS, 4, 3, passes=2)
    drawn: dict[Hashable, list[int]] = collections.defaultdict(list)
    for epoch in range(9):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        for batches in zip(*ranks, strict=True):  # passes, in the order of the ranks
            for batch in batches:
                drawn[_label_of(batch)] += batch
    for name, size in collections.Counter(LABELS).items():
        walks = [drawn[name][at : at + size] for at in range(0, len(drawn[name]), size)]
        assert len(walks) > 2
        assert all(len(set(walk)) == len(walk) for walk in walks)
        assert walks[0] != walks[1]
        counts = collections.Counter(drawn[name]).values()
        assert max(counts) - min(counts) <= 1


@pytest.mark.filterwarnings("ignore:bucket_moo_ext. an objective has fewer examples than a batch")
def test_a_corpus_smaller_than_a_batch_gives_whole_batches() -> None:
    sampler = ObjectiveBatchSampler(["a"] * 3 + ["b"] * 40, 8, steps=6)
    for batch in sampler:
        assert len(batch) == 8
        if _label_of(batch, ["a"] * 3 + ["b"] * 40) == "a":
            counts = collections.Counter(batch).values()
            assert len(counts) == 3
            assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        ("proportional", (63.0, 9.0, 20.0)),
        (1, (63.0, 9.0, 20.0)),
        (5.0, (63**0.2, 9**0.2, 20**0.2)),
        ({"tr": 6, "de": 1.5, "sw": 0.5}, (1.5, 0.5, 6.0)),
        ("round_robin", (1.0, 1.0, 1.0)),
    ],
    ids=str,
)
def test_shares(shares: Any, weights: tuple[float, ...]) -> None:
    """The counts of an epoch and of its first half are the shares to within a turn or two."""
    steps = 400
    sampler = ObjectiveBatchSampler(LABELS, 1, shares=shares, steps=steps, world_size=1)
    turns = [sampler.objective(step) for step in range(steps)]
    for n in (steps, steps // 2, 37):
        for name, weight in zip(("de", "sw", "tr"), weights, strict=True):
            assert abs(turns[:n].count(name) - n * weight / sum(weights)) <= 1.5


@given(
    weights=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=12),
    world=st.integers(1, 5),
    passes=st.integers(1, 4),
    steps=st.integers(1, 60),
    per=st.sampled_from(["rank", "pass"]),
)
@settings(max_examples=60, deadline=None)
def test_schedules_keep_to_their_shares(weights: list[float], world: int, passes: int, steps: int, per: str) -> None:
    names = [f"o{i}" for i in range(len(weights))]
    turns = steps * passes * (world if per == "rank" else 1)
    shares = dict(zip(names, weights, strict=True))
    new = functools.partial(
        ObjectiveSampler, names, 1, per=per, passes=passes, steps=steps, world_size=world, shares=shares
    )
    refused = error_of(new)
    if refused[0] is not type(None):
        expect(refused, ValueError, "would have none of the")
        assert min(weights) / sum(weights) * turns < 1 + len(names) / 2
        return
    sampler = new()
    counts = collections.Counter(
        sampler.objective(s, p, r) for s in range(steps) for p in range(passes) for r in range(world)
    )
    each = 1 if per == "rank" else world
    for name, weight in zip(names, weights, strict=True):
        assert abs(counts[name] / each - turns * weight / sum(weights)) <= 1 + len(names) / 2


@pytest.mark.parametrize("per", ["rank", "pass"])
def test_the_flat_order_is_dealt_to_the_same_batches(per: str) -> None:
    options: dict[str, Any] = {"per": per, "passes": 2, "seed": 7, "shares": "proportional"}
    ranks = [list(sampler) for sampler in _all_ranks(LABELS, 3, 4, **options)]
    flat = list(ObjectiveSampler(LABELS, 3, world_size=4, **options))
    assert len(flat) == len(ObjectiveSampler(LABELS, 3, world_size=4, **options)) == 4 * 3 * len(ranks[0])
    for i, batch in enumerate(flat[at : at + 3] for at in range(0, len(flat), 3)):
        assert batch == ranks[i % 4][i // 4]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def epoch(number: int, seed: int) -> list[list[int]]:
        sampler = ObjectiveBatchSampler(LABELS, 4, seed=seed)
        sampler.set_epoch(number)
        torch.rand(3)  # the process's own generator does not count
        return list(sampler)

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(2, 0)
    assert epoch(1, 0) != epoch(1, 1)
    sampler = ObjectiveBatchSampler(LABELS, 4)
    assert list(sampler) == list(sampler) == epoch(0, 0)


def test_resuming_in_the_midst_of_an_epoch() -> None:
    sampler = ObjectiveBatchSampler(LABELS, 4, passes=2, rank=1, world_size=2)
    sampler.set_epoch(3)
    whole = list(sampler)
    batches = iter(sampler)
    begun = [next(batches) for _ in range(5)]
    saved = sampler.state_dict()
    assert saved == sampler.state_dict(5)
    fresh = ObjectiveBatchSampler(LABELS, 4, passes=2, rank=1, world_size=2)
    fresh.load_state_dict(saved)
    fresh.set_epoch(3)  # as a training loop says it again
    assert begun + list(fresh) == whole
    assert list(fresh) == whole  # once more from its beginning
    fresh.load_state_dict(saved)
    fresh.set_epoch(4)
    assert len(list(fresh)) == len(whole)
    with pytest.raises(ValueError, match=r"batch_size 4; this one has 5"):
        ObjectiveBatchSampler(LABELS, 5).load_state_dict({**saved, "passes": len(ObjectiveBatchSampler(LABELS, 5))})
    with pytest.raises(ValueError, match="passes"):
        ObjectiveBatchSampler(LABELS, 4).load_state_dict(saved)
    with pytest.raises(ValueError, match="a sampler's state has"):
        fresh.load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match="position"):
        fresh.state_dict(10_000)


@pytest.mark.parametrize("workers", [0, 2])
def test_with_a_data_loader(workers: int) -> None:
    data = [(index, label) for index, label in enumerate(LABELS)]
    sampler = ObjectiveBatchSampler(LABELS, 4, seed=1)
    loader: Any = DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected = list(sampler)
        got = list(loader)
        assert [index.tolist() for index, _ in got] == expected
        assert all(len(set(labels)) == 1 for _, labels in got)
    del loader


@pytest.mark.parametrize(
    "labels",
    [np.array([3, 1, 1, 3]), torch.tensor([3, 1, 1, 3]), [3, 1, 1, 3], [np.int64(3), 1, 1, 3]],
    ids=["array", "tensor", "list", "numbers"],
)
def test_labels_of_any_kind(labels: Any) -> None:
    sampler = ObjectiveBatchSampler(labels, 2, steps=2)
    assert sampler.objectives == (1, 3)
    assert [sorted(batch) for batch in sampler] == [[1, 2], [0, 3]]
    assert ObjectiveBatchSampler(labels, 2, objectives=[3, 1]).objective(0) == 3


def _words(value: object) -> str:
    """What a case is known by: the same in every process."""
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (((), 2), ValueError, "labels is empty"),
        (("abc", 2), TypeError, "labels must be a sequence"),
        ((iter(LABELS), 2), TypeError, "labels must be a sequence"),
        ((["a", 1.5], 2), TypeError, r"labels\[1\] is float"),
        ((["a", True], 2), TypeError, r"labels\[1\] is bool"),
        ((LABELS, 0), ValueError, "batch_size must be from 1"),
        ((LABELS, 2.0), TypeError, "batch_size must be an integer"),
        ((LABELS, 2, {"passes": 0}), ValueError, "passes must be from 1"),
        ((LABELS, 2, {"per": "ranks"}), ValueError, "per must be 'rank' or 'pass'"),
        ((LABELS, 2, {"per": True}), TypeError, "per must be 'rank' or 'pass' or a number of ranks"),
        ((LABELS, 2, {"per": 4, "world_size": 6}), ValueError, "must divide world_size, 6 here; got 4"),
        ((LABELS, 2, {"per": 0}), ValueError, "must divide world_size, 1 here; got 0"),
        ((LABELS, 2, {"per": -1}), ValueError, "must divide world_size, 1 here; got -1"),
        ((LABELS, 2, {"steps": 0}), ValueError, "steps must be from 1"),
        ((LABELS, 2, {"rank": 2, "world_size": 2}), ValueError, "rank must be from 0 to 1"),
        ((LABELS, 2, {"seed": -1}), ValueError, "seed"),
        ((LABELS, 2, {"objectives": ["de", "sw"]}), ValueError, "labelled .'tr'., which is none of"),
        ((LABELS, 2, {"objectives": ["de", "sw", "tr", "xx"]}), ValueError, "no example of .'xx'."),
        ((LABELS, 2, {"objectives": ["de", "de"]}), ValueError, "distinct labels"),
        ((LABELS, 2, {"shares": "equal"}), TypeError, "shares must be"),
        ((LABELS, 2, {"shares": 0}), ValueError, "shares as a temperature must be a finite number > 0"),
        ((LABELS, 2, {"shares": {"de": 1}}), ValueError, "no share for .'sw', 'tr'."),
        ((LABELS, 2, {"shares": {"de": 1, "sw": 1, "tr": 1, "x": 1}}), ValueError, "also names .'x'."),
        (
            (LABELS, 2, {"shares": {"de": 1, "sw": 0, "tr": 1}}),
            ValueError,
            r"shares\['sw'\] must be a finite number > 0",
        ),
        ((LABELS, 2, {"shares": {"de": 1, "sw": 1e-9, "tr": 1}}), ValueError, "objective 'sw' would have none of the"),
        ((LABELS, 2, {"steps": 2}), ValueError, "objective 'tr' would have none of the 2 batches"),
    ],
    ids=_words,
)
def test_bad_arguments(arguments: Any, kind: type[Exception], words: str) -> None:
    *positional, options = arguments if len(arguments) == 3 else (*arguments, {})
    for sampler in (ObjectiveBatchSampler, ObjectiveSampler):
        with pytest.raises(kind, match=words):
            sampler(*positional, **{"rank": 0, "world_size": 1, **options})


def test_bad_questions() -> None:
    sampler = ObjectiveBatchSampler(LABELS, 2, steps=5, passes=2)
    for arguments, words in (((5,), "step"), ((0, 2), "pass_"), ((0, 0, 1), "rank")):
        with pytest.raises(ValueError, match=words):
            sampler.objective(*arguments)
    with pytest.raises(ValueError, match="epoch"):
        sampler.set_epoch(-1)
