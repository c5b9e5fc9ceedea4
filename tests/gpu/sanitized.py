"""Every kernel once, at small sizes: what compute-sanitizer looks at."""

import bucket_moo_ext as moo
import torch
import torch.distributed as dist


def main() -> None:
    """Runs functions and collectives; wrong results are for the tests to find."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for k in (1, 2, 8, 12, 16, 17, 64):
            for n in (1, 1000, 5001):
                rows = torch.randn(k, n, device="cuda", dtype=dtype)
                if k == 8:
                    rows[3] = 0
                    rows[4] *= 1e-30
                moo.combine(rows, torch.rand(k, dtype=torch.float64, device="cuda"))
                gramian = moo.gramian(rows)
        off = torch.randn(3, 2001, device="cuda", dtype=dtype)[:, 1:]
        moo.aggregate(list(off), "mgda")
    for k in (2, 8, 40):
        gramian = moo.gramian(torch.randn(k, 100, device="cuda"))
        for method in moo.available_methods():
            moo.weights(gramian, method)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for method in ("mgda", "gradvac", moo.Smoothed("mean", 0.5)):  # type: ignore[assignment]
        state = moo.BucketMOO(method)
        for n in (1, 5000, 100_001):
            moo.all_reduce(torch.randn(n, device="cuda"), state)
            state.report()
    torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
