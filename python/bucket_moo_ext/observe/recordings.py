"""Files of recorders, and what to call them."""

import os
from collections.abc import Sequence
from pathlib import Path

from bucket_moo_ext.observe.recorder import Recorder


def load_all(paths: Sequence[Path]) -> dict[str, Recorder]:
    """Recorders by the shortest ends of their paths that tell them apart.

    Args:
        paths: Files, or folders whose files that end in .jsonl, in whatever folder below, are taken.

    Raises:
        ValueError: A folder has no such file; a file is given twice; a file is none of ours or damaged.
        OSError: A file cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} has no recording: no file below it ends in .jsonl")
        files += found
    real = [file.resolve() for file in files]
    for file in real:
        if real.count(file) > 1:
            raise ValueError(f"recordings must be different files; got {file} twice")
    return {name: Recorder.load(file) for name, file in zip(_names(real), files, strict=True)}


def _names(files: Sequence[Path]) -> list[str]:
    """Without what all have in common at the start, and without .jsonl."""
    if len(files) == 1:
        return [files[0].stem]
    common = Path(os.path.commonpath([file.parent for file in files]))
    return [str(file.relative_to(common).with_suffix("")) for file in files]
