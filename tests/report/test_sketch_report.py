"""What state.report() says of sketched buckets."""

import json
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.sketches import Given, row_of

pytestmark = pytest.mark.device

Runner = Callable[..., list[Any]]


def rank_report(rank: int, world: int, seed: int) -> dict[str, Any]:
    sketch = moo.Sketch(64, seed=3, refresh_every=3)
    model = Given((5003, 100, 3001), torch.float32)
    ddp = DDP(model, bucket_cap_mb=400 / 2**20)
    state = moo.register(ddp, "mgda", gramian=sketch, objective=f"task {rank}")
    for step in range(1, 6):
        ddp.zero_grad()
        rows: list[torch.Tensor | None] = [row_of(seed, (step, i), rank, n) for i, n in enumerate((5003, 100, 3001))]
        if rank == 2:
            rows[0] = torch.zeros(5003)
        ddp(rows).backward()
    report = state.report()
    errors, cosines = [], []
    for bucket in report.buckets:
        errors.append(bucket.cosine_errors.numpy())
        cosines.append(bucket.cosines.numpy())
    return {
        "estimator": report.estimator,
        "text": str(report),
        "json": json.dumps(report.to_dict(), allow_nan=False),
        "numel": [bucket.numel for bucket in report.buckets],
        "width": [bucket.width for bucket in report.buckets],
        "solved_step": [bucket.solved_step for bucket in report.buckets],
        "parameters": [bucket.parameters for bucket in report.buckets],
        "errors": errors,
        "cosines": cosines,
    }


def test_report(run_ranks: Runner, random_seed: int) -> None:
    ranks = run_ranks(3, rank_report, random_seed)
    assert len({got["json"] for got in ranks}) == 1, "ranks report the same"
    got = ranks[0]
    assert got["estimator"] == "Sketch(width=64, seed=3, refresh_every=3, lag=0)"
    assert sorted(got["numel"]) == [100, 3001, 5003]
    worst = 0.0
    for numel, width, solved, errors, cosines in zip(
        got["numel"], got["width"], got["solved_step"], got["errors"], got["cosines"], strict=True
    ):
        assert width == (0 if numel == 100 else 64)
        assert solved == (5 if numel == 100 else 4)
        unknown = np.isnan(cosines)
        assert unknown.any() == (numel == 5003)
        expected = (1 - cosines**2) / 8 if width else np.zeros((3, 3))
        assert np.array_equal(np.isnan(errors), unknown & bool(width))
        np.testing.assert_allclose(errors[~unknown], expected[~unknown], rtol=1e-12, atol=1e-15)
        if width:
            assert (np.diagonal(errors)[~np.isnan(np.diagonal(errors))] < 1e-15).all(), "a norm is no cosine"
            worst = max(worst, float(np.nanmax(errors)))
    assert 0.05 < worst <= 0.125
    (line,) = (line for line in got["text"].splitlines() if line.startswith("Gramians:"))
    assert line == (
        f"Gramians: {got['estimator']}; standard error of cosines up to {worst:.4f}; 1 small bucket exact; "
        "oldest weights of step 4"
    )
    plain = json.loads(got["json"])
    assert plain["estimator"] == got["estimator"]
    for bucket, errors in zip(plain["buckets"], got["errors"], strict=True):
        assert [[x is None for x in row] for row in bucket["cosine_errors"]] == np.isnan(errors).tolist()
    assert [bucket["width"] for bucket in plain["buckets"]] == got["width"]
    assert [bucket["solved_step"] for bucket in plain["buckets"]] == got["solved_step"]
