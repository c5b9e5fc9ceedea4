"""The demo's command line: settings, methods, scenarios, and where learning rates are from."""

# ruff: noqa: E402
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest

pytest.importorskip("transformers", reason="needs requirements/demo.txt")
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11, as the demo does")

EXAMPLE = Path(__file__).parents[2] / "examples" / "multilingual"
sys.path.insert(0, str(EXAMPLE))

import materials
import scenarios
import settings as settings_module
import spec
import tuning
from settings import BadArgument, parse

METHODS = ("mean", "mgda", "cagrad")


def test_settings() -> None:
    chosen = parse(
        [
            "--languages",
            "de",
            "en",
            "--method",
            "mgda",
            "--method",
            "ddp",
            "--seed",
            "3",
            "4",
            "--steps",
            "16",
        ],
        2,
        METHODS,
    )
    assert chosen.languages == ("de", "en")
    assert chosen.methods == ("mgda", "ddp")
    assert chosen.seeds == (3, 4)
    assert chosen.probe_steps == (0, 8, 16)
    assert (chosen.unseen, chosen.scenarios, chosen.task.name) == ((), (), "custom")
    assert chosen.known == chosen.corpus_languages == ("de", "en")
    assert parse(["--smoke"], 4, tuple(moo.available_methods())).steps == settings_module.SMOKE["steps"]


def test_scenarios_one_after_the_other() -> None:
    chosen = parse(["--output", "out"], 4, tuple(moo.available_methods()))
    parts = settings_module.parts(chosen)
    assert [part.folder for part in parts] == [Path("out/demo") / name for name in chosen.scenarios]
    for part, name in zip(parts, chosen.scenarios, strict=True):
        task = scenarios.SCENARIOS[name]
        assert (part.task.names, part.task.kept, part.task.measured) == (task.names, task.kept, task.measured)
        assert len(task.names) == 4
    replayed = next(part for part in parts if part.replay)
    assert [replayed.share(rank, 4) for rank in range(4)] == [("el",), ("hu",), ("tr",), ("replay",)]


def test_scenarios_are_those_of_the_study() -> None:
    """Whose learning rates the demo takes."""
    path = EXAMPLE.parents[1] / "studies" / "multilingual" / "small.toml"
    study = tomllib.loads(path.read_text())
    assert (tuple(study["languages"]), tuple(study["known"])) == (scenarios.LANGUAGES, scenarios.KNOWN)
    for name, scenario in scenarios.SCENARIOS.items():
        registered: dict[str, Any] = {
            key: tuple(x) if isinstance(x, list) else x for key, x in study["scenarios"][name].items()
        }
        assert scenarios.Scenario(name, **registered) == scenario


def test_tuning_goes_beyond_the_end_at_which_the_best_lies() -> None:
    assert tuning.following({2: 1.0, 3: 0.5, 4: 0.7}, 7) is None
    assert tuning.following({2: 1.0, 3: 0.5, 4: 0.4}, 7) == 5
    assert tuning.following({2: 0.5, 3: 0.5, 4: 0.7}, 7) == 1, "the first of equals"
    assert tuning.following({0: 0.1, 1: 0.5, 2: 0.7}, 7) is None
    assert tuning.following({4: 0.9, 5: 0.5, 6: 0.1}, 7) is None
    assert tuning.following({2: math.inf, 3: math.inf}, 7) == 1
    assert tuning.following({0: 1.0}, 2) == 1
    assert tuning.following({0: 1.0}, 1) is None


