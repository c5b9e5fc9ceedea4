"""What a rank of a round does, and what it tells the campaign of it."""

import faulthandler
import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fault_campaign.jobs import LAYOUTS
from fault_campaign.stage_trap import StageTrap

STEPS = 8
"""Of a job without a fault that ends it."""
MOST_STEPS = 200
"""Of one with a fault, which all ranks must have noticed long before."""


@dataclass(frozen=True)
class Round:
    """A job and what is done to one of its ranks.

    Attributes:
        number: Of the campaign.
        layout: Of LAYOUTS.
        world: Ranks.
        fault: "none", "kill", "stop", "pause" (stopped for a while), "disconnect" or "raise".
        victim: The rank that it is done to.
        stage, occurrence: Where: as the victim enters this stage for so manieth a time, counted from the first step.
            Of "raise": "layer 1", and the step.
        delay: Microseconds later.
    """

    number: int
    layout: str
    world: int
    fault: str = "none"
    victim: int = -1
    stage: str = ""
    occurrence: int = 0
    delay: int = 0

    @property
    def ends_the_job(self) -> bool:
        """Whether no rank can go on."""
        return self.fault not in ("none", "pause")


@dataclass(frozen=True)
class Rank:
    """One rank of a round, in a process of its own.

    Attributes:
        round: Which.
        rank: Of the job.
        port: Of the job's store on this machine.
        group_timeout: Seconds.
        trap: The library of the trap.
        pipe: Where it writes events, a line of JSON each.
        folder: For temporary files, and for what it prints.
    """

    round: Round
    rank: int
    port: int
    group_timeout: float
    trap: Path
    pipe: int
    folder: Path

    def say(self, event: str, **more: Any) -> None:
        """Tells the campaign."""
        line = json.dumps({"event": event, "time": time.monotonic(), **more})
        os.write(self.pipe, f"{line}\n".encode())

    def run(self) -> int:
        """Runs the job; returns the exit status: 1 if it raised."""
        output = os.open(self.folder / f"rank{self.rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        faulthandler.enable()
        os.environ["TMPDIR"] = str(self.folder / "tmp")
        # A rank that left at once would close its connections while others still make theirs.
        os.environ["TORCH_DIST_INIT_BARRIER"] = "1"
        torch.set_num_threads(1)
        trap = StageTrap(self.trap)
        try:
            self._train(trap)
        except Exception as error:
            self.say("raised", type=type(error).__name__, message=str(error), stage=trap.last())
            return 1
        self.say("ended")
        return 0

    def _train(self, trap: StageTrap) -> None:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{self.port}",
            rank=self.rank,
            world_size=self.round.world,
            timeout=timedelta(seconds=self.group_timeout),
        )
        training = LAYOUTS[self.round.layout](self.rank, self.round.world)
        self.say("started")
        before = trap.counts()
        is_victim = self.rank == self.round.victim
        if is_victim and self.round.fault != "raise":
            trap.arm(self.round.stage, self.round.occurrence, self.round.fault, self.round.delay, self.pipe)
        for step in range(MOST_STEPS if self.round.ends_the_job else STEPS):
            if is_victim and self.round.fault == "raise" and step == self.round.occurrence:
                layer = int(self.round.stage.split()[1])
                training.raise_in_backward(layer, lambda: self.say("fault", stage=trap.last()))
            training.step(step)
        counts = {stage: count - before.get(stage, 0) for stage, count in trap.counts().items()}
        self.say("trained", digest=training.digest(), counts=counts)
        dist.destroy_process_group()


class IsRank(BaseException):
    """Raised in the process of a rank, up to where the program ends, so that the interpreter ends as any other."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.rank = rank
