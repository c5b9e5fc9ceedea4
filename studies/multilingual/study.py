"""Runs a registered study: `python studies/multilingual/study.py studies/multilingual/small.toml --jobs 2`.

Every run's result is a file of its own, so that an interrupted study goes on where it was. At the end the report is
written: Markdown, a figure, and all results as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "multilingual"))

from arms import Arm
from corpus import CorpusUnavailable, write_atomically
from registration import BadRegistration, Cell, Registration, read
from tasks import Run
from tuning import following

Result = dict[str, Any]
Plan = Generator[list[Run], list[Result], Any]
"""Asks for runs, is sent their results, and returns what came of it."""


def primary(result: Result, languages: Sequence[str]) -> float:
    """Bits a byte, mean over languages; infinite for a run that diverged."""
    if result["diverged"] is not None:
        return float("inf")
    return sum(result["bits_per_byte"][x] for x in languages) / len(languages)


def arm_plan(registration: Registration, cell: Cell, arm: Arm) -> Plan:
    """Tunes an arm by the registered rule, then runs its tests.

    An arm with weights to tune has the learning rate of the same mean without weights first.
    """
    scenario = registration.scenarios[cell.scenario]
    tuning = registration.tuning

    def run(purpose: str, lr: float, weight: float, seed: int) -> Run:
        looks = cell.headline and purpose == "test" and seed in registration.anatomy.separability_seeds
        return Run(
            purpose=purpose,
            scenario=scenario,
            model=registration.models[cell.model],
            arm=arm,
            lr=lr,
            focus_weight=weight,
            seed=seed,
            base=seed % registration.bases,
            separability=looks,
        )

    tried: dict[tuple[float, float], float] = {}
    tuning_runs: list[Result] = []

    def attempt(points: Sequence[tuple[float, float]]) -> Generator[list[Run], list[Result], None]:
        new = [point for point in points if point not in tried]
        results = yield [run("tuning", *point, seed) for point in new for seed in tuning.seeds]
        tuning_runs.extend(results)
        for i, point in enumerate(new):
            mine = results[i * len(tuning.seeds) : (i + 1) * len(tuning.seeds)]
            tried[point] = sum(primary(result, scenario.measured) for result in mine) / len(mine)

    rates = tuning.learning_rates
    yield from attempt([(rates[place], 1.0) for place in tuning.first])

    def losses() -> dict[int, float]:
        return {place: tried[rate, 1.0] for place, rate in enumerate(rates) if (rate, 1.0) in tried}

    while (place := following(losses(), len(rates))) is not None:
        yield from attempt([(rates[place], 1.0)])
    lr = rates[min(losses(), key=lambda place: losses()[place])]
    yield from attempt([(lr, weight) for weight in arm.focus_weights])
    chosen = min(tried, key=lambda point: tried[point])
    results = yield [run("test", *chosen, seed) for seed in cell.seeds]
    return {
        "arm": arm.name,
        "tried": [{"lr": lr, "focus_weight": weight, "validation": value} for (lr, weight), value in tried.items()],
        "at_end_of_grid": chosen[0] in (tuning.learning_rates[0], tuning.learning_rates[-1]),
        "lr": chosen[0],
        "focus_weight": chosen[1],
        "validation": tried[chosen],
        "tuning": tuning_runs,
        "tests": results,
    }


def noise_plan(registration: Registration, cell: Cell) -> Plan:
    """Runs of the mean with two rows an objective, at the middle learning rate of the first grid."""
    tuning = registration.tuning
    lr = tuning.learning_rates[tuning.first[len(tuning.first) // 2]]
    results = yield [
        Run(
            purpose="noise",
            scenario=registration.scenarios[cell.scenario],
            model=registration.models[cell.model],
            arm=Arm("mean", "mean"),
            lr=lr,
            focus_weight=1.0,
            seed=seed,
            base=seed % registration.bases,
            rows=2,
        )
        for seed in registration.anatomy.noise_seeds
    ]
    return {"lr": lr, "runs": results}


class Keeper:
    """Results on disk, by what decides them."""

    def __init__(self, folder: Path, registration: Registration) -> None:
        """`folder`: of this study."""
        self._folder, self._registration = folder / "runs", registration

    def path(self, run: Run) -> Path:
        """The file of a run."""
        return self._folder / f"{run.key(self._registration)}.json"

    def get(self, run: Run) -> Result | None:
        """What is there already."""
        path = self.path(run)
        found: Result | None = json.loads(path.read_bytes()) if path.exists() else None
        return found

    def put(self, run: Run, result: Result) -> None:
        """Keeps a result."""
        write_atomically(self.path(run), json.dumps(result).encode())


_worker: dict[str, Any] = {}


def _start_worker(path: str) -> None:
    """In a process of its own: everything that runs share."""
    import torch
    import transformers
    from materials import Materials
    from world import start

    transformers.utils.logging.set_verbosity_error()
    world = start()
    if world.device.type == "cpu":
        torch.set_num_threads(1)  # runs side by side use the cores better
    registration = read(Path(path))
    recipe = registration.training.recipe
    materials = Materials(registration.languages, registration.known, recipe, world.device, shows=False)
    _worker.update(registration=registration, world=world, materials=materials)


def _prepare(model: str, base: int) -> None:
    _worker["materials"].base(model, base)


def _work(run: Run) -> Result:
    from fine_tuning import fine_tune

    return fine_tune(run, _worker["registration"], _worker["materials"], _worker["world"])


class Progress:
    """Says how far the study is, a line at most every few seconds."""

    def __init__(self) -> None:
        """Nothing done yet."""
        self.done = self.kept = 0
        self._began = self._said = time.perf_counter()

    def say(self, pending: int, *, always: bool = False) -> None:
        """`pending`: runs that are asked for and not done."""
        now = time.perf_counter()
        if always or now - self._said > 30:
            self._said = now
            minutes = (now - self._began) / 60
            print(f"{self.done} runs done, {self.kept} were there, {pending} asked for, {minutes:.1f} min", flush=True)


def drive(plans: Mapping[Any, Plan], submit: Callable[[Run], Future[Result]], keeper: Keeper) -> dict[Any, Any]:
    """Runs all plans to their ends; each goes on as soon as the runs that it asked for are done."""
    outcome: dict[Any, Any] = {}
    waiting: dict[Future[Result], tuple[Any, int, Run]] = {}
    results: dict[Any, list[Result | None]] = {}
    progress = Progress()

    def advance(name: Any, answer: list[Result] | None) -> None:
        """Sends a plan what it asked for, until it asks for something that is not there."""
        while True:
            try:
                asked = plans[name].send(answer) if answer is not None else next(plans[name])
            except StopIteration as stop:
                outcome[name] = stop.value
                return
            results[name] = [keeper.get(run) for run in asked]
            progress.kept += sum(found is not None for found in results[name])
            missing = [i for i, found in enumerate(results[name]) if found is None]
            for i in missing:
                waiting[submit(asked[i])] = (name, i, asked[i])
            if missing:
                return
            answer = [found for found in results[name] if found is not None]

    for name in plans:
        advance(name, None)
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            name, i, run = waiting.pop(future)
            result = future.result()
            keeper.put(run, result)
            results[name][i] = result
            progress.done += 1
            here = results[name]
            if all(found is not None for found in here):
                advance(name, [found for found in here if found is not None])
        progress.say(len(waiting))
    progress.say(0, always=True)
    return outcome


def conduct(registration: Registration, path: Path, folder: Path, jobs: int) -> dict[str, Any]:
    """All runs of a study; the outcome by cell."""
    plans: dict[Any, Plan] = {}
    for cell in registration.cells:
        for name in cell.arms:
            plans[cell.name, name] = arm_plan(registration, cell, registration.arms[name])
        if registration.anatomy.noise_seeds:
            plans[cell.name, None] = noise_plan(registration, cell)
    models = dict.fromkeys(registration.models[cell.model] for cell in registration.cells)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(str(path),)
    ) as pool:
        first, *others = [(model, base) for model in models for base in range(registration.bases)]
        pool.submit(_prepare, *first).result()  # text and tokenizer are made once
        for done in [pool.submit(_prepare, *other) for other in others]:
            done.result()
        outcome = drive(plans, lambda run: pool.submit(_work, run), Keeper(folder, registration))
    return {
        cell.name: {
            "arms": {name: outcome[cell.name, name] for name in cell.arms},
            "noise": outcome.get((cell.name, None)),
        }
        for cell in registration.cells
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registration", type=Path, help="what is run and how it is judged: a .toml file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: one a core)")
    parser.add_argument("--output", type=Path, default=Path("runs/studies"), help="folder of all studies' results")
    parser.add_argument("--publish", type=Path, help="folder for the report (default: beside the results)")
    parser.add_argument(
        "--rates", type=Path, help="file for the learning rates that were found, as the demo reads them"
    )
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"--jobs must be >= 1, got {given.jobs}")
    try:
        registration = read(given.registration)
    except BadRegistration as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    name = given.registration.stem
    folder = given.output / f"{name}-{registration.sha256[:12]}"
    print(f"{registration.title}\nregistration {registration.sha256}\nresults in {folder}", flush=True)
    began = time.perf_counter()
    try:
        outcome = conduct(registration, given.registration, folder, given.jobs)
    except (CorpusUnavailable, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from study_report import write

    target = folder if given.publish is None else given.publish
    for written in write(registration, given.registration, outcome, target, time.perf_counter() - began):
        print(f"written: {written}")
    if given.rates is not None:
        from findings import tuned_rates

        rates = tuned_rates(outcome, registration, f"study {name}")
        write_atomically(given.rates, (json.dumps(rates, indent=1) + "\n").encode())
        print(f"written: {given.rates}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
