"""Command line of the demo: one frozen dataclass, checked before any process group starts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from corpus import LANGUAGES
from models import PRESETS
from scenarios import KNOWN, SCENARIOS, Scenario
from scenarios import LANGUAGES as SCENARIO_LANGUAGES
from spec import PLAIN_DDP, SKETCH, BadArgument, parse_method
from wrappers import REPLICAS, WRAPPERS


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, plus where it writes."""

    model: str = "llama-1m"
    scenarios: tuple[str, ...] = ("new_script", "replay_more", "balanced")
    """One after the other; empty with languages of one's own."""
    languages: tuple[str, ...] = ()
    """Fine-tuned, an objective each; of the scenario, once there is one."""
    unseen: tuple[str, ...] = ()
    """Only evaluated."""
    replay: int = 0
    """Segments of text of the unseen languages that are one more objective."""
    methods: tuple[str, ...] = (PLAIN_DDP, "normalizedmean", "mgda@mean", "nashmtl")
    seeds: tuple[int, ...] = (0, 1, 2)
    wrapper: str = "ddp"
    layout: str = "ranks"
    scope: str = "bucket"
    steps: int = 40
    batch_size: int = 4
    length: int = 128
    lr: float = 0.0
    """0: for each method the one that is tuned for it."""
    rates: tuple[tuple[str, float], ...] = ()
    """The tuned ones, by method."""
    clip: float = 1.0
    """Length that a step's gradient is clipped to; 0: not at all."""
    bucket_cap_mb: float = 1.0
    pretrain_steps: int = 200
    pretrain_batch_size: int = 16
    pretrain_lr: float = 4e-3
    probe_steps: tuple[int, ...] = (0, 20, 40)
    probe_blocks: int = 8
    eval_bytes: int = 12_000
    checkpoint_every: int = 20
    record_every: int = 2
    one_at_a_time: bool = False
    resume: bool = False
    name: str = "demo"
    output: str = "runs"

    @property
    def folder(self) -> Path:
        """Where this run's tables, figure, JSON and checkpoints go."""
        return Path(self.output, self.name, *self.scenarios)

    @property
    def task(self) -> Scenario:
        """What is trained on."""
        name = self.scenarios[0] if self.scenarios else "custom"
        return Scenario(name, self.languages, kept=self.unseen, replay=self.replay)

    @property
    def corpus_languages(self) -> tuple[str, ...]:
        """Languages of the corpus: one for all scenarios."""
        return SCENARIO_LANGUAGES if self.scenarios else tuple(dict.fromkeys((*self.all_languages, "en")))

    @property
    def known(self) -> tuple[str, ...]:
        """Languages that presets are pre-trained on."""
        return KNOWN if self.scenarios else self.corpus_languages

    def rate(self, method: str) -> float:
        """AdamW's learning rate for a method."""
        return self.lr or dict(self.rates)[method]

    @property
    def all_languages(self) -> tuple[str, ...]:
        """Seen, then unseen."""
        return self.languages + self.unseen

    @property
    def plain(self) -> bool:
        """Whether a step is one pass with weights for each bucket, no more: what Sketch can do everywhere."""
        return (self.layout, self.scope) == ("ranks", "bucket") and self.wrapper != "hsdp"

    def share(self, rank: int, world_size: int) -> tuple[str, ...]:
        """The objectives, dealt out to the ranks."""
        names = self.task.names
        each = len(names) // world_size
        return names[rank * each : (rank + 1) * each]

    def passes(self, rank: int, world_size: int) -> tuple[str, ...]:
        """The objective of each backward pass of a rank's step."""
        return self.task.names if self.layout == "passes" else self.share(rank, world_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a checkpoint must share with the run that resumes it."""
        free = ("methods", "seeds", "resume", "name", "output", "checkpoint_every", "one_at_a_time", "lr", "rates")
        return {k: v for k, v in self.to_dict().items() if k not in free}


SMOKE = {
    "steps": 6,
    "pretrain_steps": 10,
    "probe_steps": (0, 6),
    "probe_blocks": 4,
    "eval_bytes": 2_000,
    "lr": 4e-3,
    "checkpoint_every": 3,
    "record_every": 1,
    "name": "smoke",
}
"""What `--smoke` changes: a check of the machinery on the real text, without any finding."""


def build_parser() -> argparse.ArgumentParser:
    """The parser; every default is that of `Settings`."""
    d = Settings()
    parser = argparse.ArgumentParser(
        description="Fine-tune one language model on several languages, one a rank or one a pass, and "
        "compare plain DDP with conflict-aware gradient reductions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    presets = ", ".join(PRESETS)
    add(
        "--model",
        help=f"preset ({presets}), or a folder or .gguf file that AutoModelForCausalLM loads (default: {d.model})",
    )
    add(
        "--scenario",
        dest="scenarios",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"{', '.join(SCENARIOS)}; several run one after the other (default: {' '.join(d.scenarios)})",
    )
    add(
        "--languages",
        nargs="+",
        action="extend",
        metavar="LANG",
        help="fine-tuned languages, one a rank, in place of a scenario's",
    )
    add(
        "--unseen",
        nargs="*",
        action="extend",
        metavar="LANG",
        help="only evaluated, with --languages (default: none)",
    )
    add(
        "--replay",
        type=int,
        metavar="N",
        help="segments of text of the --unseen languages that are one more objective (default: 0, no such objective)",
    )
    add(
        "--method",
        "--methods",
        dest="methods",
        nargs="+",
        action="extend",
        metavar="NAME[@LENGTH][:sketch[,OPTION=N]]",
        help=f"'{PLAIN_DDP}' or a method of bucket_moo_ext, with @mean or @unit its direction at that length, with "
        ":sketch from sketched Gramians (options: width, seed, refresh_every, lag); several, or repeated "
        f"(default: {' '.join(d.methods)})",
    )
    add(
        "--seed",
        "--seeds",
        dest="seeds",
        nargs="+",
        action="extend",
        type=int,
        metavar="N",
        help=f"data orders (default: {' '.join(map(str, d.seeds))})",
    )
    add(
        "--wrapper",
        choices=WRAPPERS,
        help="what models train in: DistributedDataParallel, fully_shard (FSDP2) over all ranks or with "
        f"{REPLICAS} replicas of each shard (HSDP), or FullyShardedDataParallel (FSDP1), "
        f"the method '{PLAIN_DDP}' too, which is then the plain wrapper (default: {d.wrapper})",
    )
    add(
        "--layout",
        choices=("ranks", "passes"),
        help="one language a rank, or in one process too one language a pass on all ranks, as many passes a step as "
        f"languages (default: {d.layout})",
    )
    add(
        "--scope",
        choices=("bucket", "model"),
        help=f"weights for each bucket, or the same for the whole model (default: {d.scope})",
    )
    for field, text in {
        "steps": "fine-tuning steps of every method and seed",
        "batch_size": "blocks a language and step",
        "length": "tokens a block",
        "pretrain_steps": "pre-training steps of a preset",
        "pretrain_batch_size": "blocks of each of these",
        "probe_blocks": "blocks in each half of a conflict probe",
        "eval_bytes": "bytes of English in the held-out documents",
        "checkpoint_every": "steps between checkpoints",
        "record_every": "steps from one record of the reductions to the next, for page.html",
    }.items():
        add(
            f"--{field.replace('_', '-')}",
            type=int,
            metavar="N",
            help=f"{text} (default: {getattr(d, field)})",
        )
    add("--lr", type=float, help="AdamW's learning rate, the same for all (default: tuned for each method)")
    add("--clip", type=float, help=f"clip gradients to this length; 0: not at all (default: {d.clip})")
    add("--pretrain-lr", type=float, help=f"that of the pre-training (default: {d.pretrain_lr})")
    add("--bucket-cap-mb", type=float, help=f"DDP's bucket size (default: {d.bucket_cap_mb})")
    add(
        "--probe-steps",
        nargs="*",
        action="extend",
        type=int,
        metavar="N",
        help="steps at which conflicts are measured (default: 0, half and all of --steps)",
    )
    add(
        "--one-at-a-time",
        action="store_true",
        help="one model in memory at a time; step times are then not interleaved",
    )
    add("--resume", action="store_true", help="go on from the checkpoints of runs/<name>")
    add("--name", help=f"folder below --output (default: {d.name})")
    add("--output", help=f"folder of all runs (default: {d.output})")
    add("--smoke", action="store_true", help="a few steps, to see that everything works")
    return parser


def parse(argv: Sequence[str], world_size: int, available: Sequence[str]) -> Settings:
    """Settings from the command line.

    available: names of the methods of the installed extension. Raises BadArgument.
    """
    given = vars(build_parser().parse_args(argv))
    chosen: dict[str, Any] = dict(SMOKE) if given.pop("smoke", False) else {}
    chosen |= {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if "probe_steps" not in chosen:
        steps = chosen.get("steps", Settings.steps)
        chosen["probe_steps"] = (0, steps // 2, steps)
    if "languages" in chosen:
        if "scenarios" in chosen:
            raise BadArgument("--scenario", " ".join(chosen["scenarios"]), "not with --languages")
        chosen["scenarios"] = ()
    elif given_too := [name for name in ("unseen", "replay") if name in chosen]:
        raise BadArgument(f"--{given_too[0]}", chosen[given_too[0]], "with --languages; a --scenario has its own")
    settings = replace(Settings(), **chosen)
    if "methods" not in chosen and not settings.plain:
        settings = replace(settings, methods=tuple(m for m in settings.methods if SKETCH not in m))
    settings = replace(settings, probe_steps=tuple(sorted(set(settings.probe_steps))))
    if not set(settings.scenarios) <= set(SCENARIOS) or len(set(settings.scenarios)) != len(settings.scenarios):
        raise BadArgument(
            "--scenario", " ".join(settings.scenarios), f"one or more of {', '.join(SCENARIOS)}, each once"
        )
    for part in parts(settings):
        check(part, world_size, available)
    return settings


def parts(settings: Settings) -> list[Settings]:
    """The settings of every scenario in turn."""
    found = []
    for name in settings.scenarios:
        task = SCENARIOS[name]
        mine = {"languages": task.objectives, "unseen": task.kept, "replay": task.replay}
        found.append(replace(settings, scenarios=(name,), **mine))
    return found or [settings]


def check(settings: Settings, world_size: int, available: Sequence[str]) -> None:
    """Raises BadArgument for the first thing that cannot work."""
    for argument, values, allowed in (
        ("--languages", settings.languages, LANGUAGES),
        ("--unseen", settings.unseen, LANGUAGES),
    ):
        for value in values:
            if value not in allowed:
                raise BadArgument(argument, repr(value), ", ".join(allowed))
    methods = [parse_method(text, available) for text in settings.methods]
    if len(set(methods)) != len(methods):
        raise BadArgument("--method", " ".join(settings.methods), "one or more, each once")
    for argument, several in (
        ("--languages", settings.languages),
        ("--method", settings.methods),
        ("--seed", settings.seeds),
        ("--languages and --unseen together", settings.all_languages),
    ):
        if len(set(several)) != len(several) or not several:
            raise BadArgument(argument, " ".join(map(str, several)), "one or more, each once")
    try:
        names = settings.task.names
    except ValueError as error:
        raise BadArgument("--replay", settings.replay, f"0, or 1 or more with --unseen languages ({error})") from error
    count = f"{len(names)} ({' '.join(names)}) for {world_size} process(es)"
    if settings.layout == "ranks" and len(names) != world_size:
        allowed = "one objective a rank; change --languages or torchrun's --nproc-per-node, or take --layout passes"
        raise BadArgument("--languages", count, allowed)
    if len(names) % world_size:
        raise BadArgument("--languages", count, "with --layout passes a multiple of the processes")
    if settings.layout == "passes" and settings.batch_size % world_size:
        allowed = f"with --layout passes a multiple of the {world_size} processes, which share a language's blocks"
        raise BadArgument("--batch-size", settings.batch_size, allowed)
    if settings.wrapper != "ddp" and world_size == 1:
        raise BadArgument("--wrapper", repr(settings.wrapper), "ddp in one process: nothing is sharded there")
    if settings.wrapper == "hsdp" and (world_size < 2 * REPLICAS or world_size % REPLICAS):
        allowed = f"fsdp2 for {world_size} processes: hsdp wants {REPLICAS} replicas, each sharded over 2 or more"
        raise BadArgument("--wrapper", repr(settings.wrapper), allowed)
    if settings.wrapper != "ddp" and settings.scope == "model":
        raise BadArgument("--scope", repr(settings.scope), f"bucket with --wrapper {settings.wrapper}")
    for text, method in zip(settings.methods, methods, strict=True):
        if method.sketch is not None and settings.wrapper == "hsdp":
            raise BadArgument("--method", repr(text), "exact Gramians with --wrapper hsdp")
    least = {
        "steps": 1,
        "batch_size": 1,
        "length": 8,
        "pretrain_steps": 0,
        "pretrain_batch_size": 1,
        "probe_blocks": 1,
        "eval_bytes": 1,
        "checkpoint_every": 1,
        "record_every": 1,
    }
    for field, low in least.items():
        if getattr(settings, field) < low:
            name = f"--{field.replace('_', '-')}"
            raise BadArgument(name, getattr(settings, field), f"{low} or more")
    for field in ("lr", "clip"):
        if not 0 <= getattr(settings, field) < float("inf"):
            raise BadArgument(f"--{field}", getattr(settings, field), "a number above 0, or 0")
    for field in ("pretrain_lr", "bucket_cap_mb"):
        if not getattr(settings, field) > 0:
            name = f"--{field.replace('_', '-')}"
            raise BadArgument(name, getattr(settings, field), "a number above 0")
    for seed in settings.seeds:
        if seed < 0:
            raise BadArgument("--seed", seed, "0 or more")
    for step in settings.probe_steps:
        if not 0 <= step <= settings.steps:
            raise BadArgument("--probe-steps", step, f"0 to --steps ({settings.steps})")
    if not settings.name or os.sep in settings.name or settings.name in (".", ".."):
        raise BadArgument("--name", repr(settings.name), "a folder name without separators")
    if settings.model not in PRESETS and not Path(settings.model).exists():
        presets = ", ".join(PRESETS)
        raise BadArgument("--model", repr(settings.model), f"{presets}, or an existing path")
