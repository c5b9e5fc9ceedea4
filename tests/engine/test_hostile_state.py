"""State dicts that were damaged, or made by somebody else: refused, with what is wrong, and nothing changes."""

import copy
import io
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.errors import error_of, expect

RunRanks = Callable[..., list[Any]]

BUCKET = {"parameters": ["a"], "objectives": ["de", "sw"], "values": [1.0, 0.5, 0.5, 1.0]}


def saved(**changes: Any) -> dict[str, Any]:
    """Of a state that remembers a bucket."""
    whole = moo.BucketMOO(moo.GradVac()).state_dict() | {"step": 3, "buckets": [copy.deepcopy(BUCKET)]}
    return whole | changes


def of_bucket(**changes: Any) -> dict[str, Any]:
    return saved(buckets=[BUCKET | changes])


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (None, TypeError, ["state_dict must be a mapping", "NoneType"]),
        ([1], TypeError, ["state_dict must be a mapping", "list"]),
        ({1: 2}, ValueError, ["lacks buckets, method, seed, step"]),
        (saved(step=2**62), ValueError, ["step", "below 2.*62", "4611686018427387904"]),
        (saved(step=2.0), ValueError, ["step", "2.0"]),
        (saved(step=torch.tensor(3)), ValueError, ["step", "tensor"]),
        (saved(seed=False), ValueError, ["seed False"]),
        (saved(seed=torch.zeros(2)), ValueError, ["seed tensor"]),
        (saved(method=torch.zeros(2)), ValueError, ["method tensor"]),
        (saved(support=0), ValueError, ["support 0"]),
        (saved(buckets={}), ValueError, ["buckets must be a list", "dict"]),
        (saved(buckets=[[]]), ValueError, [r"buckets\[0\] must be a dict"]),
        (saved(buckets=[BUCKET, BUCKET]), ValueError, [r"buckets\[1\]", "in no other bucket"]),
        (of_bucket(parameters=[]), ValueError, ["parameters must be at least one"]),
        (of_bucket(parameters=["\ud800"]), ValueError, ["parameters must be a list of strings of UTF-8"]),
        (of_bucket(objectives=["de", "de"]), ValueError, ["objectives must be distinct"]),
        (of_bucket(objectives=["de", "s\0w"]), ValueError, [r"buckets\[0\]: objectives: .*zero byte"]),
        (of_bucket(objectives=["de", "x" * 64]), ValueError, ["1 to 63 bytes", "64 bytes"]),
        (of_bucket(objectives=["de", ""]), ValueError, ["1 to 63 bytes", "0 bytes"]),
        (of_bucket(objectives=["de", "\ud800"]), ValueError, ["objectives must be a list of strings of UTF-8"]),
        (of_bucket(values=[1.0]), ValueError, ["a list of 4 finite numbers"]),
        (of_bucket(values=[1.0, 0.0, float("nan"), 1.0]), ValueError, ["finite numbers", "nan"]),
        (of_bucket(values=[1.0, 0.0, 10**400, 1.0]), ValueError, ["finite numbers"]),
    ],
)  # fmt: skip
def test_what_is_refused(given: Any, kind: type[BaseException], words: list[str]) -> None:
    state = moo.BucketMOO(moo.GradVac())
    state.load_state_dict(saved())
    expect(error_of(lambda: state.load_state_dict(given)), kind, *words)
    assert state.state_dict() == saved()


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70) | st.binary(max_size=4),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=3), inside, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ("step", "method", "seed", "scope", "support", "buckets", "parameters", "objectives", "values")
)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(st.dictionaries(FIELDS, PLAIN, min_size=1, max_size=2))
def test_any_value_in_any_field(changes: dict[str, Any]) -> None:
    given = saved(**{name: value for name, value in changes.items() if name not in BUCKET})
    if changes.keys() & BUCKET.keys():
        given["buckets"] = [{name: changes.get(name, value) for name, value in BUCKET.items()}]
    state = moo.BucketMOO(moo.GradVac())
    before = state.state_dict()
    kind, text = error_of(lambda: state.load_state_dict(given))
    assert kind in (type(None), ValueError), (kind, text)
    if kind is ValueError:
        assert "state_dict" in text
        assert state.state_dict() == before
    else:
        assert state.step == given["step"]


def _one_that_is_in_use(rank: int, world: int) -> None:
    """The native state refuses the same, and stays as it was."""
    state = moo.BucketMOO(moo.GradVac(), objective=("de", "sw")[rank])
    moo.all_reduce(torch.ones(5) * (1 - 2 * rank), state, bucket="a")
    before = state.state_dict()
    for bad in (of_bucket(objectives=["de", "s\0w"]), saved(step=2**62), saved(buckets=[BUCKET, BUCKET]), None):
        with pytest.raises((ValueError, TypeError), match="state_dict"):
            state.load_state_dict(bad)  # type: ignore[arg-type]
        assert state.state_dict() == before
    state.load_state_dict(saved(step=2**62 - 1))
    moo.all_reduce(torch.ones(5), state, bucket="a")
    assert state.step == 2**62


def test_a_state_in_use(run_ranks: RunRanks) -> None:
    run_ranks(2, _one_that_is_in_use)


def test_weights_only_loads_it() -> None:
    """As SECURITY.md says: no code of a checkpoint's runs."""
    buffer = io.BytesIO()
    torch.save(saved(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded == saved()
    state = moo.BucketMOO(moo.GradVac())
    state.load_state_dict(loaded)
    assert state.state_dict() == saved()
