"""The program over TCP of examples/cpp/sockets, built against the installed libraries, beside the Python package."""

import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.embedding.installation import EMBEDDING, PREFIX, ROOT, Installation, run
from tests.embedding.training import assert_trained_like_ddp

pytestmark = pytest.mark.build

(COMMANDS,) = re.findall(r"^(cmake -S examples/cpp/sockets .*)\n(for rank in .*)$", EMBEDDING, re.MULTILINE)


@pytest.fixture(scope="module")
def program(static: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As docs/embedding.md builds it."""
    build = tmp_path_factory.mktemp("sockets")
    command = COMMANDS[0]
    assert command.count(PREFIX) == 1
    run("bash", "-ec", command.replace(PREFIX, str(static.prefix)).replace("build/sockets", str(build)), folder=ROOT)
    return build / "train"


def _start(program: Path, *arguments: str | int | Path, timeout: int = 60) -> "subprocess.Popen[str]":
    """RANK, SIZE, HOST:PORT and perhaps a file."""
    command = [str(argument) for argument in (program, *arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={"TIMEOUT": str(timeout)})


@contextmanager
def _first(program: Path, size: int, *more: Path, timeout: int = 60) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Rank 0, and where it listens: at a free port."""
    process = _start(program, 0, size, "127.0.0.1:0", *more, timeout=timeout)
    try:
        assert process.stderr is not None
        yield process, process.stderr.readline().removeprefix("listening at ").strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("world", [1, 3, 4])
def test_the_program_trains_like_ddp(world: int, program: Path, tmp_path: Path) -> None:
    out = tmp_path / "parameters"
    with _first(program, world, out) as (first, address):
        ranks = [first, *(_start(program, rank, world, address) for rank in range(1, world))]
        printed = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, printed
    assert printed[1:] == [("", "")] * (world - 1)
    assert_trained_like_ddp(world, printed[0][0], out)


def test_the_documented_commands(program: Path) -> None:
    (documented,) = re.findall(r"^```text\n(losses at first[^`]*)^```$", EMBEDDING, re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = COMMANDS[1].replace("build/sockets/train", str(program)).replace("29555", str(port))
    assert run("bash", "-ec", command) == documented


def _hello(size: int, rank: int, sequence: int) -> bytes:
    """What a rank says first on a connection."""
    return struct.pack("<8siiiI", b"BMSOCKT1", size, rank, sequence, 0)


def _join(address: str) -> list[socket.socket]:
    """The connections of rank 1 of 2, which has joined the group."""
    host, port = address.split(":")
    main = socket.create_connection((host, int(port)))
    main.sendall(_hello(2, 1, 0))
    assert len(main.recv(32, socket.MSG_WAITALL)) == 32  # two addresses
    ahead = socket.create_connection((host, int(port)))
    ahead.sendall(_hello(2, 1, 1))
    return [main, ahead]


def test_a_peer_that_goes_away_is_named(program: Path) -> None:
    with _first(program, 2) as (first, address):
        for connection in _join(address):
            connection.close()
        error = first.communicate(timeout=30)[1]
    assert first.returncode == 1
    assert re.search(r"rank 1( has closed the connection|: Connection reset by peer|: Broken pipe)", error), error


def test_a_peer_that_says_nothing_is_named(program: Path) -> None:
    with _first(program, 2, timeout=1) as (first, address):
        connections = _join(address)
        error = first.communicate(timeout=30)[1]
        for connection in connections:
            connection.close()
    assert first.returncode == 1
    assert "nothing came from or went to rank 1 for 1 s" in error


def test_a_rank_that_does_not_come(program: Path) -> None:
    with _first(program, 2, timeout=1) as (first, _):
        assert "not all ranks have come in time" in first.communicate(timeout=30)[1]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "somebody else has connected"),
        (_hello(3, 1, 0), "rank 1 is of a group of 3, not of 2"),
        (_hello(2, 0, 0), "rank 0 has come twice, or is none of the group"),
        (_hello(2, 7, 0), "rank 7 has come twice, or is none of the group"),
    ],
)
def test_what_is_no_rank_of_the_group_is_refused(program: Path, said: bytes, error: str) -> None:
    with _first(program, 2) as (first, address):
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(said)
            assert error in first.communicate(timeout=30)[1]
    assert first.returncode == 1


@pytest.mark.parametrize(
    ("rank", "address", "error"),
    [
        (2, "127.0.0.1:0", r"rank must be in \[0, 2\); got 2"),
        (0, "nowhere", r"the address must be HOST:PORT, with a host that has an IPv4 address; got nowhere"),
        (1, "127.0.0.1:1", r"cannot connect to rank 0: Connection refused"),
    ],
)
def test_wrong_arguments(program: Path, rank: int, address: str, error: str) -> None:
    process = _start(program, rank, 2, address, timeout=1)
    assert re.search(error, process.communicate(timeout=30)[1])
    assert process.returncode == 1
