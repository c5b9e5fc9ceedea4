"""Names a wheel after the torch and the CUDA that it is built for, and looks at what it needs.

python tools/name_wheel.py build/wheel/bucket_moo_ext-0.1.0-cp311-cp311-linux_x86_64.whl dist

A wheel holds native code for one minor version of torch, which no tag of a wheel can say. A local version (PEP 440)
can: 0.1.0+torch2.13.cpu, or .cu129 for one with CUDA kernels that nvcc 12.9 has compiled. That torch is what it then
requires.
"""

import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

NAME = "bucket_moo_ext"

# What every Linux has that manylinux wheels are for (PEP 600), and what comes with torch. CUDA's runtime is linked in.
SYSTEM = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6"}
SYSTEM |= {"libpthread.so.0", "librt.so.1", "libstdc++.so.6"}
TORCH = {"libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so"}


class BadWheel(Exception):
    """Says what is wrong with a wheel."""


def _minor(torch: str) -> str:
    return ".".join(torch.split("+")[0].split(".")[:2])


def local_version(info: dict[str, Any]) -> str:
    """From ``bucket_moo_ext.build_info()``: torch2.13.cpu, torch2.13.cu129."""
    torch = _minor(info["torch"])
    if not info["cuda"]:
        return f"torch{torch}.cpu"
    found = re.search(r"(\d+)\.(\d+)", info["cuda_compiler"])
    if not found:
        raise BadWheel(f"cuda_compiler is {info['cuda_compiler']!r}, which has no version")
    return f"torch{torch}.cu{found[1]}{found[2]}"


def rewrite_metadata(text: str, version: str, torch: str) -> str:
    """METADATA with the version, and with the minor version of `torch` as the only one.

    Raises:
        BadWheel: It has not one line for each.
    """
    requirement = f"Requires-Dist: torch=={_minor(torch)}.*"
    for line, new in ((r"^Version: .*$", f"Version: {version}"), (r"^Requires-Dist: torch\b.*$", requirement)):
        text, times = re.subn(line, new, text, flags=re.MULTILINE)
        if times != 1:
            raise BadWheel(f"METADATA has {times} lines like {line}")
    return text


def check_libraries(libraries: dict[str, str]) -> None:
    """Of each library of the wheel by name what ``readelf -d`` says: that it needs nothing but those above.

    Raises:
        BadWheel: It needs another one, or looks for libraries in a folder of the machine that built it.
    """
    for name, dynamic in libraries.items():
        needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
        if strange := needed - SYSTEM - TORCH - set(libraries):
            raise BadWheel(f"{name} needs {', '.join(sorted(strange))}, which a machine with torch may not have")
        for path in ":".join(re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic)).split(":"):
            if path and not path.startswith("$ORIGIN"):
                raise BadWheel(f"{name} looks for libraries in {path}, a folder of the machine that built it")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _build_info(folder: Path) -> dict[str, Any]:
    """Of the package in `folder`: -S, or an editable install would be imported in its place."""
    script = f"""
import json, sys
sys.path[:0] = [{str(folder)!r}]
sys.path += [{sysconfig.get_path("purelib")!r}, {sysconfig.get_path("platlib")!r}]
import {NAME}
print(json.dumps({NAME}.build_info()))
"""
    info: dict[str, Any] = json.loads(_run(sys.executable, "-S", "-c", script).splitlines()[-1])
    if not Path(info["library"]).is_relative_to(folder):
        raise BadWheel(f"{info['library']} was loaded, which is not in the wheel")
    return info


def name_and_check(wheel: Path, output: Path) -> Path:
    """Writes the wheel with its local version into the folder `output`, once its libraries are in order."""
    with tempfile.TemporaryDirectory() as temporary:
        _run(sys.executable, "-m", "wheel", "unpack", "--dest", temporary, str(wheel))
        (folder,) = Path(temporary).resolve().iterdir()
        found = sorted((folder / NAME).glob("*.so"))
        check_libraries({library.name: _run("readelf", "-d", str(library)) for library in found})
        (info,) = folder.glob("*.dist-info")
        built = _build_info(folder)
        version = f"{info.name.removesuffix('.dist-info').partition('-')[2]}+{local_version(built)}"
        metadata = info / "METADATA"
        metadata.write_text(rewrite_metadata(metadata.read_text(), version, built["torch"]))
        info.rename(folder / f"{NAME}-{version}.dist-info")
        output.mkdir(exist_ok=True)
        _run(sys.executable, "-m", "wheel", "pack", "--dest-dir", str(output), str(folder))
    tags = wheel.name.removesuffix(".whl").split("-", 2)[2]
    return output / f"{NAME}-{version}-{tags}.whl"


def main() -> None:
    """Prints the wheel's path and size."""
    try:
        made = name_and_check(Path(sys.argv[1]), Path(sys.argv[2]))
    except BadWheel as error:
        sys.exit(f"error: {error}")
    print(f"{made} ({made.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
