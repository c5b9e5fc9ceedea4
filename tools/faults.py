"""Kills, stops, pauses, cuts off or makes raise a random rank of small jobs, at a random stage of a reduction.

    python tools/faults.py --rounds 300 --seed 1 --json faults.json

After each round it looks at what the other ranks did: each raises in time, with an error that says what happened; each
process ends by itself, with that error's exit status; no process and no file stays behind; the next job starts on the
same port. A rank that is only paused changes nothing, to the bit. Prints counts by stage, layout and fault, and ends
with status 1 if anything was wrong. Needs a C++ compiler, for the trap that knows the stages.
"""

import argparse
import collections
import ctypes
import gc
import importlib
import json
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from fault_campaign import stage_trap
from fault_campaign.jobs import LAYOUTS, worlds_of
from fault_campaign.judgement import named_peer, violations
from fault_campaign.rank import IsRank, Round
from fault_campaign.rounds import Outcome, run_round

FAULTS = {"kill": 8, "disconnect": 4, "raise": 4, "stop": 2, "pause": 2}
"""How many of twenty rounds have which."""
BUILD = Path(__file__).resolve().parents[1] / "build" / "tools"


def import_ahead() -> None:
    """What ranks import as they go, so that each fork has it."""
    for module in ("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "numpy"):
        importlib.import_module(module)
    torch.optim.SGD([torch.zeros(1)])
    gc.collect()
    gc.freeze()  # a rank that collects garbage would copy the memory that it shares


def adopt_orphans() -> None:
    """Processes whose parent has ended become children of this one, which so finds them."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Campaign:
    """Rounds one after another, all on one port."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._random = random.Random(arguments.seed)
        self._layouts: list[str] = arguments.layouts
        self._faults: list[str] = arguments.faults
        self._group_timeout: float = arguments.group_timeout
        self._limit: float = arguments.group_timeout + arguments.slack
        self._port = free_port()
        self._trap = stage_trap.build(BUILD)
        self._folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self._digests: dict[tuple[str, int], str] = {}
        self._counts: dict[tuple[str, int], dict[str, int]] = {}
        self.records: list[dict[str, Any]] = []

    def round(self, number: int) -> dict[str, Any]:
        """The next one; returns its record."""
        layout = self._random.choice(self._layouts)
        world = self._random.choice(worlds_of(layout))
        self._learn(layout, world)
        fault = self._random.choices(self._faults, [FAULTS[name] for name in self._faults])[0]
        victim = self._random.randrange(world)
        if fault == "raise":
            stage, occurrence = f"layer {self._random.randrange(3)}", self._random.randint(1, 5)
        else:
            counts = self._counts[layout, world]
            stage = self._random.choice(sorted(counts))
            occurrence = self._random.randint(1, counts[stage])
        delay = self._random.choice([0, 0, self._random.randint(1, 500)])
        return self._run(Round(number, layout, world, fault, victim, stage, occurrence, delay))

    def _learn(self, layout: str, world: int) -> None:
        """Which stages a job enters how often, and what it gives, without a fault."""
        if (layout, world) in self._counts:
            return
        record = self._run(Round(0, layout, world))
        if record["violations"]:
            raise RuntimeError(f"a job without a fault failed: {json.dumps(record, indent=1)}")
        trained = next(event for event in record["ranks"][0]["events"] if event["event"] == "trained")
        self._digests[layout, world], self._counts[layout, world] = trained["digest"], trained["counts"]

    def _run(self, round_: Round) -> dict[str, Any]:
        folder = self._folder / f"{len(self.records)}"
        folder.mkdir()
        outcome = run_round(round_, self._port, self._group_timeout, self._limit, self._trap, folder)
        shutil.rmtree(folder)
        found = violations(round_, outcome, self._limit, self._digests.get((round_.layout, round_.world), ""))
        record = {**asdict(round_), **_told(round_, outcome), "violations": found, **asdict(outcome)}
        if not found:
            for rank in record["ranks"]:
                rank["output"] = ""
        self.records.append(record)
        return record

    def end(self) -> None:
        """Leaves nothing behind."""
        shutil.rmtree(self._folder)


def _told(round_: Round, outcome: Outcome) -> dict[str, Any]:
    """What the ranks made of the fault: after how many seconds, and whom they named."""
    fault = outcome.fault()
    others = [rank for r, rank in enumerate(outcome.ranks) if r != round_.victim]
    raised = [event for rank in others if (event := rank.event("raised"))] if round_.ends_the_job else []
    named = [named_peer(event["message"]) for event in raised]
    return {
        "struck": fault["stage"] if fault else "",
        "raised_after": [round(event["time"] - fault["time"], 3) for event in raised] if fault else [],
        "named_victim": sum(peer == round_.victim for peer in named),
        "named_other": sum(peer not in (None, round_.victim) for peer in named),
        "of_torch": sum(peer is None for peer in named),
    }


def table(records: Sequence[dict[str, Any]], rows: str, columns: str) -> str:
    """Counts of rounds."""
    count = collections.Counter((record[rows], record[columns]) for record in records)
    names = sorted({column for _, column in count})
    lines = [[rows, *names, "all"]]
    for row in sorted({row for row, _ in count}):
        of_row = [count[row, name] for name in names]
        lines.append([row, *map(str, of_row), str(sum(of_row))])
    lines.append(
        ["all", *(str(sum(record[columns] == name for record in records)) for name in names), str(len(records))]
    )
    return markdown(lines)


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """A table, the first line of which is its head."""
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|---" + "|--:" * (head.count("|") - 2) + "|", *rest])


def by_fault(records: Sequence[dict[str, Any]]) -> str:
    """How soon the other ranks raised, and whom they named."""
    lines = [["fault", "rounds", "wrong", "s to raise: median", "most", "named the victim", "another", "torch's error"]]
    for fault in FAULTS:
        of_fault = [record for record in records if record["fault"] == fault]
        if of_fault:
            after = [seconds for record in of_fault for seconds in record["raised_after"]]
            named = [sum(record[who] for record in of_fault) for who in ("named_victim", "named_other", "of_torch")]
            wrong = sum(bool(record["violations"]) for record in of_fault)
            seconds = (f"{statistics.median(after):.2f}", f"{max(after):.2f}") if after else ("", "")
            lines.append([fault, str(len(of_fault)), str(wrong), *seconds, *map(str, named)])
    return markdown(lines)


def _list_of(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(";")
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"got {', '.join(sorted(unknown))}; allowed: {'; '.join(allowed)}")
        return names

    return read


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of what is done in which round")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after these")
    parser.add_argument("--layouts", type=_list_of(LAYOUTS), default=list(LAYOUTS), help="separated by semicolons")
    parser.add_argument("--faults", type=_list_of(FAULTS), default=list(FAULTS), help="separated by semicolons")
    parser.add_argument("--group-timeout", type=float, default=3.0, help="of the process groups, in seconds")
    parser.add_argument("--slack", type=float, default=5.0, help="seconds that a busy machine may take beyond it")
    parser.add_argument("--json", type=Path, help="write every round there")
    return parser.parse_args(arguments)


