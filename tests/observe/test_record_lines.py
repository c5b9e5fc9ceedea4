"""Recorder.save() and load()."""

import json
import os
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
from bucket_moo_ext.observe import PartRecord, Record

from tests.support.errors import error_of, expect
from tests.support.recorded import Linear, draw, train_step

NAMES = ("de", "sw", "ti\u1e3fng \U0001f30d")
SIZES = (5, 4)


def recorded(rng: np.random.Generator, steps: int, **options: Any) -> tuple[Linear, moo.BucketMOO, moo.Recorder]:
    """With a NaN, an Inf and a zero among the gradients."""
    model = Linear(SIZES)
    state = moo.register(model, "mgda", bucket_cap_mb=8 * 4 / 2**20)
    recorder = moo.Recorder(state, 2, **options)
    for step in range(steps):
        gradients = draw(rng, NAMES, SIZES)
        gradients["sw"][0][0] = (np.nan, np.inf, 0.0)[step % 3]
        gradients["de"][1][:] *= step != 2
        train_step(model, state, gradients)
        recorder.step()
    return model, state, recorder


def plain(record: Record) -> dict[str, Any]:
    """Without tensors."""

    def part(of: PartRecord) -> dict[str, Any]:
        return {name: np.asarray(value) if hasattr(value, "numpy") else value for name, value in vars(of).items()}

    return {**vars(record), "whole": part(record.whole), "parts": [part(of) for of in record.parts]}


@pytest.mark.parametrize("steps", [1, 8, 23])
def test_a_file_gives_the_recorder_back(rng: np.random.Generator, tmp_path: Path, steps: int) -> None:
    _, _, recorder = recorded(rng, steps, keep=5, window=9)
    path = tmp_path / "records.jsonl"
    recorder.save(path)
    loaded = moo.Recorder.load(path)
    assert [record.index for record in loaded.history] == [record.index for record in recorder.history]
    assert recorder.last is not None
    assert loaded.last is not None
    for ours, theirs in zip((*loaded.history, loaded.last), (*recorder.history, recorder.last), strict=True):
        np.testing.assert_equal(plain(ours), plain(theirs))
    np.testing.assert_equal(loaded.summary(minimum=2).to_dict(), recorder.summary(minimum=2).to_dict())
    assert str(loaded.summary()) == str(recorder.summary())
    loaded.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.jsonl", "records.jsonl"]


def test_a_loaded_recorder_goes_on(rng: np.random.Generator, tmp_path: Path) -> None:
    model, state, recorder = recorded(rng, 9, keep=4)
    recorder.save(tmp_path / "records.jsonl")
    loaded = moo.Recorder.load(tmp_path / "records.jsonl", state)
    for _ in range(8):
        train_step(model, state, draw(rng, NAMES, SIZES))
        assert (recorder.step() is None) == (loaded.step() is None)
    assert [record.step for record in loaded.history] == [record.step for record in recorder.history]
    np.testing.assert_equal(loaded.summary().to_dict(), recorder.summary().to_dict())


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_each_line_is_json_and_says_what_it_is(rng: np.random.Generator, tmp_path: Path) -> None:
    _, _, recorder = recorded(rng, 7)
    path = tmp_path / "records.jsonl"
    recorder.save(path)
    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]
    header, *rest = lines
    assert (header["type"], header["schema"], header["version"]) == ("header", "bucket_moo_ext.recorder", 2)
    assert header["settings"] == {
        "every": 2, "keep": 500, "when_full": "thin", "window": 100, "steps": 7, "records": 4, "stride": 1,
    }  # fmt: skip
    assert header["configuration"]["described"] == {}
    assert header["configuration"]["reduction"]["method"] == "MGDA(normalize='none')"
    assert header["lines"] == len(lines)
    kinds = [line["type"] for line in rest]
    assert kinds == ["part"] * 3 + ["record"] * 4 + ["noise"] * 3
    assert set(kinds) < header["fields"].keys()
    keys = {line["id"]: line["parameters"] for line in rest[:3]}
    first = rest[3]
    assert [keys[part["part"]] for part in (first["whole"], *first["parts"])] == [["a", "b"], ["b"], ["a"]]
    assert first["parts"][1]["norms"][1] == "NaN"
    assert first["parts"][1]["objectives"] == list(NAMES)
    assert first["parts"][1]["status"] == "nonfinite"


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    """Written before there were losses, step times and configurations."""
    path = Path(__file__).parent / "data" / "version_1.jsonl"
    recorder = moo.Recorder.load(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["version"] == 1
    steps = [line["step"] for line in lines if line["type"] == "record"]
    assert [record.step for record in recorder.history] == steps == [1, 3, 5]
    assert all(not record.losses and np.isnan(record.seconds) for record in recorder.history)
    assert recorder.configuration == {}
    recorder.save(tmp_path / "now.jsonl")
    again = moo.Recorder.load(tmp_path / "now.jsonl")
    for ours, theirs in zip(again.history, recorder.history, strict=True):
        np.testing.assert_equal(plain(ours), plain(theirs))
    np.testing.assert_equal(again.summary(minimum=2).to_dict(), recorder.summary(minimum=2).to_dict())


def test_what_is_no_such_file(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    _, _, recorder = recorded(rng, 5)
    recorder.save(path)
    good = path.read_text(encoding="utf-8").splitlines()

    def damaged(*lines: str) -> Any:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return error_of(lambda: moo.Recorder.load(path))

    expect(damaged(), ValueError, "records.jsonl: it is empty")
    expect(damaged('{"loss": 3}'), ValueError, "no file of Recorder.save")
    expect(damaged("[1]"), ValueError, "no file of Recorder.save")
    expect(damaged("loss: 3"), ValueError, "line 1")
    other = json.dumps({**json.loads(good[0]), "version": 3})
    expect(damaged(other, *good[1:]), ValueError, "version 3.*reads versions 1 and 2")
    expect(damaged(*good[:-1]), ValueError, f"has {len(good) - 1} lines, and the header says {len(good)}")
    expect(damaged(*good[:4], good[4][:50], *good[5:]), ValueError, "line 5: it is damaged")
    wrong = json.loads(good[4])
    wrong["whole"]["weights"].pop()
    expect(damaged(*good[:4], json.dumps(wrong), *good[5:]), ValueError, r"line 5.*weights must have the shape \[3\]")
    del wrong["step"]
    expect(damaged(*good[:4], json.dumps(wrong), *good[5:]), ValueError, "line 5.*no 'step'")
    settings = json.loads(good[0])
    settings["settings"]["keep"] = 0
    expect(damaged(json.dumps(settings), *good[1:]), ValueError, "settings are damaged: keep must be")
    expect(error_of(lambda: moo.Recorder.load(path, 3)), TypeError, "state must be")  # type: ignore[arg-type]


def test_a_save_that_fails_leaves_the_file(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, recorder = recorded(rng, 3)
    path = tmp_path / "records.jsonl"
    recorder.save(path)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no space")

    monkeypatch.setattr(json, "dumps", fail)
    expect(error_of(lambda: recorder.save(path)), OSError, "no space")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["records.jsonl"]
