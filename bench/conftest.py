"""What the benchmarks share: options, and where results go."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import Result, Run, Times, environment, paired_result, take_turns


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of `make bench`."""
    group = parser.getgroup("bucket_moo bench")
    group.addoption("--bench-json", type=Path, default=Path("build/bench/last.json"), help="where results go")
    group.addoption("--bench-markdown", type=Path, default=None, help="where their table goes")
    group.addoption("--blocks", type=int, default=2, help="how often each is measured anew (default 2)")
    group.addoption("--rounds", type=int, default=10, help="pairs of a block (default 10)")
    group.addoption("--instructions", type=Path, default=None, help="the program bench/cpp/instructions")


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is measured yet."""
    config.stash[RESULTS] = {}


RESULTS = pytest.StashKey[dict[str, Result]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes what was."""
    results = session.config.stash[RESULTS]
    if results:
        run = Run(environment(), results)
        run.save(session.config.getoption("--bench-json"))
        if table := session.config.getoption("--bench-markdown"):
            table.write_text(run.markdown(), encoding="utf-8")


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[Result], None]:
    """Takes a result into the file."""

    def add(result: Result) -> None:
        results = request.config.stash[RESULTS]
        assert result.name not in results, result.name
        results[result.name] = replace(result, test=request.node.nodeid)

    return add


@pytest.fixture
def paired(request: pytest.FixtureRequest, benchmark: Any, keep: Callable[[Result], None]) -> Callable[..., Result]:
    """``paired(name, reference, make)``: ``make()`` gives both calls of a block, which return their seconds."""

    def measure(
        name: str,
        reference: str,
        make: Callable[[], tuple[Callable[[], float], Callable[[], float]]],
        *,
        rounds: int | None = None,
        **detail: float,
    ) -> Result:
        blocks: list[Times] = []

        def block() -> None:
            blocks.append(take_turns(*make(), rounds or request.config.getoption("--rounds")))

        benchmark.pedantic(block, rounds=request.config.getoption("--blocks"), iterations=1)
        result = paired_result(name, reference, blocks, **detail)
        benchmark.extra_info.update(name=name, reference=reference, ratio=result.value, noise=result.noise)
        keep(result)
        return result

    return measure
