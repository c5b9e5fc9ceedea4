"""What there is to compute, as plain values: a task decides its result, and names the file that keeps it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from arms import Arm
from registration import Registration
from scenarios import Scenario

VERSION = 1
"""Of the results: another one where the same task would have another result."""


def loss_weights(scenario: Scenario, focus_weight: float) -> dict[str, float]:
    """What each objective's loss is multiplied by: mean 1, so that the learning rate means the same."""
    raw = {name: focus_weight if name == scenario.focus else 1.0 for name in scenario.names}
    return {name: weight * len(raw) / sum(raw.values()) for name, weight in raw.items()}


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    purpose: str
    """"tuning", "test" or "noise"."""
    scenario: Scenario
    model: str
    """A preset or a path."""
    arm: Arm
    lr: float
    focus_weight: float
    seed: int
    base: int
    rows: int = 1
    """Passes of each objective in a step, each with blocks of its own."""
    separability: bool = False

    def key(self, registration: Registration) -> str:
        """Changes whenever the result would."""
        used: dict[str, Any] = {
            "version": VERSION,
            "run": asdict(self),
            "languages": registration.languages,
            "known": registration.known,
            "training": asdict(registration.training),
        }
        if self.purpose == "test":
            used["anatomy"] = (registration.anatomy.probe_every, registration.anatomy.segments)
        for cosmetic in ("name", "rival", "focus_weights"):
            used["run"]["arm"].pop(cosmetic)
        text = json.dumps(used, sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
