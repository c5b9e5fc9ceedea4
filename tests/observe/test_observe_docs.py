"""The example of docs/observe.md, run as it stands there."""

import contextlib
import io
import re
from pathlib import Path

import bucket_moo_ext as moo
import pytest


def test_the_example(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "docs" / "observe.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```\n", text, re.DOTALL)
    assert found
    program, printed = found.groups()
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(program, "docs/observe.md", "exec"), {})
    assert [len(line.split()) for line in said.getvalue().splitlines()] == [
        len(line.split()) for line in printed.splitlines()
    ]
    for word, expected in zip(said.getvalue().split(), printed.split(), strict=True):
        if re.fullmatch(r"-?\d+\.\d+", expected):  # the last digits depend on the processor
            assert float(word) == pytest.approx(float(expected), rel=0.05, abs=0.003)
        else:
            assert word == expected
    assert len(moo.Recorder.load("conflicts.jsonl").history) == 40
