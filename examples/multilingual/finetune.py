"""Fine-tuning: one lane for each method, stepped side by side on the same data."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from corpus import write_atomically
from models import mean_loss
from recording import Recording
from sampler import PassSampler
from schedule import learning_rate
from settings import Settings
from spec import PLAIN_DDP, MethodSpec, file_name, parse_method
from torch import Tensor, nn
from tqdm import tqdm
from world import World
from wrappers import Wrapped


class CannotResume(RuntimeError):
    """A checkpoint that does not belong to this run."""


class Lane:
    """One method with one seed: a copy of the model, its wrapper, optimizer and records.

    A process that has all languages to itself needs no wrapper.

    All lanes start from the same weights. A throw-away step makes DDP settle its buckets before
    the first step that counts, so that a resumed run has the buckets of an uninterrupted one.
    """

    def __init__(
        self,
        settings: Settings,
        method: str,
        seed: int,
        base: nn.Module,
        world: World,
        sample: PassSampler,
        lr: float | None = None,
    ) -> None:
        """`method`: as `--method` takes it; `base`: the model before fine-tuning; `sample`: this rank's passes.

        `lr`: another one than the settings'.
        """
        self.method, self.seed = method, seed
        self.lr = settings.rate(method) if lr is None else lr
        self.next_step = 0
        self.history: dict[str, Any] = {"losses": [], "seconds": [], "probes": {}, "reports": {}}
        """losses and seconds: `[step][rank]`; probes and reports by step."""
        self._settings, self._world = settings, world
        self.wrapped = Wrapped(
            copy.deepcopy(base),
            settings.wrapper,
            world,
            alone=self._alone,
            plain=method == PLAIN_DDP,
            bucket_cap_mb=settings.bucket_cap_mb,
        )
        self.state: Any = None
        self._recording: Recording | None = None  # plain DDP has no reduction of ours
        if method != PLAIN_DDP:
            import bucket_moo_ext as moo

            spec = parse_method(method, moo.available_methods())
            self.state = self._register(spec, settings.passes(world.rank, world.size)[0])
            self._recording = Recording(self.state, settings, method, seed, self.lr, world)
        self.optimizer = torch.optim.AdamW(
            self.wrapped.module.parameters(),
            lr=self.lr,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )
        for _ in range(2):
            self._backward(sample(0))
            self.optimizer.zero_grad(set_to_none=True)
        self._mine: list[tuple[float, float]] = []

    def _register(self, spec: MethodSpec, language: str) -> Any:
        import bucket_moo_ext as moo

        return moo.register(
            self.wrapped.module,
            method=spec.method,
            objective=language,
            gramian=spec.gramian,
            layout=self._settings.layout,
            scope=self._settings.scope,
            seed=self.seed,
            **self.wrapped.replicated,
            **({"bucket_cap_mb": self._settings.bucket_cap_mb} if self._alone else {}),
        )

    @property
    def _alone(self) -> bool:
        return self._settings.layout == "passes" and self._world.size == 1

    def _left_open(self, languages: Iterable[str]) -> contextlib.AbstractContextManager[Any]:
        """Around all passes of a step but the last."""
        if self.state is not None:  # with a row of each language from every rank
            totals = dict.fromkeys(languages, self._world.size)
            open_step: contextlib.AbstractContextManager[Any] = self.state.accumulate(totals)
            return open_step
        return self.wrapped.no_sync()

    def _backward(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The passes of a step; returns their losses by language."""
        device = self._world.device
        if self.state is not None and self._alone:
            losses = {language: mean_loss(self.wrapped.module, part.to(device)) for language, part in blocks.items()}
            self.state.backward(losses)
            return {language: loss.detach() for language, loss in losses.items()}
        share = 1.0 if self.state is not None else 1.0 / len(blocks)  # plain gradients add up
        found = {}
        last = list(blocks)[-1]
        for language, part in blocks.items():
            if self.state is not None:
                self.state.objective = language
            with contextlib.nullcontext() if language == last else self._left_open(blocks):
                loss = mean_loss(self.wrapped.module, part.to(device))
                (loss * share if share != 1.0 else loss).backward()
            found[language] = loss.detach()
        return found

    def step(self, blocks: Mapping[str, Tensor]) -> float:
        """One training step on this rank's blocks, by language; returns its loss. Timed from barrier to end."""
        settings, world = self._settings, self._world
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.next_step, settings.steps, self.lr)
        world.barrier()
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(blocks)
        if settings.clip > 0:
            self.wrapped.clip(settings.clip)
        self.optimizer.step()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds = time.perf_counter() - start
        by_language = {language: loss.item() for language, loss in losses.items()}
        value = sum(by_language.values()) / len(by_language)
        self._mine.append((value, seconds))
        if self._recording is not None:
            self._recording.step(self.next_step, by_language, seconds)
        self.next_step += 1
        return value

    def collect(self) -> None:
        """Brings losses and times of all ranks since the last call into the history."""
        ranks = self._world.gather(self._mine)
        self._mine = []
        for row in zip(*ranks, strict=True):
            self.history["losses"].append([loss for loss, _ in row])
            self.history["seconds"].append([seconds for _, seconds in row])

    @property
    def path(self) -> Path:
        """Where this lane's checkpoint is."""
        return self._settings.folder / "checkpoints" / f"{file_name(self.method)}-seed{self.seed}.pt"

    def save(self) -> None:
        """Writes the checkpoint: everything that the next step depends on, and the records."""
        self.collect()
        model, moments = self.wrapped.state(self.optimizer)
        states = self._world.gather(None if self.state is None else self.state.state_dict())
        recording = "" if self._recording is None else self._recording.save()
        if self._world.shows:
            buffer = io.BytesIO()
            torch.save(
                {
                    "settings": self._fingerprint(),
                    "languages": list(self._settings.languages),
                    "next_step": self.next_step,
                    "model": model,
                    "optimizer": moments,
                    "moo": states,
                    "history": self.history,
                    "recording": recording,
                },
                buffer,
            )
            write_atomically(self.path, buffer.getvalue())

    def _fingerprint(self) -> dict[str, Any]:
        # With an objective a pass any number of processes shares its blocks, and every one has the same state.
        processes = self._world.size if self._settings.layout == "ranks" else "any number"
        return {**self._settings.fingerprint(), "lr": self.lr, "processes": processes}

    def resume(self) -> bool:
        """Goes on from the checkpoint, if there is one. Raises CannotResume."""
        if not self._world.gather(self.path.exists())[0]:
            return False
        saved = torch.load(self.path, map_location=self._world.device, weights_only=True)
        ours, theirs = self._fingerprint(), saved["settings"]
        different = [k for k in ours if ours[k] != theirs.get(k)]
        if different:
            key = different[0]
            raise CannotResume(
                f"--resume: {self.path} was made with {key} = {theirs.get(key)}, this run has "
                f"{ours[key]}; use the same arguments or another --name"
            )
        self.wrapped.load(saved["model"], saved["optimizer"], self.optimizer)
        if self.state is not None:
            self.state.load_state_dict(saved["moo"][self._world.rank % len(saved["moo"])])
        if self._recording is not None:
            self._recording.load(saved["recording"])
        self.next_step = saved["next_step"]
        self.history = saved["history"]
        return True


