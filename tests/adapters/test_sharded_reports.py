"""What report() and memory() say of sharded models: all groups, and the whole gradients."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
from torch import nn

from tests.support import reference as ref
from tests.support.flat import wrap
from tests.support.sharded import Reference, Transformer, groups_of, loss_of, shard, tokens_of

WRAPPERS: dict[str, Callable[[Transformer, int], nn.Module]] = {
    "fsdp1": lambda model, world: wrap(model),
    "fsdp2": shard,
}


def _residual(rows: np.ndarray) -> float:
    shortest = ref.combine(rows, ref.weights(rows, "mgda"))
    return float(np.linalg.norm(shortest) / np.sqrt(np.mean(np.sum(rows**2, axis=1))))


def _reports(rank: int, world: int, seed: int) -> None:
    reference = Reference(Transformer(seed), "mgda")
    gradients = [reference.gradients(lambda m, r=r: loss_of(m, tokens_of(seed, r, 0))) for r in range(world)]  # type: ignore[misc]

    def rows(names: list[str]) -> np.ndarray:
        return np.stack([np.concatenate([of[name].ravel() for name in names]) for of in gradients])

    for name, make in WRAPPERS.items():
        model = make(Transformer(seed), world)  # in float64, which FSDP2 divides by a power of two before it reduces
        state = moo.register(model, "mgda", objective=f"language {rank}")
        loss_of(model, tokens_of(seed, rank, 0)).backward()
        report = state.report()
        groups = {tuple(sorted(group)): rows(group) for group in groups_of(reference.model)}
        buckets = {tuple(sorted(bucket.parameters)): bucket for bucket in report.buckets}
        assert buckets.keys() == groups.keys(), name
        for group, of_group in groups.items():
            gramian = of_group @ of_group.T
            np.testing.assert_allclose(buckets[group].gramian, gramian, rtol=1e-9, atol=1e-10 * gramian.max())
            assert buckets[group].residual == pytest.approx(_residual(of_group), rel=1e-4)
        whole = np.concatenate(list(groups.values()), axis=1)
        np.testing.assert_allclose(report.gramian, whole @ whole.T, rtol=1e-9, atol=1e-10 * np.sum(whole**2))
        assert report.residual == pytest.approx(_residual(whole), rel=1e-4)
        assert report.objectives == tuple(f"language {r}" for r in range(world))
        # A tile of the largest group at least: world shards of it.
        assert state.memory() >= 4 * max(of_group.shape[1] for of_group in groups.values()) * (world - 1) // world


@pytest.mark.device
@pytest.mark.filterwarnings("ignore")
def test_reports_of_sharded_models(run_ranks: Callable[..., list[Any]], random_seed: int) -> None:
    run_ranks(3, _reports, random_seed)
