"""tools/faults.py and tools/endurance.py: a small campaign and a short run, and that they find what is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import endurance  # noqa: E402
from fault_campaign.judgement import violations  # noqa: E402
from fault_campaign.rank import Round  # noqa: E402
from fault_campaign.rounds import Outcome, RankOutcome  # noqa: E402

LIMIT = 8.0
LAST_WORDS = "bucket_moo_ext: all-to-all on rank {} of 3: receiving from rank {} failed: Connection closed by peer"


@pytest.mark.slow
@pytest.mark.build
def test_a_small_campaign(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    command = [
        sys.executable,
        "tools/faults.py",
        "--rounds",
        "6",
        "--seed",
        "4",
        "--layouts",
        "DDP;sketch, lag=1;FSDP2",
        "--json",
        str(report),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = json.loads(report.read_text(encoding="utf-8"))["rounds"]
    assert [of["number"] for of in rounds] == [*range(1, 7)]
    assert {"kill", "stop"} < {of["fault"] for of in rounds}
    for of in rounds:
        assert not of["violations"]
        assert of["struck"]
        if of["fault"] not in ("pause", "none"):
            assert len(of["raised_after"]) == of["world"] - 1
    assert "6 rounds, seed 4: 0 with violations" in done.stdout


def killed(**of_rank_0: Any) -> Outcome:
    """Rank 2 was killed at 10 s, and both others raised."""
    ranks = []
    for rank in range(2):
        message = LAST_WORDS.format(rank, 2)
        raised = {"event": "raised", "time": 10.5, "type": "DistBackendError", "message": message, "stage": "solve"}
        if rank == 0:
            raised |= {name: value for name, value in of_rank_0.items() if name in raised}
        started = {"event": "started", "time": 9.0}
        ranks.append(RankOutcome([started, raised], status=1, ended=11.0))
    struck = {"event": "fault", "time": 10.0, "stage": "solve"}
    ranks.append(RankOutcome([{"event": "started", "time": 9.0}, struck], status=-9, ended=10.0))
    for name in of_rank_0.keys() & {"status", "given_up"}:
        setattr(ranks[0], name, of_rank_0[name])
    return Outcome(ranks, [], 2.0)


KILL = Round(1, "DDP", 3, "kill", 2, "solve", 1)


def test_what_is_right() -> None:
    assert not violations(KILL, killed(), LIMIT, "")
    through_another = killed(message=LAST_WORDS.format(0, 1))  # which names the victim
    assert not violations(KILL, through_another, LIMIT, "")
    assert not violations(KILL, killed(type="RuntimeError", message="Connection closed by peer"), LIMIT, "")


@pytest.mark.parametrize(
    ("of_rank_0", "found"),
    [
        ({"time": 18.5}, "raised 8.5 s after"),
        ({"event": "ended"}, "did not raise"),
        ({"status": -6}, "ended with status -6"),
        ({"given_up": True}, "its process had to be ended"),
        ({"message": LAST_WORDS.format(1, 2)}, "does not say whose it is"),
        ({"message": "bucket_moo_ext: all-to-all on rank 0 of 3: failed"}, "names no peer"),
        ({"message": LAST_WORDS.format(0, 0)}, "lead to rank 0, which was well"),
        ({"type": "RuntimeError"}, "in place of a DistBackendError"),
        ({"type": "KeyError", "message": "'x'"}, "neither our error nor torch's"),
    ],
)
def test_what_is_wrong(of_rank_0: dict[str, Any], found: str) -> None:
    assert any(found in said for said in violations(KILL, killed(**of_rank_0), LIMIT, ""))


def test_what_is_left_behind_or_not_reached() -> None:
    outcome = killed()
    outcome.left_behind = ["/dev/shm/x"]
    assert violations(KILL, outcome, LIMIT, "") == ["left behind: /dev/shm/x"]
    outcome = killed()
    del outcome.ranks[2].events[1]
    assert violations(KILL, outcome, LIMIT, "") == ["the fault's stage was not reached"]
    paused = [{"event": "started"}, {"event": "fault"}, {"event": "trained", "digest": "a"}]
    same = Outcome([RankOutcome(paused), RankOutcome(paused)], [], 1.0)
    pause = Round(1, "DDP", 2, "pause", 0, "solve", 1)
    assert not violations(pause, same, LIMIT, "a")
    assert "other parameters" in violations(pause, same, LIMIT, "b")[0]


def test_what_grows() -> None:
    def samples(grown: int, files: int = 9) -> list[endurance.Sample]:
        return [
            endurance.Sample(step, 2**28 + step * grown + 4096 * (step % 3), files + (step == 90), 4)
            for step in range(1, 101)
        ]

    level = [endurance.Sample(step, 2**28 + 4096 * (step % 3), 9, 4) for step in range(1, 101)]
    assert not endurance.wrong(level, 100, 2**20)
    assert endurance.wrong(samples(0), 100, 2**20) == ["files are not constant: 9, 10"]
    assert "resident memory grows by 1.9" in endurance.wrong(samples(20_000, 8), 100, 2**20)[1]


@pytest.mark.slow
def test_a_short_run() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["tools/endurance.py", "--steps", "400", "--layout", "sketch, lag=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == 2