Watch = Callable[[Lane, int], None]
"""Called with a lane and the number of steps it has made, before the next one."""


def train(
    lanes: Sequence[Lane],
    sample: PassSampler,
    settings: Settings,
    world: World,
    title: str,
    watch: Watch | None,
) -> None:
    """Takes all lanes to `settings.steps`, one step of each in turn, in rotating order.

    The turns make the step times comparable: whatever else the machine does hits all alike. Without `watch` it is a
    trial, of which nothing is saved.
    """
    first = min(lane.next_step for lane in lanes)
    bar = tqdm(total=settings.steps, initial=first, desc=title, disable=not world.shows, unit="step")
    for lane in lanes:
        if lane.next_step == 0 and watch is not None:
            watch(lane, 0)
    for step in range(first, settings.steps):
        blocks = {language: part.to(world.device) for language, part in sample(step).items()}
        turn = step % len(lanes)
        losses = {lane.method: lane.step(blocks) for lane in (*lanes[turn:], *lanes[:turn]) if lane.next_step == step}
        bar.update()
        bar.set_postfix({m: f"{losses[m]:.2f}" for m in sorted(losses)}, refresh=False)
        done = step + 1
        for lane in lanes:
            if lane.method in losses and watch is not None:
                watch(lane, done)
                if done % settings.checkpoint_every == 0 or done == settings.steps:
                    lane.save()
    bar.close()
