"""The trap of stage_trap.cpp in this process."""

import ctypes
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch

FAULTS = {"kill": 1, "stop": 2, "pause": 2, "disconnect": 3}
_SOURCE = Path(__file__).with_suffix(".cpp")
_TEXT = 4096


def build(folder: Path) -> Path:
    """Compiles the trap against this torch, if ``folder`` does not have it."""
    torch_folder = Path(torch.__file__).parent
    what = f"{torch.__version__} {sys.version} {_SOURCE.read_text(encoding='utf-8')}"
    library = folder / f"stage_trap-{hashlib.sha256(what.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        includes = [torch_folder / "include", torch_folder / "include" / "torch" / "csrc" / "api" / "include"]
        command = [
            os.environ.get("CXX", "c++"),
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            "-pthread",
            "-Wall",
            "-Wextra",
        ]
        command += [f"-isystem{path}" for path in includes]
        command += [str(_SOURCE), "-o", str(unfinished), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True)
        unfinished.replace(library)
    return library


class StageTrap:
    """Counts the stages that reductions of this process enter, and strikes in one of them."""

    def __init__(self, library: Path) -> None:
        self._native = ctypes.CDLL(str(library))
        self._native.stage_trap_watch()

    def arm(self, stage: str, occurrence: int, fault: str, delay: int, pipe: int) -> None:
        """See stage_trap.cpp. ``fault``: of FAULTS."""
        self._native.stage_trap_arm(stage.encode(), occurrence, FAULTS[fault], delay, pipe)

    def last(self) -> str:
        """The stage that was entered last; "none" before the first."""
        text = ctypes.create_string_buffer(_TEXT)
        self._native.stage_trap_last(text, _TEXT)
        return text.value.decode()

    def counts(self) -> dict[str, int]:
        """How often each stage was entered."""
        text = ctypes.create_string_buffer(_TEXT)
        self._native.stage_trap_counts(text, _TEXT)
        lines = [line.rsplit(": ", 1) for line in text.value.decode().splitlines()]
        return {stage: int(count) for stage, count in lines}
