"""Peers that send what is no message of this version: refused on the ranks that get it, and no process ends."""

import re
import struct
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from bucket_moo_ext import _C
from bucket_moo_ext.process_group import private_group

from tests.support.errors import Raised, error_of

pytestmark = pytest.mark.host

RunRanks = Callable[..., list[Any]]

MARK = 0x4D6F4F31
TIMEOUT = timedelta(seconds=20)
RECORD = struct.Struct("<64s d q q i i Q i i d i 4x")  # StepRecord


def record(**changes: Any) -> bytes:
    """That of an honest rank for ``all_reduce`` of 10 float32."""
    fields = {
        "objective": b"1", "weight": 1.0, "step": 1, "numel": 10, "dtype": 0, "operation": 1, "bucket": 0, "pass": 0,
        "leaves_open": 0, "total": 0.0, "told": 0,
    }  # fmt: skip
    return RECORD.pack(*(fields | changes).values())


class Impostor:
    """A rank that talks to rank 0 by hand: message after message, each under the tag of an exchange of all ranks."""

    def __init__(self) -> None:
        group = private_group(dist.distributed_c10d._get_default_group())
        assert group is not None
        self._group, self._exchanges = group, 0

    def exchange(self, message: bytes, size: int) -> bytes:
        """Sends ours and returns theirs, of ``size`` bytes."""
        self._exchanges += 1
        tag = 8 * self._exchanges
        theirs = torch.zeros(size, dtype=torch.uint8)
        works = [self._group.recv([theirs], 0, tag)]
        works.append(self._group.send([torch.frombuffer(bytearray(message), dtype=torch.uint8)], 0, tag))
        for work in works:
            work.wait()
        return theirs.numpy().tobytes()


def _peer(rank: int, world: int, messages: list[bytes]) -> Raised:
    if rank == 0:
        state = moo.BucketMOO("mean")
        error = error_of(lambda: moo.all_reduce(torch.ones(10), state))
        assert error_of(lambda: moo.all_reduce(torch.ones(10), state))[0] is error[0], "for good"
        return error
    impostor = Impostor()
    error_of(lambda: [impostor.exchange(message, 8) for message in messages])  # a length is what it gets
    return type(None), ""


def _length(number: int) -> bytes:
    return struct.pack("<q", number)


@pytest.mark.parametrize(
    "message",
    [
        _length(37),  # an older version's
        _length(-1),
        _length(2**62),
        _length((MARK << 32) - 1),
        _length((MARK << 32) + 2**21),  # longer than any
        b"GET / HT",
    ],
    ids=repr,
)
def test_what_is_no_configuration(run_ranks: RunRanks, message: bytes) -> None:
    (kind, text), _ = run_ranks(2, _peer, [message], timeout=90.0, group_timeout=TIMEOUT)
    assert kind is ValueError
    assert re.search(r"what rank 1 sent is no configuration .* same build", text)


def _sends_a_record(rank: int, world: int, sent: bytes) -> Raised:
    if rank == 0:
        state = moo.BucketMOO("mean")
        error = error_of(lambda: moo.all_reduce(torch.ones(10), state))
        error_of(lambda: moo.all_reduce(torch.ones(10), state))
        return error
    impostor = Impostor()
    own = _configuration_of(moo.BucketMOO("mean"))
    configuration = "".join(f"{name}\x1f{value}\x1e" for name, value in own).encode()
    (theirs,) = struct.unpack("<q", impostor.exchange(_length((MARK << 32) + len(configuration)), 8))
    assert theirs == (MARK << 32) + len(configuration)
    assert impostor.exchange(configuration, len(configuration)) == configuration
    return type(None), impostor.exchange(sent, RECORD.size).hex()


def _configuration_of(state: moo.BucketMOO) -> list[tuple[str, str]]:
    """What the state's engine would compare."""
    given: list[list[tuple[str, str]]] = []
    engine = _C.Engine
    with pytest.MonkeyPatch.context() as patch:

        def note(*arguments: Any) -> Any:
            given.append(arguments[-1])
            return engine(None, *arguments[1:])

        patch.setattr("bucket_moo_ext.state.private_group", lambda parent: None)
        patch.setattr("bucket_moo_ext.state._C.Engine", note)
        state._make_engine(torch.device("cpu"))
    return given[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": b"x" * 64},  # no zero byte at its end
        {"weight": float("nan")},
        {"weight": -1.0},
        {"numel": -1},
        {"dtype": 9},
        {"operation": 77},
        {"pass": -3},
        {"leaves_open": 2},
        {"told": -1},
    ],
    ids=repr,
)
def test_what_is_no_record(run_ranks: RunRanks, changes: dict[str, Any]) -> None:
    (kind, text), _ = run_ranks(2, _sends_a_record, record(**changes), timeout=90.0, group_timeout=TIMEOUT)
    assert kind is ValueError
    assert re.search(r"what rank 1 sent is no record of a step .* same build", text)


def test_an_honest_record_is_understood(run_ranks: RunRanks) -> None:
    """The impostor speaks our language: with the record of an honest rank it goes wrong only behind that."""
    _, (_, sent) = run_ranks(2, _sends_a_record, record(), timeout=90.0, group_timeout=TIMEOUT)
    of_rank_0 = bytes.fromhex(sent)
    bucket = RECORD.unpack(of_rank_0)[6]
    assert of_rank_0[: RECORD.size - 4] == record(objective=b"0", bucket=bucket)[: RECORD.size - 4]  # but for padding
    (kind, text), _ = run_ranks(2, _sends_a_record, record(bucket=bucket), timeout=90.0, group_timeout=TIMEOUT)
    assert kind is dist.DistBackendError, text
    assert "receiving from rank 1 failed" in text


def test_a_message_that_is_too_short(run_ranks: RunRanks) -> None:
    """Gloo takes it; what is in its place is no configuration."""
    (kind, text), _ = run_ranks(2, _peer, [b"abc"], timeout=90.0, group_timeout=TIMEOUT)
    assert kind is ValueError
    assert "no configuration" in text


def test_a_message_that_is_too_long(run_ranks: RunRanks) -> None:
    """Gloo refuses it on a thread of its own, which ends the process: docs/reliability.md says so."""
    of_rank_0, _ = run_ranks(2, _peer, [b"x" * 20], timeout=90.0, group_timeout=TIMEOUT, may_die=(0, 1))
    assert of_rank_0 is None or of_rank_0[0] is dist.DistBackendError
