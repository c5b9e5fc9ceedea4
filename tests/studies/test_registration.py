"""Registrations are checked before anything runs; plans tune by the rule and ask for nothing twice."""

# ruff: noqa: E402
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs requirements/demo.txt")
STUDY = Path(__file__).parents[2] / "studies" / "multilingual"
for folder in (STUDY, STUDY.parents[1] / "examples" / "multilingual"):
    sys.path.insert(0, str(folder))

import study
from arms import Arm
from corpus import Corpus
from registration import BadRegistration, Registration, read
from scenarios import REPLAY, Scenario, first_segments, split
from tasks import Run, loss_weights


@pytest.mark.parametrize("path", sorted(STUDY.glob("*.toml")), ids=lambda path: path.name)
def test_every_registration_of_the_repository_is_good(path: Path) -> None:
    registration = read(path)
    assert len(registration.sha256) == 64
    assert any(cell.headline for cell in registration.cells)


def test_the_small_study_has_what_was_asked_for() -> None:
    registration = read(STUDY / "small.toml")
    architectures = {registration.models[cell.model].split("-")[0] for cell in registration.cells}
    assert len(architectures) >= 4
    headline = next(cell for cell in registration.cells if cell.headline)
    assert len(headline.seeds) >= 8
    for cell in registration.cells:
        assert {"clipped", "normalized", "mgda_rescaled"} <= set(cell.arms)


def _change(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change("steps = 6", "steps = 0"), "steps must be > 0, got 0"),
        (_change("steps = 6", "stepps = 6"), r"\[training\]: unknown stepps; allowed: steps"),
        (_change("\nsteps = 6\n", "\n"), "missing steps"),
        (_change("\nsteps = 6\n", "\nsteps = 5\n"), "steps must be >= 6, got 5"),
        (_change('method = "mgda"', 'method = "magic"'), "arm mgda_rescaled: method must be one of mean, mgda"),
        (_change('length = "mean"', 'length = "long"'), "arm mgda_rescaled: .*long"),
        (_change('focus = "replay"', 'focus = "sw"'), "focus must be one of el, de, replay, got 'sw'"),
        (_change('kept = ["hu", "cs"]', 'kept = ["de"]'), "kept languages must not be objectives"),
        (_change("de = 60", "sw = 60"), r"sentences must name objectives, got \['sw'\]"),
        (_change("seeds = [0, 1]", "seeds = [0]"), "seeds must be two different ones or more"),
        (_change("seeds = [0, 1]", "seeds = [0, 100]"), "seeds of tuning or noise must not be test seeds"),
        (_change("rival = true", "rival = false"), "no arm is a rival"),
        (_change("first = [0]", "first = [0, 2]"), "first must be neighbouring places"),
        (_change('scenario = "replay"', 'scenario = "none"'), "no scenario 'none'"),
        (_change("[rule]", "[rules]"), r"the table \[rule\] is missing"),
        (_change("bases = 1", "bases = ["), "smoke|Expected|Invalid|TOML|value"),
    ],
)
def test_a_bad_registration_says_what_is_wrong(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(change((STUDY / "smoke.toml").read_text()))
    with pytest.raises(BadRegistration, match=said):
        read(path)


def _registration() -> Registration:
    return read(STUDY / "smoke.toml")


def _tuned(best: float) -> Callable[[Run], float]:
    """A loss with one lowest learning rate."""
    return lambda run: abs(run.lr - best) + (0.01 if run.focus_weight == 1 else 0.0)


class _Runs:
    """Answers a plan from a formula, and remembers what was asked."""

    def __init__(self, loss: Callable[[Run], float]) -> None:
        self.asked: list[Run] = []
        self._loss = loss

    def __call__(self, run: Run) -> dict[str, Any]:
        self.asked.append(run)
        return {"diverged": None, "bits_per_byte": dict.fromkeys(run.scenario.measured, self._loss(run))}


def _conduct(plan: study.Plan, answer: Callable[[Run], dict[str, Any]]) -> Any:
    asked = next(plan)
    while True:
        try:
            asked = plan.send([answer(run) for run in asked])
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize(
    ("best", "tried", "at_end"),
    [
        (2e-3, [1e-3, 2e-3, 4e-3], False),
        (8e-3, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], False),
        (1.6e-2, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], True),
        (5e-4, [1e-3, 2e-3, 4e-3, 5e-4], True),
    ],
)
def test_tuning_goes_on_while_the_best_lies_at_an_end(best: float, tried: list[float], at_end: bool) -> None:
    given = _registration()
    tuning = replace(given.tuning, learning_rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), first=(1, 2, 3))
    registration = replace(given, tuning=tuning)
    runs = _Runs(_tuned(best))
    found = _conduct(study.arm_plan(registration, registration.cells[0], Arm("x", "mgda")), runs)
    assert [point["lr"] for point in found["tried"]] == tried
    assert (found["lr"], found["at_end_of_grid"]) == (best, at_end)
    assert all(run.seed == 100 for run in runs.asked if run.purpose == "tuning")
    tests = [run for run in runs.asked if run.purpose == "test"]
    assert [run.seed for run in tests] == [0, 1]
    assert {run.lr for run in tests} == {best}


