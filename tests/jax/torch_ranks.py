"""What ranks over gloo compute, for the collectives in JAX to be compared with. Knows no JAX."""

from typing import Any

import bucket_moo_ext as moo
import numpy as np

from tests.jax.devices import plain, torch_of

# objectives by device (or by device and pass), weights likewise, passes, method
CASES: list[dict[str, Any]] = [
    {"method": "mgda"},
    {"method": moo.CAGrad(c=0.3), "objectives": ["a", "b", "a", "c"]},
    {
        "method": moo.Mean(weights={"b": 2.0, "a": 1.0}),
        "objectives": ["a", "b", "b", "a"],
        "weight": [1.0, 3.0, 0.0, 2.0],
    },
    {"method": "mgda", "objectives": ["a"] * 4, "weight": [4.0, 1.0, 3.0, 2.0]},
    {"method": "upgrad", "weight": [1.0, 5.0, 2.0, 2.0]},
    {"method": "nashmtl", "objectives": [["a", "b"], ["b", "b"], ["c", "a"], ["d", "c"]], "passes": 2},
    {
        "method": "mgda",
        "objectives": [["a", "b", "c"], ["b", "b", "c"], ["c", "a", "c"], ["a", "c", "c"]],
        "weight": [[1.0, 2.0, 0.5], [1.0, 1.0, 0.0], [3.0, 2.0, 1.0], [0.25, 1.0, 1.0]],
        "passes": 3,
    },
]
DTYPES = ("float32", "bfloat16", "float16", "float64")
SIZE = 2051
WORLD = 4


def values_of(seed: int, index: int) -> Any:
    """[W, P, n] float32."""
    passes = CASES[index].get("passes", 1)
    return np.random.default_rng([seed, index]).standard_normal((WORLD, passes, SIZE)).astype(np.float32) + 0.1


def dtypes_of(index: int) -> tuple[str, ...]:
    """The first case has all, the others one each in turn."""
    return DTYPES if index == 0 else (DTYPES[index % len(DTYPES)],)


def of_pass(given: Any, device: int, row: int) -> Any:
    """What a list by device, or by device and pass, has there."""
    entry = given[device]
    return entry[row] if isinstance(entry, list) else entry


def reduce_all(rank: int, world: int, seed: int) -> list[Any]:
    """(update, Gramian, weights) of every case and dtype."""
    results = []
    for index, case in enumerate(CASES):
        for dtype in dtypes_of(index):
            rows = torch_of(values_of(seed, index)[rank], dtype)
            state = moo.BucketMOO(case["method"])
            for p, row in enumerate(rows):
                if "objectives" in case:
                    state.objective = of_pass(case["objectives"], rank, p)
                if "weight" in case:
                    state.weight = of_pass(case["weight"], rank, p)
                if p < len(rows) - 1:
                    with state.accumulate():
                        moo.all_reduce(row, state, bucket="b")
                else:
                    moo.all_reduce(row, state, bucket="b")
            solved = state.report().buckets[0]
            results.append((plain(rows[-1]), np.array(solved.gramian), np.array(solved.weights)))
    return results
