"""Which CMake builds what the docs say: of the oldest version that they name, where there is one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

EMBEDDING = Path(__file__).resolve().parents[2] / "docs" / "embedding.md"


def _found() -> dict[tuple[int, ...], str]:
    """Every cmake on the PATH and beside the interpreter, by version."""
    found = {}
    for folder in (*os.get_exec_path(), Path(sys.executable).parent):
        if cmake := shutil.which("cmake", path=folder):  # type: ignore[call-overload]
            said = subprocess.run([cmake, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
            if version := re.match(r"cmake version (\d+)\.(\d+)\.(\d+)", said):
                found[tuple(map(int, version.groups()))] = cmake
    return found


OLDEST = tuple(map(int, re.search(r"CMake (\d+)\.(\d+) or newer", EMBEDDING.read_text()).groups()))  # type: ignore[union-attr]
FOUND = _found()
CHOSEN = min((version for version in FOUND if version[:2] == OLDEST), default=max(FOUND, default=()))
