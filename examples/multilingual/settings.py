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
from spec import PLAIN_DDP, SKETCH, BadArgument, parse_method
from wrappers import REPLICAS, WRAPPERS


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, plus where it writes."""

    model: str = "llama-1m"
    languages: tuple[str, ...] = ("de", "hu", "tr", "ja")
    unseen: tuple[str, ...] = ("en", "pt", "cs", "sv", "ko")
    methods: tuple[str, ...] = (PLAIN_DDP, "mgda", "cagrad", "mgda:sketch")
    seeds: tuple[int, ...] = (0, 1, 2)
    wrapper: str = "ddp"
    layout: str = "ranks"
    scope: str = "bucket"
    steps: int = 60
    batch_size: int = 8
    length: int = 128
    lr: float = 4e-3
    bucket_cap_mb: float = 1.0
    pretrain_steps: int = 300
    pretrain_lr: float = 4e-3
    probe_steps: tuple[int, ...] = (0, 7, 30, 60)
    probe_blocks: int = 16
    eval_bytes: int = 24_000
    checkpoint_every: int = 30
    record_every: int = 2
    one_at_a_time: bool = False
    resume: bool = False
    name: str = "demo"
    output: str = "runs"

    @property
    def folder(self) -> Path:
        """Where this run's tables, figure, JSON and checkpoints go."""
        return Path(self.output) / self.name

    @property
    def all_languages(self) -> tuple[str, ...]:
        """Seen, then unseen."""
        return self.languages + self.unseen

    @property
    def plain(self) -> bool:
        """Whether a step is one pass with weights for each bucket, no more: what Sketch can do everywhere."""
        return (self.layout, self.scope) == ("ranks", "bucket") and self.wrapper != "hsdp"

    def share(self, rank: int, world_size: int) -> tuple[str, ...]:
        """The seen languages, dealt out to the ranks."""
        each = len(self.languages) // world_size
        return self.languages[rank * each : (rank + 1) * each]

    def passes(self, rank: int, world_size: int) -> tuple[str, ...]:
        """The language of each backward pass of a rank's step."""
        return self.languages if self.layout == "passes" else self.share(rank, world_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a checkpoint must share with the run that resumes it."""
        free = ("methods", "seeds", "resume", "name", "output", "checkpoint_every", "one_at_a_time")
        return {k: v for k, v in self.to_dict().items() if k not in free}


SMOKE = {
    "steps": 6,
    "pretrain_steps": 10,
    "probe_steps": (0, 6),
    "probe_blocks": 4,
    "eval_bytes": 2_000,
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
        "--languages",
        nargs="+",
        action="extend",
        metavar="LANG",
        help=f"fine-tuned languages, one a rank (default: {' '.join(d.languages)})",
    )
    add(
        "--unseen",
        nargs="*",
        action="extend",
        metavar="LANG",
        help=f"only evaluated (default: {' '.join(d.unseen)})",
    )
    add(
        "--method",
        "--methods",
        dest="methods",
        nargs="+",
        action="extend",
        metavar="NAME[:sketch[,OPTION=N]]",
        help=f"'{PLAIN_DDP}' or a method of bucket_moo_ext, with :sketch from sketched Gramians (options: width, seed, "
        f"refresh_every, lag); several, or repeated (default: {' '.join(d.methods)})",
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
    add("--lr", type=float, help=f"AdamW's learning rate, the same for all (default: {d.lr})")
    add("--pretrain-lr", type=float, help=f"that of the pre-training (default: {d.pretrain_lr})")
    add("--bucket-cap-mb", type=float, help=f"DDP's bucket size (default: {d.bucket_cap_mb})")
    add(
        "--probe-steps",
        nargs="*",
        action="extend",
        type=int,
        metavar="N",
        help="steps at which conflicts are measured (default: 0, 1/8, 1/2 and all of --steps)",
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
        chosen["probe_steps"] = (0, steps // 8, steps // 2, steps)
    if "unseen" not in chosen:
        seen = chosen.get("languages", Settings.languages)
        chosen["unseen"] = tuple(x for x in Settings.unseen if x not in seen)
    settings = replace(Settings(), **chosen)
    if "methods" not in chosen and not settings.plain:
        settings = replace(settings, methods=tuple(m for m in settings.methods if SKETCH not in m))
    settings = replace(settings, probe_steps=tuple(sorted(set(settings.probe_steps))))
    check(settings, world_size, available)
    return settings


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
    count = f"{len(settings.languages)} ({' '.join(settings.languages)}) for {world_size} process(es)"
    if settings.layout == "ranks" and len(settings.languages) != world_size:
        allowed = "one language a rank; change --languages or torchrun's --nproc-per-node, or take --layout passes"
        raise BadArgument("--languages", count, allowed)
    if len(settings.languages) % world_size:
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
        "probe_blocks": 1,
        "eval_bytes": 1,
        "checkpoint_every": 1,
        "record_every": 1,
    }
    for field, low in least.items():
        if getattr(settings, field) < low:
            name = f"--{field.replace('_', '-')}"
            raise BadArgument(name, getattr(settings, field), f"{low} or more")
    for field in ("lr", "pretrain_lr", "bucket_cap_mb"):
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
