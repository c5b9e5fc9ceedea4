"""Kernel times on a GPU, beside a copy and other libraries in the same run. Called by gpu_check.py."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import torch

MEGABYTES = (1, 25, 100, 1000)
OBJECTIVES = (2, 4, 8, 16, 32)
BEYOND_CACHE = 400e6  # bytes that are gone through before a buffer comes round again: more than any L2


def kernel_microseconds(calls: list[Callable[[], Any]], names: tuple[str, ...]) -> float:
    """Device time per call of the kernels whose names contain one of `names`, as the profiler saw it."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for call in calls:
            call()
        torch.cuda.synchronize()
    total = 0.0
    for event in profile.key_averages():
        if any(name in event.key for name in names):
            total += float(getattr(event, "device_time_total", 0.0) or getattr(event, "cuda_time_total", 0.0))
    if total == 0.0:
        raise RuntimeError(f"the profiler saw no kernel named {' or '.join(names)}")
    return total / len(calls)


def call_milliseconds(call: Callable[[], Any], repeat: int = 30) -> float:
    """Time of a call with a wait for the device, median."""
    call()
    times = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def bandwidth(megabytes: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    """GB/s of memory moved: rows of `megabytes` together, as a rank's tile holds them."""
    size = torch.tensor([], dtype=dtype).element_size()
    n = megabytes * 2**20 // (k * size) // 8 * 8
    nbytes = n * k * size
    count = max(2, min(40, int(BEYOND_CACHE / nbytes) + 1))
    tiles = [torch.randn(k, n, device="cuda", dtype=torch.float32).to(dtype) for _ in range(count)]
    target = torch.empty_like(tiles[0])
    weights = torch.rand(k, dtype=torch.float64, device="cuda")
    calls = tiles * (2 if count < 10 else 1)
    copy = kernel_microseconds([lambda t=t: target.copy_(t) for t in calls], ("Memcpy DtoD", "copy", "elementwise"))
    gramian = kernel_microseconds([lambda t=t: moo.gramian(t) for t in calls], ("_gramian",))
    combine = kernel_microseconds([lambda t=t: moo.combine(t, weights) for t in calls], ("combine",))
    rows = [t.flatten() for t in calls]
    sketch = kernel_microseconds([lambda r=r: moo.sketch([r]) for r in rows], ("sum_runs", "finish_sketch"))
    return {
        "megabytes": megabytes,
        "k": k,
        "dtype": str(dtype).removeprefix("torch."),
        "copy": 2e-3 * nbytes / copy,
        "gramian": 1e-3 * nbytes / gramian,
        "combine": 1e-3 * nbytes * (1 + 1 / k) / combine,
        "sketch": 1e-3 * nbytes / sketch,
    }


def solve(method: str, k: int) -> dict[str, Any]:
    """Time of one solve: the kernel's, and a call's from Python with a wait."""
    rows = torch.randn(k, 2 * k, device="cuda") - 0.3
    gram = moo.gramian(rows)
    return {
        "method": method,
        "k": k,
        "device_us": kernel_microseconds([lambda: moo.weights(gram, method)] * 50, ("solve_kernel",)),
        "call_us": 1e3 * call_milliseconds(lambda: moo.weights(gram, method)),
    }


def others(k: int, n: int, notes: list[str]) -> list[dict[str, Any]]:
    """The same Gramian and the same methods by other libraries."""
    rows = torch.randn(k, n, device="cuda")
    what = f"K={k}, n={n}"
    torch.backends.cuda.matmul.allow_tf32 = False
    table = [
        {"what": f"gramian, {what}", "with": "bucket_moo_ext", "ms": call_milliseconds(lambda: moo.gramian(rows))},
        {
            "what": f"gramian, {what}",
            "with": "torch matmul, float32",
            "ms": call_milliseconds(lambda: rows @ rows.T),
        },
    ]
    try:
        import cupy  # type: ignore[import-not-found,unused-ignore]

        array = cupy.from_dlpack(rows)
        table.append({"what": f"gramian, {what}", "with": "CuPy", "ms": call_milliseconds(lambda: array @ array.T)})
    except ImportError as error:
        notes.append(f"CuPy was not compared: {error}")
    try:
        from torchjd import aggregation  # type: ignore[import-not-found,unused-ignore]

        theirs = {"mgda": aggregation.MGDA(), "upgrad": aggregation.UPGrad(), "mean": aggregation.Mean()}
    except ImportError as error:
        notes.append(f"TorchJD was not compared: {error}")
        theirs = {}
    for name in ("mgda", "upgrad", "mean"):
        ours = call_milliseconds(lambda name=name: moo.aggregate(rows, name))
        table.append({"what": f"aggregate {name}, {what}", "with": "bucket_moo_ext", "ms": ours})
        if name in theirs:
            table.append(
                {
                    "what": f"aggregate {name}, {what}",
                    "with": "TorchJD",
                    "ms": call_milliseconds(lambda name=name: theirs[name](rows), 10),
                }
            )
    return table


def main() -> None:
    """Measures and writes, table by table, so that what was measured is there if the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    notes = [
        f"Kernel times are the profiler's; buffers rotate through {BEYOND_CACHE / 1e6:.0f} MB, so that none is in "
        "the L2 cache. The Gramian is both of its stages, without the few kilobytes of its unpacking. Bandwidths count "
        "what has to be moved: the rows once, and what is written."
    ]
    figures: dict[str, Any] = {"notes": notes, "bandwidth": [], "solve": [], "others": []}

    def save() -> None:
        options.json.write_text(json.dumps(figures))

    for method in moo.available_methods():
        for k in (2, 4, 8, 16, 32, 64):
            figures["solve"].append(solve(method, k))
    save()
    for dtype in (torch.float32, torch.bfloat16):
        for megabytes in MEGABYTES:
            for k in OBJECTIVES:
                figures["bandwidth"].append(bandwidth(megabytes, k, dtype))
            save()
    for k, n in ((4, 1_000_000), (8, 6_000_000), (32, 1_000_000)):
        figures["others"] += others(k, n, notes)
        save()
    notes[:] = list(dict.fromkeys(notes))
    save()


if __name__ == "__main__":
    main()
