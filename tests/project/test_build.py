"""Sources, build and package: what compiles alone, who includes whom, and that the stub tells the truth."""

import ast
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from bucket_moo_ext import _C

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "cpp" / "include"
CORE_HEADERS = sorted(CORE.rglob("*.hpp"))
CUDA_SOURCES = sorted((ROOT / "cuda").rglob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
SUPPORTED_TORCH = "2.11 to 2.15"
STRICT = ["-std=c++20", "-Wall", "-Wextra", "-Werror"]

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on the PATH")
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH")


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


# --- layers ---

BELOW_TORCH = ("bucket_moo", "kernels", "cuda", "methods", "collective")
# What the files of each folder may include beside their own folder's. Lower layers first.
MAY_INCLUDE: dict[str, tuple[str, ...]] = {
    "bucket_moo": (),
    "kernels": ("bucket_moo",),
    "cuda": ("bucket_moo", "kernels"),
    "methods": ("bucket_moo",),
    "collective": ("bucket_moo", "kernels", "methods"),
    "c_api": ("bucket_moo", "kernels", "methods", "collective"),
    "jax": ("bucket_moo", "kernels", "cuda", "methods"),
    "torch_types": ("bucket_moo", "kernels", "cuda", "methods"),
    "c10d_collective": (*BELOW_TORCH, "torch_types"),
    "engine": (*BELOW_TORCH, "torch_types", "c10d_collective"),
    "operators": ("bucket_moo", "kernels", "cuda", "methods", "torch_types"),
    "hooks": (*BELOW_TORCH, "torch_types", "c10d_collective", "engine"),
    "bindings": (*BELOW_TORCH, "torch_types", "c10d_collective", "engine", "operators", "hooks"),
}
FOLDERS = {layer: ROOT / "cpp" / layer for layer in MAY_INCLUDE} | {
    "bucket_moo": CORE / "bucket_moo",
    "cuda": ROOT / "cuda",
}
SOURCES = (".h", ".hpp", ".cpp", ".cu", ".cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
# torch brings these; what must build without torch includes none of them.
OF_TORCH = ("torch/", "c10/", "ATen/", "caffe2/", "pybind11/", "Python.h")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in SOURCES]


def _includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text())


def _layer_of(include: str) -> str | None:
    """The folder that an include is from; None: it is not ours, or its file's own."""
    if "/" not in include:  # cuda/ is on the include path itself
        return "cuda" if (ROOT / "cuda" / include).exists() else None
    folder = include.split("/")[0]
    return folder if folder in MAY_INCLUDE else None


def test_the_arrows_between_layers_point_down() -> None:
    layers = list(MAY_INCLUDE)
    for place, (layer, allowed) in enumerate(MAY_INCLUDE.items()):
        assert set(allowed) <= set(layers[:place]), layer


@pytest.mark.parametrize("layer", MAY_INCLUDE)
def test_a_layer_includes_nothing_higher(layer: str) -> None:
    files = _files(FOLDERS[layer])
    assert files
    for path in files:
        for include in _includes(path):
            where = f"{path.relative_to(ROOT)} includes {include}"
            assert _layer_of(include) in (None, layer, *MAY_INCLUDE[layer]), where
            assert not include.startswith("."), where  # ../ would go round this test


def test_the_layers_are_all_of_the_native_code() -> None:
    folders = {path.relative_to(ROOT / "cpp").parts[0] for path in _files(ROOT / "cpp")}
    assert folders == {"include", *MAY_INCLUDE} - {"bucket_moo", "cuda"}
    assert {path.relative_to(CORE).parts[0] for path in _files(CORE)} == {"bucket_moo"}


@pytest.mark.parametrize(
    "folder", ["cpp/include", "cpp/kernels", "cpp/methods", "cpp/collective", "cpp/c_api", "cpp/jax", "cuda"]
)
def test_what_builds_without_torch_includes_none_of_it(folder: str) -> None:
    files = _files(ROOT / folder)
    assert files
    for path in files:
        wrong = [include for include in _includes(path) if include.startswith(OF_TORCH)]
        assert not wrong, f"{path.relative_to(ROOT)} includes {wrong}"


def test_only_one_core_header_looks_for_the_cuda_compiler() -> None:
    looking = [p.name for p in CORE_HEADERS if re.search(r"__CUDACC__|__NVCC__", p.read_text())]
    assert looking == ["config.hpp"]


# --- compilers ---


@pytest.mark.build
@needs_compiler
@pytest.mark.parametrize("header", CORE_HEADERS, ids=lambda p: p.relative_to(CORE).as_posix())
def test_a_core_header_compiles_alone(header: Path) -> None:
    _run("g++", "-fsyntax-only", *STRICT, "-I", CORE, "-x", "c++", header)


