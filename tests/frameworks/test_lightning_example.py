"""The example with Lightning, as it says to be run, with fewer steps and text made up here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="needs requirements/frameworks.txt")

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = EXAMPLES / "frameworks" / "lightning_finetune.py"
LANGUAGES = ("de", "hu", "tr", "ja")

sys.path.insert(0, str(EXAMPLES / "multilingual"))

import corpus  # noqa: E402


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with parsed text, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("cache")
    segments = folder / "bucket_moo_ext" / f"segments-v{corpus._VERSION}-{corpus.SHA256[:12]}"
    segments.mkdir(parents=True)
    for language in LANGUAGES:
        text = {
            f"part{c}": {
                f"k{k}": f"{language}wort{c} {language}satz{k} und {language}text{c * k % 7}" for k in range(10)
            }
            for c in range(60)
        }
        (segments / f"{language}.json").write_text(json.dumps(text))
    return folder


def test_four_languages(cache: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(PROGRAM), "--steps", "10"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "XDG_CACHE_HOME": str(cache),
            "HF_HOME": str(cache / "hf"),
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 10: MGDA(normalize='none'), 4 objectives" in done.stdout
    assert "2 passes (rows: de 1, hu 1, ja 1, tr 1)" in done.stdout
    assert all(f"'{language}': " in done.stdout.split("held-out loss:")[1] for language in LANGUAGES)


def test_the_example_is_short() -> None:
    assert len(PROGRAM.read_text(encoding="utf-8").splitlines()) < 80
