"""Aggregates the gradients of CuPy code with bucket_moo_ext, without a copy and on CuPy's stream.

Three objectives pull a vector x to targets of their own. Every step MGDA combines their gradients, which are CuPy
arrays, and x follows; printed is, beside, what the plain mean of the same gradients would do.
"""

import argparse
import sys
from types import ModuleType
from typing import Any


def load_cupy() -> ModuleType:
    """CuPy, with a device and a build that can work on it, or an end with the reason."""
    try:
        import cupy
    except ImportError as error:
        sys.exit(
            f"error: CuPy is needed and does not import ({error}). Install it: pip install cupy-cuda13x "
            "(CUDA 13; for CUDA 12: cupy-cuda12x)"
        )
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        sys.exit(f"error: CuPy finds no GPU ({error})")
    if devices == 0:
        sys.exit("error: CuPy finds no GPU")
    return cupy


def main() -> None:
    """Prints, every few steps, how many objectives each update would harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000, help="elements of x")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    cupy = load_cupy()
    import bucket_moo_ext as moo

    if not moo.build_info()["cuda"]:
        sys.exit("error: this build of bucket_moo_ext has no CUDA kernels; rebuild it where nvcc is on the PATH")

    random = cupy.random.default_rng(options.seed)
    common = random.standard_normal(options.size, dtype=cupy.float32)
    scales = (1.0, 3.0, 0.3)  # the second objective is the loudest
    targets = [common + scale * random.standard_normal(options.size, dtype=cupy.float32) for scale in scales]
    curvatures = (1.0, 4.0, 0.5)
    x = cupy.zeros(options.size, dtype=cupy.float32)

    def gradients() -> list[Any]:
        return [curvature * (x - target) for curvature, target in zip(curvatures, targets, strict=True)]

    with cupy.cuda.Stream(non_blocking=True) as stream:
        for step in range(options.steps):
            rows = gradients()
            gram = moo.gramian(rows)  # CuPy arrays in, CuPy arrays out, on `stream`
            w = moo.weights(gram, "mgda")
            update = moo.combine(rows, w)
            if step % 5 == 0 or step == options.steps - 1:
                mgda, mean = gram @ w, gram @ moo.weights(gram, "mean")
                rounding = 1e-6 * float(gram.trace())
                print(
                    f"step {step:3d}  |d| {float(cupy.linalg.norm(update)):10.3e}  weights "
                    + " ".join(f"{float(share):.3f}" for share in w)
                    + f"  harmed by MGDA {int((mgda < -rounding).sum())}, by the mean {int((mean < -rounding).sum())}"
                )
            x -= 0.3 * update
        stream.synchronize()


if __name__ == "__main__":
    main()
