"""The installed libraries: found by CMake and pkg-config, in every build type, with headers that stand alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.embedding.installation import EMBEDDING, ROOT, Installation, run
from tests.support import cmake_versions

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]
COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name} on the PATH"))
    for name in ("g++", "clang++")
]
CMAKE = cmake_versions.FOUND.get(cmake_versions.CHOSEN, "cmake")
FOLDERS = ("kernels", "methods", "collective")
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(not shutil.which("c++") or not shutil.which("cc"), reason="no C++ compiler on the PATH"),
]
needs_pkg_config = pytest.mark.skipif(not shutil.which("pkg-config"), reason="no pkg-config on the PATH")
needs_nm = pytest.mark.skipif(not shutil.which("nm"), reason="no nm on the PATH")


def _program_of_the_docs() -> tuple[str, str]:
    """The program over the collective, and what it prints."""
    found = re.search(r"^```cpp\n([^`]*bm::MooCollective[^`]*)^```\n+prints `([^`]+)`", EMBEDDING, re.MULTILINE)
    assert found
    return found[1], found[2] + "\n"


def _configure(installed: Installation, build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    source = build.parent / "source"
    if not source.exists():
        shutil.copytree(HERE / "project", source)
        (source / "ranks.cpp").write_text(_program_of_the_docs()[0])
    command = [CMAKE, "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={installed.prefix}", *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=120)


def _exported(library: Path) -> list[str]:
    """What the library shows to others, demangled."""
    lines = run("nm", "-DC", "--defined-only", library).splitlines()
    return [line.split(" ", 2)[2] for line in lines]


# --- CMake ---


def test_what_is_installed(static: Installation, shared: Installation) -> None:
    assert "CUDA kernels: none, nothing here uses them" in static.said
    assert "Looking for a CUDA compiler" not in static.said
    names = ("kernels", "methods", "collective")
    libraries = {path.name for path in (static.prefix / "lib").glob("*.a")}
    assert libraries == {f"libbucket_moo_{name}.a" for name in names}
    assert not list((shared.prefix / "lib").glob("*.a"))
    core = {path.relative_to(ROOT / "cpp") for path in (ROOT / "cpp" / "include").rglob("*.hpp")}
    assert core <= {path.relative_to(static.prefix) for path in static.prefix.rglob("*.hpp")}
    assert not list(static.prefix.rglob("*.cpp"))


def test_the_documented_lines_find_the_core(static: Installation, tmp_path: Path) -> None:
    """In a version that the installed one stands for; newer ones, and other minor versions, are refused."""
    (lines,) = re.findall(r"^```cmake\n(find_package\(bucket_moo[^`]*)^```$", EMBEDDING, re.MULTILINE)
    major, minor, patch = map(int, VERSION.split("."))
    refused = [
        f"find_package(bucket_moo {version} QUIET CONFIG)\n"
        f"if(bucket_moo_FOUND)\n  message(FATAL_ERROR {version})\nendif()"
        for version in (f"{major}.{minor + 1}", f"{major}.{minor}.{patch + 1}", f"{major + 1}.{minor}")
    ]
    head = ("cmake_minimum_required(VERSION 3.25)", "project(app LANGUAGES CXX)", "add_executable(app app.cpp)")
    wanted = f"find_package(bucket_moo {major}.{minor} REQUIRED CONFIG)"
    (tmp_path / "CMakeLists.txt").write_text("\n".join((*head, *refused, wanted, lines)))
    shutil.copy(ROOT / "examples" / "cpp" / "mgda.cpp", tmp_path / "app.cpp")
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={static.prefix}")
    run("cmake", "--build", tmp_path / "build")
    assert run(tmp_path / "build" / "app").split()[:3] == ["weights", "0.500000", "0.500000"]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("build_type", ["Debug", "Release"])
@pytest.mark.parametrize("kind", ["static", "shared"])
def test_another_project_finds_and_links_it(
    kind: str, build_type: str, compiler: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    installed: Installation = request.getfixturevalue(kind)
    build = tmp_path / "build"
    options = (f"-DCMAKE_BUILD_TYPE={build_type}", f"-DCMAKE_CXX_COMPILER={compiler}")
    done = _configure(installed, build, f"-DWANTED={VERSION}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", *options)
    assert done.returncode == 0, done.stderr
    run("cmake", "--build", build)
    assert run(build / "ranks") == _program_of_the_docs()[1]
    assert run(build / "errors").splitlines() == [
        "0.7500",
        "bucket_moo_ext: method 'nothing' is unknown; available are the names of the method classes in small letters",
        "the ranks of a plug-in disagree",
        f"1 {VERSION}",
    ]


def test_libraries_that_clang_compiled(clang: Installation, tmp_path: Path) -> None:
    """With a project that it compiles too."""
    compilers = ("-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_C_COMPILER=clang")
    done = _configure(clang, tmp_path / "build", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", *compilers)
    assert done.returncode == 0, done.stderr
    run("cmake", "--build", tmp_path / "build")
    assert run(tmp_path / "build" / "ranks") == _program_of_the_docs()[1]
    assert run(tmp_path / "build" / "errors").splitlines()[0] == "0.7500"


@needs_nm
def test_static_libraries_add_nothing_to_what_a_plug_in_exports(static: Installation, tmp_path: Path) -> None:
    build = tmp_path / "build"
    assert _configure(static, build).returncode == 0
    run("cmake", "--build", build, "--target", "plugin")
    assert not [name for name in _exported(build / "libplugin.so") if "bucket_moo" in name]
    assert {"first_weight", "disagree"} <= set(_exported(build / "libplugin.so"))


@needs_nm
@pytest.mark.parametrize("name", FOLDERS)
def test_shared_libraries_export_our_own_names_alone(name: str, shared: Installation) -> None:
    exported = _exported(shared.library(f"bucket_moo_{name}"))
    assert any(symbol.startswith("bucket_moo::") for symbol in exported)
    for symbol in exported:
        assert re.match(r"((typeinfo|typeinfo name|vtable) for )?bucket_moo::", symbol), symbol


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("COMPONENTS core other", "bucket_moo has no component 'other'; it has core, kernels"),
        ("COMPONENTS cuda", "bucket_moo was installed without the component 'cuda'"),
        ("COMPONENTS c10d", "bucket_moo was installed without the component 'c10d'"),
        ("99.0", "Could not find a configuration file for package"),
    ],
)
def test_what_is_not_there_is_not_found(options: str, said: str, static: Installation, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(app LANGUAGES CXX)\n"
        f"find_package(bucket_moo REQUIRED CONFIG {options})\n".replace("REQUIRED CONFIG 99.0", "99.0 REQUIRED CONFIG")
    )
    command = [CMAKE, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={static.prefix}"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())


# --- headers ---


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_an_installed_header_compiles_alone(folder: str, compiler: str, static: Installation, tmp_path: Path) -> None:
    headers = sorted((static.prefix / "include" / "bucket_moo_ext" / folder).glob("*"))
    assert {header.name for header in headers} == {path.name for path in (ROOT / "cpp" / folder).glob("*.hpp")}
    include = static.prefix / "include"
    for header in headers:  # each a file of its own: -Werror has something to say of a header that is given itself
        source = tmp_path / f"{header.stem}.cpp"
        source.write_text(f"#include <{folder}/{header.name}>\n")
        paths = ("-I", include, "-I", include / "bucket_moo_ext")
        run(compiler, "-fsyntax-only", "-std=c++20", *STRICT, *paths, source)


@pytest.mark.parametrize(("language", "standard"), [("c", "c99"), ("c", "c11"), ("c++", "c++11"), ("c++", "c++20")])
def test_the_c_header_is_of_both_languages(language: str, standard: str, static: Installation) -> None:
    header = static.prefix / "include" / "bucket_moo.h"
    run("cc", "-fsyntax-only", f"-std={standard}", *STRICT, "-x", language, header)


# --- pkg-config and C ---


def test_the_c_program_of_the_docs(static: Installation, tmp_path: Path) -> None:
    found = re.search(r"^```c\n([^`]*)^```\n+prints `([^`]+)`", EMBEDDING, re.MULTILINE)
    assert found
    (tmp_path / "app.c").write_text(found[1])
    lib = static.prefix / "lib"
    paths = ("-I", static.prefix / "include", "-L", lib, f"-Wl,-rpath,{lib}")
    run("cc", "-std=c99", *STRICT, tmp_path / "app.c", "-o", tmp_path / "app", *paths, "-lbucket_moo_c")
    assert run(tmp_path / "app") == found[2] + "\n"


@needs_pkg_config
def test_pkg_config_knows_the_libraries(static: Installation, tmp_path: Path) -> None:
    source, printed = _program_of_the_docs()
    (tmp_path / "ranks.cpp").write_text(source)
    flags = static.package_config("bucket_moo", "--cflags", "--libs")
    run("c++", "-std=c++20", "ranks.cpp", "-o", "ranks", *flags, "-pthread", folder=tmp_path)
    assert run(tmp_path / "ranks") == printed
    assert static.package_config("bucket_moo", "--modversion") == [VERSION]


@needs_pkg_config
@pytest.mark.parametrize("kind", ["static", "shared"])
def test_a_c_program(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    installed: Installation = request.getfixturevalue(kind)
    flags = installed.package_config("bucket_moo_c", "--cflags", "--libs")
    rpath = f"-Wl,-rpath,{installed.prefix / 'lib'}"
    run("cc", "-std=c99", *STRICT, HERE / "program.c", "-o", tmp_path / "program", *flags, rpath)
    # G = [5 0; 0 5.25]: the shortest point between the gradients has weights in proportion to 1/5 and 1/5.25.
    w = 5.25 / 10.25
    update = [w - (1 - w), 2 * (1 - w), 2 * w + 0.5 * (1 - w)]
    assert run(tmp_path / "program").splitlines() == [
        "gramian 5 0 0 5.25",
        f"weights {w:.6f} {1 - w:.6f}, status 0, active 2",
        "update " + " ".join(f"{value:.6f}" for value in update),
        "objectives 1: alone, weight 1",
        "error 1",
        "bucket_moo_ext: method 'nothing' is unknown; available are the names of the method classes in small letters",
    ]


@needs_nm
@pytest.mark.parametrize("kind", ["static", "shared"])
def test_the_c_library_exports_what_its_header_declares(kind: str, request: pytest.FixtureRequest) -> None:
    installed: Installation = request.getfixturevalue(kind)
    header = (installed.prefix / "include" / "bucket_moo.h").read_text()
    declared = re.findall(r"^BUCKET_MOO_API [^(]*?(\w+)\(", header, re.MULTILINE)
    assert len(declared) > 10
    assert sorted(_exported(installed.library("bucket_moo_c"))) == sorted(declared)
