"""What a source distribution holds and installs, and what a wheel is called and needs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from scikit_build_core.build import build_sdist

from tests.support import sizes

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import name_wheel  # noqa: E402

FILES = {
    "CHANGELOG.md",
    "CITATION.cff",
    "CMakeLists.txt",
    "CMakePresets.json",
    "LICENSE",
    "README.md",
    "pyproject.toml",
}
FOLDERS = ("bench/cpp", "cmake", "cpp", "cuda", "examples/cpp", "python", "tests/cpp", "tests/emulation")
BUILT = {".a", ".o", ".pyc", ".so"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of this checkout in which something was built."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "runs"))
    for built in (
        "cpp/engine/engine.o",
        "python/bucket_moo_ext/__pycache__/a.pyc",
        "python/bucket_moo_ext/_C.so",
        "build/a",
    ):
        (copy / built).parent.mkdir(exist_ok=True)
        (copy / built).touch()
    before = Path.cwd()
    os.chdir(copy)
    try:
        return folder / build_sdist(str(folder))
    finally:
        os.chdir(before)


def test_an_sdist_has_what_is_built_and_its_cpp_tests(sdist: Path) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in BUILT
    }
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held == FILES | sources | {"PKG-INFO"}


def test_what_cmake_includes_is_in_an_sdist(sdist: Path, tmp_path: Path) -> None:
    """The torch-free part with its tests configures out of it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    cmake = Path(sysconfig.get_path("scripts")) / "cmake"
    subprocess.run(
        [cmake, "-S", source, "-B", tmp_path / "build", "-DBUCKET_MOO_PYTHON=OFF", "-DBUCKET_MOO_TESTS=ON"],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.build
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not sizes.NIGHTLY, reason="compiles the extension, for minutes")
def test_an_sdist_installs_works_and_goes(sdist: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees torch and the build tools of this one by a .pth file."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    shared = site / "shared.pth"
    shared.write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # whose own .pth files, the editable install's, do not count
    before = {path.relative_to(site) for path in site.rglob("*")}
    variables = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [python, *command], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    options = ("--no-build-isolation", "--no-deps", "--ignore-installed", "-C", "cmake.define.BUCKET_MOO_CUDA=OFF")
    run("-m", "pip", "install", "--no-cache-dir", *options, sdist)
    where = run("-c", "import bucket_moo_ext as moo; print(moo.build_info()['library'])").strip()
    assert Path(where).is_relative_to(site)
    said = run("-m", "bucket_moo_ext", "doctor")  # which reduces between two processes
    assert re.search(r"all_reduce, 2 ranks, Gloo +right to .*problems: none", said, re.DOTALL)

    run("-m", "pip", "uninstall", "--yes", "bucket_moo_ext")
    assert {path.relative_to(site) for path in site.rglob("*")} == before


def _dynamic(*needed: str, runpath: str = "$ORIGIN") -> str:
    lines = [f" 0x0000000000000001 (NEEDED)             Shared library: [{name}]" for name in needed]
    return "\n".join([*lines, f" 0x000000000000001d (RUNPATH)            Library runpath: [{runpath}]"])


def test_a_wheel_that_needs_more_than_torch_is_refused() -> None:
    ours = {
        "_C.so": _dynamic("libbucket_moo_ext.so", "libtorch_python.so"),
        "libbucket_moo_ext.so": _dynamic("libc.so.6"),
    }
    name_wheel.check_libraries(ours)
    with pytest.raises(name_wheel.BadWheel, match=r"_C\.so needs libcudart\.so\.13"):
        name_wheel.check_libraries(ours | {"_C.so": _dynamic("libcudart.so.13", "libm.so.6")})
    with pytest.raises(name_wheel.BadWheel, match="looks for libraries in /home/me/torch/lib"):
        name_wheel.check_libraries(ours | {"_C.so": _dynamic("libm.so.6", runpath="$ORIGIN:/home/me/torch/lib")})


def test_a_wheel_is_named_after_torch_and_cuda() -> None:
    info = {"torch": "2.13.0+cu130", "cuda": True, "cuda_compiler": "NVIDIA 12.9.86"}
    assert name_wheel.local_version(info) == "torch2.13.cu129"
    assert name_wheel.local_version(info | {"cuda": False, "cuda_compiler": ""}) == "torch2.13.cpu"
    with pytest.raises(name_wheel.BadWheel, match="has no version"):
        name_wheel.local_version(info | {"cuda_compiler": "nvcc"})


def test_a_wheel_requires_the_torch_it_is_built_for() -> None:
    metadata = (
        "Name: bucket_moo_ext\nVersion: 0.1.0\nRequires-Dist: torch<2.16,>=2.11\nRequires-Dist: accelerate>=1.15\n"
    )
    changed = name_wheel.rewrite_metadata(metadata, "0.1.0+torch2.13.cpu", "2.13.0+cpu")
    assert re.findall(r"^(?:Version|Requires-Dist): (.*)$", changed, re.MULTILINE) == [
        "0.1.0+torch2.13.cpu", "torch==2.13.*", "accelerate>=1.15",
    ]  # fmt: skip
    with pytest.raises(name_wheel.BadWheel, match="METADATA has 0 lines"):
        name_wheel.rewrite_metadata("Version: 0.1.0\n", "1", "2.13.0")
