"""The program over plain sockets of examples/cpp/sockets, built against the installed libraries."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.embedding.installation import EMBEDDING, PREFIX, ROOT, Installation, run
from tests.embedding.small_network import assert_trained_like_ddp

pytestmark = [pytest.mark.build, pytest.mark.timeout(300)]

FOREVER = "1000000000"  # steps
(LOSSES,) = re.findall(r"^```text\n(losses at first[^`]*)^```$", EMBEDDING, re.MULTILINE)
(COMMANDS,) = re.findall(r"^```sh\n(cmake -S examples/cpp/sockets [^`]*)^```$", EMBEDDING, re.MULTILINE)


@pytest.fixture(scope="module")
def program(static: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As docs/embedding.md builds it."""
    build = tmp_path_factory.mktemp("sockets")
    command = COMMANDS.splitlines()[0]
    assert command.count(PREFIX) == 1
    command = command.replace(PREFIX, str(static.prefix)).replace("build/sockets", str(build))
    run("bash", "-ec", command, folder=ROOT)
    return build / "train"


Ranks = list[subprocess.Popen[str]]


def _line(of: IO[str] | None) -> str:
    assert of is not None
    return of.readline()


@contextmanager
def _ranks(program: Path, world: int, *arguments: str | Path, started: int | None = None) -> Iterator[Ranks]:
    """The processes of the first ranks, all unless `started` says otherwise; none outlives the block."""
    ranks: Ranks = []
    address = "127.0.0.1:0"
    try:
        for rank in range(world if started is None else started):
            command = [str(part) for part in (program, rank, world, address, *arguments)]
            ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            if rank == 0:
                line = _line(ranks[0].stderr)
                assert line.startswith("rank 0 at "), line
                address = line.removeprefix("rank 0 at ").strip()
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("world", [1, 3, 4])
def test_the_program_trains_like_ddp(world: int, program: Path, tmp_path: Path) -> None:
    out = tmp_path / "parameters"
    with _ranks(program, world, out) as ranks:
        ends = [process.communicate(timeout=60) for process in ranks]
        assert [process.returncode for process in ranks] == [0] * world, ends
    assert_trained_like_ddp(ends[0][0], out, world)


def test_the_documented_output(program: Path) -> None:
    """That of the other network's section: the transport makes no difference."""
    with _ranks(program, 4) as ranks:
        assert ranks[0].communicate(timeout=60)[0] == LOSSES


def test_messages_larger_than_the_buffers_of_sockets(static: Installation, tmp_path: Path) -> None:
    flags = static.package_config("bucket_moo", "--cflags")
    source = ROOT / "tests" / "embedding" / "socket_exchanges.cpp"
    program = tmp_path / "exchanges"
    compiler = shutil.which("c++") or "g++"
    run(compiler, "-std=c++20", "-O1", "-pthread", *flags, "-I", ROOT / "examples/cpp/sockets", source, "-o", program)
    assert run(program) == "all arrived\n"


@pytest.mark.parametrize("world", [2, 3])
def test_a_killed_peer_makes_the_others_fail(world: int, program: Path) -> None:
    with _ranks(program, world, "", FOREVER) as ranks:
        assert _line(ranks[0].stdout).startswith("losses at first")
        assert _line(ranks[0].stdout).startswith("weights of the first step")
        ranks[1].kill()
        said = [process.communicate(timeout=30)[1] for process in ranks]
        assert [process.returncode for process in ranks if process is not ranks[1]] == [1] * (world - 1)
    named = [re.findall(r"rank \d: rank (\d) closed the connection", text) for text in said]
    assert all(len(found) == 1 for rank, found in enumerate(named) if rank != 1), said
    assert ["1"] in (named[0], named[-1])  # who hears of it first; others may hear it from that one


def test_a_peer_that_stands_still_is_named_after_the_timeout(program: Path) -> None:
    with _ranks(program, 2, "", FOREVER, "2") as ranks:
        assert _line(ranks[0].stdout).startswith("losses at first")
        assert _line(ranks[0].stdout).startswith("weights of the first step")
        ranks[1].send_signal(signal.SIGSTOP)
        assert "rank 0: waited 2000 ms for rank 1\n" in ranks[0].communicate(timeout=30)[1]
        assert ranks[0].returncode == 1


def test_a_rank_that_does_not_come_is_named(program: Path) -> None:
    with _ranks(program, 3, "", "60", "2", started=2) as ranks:
        first, second = (process.communicate(timeout=30)[1] for process in ranks)
        assert "rank 0: waited 2000 ms for rank 2\n" in first
        assert "rank 1: rank 0 did not say where the other ranks are" in second
        assert [process.returncode for process in ranks] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("3", "3", "127.0.0.1:0"), "rank must be in 0..2; got 3"),
        (("0", "2", "127.0.0.1"), "address must be host:port, with a host that has an IPv4 address; got 127.0.0.1"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], error: str, program: Path) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, error + "\n")
