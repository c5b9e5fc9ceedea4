"""What `cmake --install` makes of the part that needs no torch."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support import cmake_versions
from tests.support.linked_checkout import linked_checkout

ROOT = Path(__file__).resolve().parents[2]
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
PREFIX = "/tmp/bucket_moo"  # of the command in docs/embedding.md

# Beside what the documented command has. Few seconds, instead of a minute: nothing is optimized.
SHARED = " -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_TYPE=Debug"
OPTIONS = {"static": "", "shared": SHARED, "clang": SHARED + " -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_C_COMPILER=clang"}


def run(*command: str | Path, folder: Path | None = None, **environment: str) -> str:
    """What the command prints; it has to succeed."""
    cmake = Path(cmake_versions.FOUND[cmake_versions.CHOSEN]).parent
    tools = os.pathsep.join([str(cmake), os.environ["PATH"], str(Path(sys.executable).parent)])
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder, env={**os.environ, "PATH": tools, **environment},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Installation:
    """Where it is, and what its build printed."""

    prefix: Path
    said: str

    def library(self, name: str) -> Path:
        """A shared library."""
        return self.prefix / "lib" / f"lib{name}.so"

    def package_config(self, package: str, *arguments: str) -> list[str]:
        """What pkg-config says of a package."""
        folder = str(self.prefix / "lib" / "pkgconfig")
        return run("pkg-config", *arguments, package, PKG_CONFIG_PATH=folder).split()


def documented_command() -> str:
    """The lines of docs/embedding.md that configure, build and install."""
    (block,) = re.findall(
        r"^```sh\n(cmake[^`]*-DBUCKET_MOO_PYTHON=OFF[^`]*cmake --install[^`]*)^```$", EMBEDDING, re.MULTILINE
    )
    return block


def install(folder: Path, kind: str) -> Installation:
    """Builds it in the folder, unless that is done."""
    prefix, printed = folder / "prefix", folder / "printed"
    if not printed.exists():
        folder.mkdir(exist_ok=True)
        checkout = linked_checkout(folder / "checkout")
        command = documented_command()
        assert command.count(PREFIX) == 1
        command = command.replace(PREFIX, str(prefix) + OPTIONS[kind])
        generator = {"CMAKE_GENERATOR": "Ninja"} if shutil.which("ninja", path=Path(sys.executable).parent) else {}
        printed.write_text(run("bash", "-ec", command, folder=checkout, CMAKE_BUILD_PARALLEL_LEVEL="2", **generator))
    return Installation(prefix, printed.read_text())
