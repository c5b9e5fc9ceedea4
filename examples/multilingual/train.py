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
from dataclasses import replace
from pathlib import Path
from typing import Any

import conflicts
import figures
import summary
import torch
import transformers
from corpus import CorpusUnavailable, write_atomically
from evaluation import TestSet, evaluate, uniform_loss
from finetune import CannotResume, Lane, train
from materials import Materials, Recipe
from recording import write_page
from sampler import PassSampler
from settings import BadArgument, Settings, parse, parts
from spec import PLAIN_DDP
from tuning import FIRST, LEARNING_RATES, SEED, following, keep, key, known
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


def prepare(settings: Settings, world: World, clock: Clock) -> Materials:
    """Text, tokenizer and the model before fine-tuning, from the cache where it has them.

    Rank 0 goes first and fills the cache; the others then read it.
    """
    recipe = Recipe(settings.pretrain_steps, settings.pretrain_batch_size, settings.length, settings.pretrain_lr)
    materials = Materials(settings.corpus_languages, settings.known, recipe, world.device, shows=world.shows)
    if not world.shows:
        world.barrier()
    with clock.phase("text"):
        count = materials.corpus.segments
    with clock.phase("model"):
        base, _ = materials.base(settings.model, 0)
    if world.shows:
        world.barrier()
    size = sum(p.numel() for p in base.parameters()) / 1e6
    world.say(
        f"{settings.model}: {size:.2f} M parameters; {count} segments of text in {' '.join(materials.languages)}, "
        f"of which presets are pre-trained on {' '.join(materials.known)}"
    )
    return materials


def samplers(
    settings: Settings, seed: int, materials: Materials, world: World, *, stream: str = "", batch: int | None = None
) -> PassSampler:
    """This rank's blocks: of its passes, or with `stream` of its share of the objectives in another order."""
    everything = materials.samplers(
        settings.model, settings.task, seed, batch=batch or settings.batch_size, length=settings.length, stream=stream
    )
    names = settings.share(world.rank, world.size) if stream else settings.passes(world.rank, world.size)
    shared = {"part": world.rank, "parts": world.size} if settings.layout == "passes" and not stream else {}
    return PassSampler({name: everything[name] for name in names}, **shared)


def test_set(settings: Settings, materials: Materials, part: str) -> TestSet:
    """Held-out text of all languages, or of those that count for a choice."""
    languages = settings.task.measured if part == "validation" else settings.all_languages
    return materials.test_set(settings.model, languages, part, size=settings.eval_bytes, length=settings.length)


def tuning_keys(settings: Settings, materials: Materials) -> dict[str, str]:
    """Under what each method's learning rate is kept."""
    return {
        method: key(
            model=settings.model,
            recipe=materials.recipe,
            scenario=settings.task,
            method="mean" if method == PLAIN_DDP else method,
            scope=settings.scope,
            clip=settings.clip or None,
            steps=settings.steps,
            batch_size=settings.batch_size,
            length=settings.length,
            bucket_cap_mb=settings.bucket_cap_mb,
            validation_bytes=settings.eval_bytes,
        )
        for method in settings.methods
    }


def tune(settings: Settings, materials: Materials, world: World, clock: Clock) -> Settings:
    """Settings with a learning rate for every method: what is kept, or found now by the same rule for all."""
    if settings.lr:
        return settings
    keys = tuning_keys(settings, materials)
    found = world.gather(known())[0]
    rates = {method: found[k]["lr"] for method, k in keys.items() if k in found}
    missing = [method for method in settings.methods if method not in rates]
    if missing:
        with clock.phase("tuning"):
            losses = try_rates(settings, missing, materials, world)
        new = {method: LEARNING_RATES[min(tried, key=tried.__getitem__)] for method, tried in losses.items()}
        if world.shows:
            keep({keys[m]: {"lr": new[m], "source": "the demo", "validation": losses[m]} for m in missing})
        rates |= new
    where = {method: "found now" if method in missing else found[keys[method]]["source"] for method in settings.methods}
    world.say("learning rates: " + ", ".join(f"{m} {rates[m]:g} ({where[m]})" for m in settings.methods))
    return replace(settings, rates=tuple(rates.items()))


def try_rates(
    settings: Settings, missing: list[str], materials: Materials, world: World
) -> dict[str, dict[int, float]]:
    """Validation loss of every method in `missing`, by place of the learning rates that the rule asks for."""
    losses: dict[str, dict[int, float]] = {method: {} for method in missing}
    wanted = {method: list(FIRST) for method in missing}
    sample = samplers(settings, SEED, materials, world)
    base, validation = materials.base(settings.model, 0)[0], test_set(settings, materials, "validation")
    while wanted:
        for method, places in wanted.items():
            lanes = [Lane(settings, method, SEED, base, world, sample, LEARNING_RATES[i]) for i in places]
            train(lanes, sample, settings, world, f"tuning {method}", None)
            for place, lane in zip(places, lanes, strict=True):
                after = evaluate(lane.wrapped.whole(), validation, world, batch=32, title="validation")
                losses[method][place] = sum(after.values()) / len(after)
        next_places = {method: following(losses[method], len(LEARNING_RATES)) for method in wanted}
        wanted = {method: [place] for method, place in next_places.items() if place is not None}
    return losses


def run_seed(
    settings: Settings,
    seed: int,
    materials: Materials,
    test: TestSet,
    world: World,
    clock: Clock,
) -> list[summary.Run]:
    """All methods with one seed; the same blocks for each, step by step."""
    base, _ = materials.base(settings.model, 0)
    sample = samplers(settings, seed, materials, world)
    probes = samplers(settings, seed, materials, world, stream=" probe", batch=2 * settings.probe_blocks)
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
                        batch=32,
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
) -> dict[str, Any]:
    """Prints the tables and writes them, the figure and the JSON; what was held out."""
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
        summary.reading(settings, result["held_out"]),
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
    held_out: dict[str, Any] = result["held_out"]
    return held_out


def demo(settings: Settings, world: World) -> tuple[Settings, dict[str, Any]]:
    """One scenario: settings with learning rates, and on rank 0 what was held out."""
    clock = Clock()
    with clock.phase("total"):
        if world.shows and not settings.resume:
            for stale in ("checkpoints", "recordings"):
                shutil.rmtree(settings.folder / stale, ignore_errors=True)
        try:
            materials = prepare(settings, world, clock)
            test = test_set(settings, materials, "test")
        except (CorpusUnavailable, ValueError, OSError, ImportError) as error:
            raise CannotStart(str(error)) from error
        base, _ = materials.base(settings.model, 0)
        with clock.phase("evaluation"):
            uniform = uniform_loss(test, base.get_input_embeddings().weight.shape[0])
            before = evaluate(base, test, world, batch=32, title="evaluating before")
        settings = tune(settings, materials, world, clock)
        runs: list[summary.Run] = []
        for seed in settings.seeds:
            with clock.phase("fine-tuning with probes and evaluation"):
                runs += run_seed(settings, seed, materials, test, world, clock)
    found = report(settings, world, uniform, before, runs, clock) if world.shows else {}
    world.barrier()
    return settings, found


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
        results = []
        for part in parts(settings):
            world.say(f"\n== {part.task.name}: {' '.join(part.task.names)}")
            results.append(demo(part, world))
        if world.shows and len(results) > 1:
            text = summary.overview(results)
            write_atomically(Path(settings.output, settings.name, "summary.txt"), f"{text}\n".encode())
            print(f"\n== all scenarios\n\n{text}")
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