def campaign(arguments: argparse.Namespace) -> int:
    """Runs the rounds; returns the exit status."""
    adopt_orphans()
    import_ahead()
    of_campaign = Campaign(arguments)
    end = time.monotonic() + 60 * arguments.minutes
    done: list[dict[str, Any]] = []
    for number in range(1, arguments.rounds + 1):
        if time.monotonic() > end:
            break
        record = of_campaign.round(number)
        done.append(record)
        where = f"{record['struck'] or record['stage']} (time {record['occurrence']})"
        print(
            f"[{number:4}/{arguments.rounds}] {record['layout']}, W={record['world']}: {record['fault']} rank "
            f"{record['victim']} at {where}: {'; '.join(record['violations']) or 'ok'}, {record['seconds']:.1f} s",
            flush=True,
        )
    of_campaign.end()
    print(f"\n{table(done, 'struck', 'fault')}\n\n{table(done, 'layout', 'fault')}\n\n{by_fault(done)}\n")
    wrong = [record for record in done if record["violations"]]
    print(f"{len(done)} rounds, seed {arguments.seed}: {len(wrong)} with violations")
    if arguments.json:
        facts = {name: value for name, value in vars(arguments).items() if name != "json"}
        facts = {name: str(value) if value == float("inf") else value for name, value in facts.items()}
        arguments.json.write_text(json.dumps({"arguments": facts, "rounds": done}, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def main() -> int:
    """The campaign, or in a process that it has forked a rank."""
    try:
        return campaign(parse())
    except IsRank as forked:
        rank = forked.rank
    return rank.run()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
