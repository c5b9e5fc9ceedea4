"""Entry of the demo: `torchrun --nproc-per-node 4 examples/multilingual/train.py`, or one process, without torchrun.

Trains every method with every seed on the same text from the same weights, and writes tables,
figure and JSON to `runs/<name>/`. It reports what happened, whichever method wins.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import conflicts
import figures
import summary
import torch
import transformers
from corpus import Corpus, CorpusUnavailable, cache_folder, load, write_atomically
from evaluation import TestSet, build_test_set, evaluate, uniform_loss
from finetune import CannotResume, Lane, train
from models import PRESETS, build_preset, load_pretrained
from pretrain import pretrain
from recording import write_page
from sampler import BlockSampler, PassSampler, Tokens
from settings import BadArgument, Settings, parse
from tokenizer import cached_streams, corpus_digest, digest, end_token, train_tokenizer
from torch import nn
from transformers import PreTrainedTokenizerBase
from world import World, start, stop


class CannotStart(RuntimeError):
    """The text or the model cannot be had; the message says why."""


class Clock:
    """Wall time by phase."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to `name`."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def prepare(
    settings: Settings, world: World, clock: Clock
) -> tuple[Corpus, PreTrainedTokenizerBase, dict[str, Tokens], nn.Module]:
    """Text, tokens and the model before fine-tuning, from the cache where it has them.

    Rank 0 goes first and fills the cache; the others then read it.
    """
    cache = cache_folder()
    languages = list(dict.fromkeys((*settings.all_languages, "en")))
    if not world.shows:
        world.barrier()
    with clock.phase("text and tokens"):
        corpus = load(languages, cache)
        if preset := PRESETS.get(settings.model):
            key = digest(corpus_digest(corpus), preset.vocabulary)
            tokenizer = train_tokenizer(corpus, preset.vocabulary, cache / f"bpe-{key}.json")
        else:
            model, tokenizer = load_pretrained(settings.model)
            key = digest(corpus_digest(corpus), tokenizer.get_vocab(), os.path.abspath(settings.model))
        streams = cached_streams(tokenizer, corpus, cache / f"tokens-{key}", make=world.shows)
    if world.shows:
        world.barrier()
        streams = cached_streams(tokenizer, corpus, cache / f"tokens-{key}", make=False)
    if preset is None:
        return corpus, tokenizer, streams, model.to(world.device)
    with clock.phase("pre-training"):
        end = end_token(tokenizer)
        model = build_preset(preset, length=settings.length, end=end, seed=0).to(world.device)
        recipe: dict[str, Any] = {
            "steps": settings.pretrain_steps,
            "batch": settings.batch_size,
            "length": settings.length,
            "lr": settings.pretrain_lr,
            "end": end,
        }
        name = digest(key, settings.model, recipe, world.size)
        cached = pretrain(model, streams, world, **recipe, path=cache / f"model-{name}.pt")
    count = sum(p.numel() for p in model.parameters())
    world.say(
        f"{settings.model}: {count / 1e6:.2f} M parameters, pre-trained for "
        f"{settings.pretrain_steps} steps on {' '.join(sorted(streams))} "
        + ("(from the cache)" if cached else f"in {clock.seconds['pre-training']:.0f} s")
    )
    return corpus, tokenizer, streams, model


def run_seed(
    settings: Settings,
    seed: int,
    base: nn.Module,
    streams: dict[str, Tokens],
    test: TestSet,
    end: int,
    world: World,
    clock: Clock,
) -> list[summary.Run]:
    """All methods with one seed; the same blocks for each, step by step."""
    shape: dict[str, Any] = {"length": settings.length, "seed": seed, "end": end}
    sample = PassSampler(
        {
            language: BlockSampler(streams[language], batch=settings.batch_size, stream=language, **shape)
            for language in settings.passes(world.rank, world.size)
        },
        **({"part": world.rank, "parts": world.size} if settings.layout == "passes" else {}),
    )
    probes = PassSampler(
        {
            language: BlockSampler(
                streams[language], batch=2 * settings.probe_blocks, stream=f"{language} probe", **shape
            )
            for language in settings.share(world.rank, world.size)
        }
    )
    untouched: dict[str, Any] = {}

    def watch(lane: Lane, step: int) -> None:
        if step not in settings.probe_steps:
            return
        with clock.phase("conflict probes"):
            if step == 0 and untouched:
                measured = untouched
            else:
                number = settings.probe_steps.index(step)
                blocks = [part.to(world.device) for part in probes(number).values()]
                gramians = conflicts.probe(lane.wrapped.whole(), blocks, settings.batch_size, world)
                measured = {group: conflicts.measure(g) for group, g in gramians.items()}
            if step == 0:
                untouched.update(measured)
            lane.history["probes"][str(step)] = measured
            if step > 0 and lane.state is not None:
                lane.history["reports"][str(step)] = lane.state.report().to_dict()

    def finish(methods: tuple[str, ...]) -> list[summary.Run]:
        lanes = [Lane(settings, m, seed, base, world, sample) for m in methods]
        for lane in lanes:
            if settings.resume and lane.resume():
                world.say(f"{lane.method}, seed {seed}: goes on after step {lane.next_step}")
        train(lanes, sample, settings, world, f"seed {seed}", watch)
        for lane in lanes:
            if "after" not in lane.history:
                with clock.phase("evaluation"):
                    lane.history["after"] = evaluate(
                        lane.wrapped.whole(),
                        test,
                        world,
                        batch=4 * settings.batch_size,
                        title=f"evaluating {lane.method}, seed {seed}",
                    )
                lane.save()
        return [{"method": x.method, "seed": seed, **x.history} for x in lanes]

    if settings.one_at_a_time:
        return [run for method in settings.methods for run in finish((method,))]
    return finish(settings.methods)


