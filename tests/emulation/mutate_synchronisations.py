"""Take out each synchronisation of the kernels in turn, and say what finds it missing.

`make mutate-synchronisations` builds the target `races` and runs this. In a copy of the sources every `__syncthreads`,
`__syncwarp`, `__threadfence` and `sync()` in `cuda/` and in the core gets a number and a condition, so that one build
has all mutants. The tests that reach a place run under the race detector without it, until one fails. Writes
`docs/races.md`; ends with an error if nothing finds one of them.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("cuda", "cpp/include")
TREE = ROOT / "build/tree"
WORK = ROOT / "build/mutation"
PAGE = ROOT / "docs/races.md"

# Statements that only synchronise. The value of a __syncthreads_or() is used, so that it cannot be taken out.
SYNCHRONISATION = re.compile(
    r"(?<![\w.])(?:__syncthreads\(\)|__syncwarp\(\w*\)|__threadfence\w*\(\)|\w+(?:\{\})?(?:\.|::)sync\(\));"
)
FUNCTION = re.compile(r"(?:[\w:<>*& ]|\[\[\w+\]\])*?(?:BUCKET_MOO_HD|BUCKET_MOO_DEVICE|__device__|__global__)\b")
ATTRIBUTE = re.compile(r"__launch_bounds__\(.*?\)|BUCKET_MOO_\w+|__\w+__")
SAMPLE, ALL = "5", "1"  # BUCKET_MOO_TEST_EVERY
LIMIT = 900  # seconds of a test, on a machine that does other things too

SWITCH = """
#include <cstdio>
#include <cstdlib>
#include <set>
namespace {
/// Which places a test reaches, into a file.
struct Reached {
  std::set<int> places;
  ~Reached() {
    const char* const path = std::getenv("BUCKET_MOO_REACHED");
    if (path == nullptr) return;
    std::FILE* const file = std::fopen(path, "w");
    for (const int place : places) std::fprintf(file, "%d ", place);
    std::fclose(file);
  }
};
}
bool bucket_moo_keeps(int place) {
  static const char* const text = std::getenv("BUCKET_MOO_WITHOUT");
  static const int without = text == nullptr ? -1 : std::atoi(text);
  static Reached reached;
  if (without < 0) reached.places.insert(place);
  return place != without;
}
"""


class Place(NamedTuple):
    """A synchronisation in the sources."""

    path: str  # from the root
    line: int  # from 1
    function: str


def copy_with_switches() -> list[Place]:
    """Copies the sources; place p only synchronises if bucket_moo_keeps(p)."""
    places: list[Place] = []
    for path in sorted(p for folder in SOURCES for p in (ROOT / folder).rglob("*") if p.is_file()):
        name = path.relative_to(ROOT)
        lines = path.read_text().splitlines()
        function = ""
        for index, line in enumerate(lines):
            if FUNCTION.match(line):
                head = re.search(r"(\w+)\(", ATTRIBUTE.sub(" ", " ".join(lines[index : index + 3])))
                function = head[1] if head else function
            if SYNCHRONISATION.search(line.split("//")[0]):
                lines[index] = SYNCHRONISATION.sub(rf"if (bucket_moo_keeps({len(places)})) \g<0>", line, count=1)
                places.append(Place(str(name), index + 1, function))
        copy = WORK / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(lines) + "\n"
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)
    return places


def run_in_tree(command: str) -> None:
    """A command as ninja would run it."""
    subprocess.run(command, shell=True, check=True, cwd=TREE)


def build() -> list[Path]:
    """Compiles the kernels of the copy and links the tests with them."""
    header, source = WORK / "switch.hpp", WORK / "switch.cpp"
    header.write_text("bool bucket_moo_keeps(int place);\n")
    source.write_text(SWITCH)
    run_in_tree(f"c++ -std=c++20 -O2 -c {source} -o {WORK / 'switch.o'}")
    listed = ["ninja", "-C", str(TREE), "-t", "commands", "races"]
    objects: dict[str, str] = {}
    tests = []
    for command in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines():
        if (compiled := re.search(r"-o (\S+\.o) -c \S+", command)) and "-D__CUDACC__" in command:
            if "-fsanitize=thread" not in command or "test_race_detector" in command:
                continue
            objects[compiled[1]] = str(WORK / f"{len(objects)}.o")
            command = command.replace(compiled[1], objects[compiled[1]]) + f" -w -include {header}"
            for folder in SOURCES:
                command = command.replace(f"{ROOT / folder}", f"{WORK / 'source' / folder}")
            run_in_tree(command)
        elif (linked := re.search(r"-o \S+/races_(test_cuda_\w+) ", command)) is not None:
            tests.append(WORK / linked[1])
            command = command.replace(linked[0], f"{WORK / 'switch.o'} -o {tests[-1]} ")
            for old, new in objects.items():
                command = command.replace(f" {old} ", f" {new} ")
            run_in_tree(command)
    return tests


def failure(test: Path, every: str, **variables: str) -> str:
    """How a test fails; empty: it does not."""
    environment = {**os.environ, "BUCKET_MOO_TEST_EVERY": every, **variables}
    try:
        done = subprocess.run([test], env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "no end"
    if re.search(r"^RACE in", done.stderr, re.MULTILINE):
        return "race"
    if done.returncode == 0:
        return ""
    return "wrong result" if "FAILED" in done.stdout else "abort"


def reached_by(test: Path, every: str) -> set[int]:
    """The places that a test comes to; it must pass with all of them."""
    path = WORK / "reached"
    path.unlink(missing_ok=True)
    if how := failure(test, every, BUCKET_MOO_REACHED=str(path)):
        sys.exit(f"{test.name} fails as it is: {how}")
    return {int(place) for place in path.read_text().split()} if path.exists() else set()


def page(results: dict[Place, str]) -> str:
    """The page with the table."""
    counts = collections.Counter(found_by.split(", ")[-1] for found_by in results.values())
    rows = [f"| `{p.path}:{p.line}` | `{p.function}` | {found_by} |" for p, found_by in results.items()]
    return f"""# What finds a missing synchronisation

Written by `make mutate-synchronisations`, which takes each synchronisation of the kernels and of the core out in turn
and runs the C++ tests of the kernels under the
[race detector](architecture.md#tests-of-the-cuda-code-without-a-gpu). The table has the first test that fails, and how.

{len(results)} synchronisations: {", ".join(f"{number} {how}" for how, number in counts.most_common())}.

| place | function | found by |
|---|---|---|
{chr(10).join(rows)}
"""


def main() -> int:
    """Go through all places, or those of some files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="parts of names of files to go through; none: all, and write the page")
    wanted = parser.parse_args().files
    WORK.mkdir(parents=True, exist_ok=True)
    places = copy_with_switches()
    tests = build()
    results: dict[Place, str] = {}
    left = [p for p in range(len(places)) if not wanted or any(part in places[p].path for part in wanted)]
    for every in (SAMPLE, ALL):  # what a part of the cases does not find, all may
        for test in tests if left else []:
            for place in sorted(reached_by(test, every) & set(left)):
                if how := failure(test, every, BUCKET_MOO_WITHOUT=str(place), BUCKET_MOO_STOP_AT_RACE="1"):
                    results[places[place]] = f"`{test.name}`, {how}"
                    left.remove(place)
                    print(f"{places[place]}: {test.name}, {how}", flush=True)
    for place in left:
        results[places[place]] = "**nothing**"
        print(f"{places[place]}: NOTHING finds it", flush=True)
    if not wanted:
        PAGE.write_text(page(dict(sorted(results.items()))))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