@pytest.mark.build
@needs_compiler
def test_the_cpp_example_needs_the_core_alone(tmp_path: Path) -> None:
    binary = tmp_path / "mgda"
    source = ROOT / "examples" / "cpp" / "mgda.cpp"
    _run("g++", *STRICT, "-O1", "-I", CORE, source, "-o", binary)
    lines = _run(binary).splitlines()
    weights = [float(word) for word in lines[0].removeprefix("weights").split()]
    assert lines[0].startswith("weights")
    assert weights == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)


FUNCTION = re.compile(
    r"Function properties for (?P<name>\S+)\s+"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\w+)'"
    r"(?:(?!Compiling).)*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@needs_nvcc
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda p: p.name)
def test_kernels_keep_to_their_registers(source: Path) -> None:
    """Every kernel compiles for every architecture without spilling, in the registers that cuda/budget.json grants.

    As the build of the extension found it: `make` has it keep what ptxas says.
    """
    logs = list(ROOT.glob(f"build/*/cuda/CMakeFiles/bucket_moo_cuda.dir/{source.name}.o.log"))
    assert logs, "the extension was not built by make, which asks for BUCKET_MOO_PTXAS_REPORT"
    log = max(logs, key=lambda path: path.stat().st_mtime)
    assert log.stat().st_mtime >= source.stat().st_mtime, f"{source.name} has changed since the build"
    report = log.read_text()
    functions = list(FUNCTION.finditer(report))
    assert len(functions) == report.count("Function properties")
    local = [f[0] for f in functions if (f["stack"], f["stores"], f["loads"]) != ("0", "0", "0")]
    assert not local, "\n".join(local)

    budget: dict[str, int] = json.loads((ROOT / "cuda" / "budget.json").read_text())
    kernels = list(KERNEL.finditer(report))
    assert len(kernels) == report.count("Compiling entry function")
    assert {k["arch"] for k in kernels} == {f"sm_{a}" for a in ARCHITECTURES}
    over = []
    for kernel in kernels:
        granted = [registers for pattern, registers in budget.items() if re.search(pattern, kernel["name"])]
        assert len(granted) == 1, f"{kernel['name']} is in cuda/budget.json {len(granted)} times"
        if int(kernel["registers"]) > granted[0]:
            over.append(f"{kernel['name']} on {kernel['arch']}: {kernel['registers']} registers, {granted[0]} granted")
    assert not over, "\n".join(over)


# --- the CUDA build ---


def _symbols(path: Path | str, which: str) -> set[str]:
    lines = _run("nm", "-D", which, path).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.split()[-2] not in ("w", "v")}


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH")
def test_nvcc_on_the_path_is_used() -> None:
    info = moo.build_info()
    assert info["cuda"] is True, "built without CUDA though there is an nvcc: BUCKET_MOO_CUDA=OFF, or an older build"
    assert str(info["cuda_compiler"]).startswith("NVIDIA ")
    if not {"CUDAARCHS", "TORCH_CUDA_ARCH_LIST"} & os.environ.keys():
        assert info["cuda_architectures"] == "80-real, 90-real, 100"


@pytest.mark.skipif(not shutil.which("nm") or not shutil.which("ldd"), reason="no nm or ldd")
@pytest.mark.parametrize("module", [_C.__file__, moo.build_info()["library"]], ids=["_C", "library"])
def test_nothing_is_left_to_link_but_python(module: str) -> None:
    """What --no-undefined says of a library; of one whose Python comes with the interpreter, all the rest.

    With CUDA kernels in it a module still asks for no CUDA library, so that it loads where there is none.
    """
    torch_libraries = {**os.environ, "LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}
    listed = subprocess.run(["ldd", module], capture_output=True, text=True, check=True, env=torch_libraries).stdout
    assert "not found" not in listed
    libraries = re.findall(r"(?:=> |^\s*)(/\S+) \(", listed, re.MULTILINE)
    assert any("libtorch_cpu" in library for library in libraries)
    assert not [library for library in libraries if re.search(r"lib(cuda|cudart|nccl)\b", Path(library).name)]
    defined = set().union(*(_symbols(library, "--defined-only") for library in libraries))
    missing = _symbols(module, "--undefined-only") - defined
    needs_python = module == _C.__file__
    assert bool(missing) == needs_python
    assert not {name for name in missing if not re.match(r"_?Py", name)}
    assert not {name for name in _symbols(module, "--defined-only") if name.startswith("cuda")}


@pytest.mark.parametrize(
    ("torch_list", "architectures"),
    [
        ("8.0", "80-real"),
        ("8.0;9.0+PTX", "80-real;90"),
        ("8.0 9.0a 10.0+PTX", "80-real;90a-real;100"),
        ("Hopper", "90"),
        ("Ampere;Hopper", "80-real;86;90"),
        ("8.6,8.6", "86-real"),
    ],
)
@pytest.mark.build
def test_torchs_list_of_architectures_is_understood(torch_list: str, architectures: str, tmp_path: Path) -> None:
    script = tmp_path / "read.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/torch_cuda_arch_list.cmake")\n'
        f'bucket_moo_read_torch_list("{torch_list}" result)\n'
        'file(WRITE "${CMAKE_CURRENT_LIST_DIR}/result" "${result}")\n'
    )
    _run(_cmake(), "-P", script)
    assert (tmp_path / "result").read_text() == architectures