def report(
    settings: Settings,
    world: World,
    uniform: dict[str, float],
    before: dict[str, float],
    runs: list[summary.Run],
    clock: Clock,
) -> None:
    """Prints the tables and writes them, the figure and the JSON."""
    result: dict[str, Any] = {
        "settings": settings.to_dict(),
        "environment": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "ranks": world.size,
            "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
            "cpus": os.cpu_count(),
            "threads_per_rank": torch.get_num_threads(),
        },
        "held_out": summary.held_out(settings, uniform, before, runs),
        "conflicts": summary.conflicts(settings, runs),
        "step_time": summary.step_times(settings, runs),
        "wall_seconds": {k: round(v, 1) for k, v in clock.seconds.items()},
        "runs": runs,
    }
    parts = [
        summary.loss_table(settings, result["held_out"]),
        summary.difference_table(settings, result["held_out"]),
        summary.gramian_lines(runs),
        *(summary.conflict_table(settings, result["conflicts"], m) for m in settings.methods if result["conflicts"][m]),
        summary.time_table(settings, result["step_time"]),
        "wall time: " + ", ".join(f"{k} {v:.0f} s" for k, v in clock.seconds.items()),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_atomically(settings.folder / "summary.txt", text.encode())
    data = json.dumps(result, indent=1, ensure_ascii=False)
    write_atomically(settings.folder / "summary.json", data.encode())
    figures.draw(settings, result, settings.folder / "summary.png")
    print(f"\n{text}\nwritten: {settings.folder}/summary.json, summary.txt, summary.png")
    if page := write_page(settings):
        print(f"written: {page}, to be opened in a browser: which languages conflict where, step by step")


def demo(settings: Settings, world: World) -> None:
    """The whole run."""
    clock = Clock()
    with clock.phase("total"):
        if world.shows and not settings.resume:
            for stale in ("checkpoints", "recordings"):
                shutil.rmtree(settings.folder / stale, ignore_errors=True)
        try:
            corpus, tokenizer, streams, base = prepare(settings, world, clock)
        except (CorpusUnavailable, ValueError, OSError, ImportError) as error:
            raise CannotStart(str(error)) from error
        test = build_test_set(
            corpus,
            settings.all_languages,
            tokenizer,
            size=settings.eval_bytes,
            length=settings.length,
        )
        with clock.phase("evaluation"):
            uniform = uniform_loss(test, base.get_input_embeddings().weight.shape[0])
            before = evaluate(base, test, world, batch=4 * settings.batch_size, title="evaluating before")
        runs: list[summary.Run] = []
        for seed in settings.seeds:
            with clock.phase("fine-tuning with probes and evaluation"):
                runs += run_seed(settings, seed, base, streams, test, end_token(tokenizer), world, clock)
    if world.shows:
        report(settings, world, uniform, before, runs, clock)
    world.barrier()


def main() -> int:
    """Checks the arguments, joins the process group, runs."""
    first = os.environ.get("RANK", "0") == "0"

    def fail(message: object, status: int) -> int:
        if first:
            print(f"error: {message}", file=sys.stderr, flush=True)
        return status

    try:
        from bucket_moo_ext import available_methods
    except ImportError as error:
        return fail(
            f"bucket_moo_ext cannot be imported ({error}); build it first: see the repository's README",
            2,
        )
    try:
        settings = parse(sys.argv[1:], int(os.environ.get("WORLD_SIZE", "1")), tuple(available_methods()))
    except BadArgument as error:
        return fail(error, 2)
    transformers.utils.logging.set_verbosity_error()
    world = start(gpu=settings.plain)
    try:
        demo(settings, world)
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except CannotResume as error:
        return fail(error, 1)
    finally:
        stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
