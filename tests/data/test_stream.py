"""Streams: examples dealt by label, on several ranks, with workers, resumed, over sources that end or are skewed."""

import itertools
import pickle
from typing import Any

import pytest
from bucket_moo_ext.data import ObjectiveBatchSampler, ObjectiveStream
from torch.utils.data import DataLoader

NAMES = ("a", "b", "c")


class Source:
    """A walk through examples, with a set_epoch() as streaming data sets have it."""

    def __init__(self, labels: str) -> None:
        self.labels = labels
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter([{"name": name, "number": (self.epoch, i)} for i, name in enumerate(self.labels)])


def _batches(stream: ObjectiveStream) -> list[list[Any]]:
    examples = list(stream)
    return [examples[at : at + stream.batch_size] for at in range(0, len(examples), stream.batch_size)]


@pytest.mark.parametrize(
    ("world", "passes", "per"), [(1, 1, "rank"), (3, 2, "rank"), (4, 1, "rank"), (2, 3, "pass"), (4, 2, 2)]
)
def test_the_schedule_is_that_of_the_samplers(world: int, passes: int, per: Any) -> None:
    source = Source("abcabcaabbcc" * 40)
    options: dict[str, Any] = {"per": per, "passes": passes, "steps": 6, "world_size": world}
    taken: list[Any] = []
    for rank in range(world):
        stream = ObjectiveStream(source, "name", NAMES, 4, rank=rank, **options)
        sampler = ObjectiveBatchSampler(NAMES * 4, 4, rank=rank, **options)
        batches = _batches(stream)
        assert len(batches) * 4 == len(stream) == 4 * 6 * passes
        for number, batch in enumerate(batches):
            assert {example["name"] for example in batch} == {sampler.objective(number // passes, number % passes)}
        taken += [example["number"] for batch in batches for example in batch]
    assert len(set(taken)) == len(taken)  # no two ranks have the same one
    assert not any(stream.skipped.values())
    for name in NAMES:  # in the order of the source, none left out
        places = sorted(i for _, i in taken if source.labels[i] == name)
        assert places == [i for i, label in enumerate(source.labels) if label == name][: len(places)]


def test_a_source_that_ends_is_read_again() -> None:
    stream = ObjectiveStream(Source("aabbbb"), "name", ("a", "b"), 2, 4, buffer_size=4)
    batches = _batches(stream)
    assert [example["number"] for example in batches[0] + batches[2]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    stream.set_epoch(5)
    assert next(iter(stream))["number"] == (5, 0)


def test_a_source_with_fewer_examples_than_a_batch_is_warned_of_once() -> None:
    stream = ObjectiveStream(Source("aaab"), "name", ("a", "b"), 2, 8)
    with pytest.warns(UserWarning, match="'b' has 1, batch_size is 2") as caught:
        _batches(stream)
    _batches(stream)  # a warning would be an error
    assert len(caught) == 1
    _batches(ObjectiveStream(Source("aaab"), "name", ("a", "b"), 2, 8, rank=1, world_size=2))  # rank 0 says it


@pytest.mark.filterwarnings("ignore:bucket_moo_ext. an objective has fewer examples than a batch")
def test_what_a_source_has_too_much_of() -> None:
    source = Source("a" * 30 + "b")
    stream = ObjectiveStream(source, "name", ("a", "b"), 2, 4, buffer_size=3)
    assert [batch[0]["name"] for batch in _batches(stream)] == ["a", "b", "a", "b"]
    assert stream.skipped["a"] > 30
    assert stream.skipped["b"] == 0
    with pytest.raises(RuntimeError, match="3 examples of 'a' wait"):
        list(ObjectiveStream(source, "name", ("a", "b"), 2, 4, buffer_size=3, surplus="error"))
    shares = {"a": 3, "b": 1}
    assert [b[0]["name"] for b in _batches(ObjectiveStream(source, "name", ("a", "b"), 2, 4, shares=shares))].count(
        "a"
    ) == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_with_a_data_loader(workers: int) -> None:
    stream = ObjectiveStream(Source("abcc" * 30), "name", NAMES, 4, 7)
    expected = [[example["number"] for example in batch] for batch in _batches(stream)]
    loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=list)
    assert [[example["number"] for example in batch] for batch in loader] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming(workers: int) -> None:
    def new() -> ObjectiveStream:
        return ObjectiveStream(Source("abcc" * 30), "name", NAMES, 4, 7, rank=1, world_size=2)

    stream = new()
    stream.set_epoch(2)
    whole = list(DataLoader(stream, batch_size=4, collate_fn=list))
    fresh = new()
    fresh.load_state_dict(stream.state_dict(3))
    fresh.set_epoch(2)
    rest = DataLoader(fresh, batch_size=4, num_workers=workers, collate_fn=list)
    assert list(rest) == whole[3:]
    with pytest.raises(ValueError, match="position"):
        stream.state_dict(8)
    with pytest.raises(ValueError, match="epoch and position"):
        stream.load_state_dict({})


def _words(value: object) -> str:
    """What a case is known by: the same in every process."""
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"source": iter([])}, TypeError, "can be iterated anew"),
        ({"source": 3}, TypeError, "can be iterated anew"),
        ({"label": 3}, TypeError, "label must be a key or a function"),
        ({"objectives": ()}, ValueError, "distinct labels"),
        ({"objectives": "ab"}, ValueError, "distinct labels"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"steps": None}, TypeError, "steps"),
        ({"buffer_size": 1}, ValueError, "buffer_size must be from 2"),
        ({"surplus": "drop"}, ValueError, "surplus must be 'skip' or 'error'"),
        ({"shares": "proportional"}, ValueError, "which a stream does not have"),
        ({"per": 2.5}, TypeError, "per must be"),
        ({"per": 2, "world_size": 3}, ValueError, "must divide world_size, 3 here; got 2"),
    ],
    ids=_words,
)
def test_bad_arguments(options: Any, kind: type[Exception], words: str) -> None:
    given = {"source": Source("ab"), "label": "name", "objectives": ("a", "b"), "batch_size": 2, "steps": 3, **options}
    with pytest.raises(kind, match=words):
        ObjectiveStream(**given)


class Shards(Source):
    """As Hugging Face's streaming data sets, which divide shards among workers."""

    num_shards = 2


def test_a_source_that_divides_itself() -> None:
    stream = ObjectiveStream(Shards("ab" * 20), "name", ("a", "b"), 2, 3)
    loader = DataLoader(stream, batch_size=2, num_workers=2, collate_fn=list)
    with pytest.raises(RuntimeError, match="divides its shards"):
        list(loader)
    assert len(list(DataLoader(stream, batch_size=2, num_workers=1, collate_fn=list))) == 3
    source = Source("ab")
    source._distributed = object()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="split_dataset_by_node"):
        ObjectiveStream(source, "name", ("a", "b"), 1, 1)
    assert pickle.loads(pickle.dumps(stream)).objectives == ("a", "b")


def test_bad_sources() -> None:
    with pytest.raises(ValueError, match="an example is labelled 'c'"):
        list(ObjectiveStream(Source("abc"), "name", ("a", "b"), 1, 3))
    for labels in ("aa", ""):
        with pytest.raises(ValueError, match="no example of"):
            list(ObjectiveStream(Source(labels), lambda example: example["name"], ("a", "b"), 1, 3))
    stream = ObjectiveStream([1, 2, 3, 4], lambda x: x % 2, (0, 1), 1, 2)
    assert list(itertools.islice(stream, 2)) == [2, 1]
