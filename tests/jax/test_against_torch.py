"""The collectives on four devices, beside ranks of torch over gloo with the same gradients.

Ranks are forked from a process that imports what this file does: no JAX, which has threads.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.jax import torch_ranks
from tests.jax.devices import on_devices, plain, require_jax
from tests.jax.torch_ranks import CASES, WORLD

UNIT = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 2.0**-52}


def test_four_devices_get_what_four_ranks_get(run_ranks: Callable[..., Any], random_seed: int) -> None:
    jax, moo_jax = require_jax()
    expected = iter(run_ranks(WORLD, torch_ranks.reduce_all, random_seed)[0])
    for index, case in enumerate(CASES):
        for dtype in torch_ranks.dtypes_of(index):
            label = f"{case} {dtype}"
            with jax.enable_x64(dtype == "float64"):
                values = jax.numpy.asarray(torch_ranks.values_of(random_seed, index)).astype(dtype)
                passes = case.get("passes")
                options = {name: value for name, value in case.items() if name != "weight"}
                weight = np.array(case.get("weight", [1.0] * WORLD), np.float32)

                def reduce(rows: Any, weight: Any, options: Any = options, passes: Any = passes) -> Any:
                    gradients = rows if passes else rows[0]
                    return moo_jax.all_reduce(gradients, axis_name="x", weight=weight, return_solution=True, **options)

                update, solution = on_devices(reduce, values, weight)
            of_torch = next(expected)
            assert (plain(update) == plain(update)[0]).all(), label
            norms = np.sqrt(np.diag(of_torch[1]))
            assert np.allclose(solution.gramian[0], of_torch[1], rtol=0, atol=3e-7 * norms.max() ** 2), label
            assert np.allclose(solution.weights[0], of_torch[2], atol=2e-6), label
            error = np.abs(plain(update)[0] - of_torch[0])
            assert (error <= 2 * UNIT[dtype] * np.abs(of_torch[0]) + (1e-13 if dtype == "float64" else 1e-5)).all(), (
                label
            )
