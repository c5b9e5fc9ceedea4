"""docs/jax.md: its programs run, in one process from top to bottom, and print what the page says."""

import re
import subprocess
import sys
from pathlib import Path

from tests.jax.devices import require_jax

require_jax()
PAGE = Path(__file__).resolve().parents[2] / "docs" / "jax.md"


def test_the_programs_of_the_page_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    program = tmp_path / "page.py"
    program.write_text("\n".join(text for kind, text in blocks if kind == "python"))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(text for kind, text in blocks if kind == "text")
