"""Starts the ranks of a round, and sees what becomes of them."""

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_campaign.rank import IsRank, Rank, Round

START_SECONDS = 60.0
"""Until a job without a fault has ended, on a busy machine."""
END_SECONDS = 15.0
"""Until a process has ended that has said its last word. One that waits for a processor gets more."""
MOST_SECONDS = 20 * END_SECONDS
PAUSE_SECONDS = 0.5


@dataclass
class RankOutcome:
    """What became of a rank.

    Attributes:
        events: As the rank told them, each with ``time`` (seconds, of the machine's monotonic clock).
        status: Exit status, or minus the signal that ended it.
        ended: When, on the same clock.
        given_up: Whether the campaign had to end it.
        output: The end of what it printed.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    status: int = 0
    ended: float = 0.0
    given_up: bool = False
    output: str = ""

    def event(self, name: str) -> dict[str, Any] | None:
        """The first event of a kind."""
        return next((event for event in self.events if event["event"] == name), None)


@dataclass
class Outcome:
    """What became of a round.

    Attributes:
        ranks: In rank order.
        left_behind: Processes and files that were there afterwards.
        seconds: From the start of the first rank to the end of the last.
    """

    ranks: list[RankOutcome]
    left_behind: list[str]
    seconds: float

    def fault(self) -> dict[str, Any] | None:
        """The event of the fault."""
        return next((event for rank in self.ranks if (event := rank.event("fault"))), None)


class _Processes:
    """The processes of a round, by rank."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.pipes: dict[int, int] = {}
        self._rest: dict[int, bytes] = {}

    def start(self, rank: Rank, pipe: int) -> None:
        pid = os.fork()
        if pid == 0:
            for other in self.pipes.values():
                os.close(other)
            os.close(pipe)
            raise IsRank(rank)
        os.close(rank.pipe)
        self.pids[rank.rank], self.pipes[rank.rank], self._rest[rank.rank] = pid, pipe, b""

    def read(self, seconds: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """Events that are there within that time."""
        with selectors.DefaultSelector() as selector:
            for rank, pipe in self.pipes.items():
                selector.register(pipe, selectors.EVENT_READ, rank)
            if not self.pipes:
                time.sleep(seconds)
            for key, _ in selector.select(seconds) if self.pipes else ():
                rank = key.data
                data = os.read(key.fd, 65536)
                if not data:
                    os.close(self.pipes.pop(rank))
                *lines, self._rest[rank] = (self._rest[rank] + data).split(b"\n")
                for line in lines:
                    yield rank, json.loads(line)

    def ended(self) -> Iterator[tuple[int, int]]:
        """Ranks that have ended since, with their status."""
        for rank, pid in list(self.pids.items()):
            got, status = os.waitpid(pid, os.WNOHANG)
            if got:
                del self.pids[rank]
                yield rank, os.waitstatus_to_exitcode(status)

    def is_any_starved(self) -> bool:
        """Whether a thread of one that is left wants to run: it is late, but does not hang."""
        for pid in self.pids.values():
            for status in Path(f"/proc/{pid}/task").glob("*/stat"):
                with contextlib.suppress(OSError):
                    if status.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] == "R":
                        return True
        return False

    def signal(self, rank: int, number: int) -> None:
        if rank in self.pids:
            os.kill(self.pids[rank], number)


def run_round(round_: Round, port: int, group_timeout: float, limit: float, trap: Path, folder: Path) -> Outcome:
    """Runs a round to its end.

    Args:
        round_: Which.
        port: Of the job's store.
        group_timeout: Of the process groups, in seconds.
        limit: Seconds from the fault within which every other rank has to raise; after some more it is ended.
        trap: The library of the trap.
        folder: An empty one, for what the ranks print.
    """
    (folder / "tmp").mkdir()
    shared = set(os.listdir("/dev/shm"))
    began = time.monotonic()
    processes = _Processes()
    for rank in range(round_.world):
        ours, theirs = os.pipe()
        processes.start(Rank(round_, rank, port, group_timeout, trap, theirs, folder), ours)
    pids = list(processes.pids.values())
    outcome = Outcome([RankOutcome() for _ in range(round_.world)], [], 0.0)
    _watch(round_, processes, outcome, began, limit)
    outcome.seconds = time.monotonic() - began
    for pipe in processes.pipes.values():
        os.close(pipe)
    for rank, of_rank in enumerate(outcome.ranks):
        with contextlib.suppress(FileNotFoundError):
            of_rank.output = (folder / f"rank{rank}.log").read_text(encoding="utf-8", errors="replace")[-3000:]
    outcome.left_behind = [f"/dev/shm/{name}" for name in _new_shared(shared, pids)]
    outcome.left_behind += [str(path.relative_to(folder)) for path in (folder / "tmp").rglob("*")]
    outcome.left_behind += _other_children()
    return outcome


def _watch(round_: Round, processes: _Processes, outcome: Outcome, began: float, limit: float) -> None:
    resume_at = None
    while processes.pids:
        for rank, event in processes.read(0.01):
            outcome.ranks[rank].events.append(event)
        for rank, status in processes.ended():
            outcome.ranks[rank].status, outcome.ranks[rank].ended = status, time.monotonic()
        fault, now = outcome.fault(), time.monotonic()
        if fault and round_.fault == "pause" and resume_at is None:
            resume_at = now + PAUSE_SECONDS
        if resume_at is not None and now > resume_at:
            processes.signal(round_.victim, signal.SIGCONT)
            resume_at = float("inf")
        if fault and round_.fault == "stop" and list(processes.pids) == [round_.victim]:
            processes.signal(round_.victim, signal.SIGKILL)
        end = fault["time"] + limit + END_SECONDS if fault and round_.ends_the_job else began + START_SECONDS
        if now > end and (now > end + MOST_SECONDS or not processes.is_any_starved()):
            for rank in list(processes.pids):
                outcome.ranks[rank].given_up = not (round_.fault == "stop" and rank == round_.victim)
                processes.signal(rank, signal.SIGKILL)
    for rank, event in processes.read(0.0):  # last words
        outcome.ranks[rank].events.append(event)


def _new_shared(before: set[str], pids: list[int]) -> list[str]:
    """Of these processes; others may use the folder too."""
    new = set(os.listdir("/dev/shm")) - before
    return sorted(name for name in new if any(f"_{pid}_" in f"_{name}_" for pid in pids))


def _other_children() -> list[str]:
    """What a rank has started and left behind is ours then, see adopt_orphans()."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                found.append("a process that a rank has started")
                break
    return found
