"""The rule by which every way of training gets its learning rate, alike, on a seed that is in no comparison.

What was found once is kept: in `tuned.json`, by the study in `studies/multilingual`, whose runs in one process train as
the demo's ranks do; and in the user's cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus import cache_folder, write_atomically
from scenarios import Scenario
from tokenizer import digest

if TYPE_CHECKING:
    from materials import Recipe

LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
"""In rising order."""
FIRST = (2, 3, 4)
"""Places that are tried first."""
SEED = 100


def following(losses: Mapping[int, float], count: int) -> int | None:
    """The place to try next: beyond the end at which the best lies; None if that is inside, or at the end of all.

    losses: by place among `count` learning rates, neighbours all; the lowest is the best, the first of equals.
    """
    best = min(sorted(losses), key=lambda place: losses[place])
    beyond = [best - 1] if best == min(losses) else []
    beyond += [best + 1] if best == max(losses) else []
    return next((place for place in beyond if 0 <= place < count), None)


def key(
    *,
    model: str,
    recipe: Recipe,
    scenario: Scenario,
    method: str,
    scope: str,
    clip: float | None,
    steps: int,
    batch_size: int,
    length: int,
    bucket_cap_mb: float,
    validation_bytes: int,
) -> str:
    """Of what decides which learning rate is best. `method`: "mean" for plain DDP, else as `--method` takes it."""
    decides = {name: value for name, value in locals().items() if name not in ("recipe", "scenario")}
    task = {name: value for name, value in asdict(scenario).items() if name not in ("name", "focus")}
    return digest(decides, asdict(recipe), task)


def known() -> dict[str, dict[str, Any]]:
    """What was found, by key: at least `lr`, and `source`, which says where it is from."""
    found: dict[str, dict[str, Any]] = {}
    for path in (Path(__file__).with_name("tuned.json"), _own()):
        if path.exists():
            found |= json.loads(path.read_bytes())
    return found


def keep(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds to what is in the user's cache."""
    before = json.loads(_own().read_bytes()) if _own().exists() else {}
    write_atomically(_own(), json.dumps({**before, **entries}, indent=1).encode())


def _own() -> Path:
    return cache_folder() / "tuned.json"
