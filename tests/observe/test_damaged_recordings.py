"""Recordings with bytes or values changed at random: read, or refused with the file's name; nothing else."""

import json
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest

from tests.support.errors import Raised, error_of

GOOD = (Path(__file__).parent / "data" / "version_1.jsonl").read_bytes()
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "NaN",
    "x" * 100,
    [],
    {},
    [[]],
    "\ud800",
    [1.0] * 3,
    {"part": 0},
)


def _load(path: Path, content: bytes) -> Raised:
    path.write_bytes(content)

    def read() -> None:
        recorder = moo.Recorder.load(path)
        for record in recorder.history:
            assert str(record.whole.key.title)

    return error_of(read)


def _check(error: Raised, path: Path) -> bool:
    """Whether it was refused."""
    if error[0] is type(None):
        return False
    assert issubclass(error[0], ValueError), error
    assert str(path) in error[1], error
    return True


def test_any_bytes(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    assert not _check(_load(path, GOOD), path)
    refused = 0
    for _ in range(300):
        content = bytearray(GOOD)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        if rng.integers(4) == 0:
            del content[rng.integers(len(content)) :]
        refused += _check(_load(path, bytes(content)), path)
    assert refused > 100


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, of in inside for found in _places(of, (*place, key)))]


def test_any_value_anywhere(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    refused = 0
    for _ in range(300):
        lines = [json.loads(line) for line in GOOD.decode().splitlines()]
        line = lines[rng.integers(len(lines))]
        places = _places(line)[1:]
        *way, last = places[rng.integers(len(places))]
        of: Any = line
        for key in way:
            of = of[key]
        of[last] = VALUES[rng.integers(len(VALUES))]
        content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        refused += _check(_load(path, content), path)
    assert refused > 100


@pytest.mark.parametrize("line", ["[" * 100_000, "1" * 5000, '{"type": ' * 2000, "\x00", "null", "3"])
def test_lines_that_are_hard_to_read(tmp_path: Path, line: str) -> None:
    path = tmp_path / "recording.jsonl"
    assert _check(_load(path, f"{line}\n".encode()), path)
    assert _check(_load(path, GOOD + f"{line}\n".encode()), path)
