"""The installed kernels for GPUs: found by CMake, linked by a C++ compiler alone, started where there is no driver.

Compiling them takes minutes, so those are installed that the tree of `make test` has.
"""

import shutil
from pathlib import Path

import pytest

from tests.embedding.installation import ROOT, Installation, run
from tests.support.linked_checkout import linked_checkout

KERNELS = ROOT / "build" / "tree" / "cuda" / "libbucket_moo_cuda.a"
BUILT = {
    "kernels": "libbucket_moo_kernels.a",
    "methods": "libbucket_moo_methods.a",
    "collective": "libbucket_moo_collective.a",
    "c_api": "libbucket_moo_c.so",
}

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH"),
    pytest.mark.skipif(not KERNELS.exists(), reason="no CUDA kernels in build/tree"),
]

PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(somebody LANGUAGES CXX)
find_package(bucket_moo REQUIRED CONFIG COMPONENTS cuda)
add_executable(limit limit.cpp)
target_compile_features(limit PRIVATE cxx_std_20)
target_link_libraries(limit PRIVATE bucket_moo::cuda)
"""
PROGRAM = """
#include <cuda/solve.cuh>

#include <cstdio>

int main() {
  int k = 0;
  const cudaError_t status = bucket_moo::cuda::solve_limit({.id = bucket_moo::MethodId::mgda}, &k);
  std::printf("%s\\n", status == cudaSuccess ? "a limit" : cudaGetErrorName(status));
  return status == cudaSuccess && k < 1;
}
"""


@pytest.fixture
def installed(static: Installation, tmp_path: Path) -> Path:
    """Configured anew, with libraries that were compiled from these sources in other folders."""
    checkout, build, prefix = linked_checkout(tmp_path / "checkout"), tmp_path / "build", tmp_path / "prefix"
    (checkout / "cuda").unlink()
    shutil.copytree(ROOT / "cuda", checkout / "cuda")  # else a link would be installed
    options = ("-DBUCKET_MOO_PYTHON=OFF", "-DBUCKET_MOO_CUDA=ON", "-DCMAKE_BUILD_TYPE=Release")
    said = run("cmake", "-S", checkout, "-B", build, *options)
    assert "CUDA kernels: NVIDIA" in said
    for folder, library in BUILT.items():
        for found in (static.prefix / "lib").glob(f"{library}*"):  # and links to it
            shutil.copy(found, build / "cpp" / folder / found.name, follow_symlinks=False)
    shutil.copy(KERNELS, build / "cuda" / KERNELS.name)
    run("cmake", "--install", build, "--component", "cpp", "--prefix", prefix)
    return prefix


def test_a_program_finds_and_links_the_kernels(installed: Path, tmp_path: Path) -> None:
    """And starts without a driver: the CUDA runtime is in it, and says what is missing."""
    source, build = tmp_path / "source", tmp_path / "program"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(PROJECT)
    (source / "limit.cpp").write_text(PROGRAM)
    run("cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", build)
    assert run(build / "limit").strip() in ("a limit", "cudaErrorNoDevice", "cudaErrorInsufficientDriver")
    assert "cudart" not in run("ldd", build / "limit")
    headers = {path.name for path in (installed / "include" / "bucket_moo_ext" / "cuda").iterdir()}
    assert headers == {path.name for path in (ROOT / "cuda").glob("*.cuh")}
