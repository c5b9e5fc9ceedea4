"""What the ranks of a round must and must not do."""

import re

from fault_campaign.rank import Round
from fault_campaign.rounds import Outcome, RankOutcome

OURS = "bucket_moo_ext"
_PEER = re.compile(r"(?:receiving from|sending to) rank (\d+) failed")


def violations(round_: Round, outcome: Outcome, limit: float, digest: str) -> list[str]:
    """What is wrong; empty: nothing.

    Args:
        round_: What was done.
        outcome: What became of it.
        limit: Seconds from the fault within which every other rank has to raise.
        digest: Of the parameters after the same job without a fault; empty: of this job itself.
    """
    found = [f"rank {r} did not start" for r, rank in enumerate(outcome.ranks) if not rank.event("started")]
    found += [f"left behind: {what}" for what in outcome.left_behind]
    if round_.ends_the_job:
        return found + _after_a_fault(round_, outcome, limit)
    for r, rank in enumerate(outcome.ranks):
        trained = rank.event("trained")
        if trained is None or rank.status != 0:
            found.append(f"rank {r} did not end well: status {rank.status}{_said(rank)}")
        elif digest and trained["digest"] != digest:
            found.append(f"rank {r} has other parameters than without the fault")
    if len({trained["digest"] for rank in outcome.ranks if (trained := rank.event("trained"))}) > 1:
        found.append("ranks have different parameters")
    if round_.fault != "none" and outcome.fault() is None:
        found.append("the fault's stage was not reached")
    return found


def _said(rank: RankOutcome) -> str:
    raised = rank.event("raised")
    return f", {raised['type']}: {raised['message']}" if raised else ""


def _after_a_fault(round_: Round, outcome: Outcome, limit: float) -> list[str]:
    fault = outcome.fault()
    if fault is None:
        return ["the fault's stage was not reached"]
    found = []
    for r, rank in enumerate(outcome.ranks):
        if r == round_.victim and round_.fault in ("kill", "stop"):
            continue
        raised = rank.event("raised")
        if raised is None:
            how = "had to be ended" if rank.given_up else f"ended with status {rank.status}"
            found.append(f"rank {r} did not raise, and {how}")
            continue
        if (late := raised["time"] - fault["time"]) > limit:
            found.append(f"rank {r} raised {late:.1f} s after the fault")
        if rank.given_up:
            found.append(f"rank {r} raised, and its process had to be ended")
        elif rank.status != 1:
            found.append(f"rank {r} raised, and its process ended with status {rank.status}")
        found += [f"rank {r}: {what}" for what in _wrong_words(round_, outcome, r)]
    return found


def _wrong_words(round_: Round, outcome: Outcome, r: int) -> list[str]:
    raised = outcome.ranks[r].event("raised") or {}
    kind, message = raised["type"], raised["message"]
    if r == round_.victim and round_.fault == "raise":
        return [] if kind == "ArithmeticError" else [f"its own error was to be raised; got {kind}: {message}"]
    if OURS not in message:  # of torch's own collectives: DDP's and FSDP2's
        is_torch = kind in ("RuntimeError", "DistBackendError", "DistNetworkError") and message
        return [] if is_torch else [f"neither our error nor torch's: {kind}: {message}"]
    found = []
    if kind != "DistBackendError":
        found.append(f"{kind} in place of a DistBackendError: {message}")
    if f"on rank {r} of {round_.world}" not in message:
        found.append(f"the message does not say whose it is: {message}")
    if named_peer(message) is None:
        found.append(f"the message names no peer: {message}")
    elif r != round_.victim and (last := last_named(outcome, r, round_.victim)) is not None:
        found.append(f"the names lead to rank {last}, which was well: {message}")
    return found


def named_peer(message: str) -> int | None:
    """The rank that an error of ours says is gone."""
    peer = _PEER.search(message)
    return int(peer[1]) if peer else None


def last_named(outcome: Outcome, r: int, victim: int) -> int | None:
    """Where the names lead that a rank's error begins with; None: to the victim, or to an error of torch's own.

    A rank that waits for the victim lets others wait in turn, and these name it: its own error says whom it missed.
    """
    seen: list[int] = []
    while r != victim and r not in seen:
        seen.append(r)
        raised = outcome.ranks[r].event("raised")
        if raised is None:
            return r
        peer = named_peer(raised["message"])
        if peer is None:
            return None if OURS not in raised["message"] else r
        r = peer
    return None if r == victim else r
