"""What a lane's reductions did, with losses and step times: `moo.Recorder` on rank 0, and the page of all lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corpus import write_atomically
from settings import Settings
from spec import PLAIN_DDP, file_name
from world import World

DESCRIBED = ("model", "languages", "wrapper", "steps", "batch_size", "length", "clip", "bucket_cap_mb")


def recording_path(settings: Settings, method: str, seed: int) -> Path:
    """Where a lane's recording is."""
    return settings.folder / "recordings" / f"{file_name(method)}-seed{seed}.jsonl"


class Recording:
    """A recorder on rank 0 that is told what all ranks have measured."""

    def __init__(self, state: Any, settings: Settings, method: str, seed: int, lr: float, world: World) -> None:
        """`state`: that of the lane; `lr`: its learning rate."""
        import bucket_moo_ext as moo

        self._state, self._every, self._world = state, settings.record_every, world
        self._path = recording_path(settings, method, seed)
        self._since: list[tuple[Mapping[str, float], float]] = []  # losses by language and seconds of each step
        self._recorder = moo.Recorder(state, every=self._every) if world.shows else None
        if self._recorder is not None:
            described = {name: getattr(settings, name) for name in DESCRIBED}
            self._recorder.describe(
                {**described, "lr": lr, "seed": seed, "processes": world.size, "device": world.device.type}
            )

    def step(self, number: int, losses: Mapping[str, float], seconds: float) -> None:
        """After a training step, by its number from 0; outside of what is timed. All ranks call it."""
        self._since.append((losses, seconds))
        if number % self._every == 0:
            everyone = self._world.gather(self._since)
            self._since = []
            if self._recorder is not None:
                for ranks in zip(*everyone, strict=True):
                    for one, _ in ranks:
                        self._recorder.log(one)
                    self._recorder.log(seconds=max(took for _, took in ranks))
        if self._recorder is not None:
            self._recorder.step()

    def save(self) -> str:
        """Writes the file; gives its text, for the checkpoint. Empty on other ranks than 0."""
        if self._recorder is None:
            return ""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._recorder.save(self._path)
        return self._path.read_text(encoding="utf-8")

    def load(self, text: str) -> None:
        """Goes on from a text of `save`. Losses of steps behind the last record are not in it."""
        import bucket_moo_ext as moo

        if self._recorder is not None:
            write_atomically(self._path, text.encode())
            self._recorder = moo.Recorder.load(self._path, self._state)


def write_page(settings: Settings) -> Path | None:
    """The page of all recordings of this run; None if there are none, as with plain DDP alone."""
    import bucket_moo_ext as moo
    from bucket_moo_ext.observe import page

    recorders = {}
    for method, seed in _lanes(settings):
        recorders[f"{method}, seed {seed}"] = moo.Recorder.load(recording_path(settings, method, seed))
    if not recorders:
        return None
    path = settings.folder / "page.html"
    page.write_page(path, recorders)
    return path


def _lanes(settings: Settings) -> Sequence[tuple[str, int]]:
    return [(method, seed) for method in settings.methods if method != PLAIN_DDP for seed in settings.seeds]
