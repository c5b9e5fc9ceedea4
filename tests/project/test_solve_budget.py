"""The table of solves in docs/gpu.md is cuda/solve_budget.txt, which tests/emulation/test_solve_cost.cpp goes by."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAST_K = 4  # two objectives are left out of the page

Costs = dict[tuple[str, int], list[int]]


def _budget() -> Costs:
    lines = [line.split() for line in (ROOT / "cuda" / "solve_budget.txt").read_text().splitlines()]
    return {(method, int(k)): [int(count) for count in counts] for method, k, *counts in lines}


def _documented(page: str) -> Costs:
    """Rows of a name and six numbers: K, and five counts."""
    costs = {}
    for method, cells in re.findall(r"^\| (\w+) \|((?: [\d,]+ \|){6})$", page, re.MULTILINE):
        k, *counts = (int(cell.replace(",", "")) for cell in cells.split("|")[:-1])
        costs[method, k] = counts
    return costs


def test_the_documented_solves_are_the_budget() -> None:
    documented = _documented((ROOT / "docs" / "gpu.md").read_text())
    assert documented == {key: counts for key, counts in _budget().items() if key[1] >= LEAST_K}