def test_learning_rates_are_kept_under_all_that_decides_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = materials.Recipe(200, 16, 128, 4e-3)
    decides: dict[str, Any] = {
        "model": "llama-1m",
        "recipe": recipe,
        "scenario": scenarios.SCENARIOS["balanced"],
        "method": "mgda",
        "scope": "bucket",
        "clip": 1.0,
        "steps": 40,
        "batch_size": 4,
        "length": 128,
        "bucket_cap_mb": 1.0,
        "validation_bytes": 12000,
    }
    mine = tuning.key(**decides)
    renamed = replace(scenarios.SCENARIOS["balanced"], name="other", focus="de")
    assert tuning.key(**decides | {"scenario": renamed}) == mine
    others: list[dict[str, Any]] = [
        {"method": "mgda@mean"},
        {"clip": None},
        {"steps": 41},
        {"recipe": replace(recipe, steps=1)},
        {"scenario": scenarios.SCENARIOS["new_script"]},
    ]
    assert len({mine, *(tuning.key(**decides | other) for other in others)}) == 6
    tuning.keep({mine: {"lr": 0.25, "source": "here"}})
    tuning.keep({"another": {"lr": 0.5, "source": "here"}})
    assert tuning.known()[mine]["lr"] == 0.25
    assert tuning.known()["another"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--languages de hu tr", r"--languages: got 3 \(de hu tr\) for 4 .*--nproc-per-node"),
        ("--languages de hu tr xx", r"--languages: got 'xx', allowed: bg, ca"),
        ("--languages de hu tr de", "each once"),
        ("--languages de hu tr ja --unseen de", "each once"),
        ("--method adam", "--method: got 'adam', allowed: ddp, mean, mgda, cagrad"),
        ("--method adam:sketch", "--method: got 'adam', allowed: ddp, mean, mgda, cagrad"),
        ("--method ddp:sketch", "--method: got 'ddp:sketch', allowed: ddp alone"),
        ("--method mgda:", "--method: got 'mgda:', allowed: NAME"),
        ("--method mgda:exact", "--method: got 'mgda:exact', allowed: NAME"),
        ("--method mgda:sketch,depth=1", "--method: got 'depth=1' in .*width=N, seed=N, refresh_every=N, lag=N"),
        ("--method mgda:sketch,lag", "--method: got 'lag' in "),
        ("--method mgda:sketch,lag=x", "--method: got 'lag=x' in "),
        ("--method mgda:sketch,lag=1,lag=1", "each once"),
        ("--method mgda:sketch,lag=2", "lag must be from 0 to 1; got 2"),
        ("--method mgda:sketch,width=100", "width must be a power of two"),
        ("--method mgda:sketch mgda:sketch,width=16384", "each once"),
        ("--layout passes --languages de hu tr", "--languages: got 3 .* with --layout passes a multiple"),
        ("--layout passes --batch-size 6", "--batch-size: got 6, allowed: .* a multiple of the 4"),
        ("--wrapper hsdp --method mgda:sketch", "allowed: exact Gramians with --wrapper hsdp"),
        ("--wrapper fsdp2 --scope model", "--scope: got 'model', allowed: bucket with --wrapper fsdp2"),
        ("--steps 0", "--steps: got 0, allowed: 1 or more"),
        ("--lr -1", "--lr: got -1.0, allowed: a number above 0"),
        ("--clip -1", "--clip: got -1.0, allowed: a number above 0, or 0"),
        ("--scenario none", "--scenario: got none, allowed: one or more of balanced"),
        ("--scenario balanced balanced", "each once"),
        ("--scenario balanced --languages de hu tr ja", "--scenario: got balanced, allowed: not with --languages"),
        ("--unseen cs", "--unseen: got .*, allowed: with --languages"),
        ("--languages de hu tr --replay 9", "--replay: got 9, allowed: 0, or 1 or more with --unseen languages"),
        ("--method mgda@long", "--method: got 'mgda@long', allowed: NAME"),
        ("--method ddp@mean", "--method: got 'ddp@mean', allowed: NAME"),
        ("--lr nan", "--lr: got nan"),
        ("--seed -1", "--seed: got -1"),
        ("--probe-steps 1000", "--probe-steps: got 1000, allowed: 0 to --steps"),
        ("--model no-such-model", "--model: got 'no-such-model', allowed: llama-1m"),
        ("--name ../x", "--name"),
    ],
)
def test_bad_arguments_name_what_is_allowed(arguments: str, says: str) -> None:
    given = arguments.split()
    if "--method" not in given:
        given += ["--method", "ddp", "mgda"]
    with pytest.raises(BadArgument, match=says):
        parse(given, 4, METHODS)


def test_method_with_a_sketch() -> None:
    assert spec.parse_method("ddp", METHODS) == ("ddp", "", None)
    assert spec.parse_method("mgda", METHODS).gramian == "exact"
    assert spec.parse_method("mgda:sketch", METHODS) == ("mgda", "", moo.Sketch())
    chosen = spec.parse_method("cagrad:sketch,width=1024,seed=5,refresh_every=3,lag=1", METHODS)
    assert chosen == ("cagrad", "", moo.Sketch(1024, seed=5, refresh_every=3, lag=1))
    rescaled = spec.parse_method("mgda@mean:sketch", METHODS)
    assert (rescaled.method, rescaled.gramian) == (moo.Rescaled("mgda", to="mean"), moo.Sketch())
    assert spec.parse_method("mgda:sketch,width=0.25", METHODS).gramian == moo.Sketch(0.25)


def test_methods_have_distinct_file_names() -> None:
    methods = ("mgda", "mgda@mean", "mgda@unit", "mgda:sketch", "mgda:sketch,lag=1", "mgda:sketch,refresh_every=1")
    names = {spec.file_name(method) for method in methods}
    assert len(names) == len(methods)
    assert not any(letter in name for name in names for letter in ":,=/@")