@pytest.mark.build
@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("2.10.1", False),
        ("2.11.0", True),
        ("2.11.0rc3", True),
        ("2.15.0+cu132", True),
        ("2.15.1a0+git0123abc", True),
        ("2.16.0", False),
        ("2.16.0.dev20261101+cpu", False),
        ("2.100.0", False),
        ("3.0.0", False),
    ],
)
def test_a_torch_out_of_range_is_an_error_that_names_the_range(version: str, fits: bool, tmp_path: Path) -> None:
    script = tmp_path / "check.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/torch_range.cmake")\nbucket_moo_check_torch_range("{version}" "/some/python")\n'
    )
    done = subprocess.run([_cmake(), "-P", str(script)], capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    assert (done.returncode == 0) == fits, said
    assert fits or f"bucket_moo_ext needs torch {SUPPORTED_TORCH}; /some/python has {version}" in said


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "docs/using.md", "docs/embedding.md"])
def test_the_pages_name_the_range_of_torch(page: str) -> None:
    named = re.findall(r"(2\.\d+ to 2\.\d+)", (ROOT / page).read_text())
    assert set(named) == {SUPPORTED_TORCH}


def _cmake() -> str:
    return shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "cmake"


def _configure(build: Path, python: str, cuda: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = [f"-DBUCKET_MOO_PYTHON={python}", f"-DPython_EXECUTABLE={sys.executable}", f"-DBUCKET_MOO_CUDA={cuda}"]
    return subprocess.run(
        [_cmake(), "-S", str(ROOT), "-B", str(build), *options],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.build
@needs_compiler
def test_without_a_cuda_compiler_the_build_says_so(tmp_path: Path) -> None:
    done = _configure(tmp_path / "auto", "ON", "AUTO", CUDACXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels: none, no CUDA compiler was found" in done.stdout
    done = _configure(tmp_path / "on", "OFF", "ON", CUDACXX="/bin/false")
    assert done.returncode != 0
    assert "BUCKET_MOO_CUDA=ON, but no CUDA compiler was found" in done.stderr
    done = _configure(tmp_path / "typo", "OFF", "YES")
    assert "BUCKET_MOO_CUDA must be AUTO, ON or OFF; got 'YES'" in done.stderr


@pytest.mark.build
@needs_compiler
def test_without_the_extension_nothing_looks_for_a_cuda_compiler(tmp_path: Path) -> None:
    done = _configure(tmp_path / "auto", "OFF", "AUTO")
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels: none, nothing here uses them" in done.stdout
    assert "CMAKE_CUDA_COMPILER" not in (tmp_path / "auto" / "CMakeCache.txt").read_text()


# --- the package ---


def _project(field: str) -> str:
    found = re.search(rf'^{field} = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_version_is_the_one_of_pyproject() -> None:
    assert moo.__version__ == _project("version")
    assert moo.build_info()["version"] == _project("version")


def test_build_info() -> None:
    info = moo.build_info()
    assert set(info) >= {"version", "torch", "compiler", "cuda", "max_objectives"}
    assert str(info["torch"]).split(".")[:2] == torch.__version__.split(".")[:2]
    assert isinstance(info["cuda"], bool)
    assert info["max_objectives"] == 64
    assert info["max_objective_name_bytes"] == 63
    assert re.search(r"\d", str(info["compiler"]))
    documented = inspect.getdoc(moo.build_info) or ""
    for key in info:
        assert f"``{key}``" in documented


def test_package_metadata() -> None:
    metadata = importlib.metadata.metadata("bucket_moo_ext")
    assert metadata["Name"].replace("-", "_") == "bucket_moo_ext"
    assert metadata["Version"] == moo.__version__
    python = metadata["Requires-Python"]
    assert set(python.replace(" ", "").split(",")) == set(_project("requires-python").split(","))
    assert metadata["Summary"] == _project("description")
    required = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert [re.split(r"[<>=!~ ;]", r)[0] for r in required] == ["torch"]
    extras = re.findall(r"^optional-dependencies\.(\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert "cupy" in extras
    provided = metadata.get_all("Provides-Extra") or []
    assert sorted(extra.replace("-", "_") for extra in provided) == sorted(extras)
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or [])
    assert (Path(moo.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", moo.__all__)
def test_a_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(moo, name)
    if name in ("__version__", "Method"):  # a string; an alias of a union
        return
    assert inspect.getdoc(value)
    assert value.__module__.startswith("bucket_moo_ext")
    if not inspect.isclass(value):
        return
    for member, function in vars(value).items():
        public = not member.startswith("_") and (inspect.isfunction(function) or isinstance(function, property))
        assert not public or inspect.getdoc(function), f"{name}.{member}"


def test_all_is_complete() -> None:
    public = {name for name, value in vars(moo).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public <= set(moo.__all__)


# --- the stub ---


def _arguments(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in [*function.args.posonlyargs, *function.args.args]]


def _stub() -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
    """The stub's functions, with their argument names, and its classes, with their members."""
    tree = ast.parse((Path(moo.__file__).parent / "_C.pyi").read_text())
    functions = {f.name: _arguments(f) for f in tree.body if isinstance(f, ast.FunctionDef)}
    classes: dict[str, dict[str, Any]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        if any(isinstance(b, ast.Name) and b.id == "TypedDict" for b in node.bases):
            continue  # names the keys of a dict
        members: dict[str, Any] = {}
        for member in node.body:
            if isinstance(member, ast.FunctionDef):
                members[member.name] = _arguments(member)
            elif isinstance(member, ast.AnnAssign):
                assert isinstance(member.target, ast.Name)
                members[member.target.id] = None
        classes[node.name] = members
    return functions, classes


def _is_function(value: Any) -> bool:
    return callable(value) and not inspect.isclass(value)


def _real_arguments(function: Any) -> list[str]:
    """What pybind11 writes into the first line of a docstring: name(a: type, b: type = ...) -> type."""
    line = (function.__doc__ or "").splitlines()[0]
    inside = line[line.index("(") + 1 : line.rindex(")", 0, line.rfind("->"))]
    depth, names, word = 0, [], ""
    for letter in inside + ",":
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if word.strip():
                names.append(word.split(":")[0].split("=")[0].strip())
            word = ""
        else:
            word += letter
    return names


def test_the_stub_has_the_names_of_the_extension() -> None:
    functions, classes = _stub()
    names = {n: v for n, v in vars(_C).items() if not n.startswith("_")}
    assert {n for n, v in names.items() if inspect.isclass(v)} == set(classes)
    assert {n for n, v in names.items() if _is_function(v)} == set(functions)
    for name, members in classes.items():
        real = {m for m in vars(names[name]) if not m.startswith("_")}
        assert real == {m for m in members if not m.startswith("_")}, name


def test_the_stub_has_the_arguments_of_the_extension() -> None:
    functions, classes = _stub()
    for name, arguments in functions.items():
        assert _real_arguments(getattr(_C, name)) == arguments, name
    for name, members in classes.items():
        for member, arguments in members.items():
            value = getattr(getattr(_C, name), member)
            if arguments is None:
                assert isinstance(inspect.getattr_static(getattr(_C, name), member), property)
            else:
                assert _real_arguments(value) == arguments, f"{name}.{member}"


def test_the_stub_has_the_keys_of_a_record() -> None:
    """BucketRecord of the stub, against a record."""
    tree = ast.parse((Path(moo.__file__).parent / "_C.pyi").read_text())
    record = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "BucketRecord")
    keys = [a.target.id for a in record.body if isinstance(a, ast.AnnAssign)]  # type: ignore[union-attr]
    grouping = _C.Grouping("bucket", {}, False, False, False, [])
    state = _C.Engine(
        None, torch.device("cpu"), _C.Method("mgda"), 0, None, False, False, grouping, [], None, None, None, []
    )
    state.all_reduce(torch.ones(3), None)
    assert set(state.records()[0]) == set(keys)


def test_importing_imports_nothing_heavy() -> None:
    """Beside torch."""
    code = (
        "import sys, torch; before = set(sys.modules); import bucket_moo_ext; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    new = set(_run(sys.executable, "-c", code).split())
    assert new & {"numpy", "scipy", "pandas", "jax", "transformers"} == set()
