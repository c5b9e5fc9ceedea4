"""Kernel times on a GPU, beside a copy and other libraries in the same run. Called by gpu_check.py."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import torch

from tests.gpu.device import DEVICE

MEGABYTE = DEVICE.pick(2**20, dry=2**12)
MEGABYTES = DEVICE.pick((25, 1, 100, 1000), dry=(25, 50))  # first the bucket that DDP makes
OBJECTIVES = DEVICE.pick((2, 4, 8, 16, 32), dry=(2, 17))
# Elements of a row beyond a multiple of 1024, which is what kernels like best: a shard is any multiple of 16 bytes, and
# the rows of a Jacobian may be of any length, so that only the first of them is aligned.
REMAINDERS = {"round": 0, "shard": 296, "odd": 297}
SOLVED = DEVICE.pick((8, 2, 4, 16, 32, 64), dry=(8, 2))
# Bytes that are gone through before a buffer comes round again: more than any L2.
BEYOND_CACHE = DEVICE.pick(400e6, dry=1.0)


Calls = list[Callable[[], Any]]


def kernel_microseconds(measured: dict[tuple[str, ...], Calls]) -> list[float]:
    """Device time per call, of each entry: calls, and parts of the names of those of their kernels that count.

    One profile for all: starting the profiler takes longer than what is measured. What unpacks results does not count.
    """
    for calls in measured.values():
        for call in calls:
            call()
    times = DEVICE.kernel_microseconds(lambda: [call() for calls in measured.values() for call in calls])
    results = []
    for names, calls in measured.items():
        seen = [kernel for kernel in times if "unpack_" not in kernel and any(name in kernel for name in names)]
        if not seen:
            raise RuntimeError(f"no kernel named {' or '.join(names)} was seen, but {sorted(times)}")
        results.append(sum(times[kernel] for kernel in seen) / len(calls))
    return results


def call_milliseconds(call: Callable[[], Any], repeat: int = DEVICE.pick(30, dry=1)) -> float:
    """Time of a call with a wait for the device, median."""
    call()
    times = []
    for _ in range(repeat):
        DEVICE.synchronize()
        start = time.perf_counter()
        call()
        DEVICE.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def bandwidth(megabytes: int, k: int, dtype: torch.dtype, length: str) -> dict[str, Any]:
    """GB/s of memory moved: rows of `megabytes` together, as a rank's tile holds them. `length` is in REMAINDERS."""
    size = torch.tensor([], dtype=dtype).element_size()
    n = megabytes * MEGABYTE // (k * size) // 1024 * 1024 + REMAINDERS[length]
    nbytes = n * k * size
    count = max(2, min(40, int(BEYOND_CACHE / nbytes) + 1))
    tiles = [torch.randn(k, n, device=DEVICE.name, dtype=torch.float32).to(dtype) for _ in range(count)]
    target = torch.empty_like(tiles[0])
    weights = torch.rand(k, dtype=torch.float64, device=DEVICE.name)
    calls = tiles * (2 if count < 10 else 1)
    rows = [t.flatten() for t in calls]
    copy, gramian, combine, sketch = kernel_microseconds({
        ("Memcpy DtoD", "copy", "elementwise"): [lambda t=t: target.copy_(t) for t in calls],
        ("_gramian",): [lambda t=t: moo.gramian(t) for t in calls],
        ("combine",): [lambda t=t: moo.combine(t, weights) for t in calls],
        ("sum_runs", "finish_sketch"): [lambda r=r: moo.sketch([r]) for r in rows],
    })  # fmt: skip
    return {
        "megabytes": megabytes,
        "k": k,
        "dtype": str(dtype).removeprefix("torch."),
        "length": length,
        "copy": 2e-3 * nbytes / copy,
        "gramian": 1e-3 * nbytes / gramian,
        "combine": 1e-3 * nbytes * (1 + 1 / k) / combine,
        "sketch": 1e-3 * nbytes / sketch,
    }


def solve(method: str, k: int) -> dict[str, Any]:
    """Time of one solve: the kernel's, and a call's from Python with a wait."""
    rows = torch.randn(k, 2 * k, device=DEVICE.name) - 0.3
    gram = moo.gramian(rows)
    (device,) = kernel_microseconds({("solve",): [lambda: moo.weights(gram, method)] * DEVICE.pick(50, dry=2)})
    return {
        "method": method,
        "k": k,
        "device_us": device,
        "call_us": 1e3 * call_milliseconds(lambda: moo.weights(gram, method)),
    }


def others(k: int, n: int, notes: list[str]) -> list[dict[str, Any]]:
    """The same Gramian and the same methods by other libraries."""
    rows = torch.randn(k, n, device=DEVICE.name)
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
        "the L2 cache. The Gramian is without the few kilobytes of its unpacking. Bandwidths count what has to be "
        "moved: the rows once, and what is written. Rows are of a multiple of 1024 elements (round), of one of 16 "
        "bytes beyond it (shard), or of an odd number, so that most of them are not aligned (odd)."
    ]
    figures: dict[str, Any] = {"notes": notes, "bandwidth": [], "solve": [], "others": []}

    def save() -> None:
        options.json.write_text(json.dumps(figures))

    def measure_bandwidth(dtype: torch.dtype, sizes: Sequence[int]) -> None:
        for megabytes in sizes:
            lengths = REMAINDERS if megabytes == 25 else ("shard",)
            figures["bandwidth"] += [bandwidth(megabytes, k, dtype, length) for k in OBJECTIVES for length in lengths]
            save()

    measure_bandwidth(torch.float32, MEGABYTES[:1])
    for method in sorted(moo.available_methods(), key=lambda name: name != "mgda"):
        figures["solve"] += [solve(method, k) for k in SOLVED]
        save()
    measure_bandwidth(torch.float32, MEGABYTES[1:])
    measure_bandwidth(torch.bfloat16, MEGABYTES)
    for k, n in DEVICE.pick(((4, 1_000_000), (8, 6_000_000), (32, 1_000_000)), dry=((4, 1001),)):
        figures["others"] += others(k, n, notes)
        save()
    notes[:] = list(dict.fromkeys(notes))
    save()


if __name__ == "__main__":
    main()
