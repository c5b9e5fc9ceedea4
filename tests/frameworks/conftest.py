"""Tests that need trainers (requirements/frameworks.txt). Only `make test-frameworks` collects them."""

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "multilingual"))

import corpus

collect_ignore_glob = [] if os.environ.get("BUCKET_MOO_FRAMEWORKS") else ["test_*.py"]


def _main(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        connection.send(("ok", function(*arguments)))
    except BaseException:
        connection.send(("error", traceback.format_exc()))


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., Any]:
    """``alone(function, *arguments)``: ``function(folder, *arguments)`` in one process, without a process group.

    Trainers keep what they find in the environment for as long as a process lives, so each gets its own.
    """

    def run(function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> Any:
        context = multiprocessing.get_context("forkserver")
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_main, args=(theirs, function, (str(tmp_path), *arguments)))
        process.start()  # no daemon: it may have workers
        theirs.close()
        try:
            assert mine.poll(timeout), f"no result in {timeout} s"
            status, value = mine.recv()
        except EOFError:
            process.join(5.0)
            status, value = "error", f"exit code {process.exitcode}"
        finally:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        assert status == "ok", value
        return value

    return run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with parsed text for the examples, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("cache")
    segments = folder / "bucket_moo_ext" / f"segments-v{corpus._VERSION}-{corpus.SHA256[:12]}"
    segments.mkdir(parents=True)
    for language in ("de", "hu", "tr", "ja"):
        text = {
            f"part{c}": {
                f"k{k}": f"{language}wort{c} {language}satz{k} und {language}text{c * k % 7}" for k in range(10)
            }
            for c in range(60)
        }
        (segments / f"{language}.json").write_text(json.dumps(text))
    return folder
