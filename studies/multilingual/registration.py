"""The registration: a TOML file that says, before the first run, what is run and how it is judged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import tomllib
from arms import Arm
from materials import Recipe
from models import PRESETS
from scenarios import Scenario


class BadRegistration(ValueError):
    """What is wrong with a registration: the field, what was given, what is allowed."""


@dataclass(frozen=True)
class Training:
    """What all runs share."""

    steps: int
    batch_size: int
    """Blocks of an objective in a step."""
    length: int
    """Tokens of a block."""
    bucket_cap_mb: float
    pretrain_steps: int
    pretrain_batch_size: int
    pretrain_lr: float
    eval_bytes: int
    """Of English in the text that tests are made on; other languages have the translations of the same segments."""
    validation_bytes: int
    """The same of the text that choices are made on."""

    @property
    def recipe(self) -> Recipe:
        """How models are pre-trained."""
        return Recipe(self.pretrain_steps, self.pretrain_batch_size, self.length, self.pretrain_lr)


@dataclass(frozen=True)
class Tuning:
    """How every arm gets its learning rate: by the same rule, on seeds that are in no test."""

    learning_rates: tuple[float, ...]
    """In rising order."""
    first: tuple[int, ...]
    """Places in `learning_rates` that are tried; while the best lies at their end, the next one is."""
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """When an arm is called better or worse than the reference."""

    margin: float
    """Bits a byte that would matter."""
    level: float
    """Of significance, over all comparisons of arms that know of conflicts (Holm)."""


@dataclass(frozen=True)
class Anatomy:
    """What is measured along the way."""

    probe_every: int
    """Steps from one look at the step that is really taken to the next."""
    noise_seeds: tuple[int, ...]
    """Seeds of additional runs of the mean with several rows for each objective, which tell conflict from noise."""
    separability_seeds: tuple[int, ...]
    """Test seeds after which hidden states are looked at."""
    segments: int
    """Parallel segments that hidden states are taken of."""


@dataclass(frozen=True)
class Cell:
    """One scenario with one model."""

    scenario: str
    model: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    headline: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.scenario}, {self.model}"


@dataclass(frozen=True)
class Registration:
    """All of it."""

    title: str
    question: str
    languages: tuple[str, ...]
    """All that the corpus is made of."""
    known: tuple[str, ...]
    """Those that models are pre-trained on."""
    bases: int
    """Pre-trained models of each kind; a seed starts from number seed % bases."""
    training: Training
    tuning: Tuning
    rule: Rule
    anatomy: Anatomy
    scenarios: Mapping[str, Scenario]
    arms: Mapping[str, Arm]
    models: Mapping[str, str]
    """Name -> a preset, or a path that AutoModelForCausalLM loads."""
    cells: tuple[Cell, ...]
    sha256: str
    """Of the file."""


T = TypeVar("T")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _make(kind: type[T], where: str, given: Any, **more: Any) -> T:
    if not isinstance(given, dict):
        raise BadRegistration(f"{where}: must be a table, got {given!r}")
    allowed = [f.name for f in fields(kind) if f.name not in more]  # type: ignore[arg-type]
    needed = [
        f.name
        for f in fields(kind)  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING and f.name not in more
    ]
    if unknown := [name for name in given if name not in allowed]:
        raise BadRegistration(f"{where}: unknown {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    if missing := [name for name in needed if name not in given]:
        raise BadRegistration(f"{where}: missing {', '.join(missing)}")
    try:
        return kind(**more, **{name: _tuples(value) for name, value in given.items()})
    except (TypeError, ValueError) as error:
        raise BadRegistration(f"{where}: {error}") from error


def read(path: Path) -> Registration:
    """Reads and checks a registration.

    Raises:
        BadRegistration: It cannot be read, or a field is wrong.
    """
    try:
        data = path.read_bytes()
        given = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadRegistration(f"{path}: {error}") from error
    for table in ("training", "tuning", "rule", "anatomy", "scenarios", "arms", "models"):
        if not isinstance(given.get(table), dict):
            raise BadRegistration(f"{path}: the table [{table}] is missing")
    parts: dict[str, Any] = {
        "training": _make(Training, "[training]", given.pop("training")),
        "tuning": _make(Tuning, "[tuning]", given.pop("tuning")),
        "rule": _make(Rule, "[rule]", given.pop("rule")),
        "anatomy": _make(Anatomy, "[anatomy]", given.pop("anatomy")),
        "scenarios": {
            name: _make(Scenario, f"[scenarios.{name}]", table, name=name)
            for name, table in given.pop("scenarios").items()
        },
        "arms": {
            name: _make(Arm, f"[arms.{name}]", {"clip": 1.0, **_no_clip(table)}, name=name)
            for name, table in given.pop("arms").items()
        },
        "models": given.pop("models"),
        "cells": tuple(_make(Cell, f"[[cells]] {i}", c) for i, c in enumerate(given.pop("cells", ()))),
    }
    registration = _make(Registration, str(path), {**given, **parts}, sha256=hashlib.sha256(data).hexdigest())
    _check(registration)
    return registration


def _no_clip(table: Any) -> dict[str, Any]:
    """TOML has no null: clip = false."""
    if not isinstance(table, dict):
        raise BadRegistration(f"[arms]: every arm is a table, got {table!r}")
    return {**table, "clip": None} if table.get("clip") is False else table


def _check(r: Registration) -> None:
    """What fields must be to each other."""

    def need(condition: object, text: str) -> None:
        if not condition:
            raise BadRegistration(text)

    for name, value in vars(r.training).items():
        need(isinstance(value, int | float) and value > 0, f"[training]: {name} must be > 0, got {value!r}")
    need(r.training.steps >= 6, f"[training]: steps must be >= 6, got {r.training.steps}: thirds have two or more")
    rates, first = r.tuning.learning_rates, r.tuning.first
    need(rates and list(rates) == sorted(set(rates)) and rates[0] > 0, "[tuning]: learning_rates must rise from > 0")
    need(
        first
        and list(first) == list(range(first[0], first[0] + len(first)))
        and first[0] >= 0
        and first[-1] < len(rates),
        f"[tuning]: first must be neighbouring places in learning_rates, got {first}",
    )
    need(r.tuning.seeds, "[tuning]: seeds must not be empty")
    need(r.rule.margin > 0 and 0 < r.rule.level < 1, "[rule]: margin must be > 0 and level between 0 and 1")
    need(r.anatomy.probe_every >= 1, f"[anatomy]: probe_every must be >= 1, got {r.anatomy.probe_every}")
    need(r.anatomy.segments >= 40, f"[anatomy]: segments must be >= 40, got {r.anatomy.segments}")
    need(r.bases >= 1, f"bases must be >= 1, got {r.bases}")
    need(set(r.known) <= set(r.languages) and "en" in r.known, "known must be languages, and en one of them")
    for scenario in r.scenarios.values():
        spoken = {*scenario.objectives, *scenario.kept}
        need(
            spoken <= set(r.languages),
            f"[scenarios.{scenario.name}]: not in languages: {sorted(spoken - {*r.languages})}",
        )
        need(set(scenario.kept) <= set(r.known), f"[scenarios.{scenario.name}]: kept languages must be known")
    for name, model in r.models.items():
        need(isinstance(model, str), f"[models]: {name} must be one of {', '.join(PRESETS)} or a path, got {model!r}")
    need(r.cells, "there must be [[cells]]")
    need(len({cell.name for cell in r.cells}) == len(r.cells), "[[cells]]: a scenario with a model twice")
    for cell in r.cells:
        need(cell.scenario in r.scenarios, f"[[cells]]: no scenario {cell.scenario!r}")
        need(cell.model in r.models, f"[[cells]]: no model {cell.model!r}")
        need(not (missing := set(cell.arms) - set(r.arms)), f"[[cells]] {cell.name}: no arm {sorted(missing)}")
        rivals = [arm for arm in cell.arms if r.arms[arm].rival]
        need(rivals, f"[[cells]] {cell.name}: no arm is a rival")
        need(
            len(set(cell.seeds)) == len(cell.seeds) >= 2,
            f"[[cells]] {cell.name}: seeds must be two different ones or more",
        )
        used = {*r.tuning.seeds, *r.anatomy.noise_seeds}
        need(not used & set(cell.seeds), f"[[cells]] {cell.name}: seeds of tuning or noise must not be test seeds")
        weighted = any(r.arms[arm].focus_weights for arm in cell.arms)
        need(
            not weighted or r.scenarios[cell.scenario].focus,
            f"[[cells]] {cell.name}: its scenario has no focus to weight",
        )