def test_weights_are_tuned_at_the_best_learning_rate() -> None:
    registration = _registration()
    runs = _Runs(_tuned(2e-3))
    arm = Arm("x", "mean", focus_weights=(0.5, 2.0))
    found = _conduct(study.arm_plan(registration, registration.cells[0], arm), runs)
    assert [(p["lr"], p["focus_weight"]) for p in found["tried"]] == [(1e-3, 1), (2e-3, 1), (2e-3, 0.5), (2e-3, 2)]
    assert found["focus_weight"] == 0.5, "the first of equals"


def test_a_run_that_diverges_loses(tmp_path: Path) -> None:
    registration = _registration()

    def answer(run: Run) -> dict[str, Any]:
        if run.lr > 1e-3:
            return {"diverged": 2}
        return {"diverged": None, "bits_per_byte": dict.fromkeys(run.scenario.measured, 2.0)}

    found = _conduct(study.arm_plan(registration, registration.cells[0], Arm("x", "mgda")), answer)
    assert found["lr"] == 1e-3


def test_what_was_run_is_not_run_again(tmp_path: Path) -> None:
    registration = _registration()
    cell = registration.cells[0]
    arms = [registration.arms[name] for name in cell.arms]

    def drive(runs: _Runs) -> Any:
        def submit(run: Run) -> Future[dict[str, Any]]:
            future: Future[dict[str, Any]] = Future()
            future.set_result(runs(run))
            return future

        plans = {arm.name: study.arm_plan(registration, cell, arm) for arm in arms}
        return study.drive(plans, submit, study.Keeper(tmp_path, registration))

    first, second = _Runs(_tuned(2e-3)), _Runs(_tuned(2e-3))
    outcome = drive(first)
    assert drive(second) == outcome
    assert len(first.asked) == len({run.key(registration) for run in first.asked}) == 9
    assert second.asked == []


def test_a_key_changes_with_what_decides_the_result_and_with_nothing_else() -> None:
    registration = _registration()
    scenario = registration.scenarios["replay"]
    run = Run("test", scenario, "llama-1m", Arm("x", "mgda"), lr=1e-3, focus_weight=1.0, seed=0, base=0)
    same = replace(run, arm=Arm("another name", "mgda", rival=True))
    assert run.key(registration) == same.key(replace(registration, title="another", sha256="0"))
    others = [
        replace(run, lr=2e-3),
        replace(run, seed=1),
        replace(run, arm=Arm("x", "mgda", scope="model")),
        replace(run, arm=Arm("x", "mgda", length="mean")),
        replace(run, scenario=replace(scenario, replay=49)),
    ]
    assert len({other.key(registration) for other in [run, *others]}) == 6
    assert run.key(replace(registration, training=replace(registration.training, steps=4))) != run.key(registration)


def test_weights_of_losses_have_the_mean_1() -> None:
    scenario = Scenario("s", ("de", "hu", "tr"), focus="hu")
    assert loss_weights(scenario, 4.0) == {"de": 0.5, "hu": 2.0, "tr": 0.5}
    assert loss_weights(scenario, 1.0) == dict.fromkeys(scenario.names, 1.0)


def _corpus(components: int = 60) -> Corpus:
    train = {
        language: {f"part{i}": "\n".join(f"{language} {i} {line}" for line in range(3)) for i in range(components)}
        for language in ("de", "hu", "cs")
    }
    test = {language: {f"held{i}": f"{language} {i}" for i in range(components)} for language in train}
    return Corpus(train, test, 0)


def test_scenarios_limit_text_and_replay_what_is_to_be_kept() -> None:
    scenario = Scenario("s", ("de", "hu"), kept=("cs",), sentences={"hu": 7}, replay=5)
    documents = scenario.documents(_corpus())
    assert list(documents) == ["de", "hu", REPLAY]
    assert len(documents["de"]) == 60
    assert [len("\n".join(documents[name]).split("\n")) for name in ("hu", REPLAY)] == [7, 5]
    assert scenario.measured == ("de", "hu", "cs")
    assert Scenario("s", ("de", "hu"), kept=("cs",)).measured == ("de", "hu")


def test_replay_takes_no_segment_beside_its_translation() -> None:
    corpus = _corpus()
    taken = "\n".join(first_segments([corpus.train["de"], corpus.train["hu"]], 50)).split("\n")
    numbers = [line.split(" ", 1)[1] for line in taken]
    assert len(numbers) == len(set(numbers)) == 50
    assert {line.split()[0] for line in taken} == {"de", "hu"}
    with pytest.raises(ValueError, match="fewer than 181 segments"):
        first_segments([corpus.train["de"]], 181)


def test_validation_and_test_text_have_no_component_in_common() -> None:
    corpus = _corpus()
    parts = [set(split(corpus, part).test["de"]) for part in ("validation", "test")]
    assert parts[0] | parts[1] == set(corpus.test["de"])
    assert not parts[0] & parts[1]
    assert min(len(part) for part in parts) > 15
