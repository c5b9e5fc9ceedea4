"""What torch.profiler shows of a reduction on the CPU: docs/profiling.md."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile

from tests.support import ddp as support

Ranges = list[tuple[str, int, float, float]]


def _ranges(step: Callable[[], None], all_threads: bool = True) -> Ranges:
    """Name, thread, begin and end of our ranges while `step` runs."""
    config = _ExperimentalConfig(profile_all_threads=all_threads)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as profiler:
        step()
    return [
        (event.name, event.thread, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.name.startswith("bucket_moo")
    ]


def _profiled(rank: int, world: int, gramian: str, seed: int) -> tuple[list[str], Ranges]:
    model = support.mlp(seed)
    ddp = DistributedDataParallel(model, bucket_cap_mb=support.CAP_MB)
    chosen = moo.Sketch(width=64) if gramian == "sketch" else gramian
    state = moo.register(ddp, "mgda", gramian=chosen)

    def step() -> None:
        ddp.zero_grad()
        support.loss_of(ddp, support.batch_of(seed, rank, 0)).backward()

    step()
    step()
    return [f"bucket_moo bucket {bucket.index}" for bucket in state.report().buckets], _ranges(step)


def _stages_inside(ranges: Ranges, bucket: str) -> Counter[str]:
    """Of the range of a bucket, which is there once."""
    (_, thread, begin, end) = next(found for found in ranges if found[0] == bucket)
    return Counter(name for name, on, b, e in ranges if on == thread and name != bucket and begin <= b and e <= end)


def test_a_trace_names_buckets_and_stages(run_ranks: Any, random_seed: int) -> None:
    for buckets, ranges in run_ranks(2, _profiled, "exact", random_seed):
        assert len(buckets) > 1
        names = Counter(name for name, *_ in ranges)
        assert all(names[bucket] == 1 for bucket in buckets), names
        assert len({thread for _, thread, *_ in ranges}) == 1  # the worker's
        for bucket in buckets:
            stages = _stages_inside(ranges, bucket)
            assert {"bucket_moo gramian", "bucket_moo exchange", "bucket_moo solve", "bucket_moo combine"} <= set(
                stages
            )
            assert stages["bucket_moo solve"] == 1


def test_a_sketched_bucket_has_a_sketch_and_a_sum(run_ranks: Any, random_seed: int) -> None:
    for _, ranges in run_ranks(2, _profiled, "sketch", random_seed):
        names = Counter(name for name, *_ in ranges)
        assert names["bucket_moo sketch"] >= 1
        assert names["bucket_moo sketch"] == names["bucket_moo all_reduce"] <= names["bucket_moo solve"], names


def test_without_all_threads_the_worker_is_not_seen() -> None:
    """As docs/profiling.md says: torch's profiler looks at the threads it knows."""
    model = torch.nn.Linear(8, 4)
    state = moo.register(model, "mgda")

    def step() -> None:
        model.zero_grad()
        losses = model(torch.ones(2, 8)).square().mean(0)
        state.backward({"de": losses[0], "sw": losses[1]})

    assert not _ranges(step, all_threads=False)
    assert _ranges(step)


def test_the_page_lists_the_ranges_of_the_sources(repository: Path) -> None:
    pattern = re.compile(r'(?:RECORD_USER_SCOPE|NvtxRange range)\("(bucket_moo \w+)"\)')
    sources = [path.read_text() for folder in ("cpp", "cuda") for path in (repository / folder).rglob("*.c*")]
    used = {name for text in sources for name in pattern.findall(text)} | {
        "bucket_moo bucket",
        "bucket_moo end_of_pass",
    }
    page = (repository / "docs" / "profiling.md").read_text()
    assert set(re.findall(r"^\| `(bucket_moo \w+)", page, re.MULTILINE)) == used
