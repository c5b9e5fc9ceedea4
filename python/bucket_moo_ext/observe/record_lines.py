"""Records as JSON Lines: a header, the parts, a record a line, the noise of each part.

docs/observe.md describes the format. Numbers that JSON has not are the strings "NaN", "Infinity" and "-Infinity", as in
the JSON mapping of Protocol Buffers.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bucket_moo_ext.observe.noise import CosineNoise
from bucket_moo_ext.observe.records import PartKey, PartRecord, Record
from bucket_moo_ext.plain import integer_within

SCHEMA = "bucket_moo_ext.recorder"
VERSION = 2
READABLE = (1, 2)  # version 1 has neither configuration nor losses and seconds

_FIELDS = {
    "header": "this line: what the file is; lines: how many it has; settings and counters of the recorder; "
    "configuration: of the reduction, as Report, and described by the caller",
    "part": "id: what other lines name it by; group, parameters, numel, number, is_whole: as PartKey",
    "record": "a recorded step, as Record; in whole and parts: as PartRecord, part is an id, K objectives in one "
    "order; losses by objective, seconds: means since the record before",
    "noise": "of a part's cosines up to the newest record, [N, N] for N objectives: count, weight = sum(w), "
    "squared_weight = sum(w^2), mean, squares = sum(w (x - mean)^2); signal_weight = sum(w) and signal, the mean, of "
    "the signals' inner products",
    "numbers": 'float64; not finite: "NaN", "Infinity", "-Infinity"',
}
_TENSORS = ("weights", "norms", "cosines", "noise")


@dataclass(frozen=True, eq=False)
class NoiseLine:
    """The noise of one part, as ``CosineNoise`` has it."""

    key: PartKey
    objectives: tuple[str, ...]
    solved_step: int
    index: int
    numbers: torch.Tensor


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        settings: The recorder's settings and counters.
        reduction, described: Configuration: what the state says, and what the caller does.
        records: With the newest one last.
        noise: Of each part.
    """

    settings: dict[str, Any]
    reduction: dict[str, Any]
    described: dict[str, Any]
    records: list[Record]
    noise: list[NoiseLine]


