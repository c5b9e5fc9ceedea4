"""Every Python block of the pages runs here, or another test runs it."""

import ast
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.support import documented
from tests.support.documented import Block

# Blocks of a page that another test runs: those with these words in them ("": all).
ELSEWHERE = {
    "docs/data.md": {"": "tests/data/test_page.py::test_the_programs_of_the_page_run"},
    "docs/frameworks.md": dict.fromkeys(
        ("contrib.", "accelerator = Accelerator("), "tests/frameworks/test_pages.py::test_the_blocks_of_frameworks_run"
    ),
    "docs/jax.md": {"": "tests/jax/test_page.py::test_the_programs_of_the_page_run"},
    "docs/observe.md": {"TrainerCallback": "tests/frameworks/test_pages.py::test_the_callback_of_observe_records"},
    "docs/trl.md": {"": "tests/frameworks/test_pages.py::test_the_blocks_of_trl_run"},
    "docs/using.md": {
        "init_process_group": "tests/project/test_documented_commands.py::test_the_whole_example_of_using"
    },
}


def _elsewhere(block: Block) -> str | None:
    return next((test for words, test in ELSEWHERE.get(block.page, {}).items() if words in block.source), None)


BLOCKS = [(number, block) for page in documented.PAGES for number, block in enumerate(documented.blocks_of(page))]
RUN = [(n, block) for n, block in BLOCKS if not _elsewhere(block)]
TOGETHER = {
    (page, ranks): [n for n, _ in blocks]
    for (page, ranks), blocks in groupby(
        sorted(RUN, key=lambda found: (found[1].page, found[1].ranks, found[0])),
        key=lambda found: (found[1].page, found[1].ranks),
    )
}


@pytest.mark.parametrize(("page", "ranks"), TOGETHER, ids=[f"{page}-{ranks}" for page, ranks in TOGETHER])
def test_the_blocks_run(run_ranks: Any, tmp_path: Path, page: str, ranks: int) -> None:
    numbers = TOGETHER[page, ranks]
    assert run_ranks(ranks, documented.run, page, numbers, str(tmp_path)) == [len(numbers)] * ranks


def test_every_block_compiles() -> None:
    for _, block in BLOCKS:
        assert list(block.programs())


def test_the_tests_that_run_blocks_are_there(repository: Path) -> None:
    for page, tests in ELSEWHERE.items():
        for words, test in tests.items():
            assert any(words in block.source for block in documented.blocks_of(page)), (page, words)
            path, _, name = test.partition("::")
            text = (repository / path).read_text(encoding="utf-8")
            assert Path(page).name in text, test
            assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(ast.parse(text)))


def test_a_block_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line of the page."""
    (tmp_path / "page.md").write_text("# A page\n\n```python\na = 1\n```\n\n```python\nassert a == 2\n```\n")
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(AssertionError) as failure:
        documented.run(0, 1, "page.md", [0, 1], str(tmp_path / "run"))
    assert failure.traceback[-1].lineno + 1 == 8


def test_a_mark_or_a_fence_that_is_not_understood_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    for text, error in (
        ("<!-- docs-test: alternatives -->\n\ntext\n", "a mark before no block"),
        ("<!-- docs-test: skip -->\n```python\na = 1\n```\n", "is no mark"),
        ("- a list\n  ```python\n  a = 1\n  ```\n", "a fence is odd"),
    ):
        (tmp_path / "page.md").write_text(text)
        with pytest.raises(AssertionError, match=error):
            documented.blocks_of("page.md")
