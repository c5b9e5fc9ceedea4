"""Study: what sketched Gramians change in a whole training run, beside exact ones and plain DDP.

`torchrun --standalone --nproc-per-node 4 examples/multilingual/sketch_quality.py [--json FILE] [train.py's options]`
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import summary
import torch
import torch.distributed as dist
from evaluation import evaluate
from finetune import Lane, train
from materials import Materials
from settings import Settings, parse
from spec import PLAIN_DDP, BadArgument, MethodSpec
from train import Clock, prepare, samplers, test_set
from world import World, start, stop

EXACT = "mgda"
SKETCHED = "mgda:sketch"
METHODS = (PLAIN_DDP, EXACT, SKETCHED, f"{SKETCHED},lag=1", f"{SKETCHED},refresh_every=10")


class ShadowLane(Lane):
    """A lane that gathers every bucket's gradients too, and keeps the exact Gramian beside what the hook used."""

    def _register(self, spec: MethodSpec, language: str) -> Any:
        state = moo.BucketMOO(spec.method, objective=language, gramian=spec.gramian, seed=self.seed)
        state.name_parameters(self.wrapped.whole().named_parameters())
        self.exact: dict[int, torch.Tensor] = {}

        def hook(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            rows = [torch.empty_like(bucket.buffer()) for _ in range(dist.get_world_size())]
            dist.all_gather(rows, bucket.buffer())
            self.exact[bucket.index()] = moo.gramian(rows)
            return moo.bucket_moo_hook(state, bucket)

        self.wrapped.module.register_comm_hook(state, hook)
        return state

    def compare(self, languages: Sequence[str]) -> list[dict[str, Any]]:
        """The last step, bucket by bucket."""
        result = []
        for bucket in self.state.report().buckets:
            order = [languages.index(name) for name in bucket.objectives]
            exact = self.exact[bucket.index][order][:, order]
            distances = (bucket.weights - moo.weights(exact, EXACT)).abs()
            result.append(
                {
                    "numel": bucket.numel,
                    "width": bucket.width,
                    "distances": distances.tolist(),
                    "conflicts": bucket.conflicts,
                    "exact_conflicts": int((torch.triu(exact, 1) < 0).sum()),
                    "pairs": bucket.pairs,
                }
            )
        return result


def run_seed(settings: Settings, seed: int, materials: Materials, test: Any, world: World) -> Any:
    """All methods side by side, timed; then the sketch once more with its shadow, untimed."""
    base, _ = materials.base(settings.model, 0)
    sample = samplers(settings, seed, materials, world)
    lanes = [Lane(settings, method, seed, base, world, sample) for method in settings.methods]
    train(lanes, sample, settings, world, f"seed {seed}", lambda *_: None)
    shadow = ShadowLane(settings, SKETCHED, seed, base, world, sample)
    steps: list[list[dict[str, Any]]] = []

    def watch(lane: Lane, step: int) -> None:
        if step > 0:
            steps.append(shadow.compare(settings.languages))

    train([shadow], sample, settings, world, f"seed {seed}, shadow", watch)
    batch = 4 * settings.batch_size
    for lane in lanes:
        lane.history["after"] = evaluate(
            lane.wrapped.whole(), test, world, batch=batch, title=f"evaluating {lane.method}"
        )
    twin = lanes[settings.methods.index(SKETCHED)]
    same = shadow.history["losses"] == twin.history["losses"]
    runs = [{"method": x.method, "seed": seed, **x.history} for x in lanes]
    return runs, {"seed": seed, "same_losses_as_timed_run": same, **agreement(steps)}


def agreement(steps: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Distance of weights over the sketched buckets, and conflict shares of the same gradients, of one run."""
    sketched = [b for step in steps for b in step if b["width"]]
    if not sketched:
        raise RuntimeError("no bucket is large enough to be sketched")
    distances = np.array([b["distances"] for b in sketched])
    pairs = sum(b["pairs"] for b in sketched)
    return {
        "steps": len(steps),
        "mean_distance": float(distances.mean()),
        "max_distance": float(distances.max()),
        "sketched_share_of_elements": sum(b["numel"] for b in sketched) / sum(b["numel"] for s in steps for b in s),
        "conflict_share_sketch": sum(b["conflicts"] for b in sketched) / pairs,
        "conflict_share_exact": sum(b["exact_conflicts"] for b in sketched) / pairs,
        "buckets": [{"numel": b["numel"], "width": b["width"]} for b in steps[0]],
    }


def markdown(settings: Settings, result: dict[str, Any]) -> str:
    """Losses, differences to the exact method paired by seed, and step times."""
    rows = [*settings.languages, "mean seen"]
    lines = ["| | " + " | ".join(settings.methods) + " |", "|---" * (len(settings.methods) + 1) + "|"]
    for row in rows:
        cells = [result["after"][m][row] for m in settings.methods]
        lines.append(f"| {row} | " + " | ".join(f"{c['mean']:.4f} ±{c['std']:.4f}" for c in cells) + " |")
    cells = [result["minus_exact"][m]["mean seen"] for m in settings.methods]
    lines.append("| mean seen minus mgda | " + " | ".join(f"{c['mean']:+.4f} ±{c['std']:.4f}" for c in cells) + " |")
    ratios = [result["step_time"]["methods"][m].get("ratio_to_ddp") for m in settings.methods]
    cells = [f"{r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if r else "1" for r in ratios]
    lines += ["| step time / ddp's | " + " | ".join(cells) + " |", ""]
    lines += ["| seed | mean abs. dw | max abs. dw | conflicts, sketch | conflicts, exact |", "|---|---|---|---|---|"]
    lines += [
        f"| {a['seed']} | {a['mean_distance']:.4f} | {a['max_distance']:.4f} | {a['conflict_share_sketch']:.1%} | "
        f"{a['conflict_share_exact']:.1%} |"
        for a in result["agreement"]
    ]
    return "\n".join(lines)


def study(settings: Settings, world: World, path: Path) -> None:
    """The whole study; rank 0 prints and writes."""
    load = os.getloadavg()
    materials = prepare(settings, world, Clock())
    test = test_set(settings, materials, "test")
    runs: list[summary.Run] = []
    agreements = []
    for seed in settings.seeds:
        own, agreed = run_seed(settings, seed, materials, test, world)
        runs += own
        agreements.append(agreed)
        if world.shows:  # after every seed, so that a stopped study leaves the seeds that it finished
            done = replace(settings, seeds=tuple(a["seed"] for a in agreements))
            result = collect(done, runs) | {"load_average": {"before": load, "after": os.getloadavg()}}
            result["agreement"] = agreements
            path.write_text(json.dumps(result, indent=1) + "\n")
    world.say(f"\n{markdown(done, result)}\n\nwritten: {path}" if world.shows else "")


def collect(settings: Settings, runs: list[summary.Run]) -> dict[str, Any]:
    """Losses, differences paired by seed, step times, and what they were measured with."""
    after = {
        run["method"]: {
            r["seed"]: r["after"] | {"mean seen": float(np.mean(list(r["after"].values())))}
            for r in runs
            if r["method"] == run["method"]
        }
        for run in runs
    }
    rows = [*settings.languages, "mean seen"]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": sys.argv,
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "settings": settings.to_dict(),
        "unit": "bits per byte",
        "after": {m: {row: summary.spread([s[row] for s in after[m].values()]) for row in rows} for m in after},
        "minus_exact": {
            m: {row: summary.spread([s[row] - after[EXACT][seed][row] for seed, s in after[m].items()]) for row in rows}
            for m in after
        },
        "step_time": summary.step_times(settings, runs),
    }


def main() -> int:
    """As train.py, with this study's methods."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", type=Path, default=Path("bench/results/sketch_quality.json"))
    chosen, rest = parser.parse_known_args()
    arguments = ["--name", "sketch_quality", "--probe-steps", "0", "--lr", "4e-3", "--method", *METHODS, *rest]
    if not {"--scenario", "--languages"} & set(rest):
        arguments += ["--languages", "de", "hu", "tr", "ja"]
    try:
        settings = parse(arguments, int(os.environ.get("WORLD_SIZE", "1")), tuple(moo.available_methods()))
    except BadArgument as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    world = start()
    try:
        study(settings, world, chosen.json)
    finally:
        stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