def write(path: Path, content: Content) -> None:
    """Writes a file, or leaves what was there."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for line in _lines(content):
                file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


# What reading a line of anything raises.
_DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)


def read(path: Path) -> Content:
    """Reads a file.

    Raises:
        ValueError: It is none of ours, of another version, or damaged: with the line.
    """
    keys: list[PartKey] = []
    content = Content({}, {}, {}, [], [])
    take: dict[str, Callable[[dict[str, Any]], None]] = {
        "part": lambda line: keys.append(_read_key(line, len(keys))),
        "record": lambda line: content.records.append(_read_record(line, keys)),
        "noise": lambda line: content.noise.append(_read_noise(line, keys)),
    }
    number = promised = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text.decode())
                if number == 1:
                    promised = _read_header(line, content)
                else:
                    take[line.pop("type")](line)
            except _NotOurs as error:
                raise ValueError(f"{path}: {error}") from None
            except _DAMAGED as error:
                said = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, line {number}: it is damaged: {said}") from error
    if number == 0:
        raise ValueError(f"{path}: it is empty; a file of Recorder.save() has a header")
    if promised != number:
        raise ValueError(f"{path}: it is damaged: it has {number} lines, and the header says {promised}")
    return content


class _NotOurs(ValueError):
    """The first line is no header of a version that we read."""


def _lines(content: Content) -> Iterator[dict[str, Any]]:
    ids: dict[PartKey, int] = {}
    for record in content.records:
        for part in (record.whole, *record.parts):
            ids.setdefault(part.key, len(ids))
    for noise in content.noise:
        ids.setdefault(noise.key, len(ids))
    yield {
        "type": "header",
        "schema": SCHEMA,
        "version": VERSION,
        "lines": 1 + len(ids) + len(content.records) + len(content.noise),
        "settings": content.settings,
        "configuration": {"reduction": _plain(content.reduction), "described": _plain(content.described)},
        "fields": _FIELDS,
    }
    for key, number in ids.items():
        yield {"type": "part", "id": number, **key._asdict()}
    for record in content.records:
        parts = [_plain_part(part, ids) for part in record.parts]
        logged = {"losses": _plain(dict(record.losses)), "seconds": _plain(record.seconds)}
        yield {"type": "record", **vars(record), "whole": _plain_part(record.whole, ids), "parts": parts, **logged}
    for noise in content.noise:
        yield {
            "type": "noise",
            "part": ids[noise.key],
            "objectives": noise.objectives,
            "solved_step": noise.solved_step,
            "index": noise.index,
            **{name: _plain(numbers) for name, numbers in zip(CosineNoise.NUMBERS, noise.numbers, strict=True)},
        }


def _plain_part(part: PartRecord, ids: dict[PartKey, int]) -> dict[str, Any]:
    rest = {name: _plain(value) for name, value in vars(part).items() if name != "key"}
    return {"part": ids[part.key], **rest}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _read_header(line: dict[str, Any], content: Content) -> int:
    """Fills in settings and configuration; returns how many lines the file is to have."""
    if not isinstance(line, dict) or line.get("schema") != SCHEMA:
        raise _NotOurs(f"it is no file of Recorder.save(): its first line must be a header with schema {SCHEMA!r}")
    if line["version"] not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise _NotOurs(f"it is of version {line['version']!r} of the format; this package reads versions {known}")
    content.settings.update(line["settings"])
    if line["version"] > 1:
        content.reduction.update(line["configuration"]["reduction"])
        content.described.update(line["configuration"]["described"])
    return integer_within("lines", line["lines"], 1, 2**63)


def _read_key(line: dict[str, Any], place: int) -> PartKey:
    if line.pop("id") != place:
        raise ValueError(f"the part must have id {place}")
    key = PartKey(**{**line, "parameters": _strings("parameters", line["parameters"])})
    if not isinstance(key.group, str) or not isinstance(key.is_whole, bool):
        raise ValueError(f"group must be a string and is_whole a bool; got {key.group!r:.80} and {key.is_whole!r:.80}")
    _check_counts(line, "numel", "number")
    return key


def _strings(name: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be a list of strings; got {values!r:.80}")
    return tuple(values)


def _check_counts(line: dict[str, Any], *names: str) -> None:
    for name in names:
        integer_within(name, line[name], 0, 2**63)


def _read_record(line: dict[str, Any], keys: list[PartKey]) -> Record:
    _check_counts(line, "index", "step", "passes", "fallbacks")
    read: dict[str, Any] = {
        **{name: float(line[name]) for name in ("conflict_share", "global_conflict_share")},
        "whole": _read_part(line["whole"], keys),
        "parts": tuple(_read_part(part, keys) for part in line["parts"]),
    }
    if "losses" in line:
        read["losses"] = {str(name): float(loss) for name, loss in line["losses"].items()}
        read["seconds"] = float(line["seconds"])
    return Record(**{**line, **read})


def _read_part(line: dict[str, Any], keys: list[PartKey]) -> PartRecord:
    objectives = _strings("objectives", line["objectives"])
    k = len(objectives)
    _check_counts(line, "conflicts", "pairs", "solved_step")
    _strings("status", [line["status"]])
    shapes = dict(zip(_TENSORS, ((k,), (k,), (k, k), (k, k)), strict=True))
    tensors = {name: _tensor(name, line[name], shape) for name, shape in shapes.items()}
    single = {name: float(line[name]) for name in ("residual", "certificate")}
    rest = {name: value for name, value in line.items() if name != "part"}
    return PartRecord(**{**rest, **tensors, **single, "key": _key(line, keys), "objectives": objectives})


def _read_noise(line: dict[str, Any], keys: list[PartKey]) -> NoiseLine:
    objectives = _strings("objectives", line["objectives"])
    _check_counts(line, "solved_step", "index")
    shape = (len(objectives),) * 2
    nothing = torch.zeros(shape).tolist()  # of files that were written before there were signals
    numbers = torch.stack([_tensor(name, line.get(name, nothing), shape) for name in CosineNoise.NUMBERS])
    return NoiseLine(_key(line, keys), objectives, line["solved_step"], line["index"], numbers)


def _key(line: dict[str, Any], keys: list[PartKey]) -> PartKey:
    return keys[integer_within("part", line["part"], 0, len(keys) - 1)]


def _tensor(name: str, values: list[Any], shape: tuple[int, ...]) -> torch.Tensor:
    numbers = [[float(x) for x in row] for row in values] if len(shape) == 2 else [float(x) for x in values]
    tensor = torch.tensor(numbers, dtype=torch.float64)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}; got {list(tensor.shape)}")
    return tensor
