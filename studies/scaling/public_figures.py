"""Bus bandwidths that others measured, beside the model's."""

from typing import Any

from scaling.network import Network
from scaling.setup import Setup


def busbw(kind: str, gpus: int, size: float, algorithms: tuple[str, ...] = Network.ALL_REDUCES, **setup: int) -> float:
    """GB/s of bus bandwidth, as nccl-tests reports them, that the model gives for one collective."""
    network = Network(Setup(gpus, **setup).world)
    share = (gpus - 1) / gpus
    if kind == "all_reduce":
        return 2 * share * size / network.all_reduce(size, algorithms)[1].total_us / 1e3
    cost = network.all_to_all(size) if kind == "all_to_all" else network.all_gather(size / gpus)
    return share * size / cost.total_us / 1e3


# collective, GPUs, bytes, algorithms, reported bus bandwidth in GB/s, what and where
PUBLIC_FIGURES: tuple[tuple[str, int, float, tuple[str, ...], float, str], ...] = (
    ("all_reduce", 8, 8 * 2**30, Network.ALL_REDUCES, 479, "8 H100; nccl-tests issue 347"),
    ("all_reduce", 16, 8 * 2**30, Network.ALL_REDUCES, 430, "2 x 8 H100, 8 x 400 Gb/s; nccl issue 1221"),
    ("all_reduce", 16, 8 * 2**30, ("ring", "tree"), 330, "the same without NVLS; nccl issue 1221"),
    ("all_reduce", 32, 8 * 2**30, Network.ALL_REDUCES, 320, "4 x 8 H100, 8 x 400 Gb/s; nccl issue 1221"),
    ("all_reduce", 128, 64 * 2**20, Network.ALL_REDUCES, 150, "16 nodes of H100, its good runs; nccl issue 1469"),
    ("all_reduce", 1984, 512 * 2**20, Network.ALL_REDUCES, 350, "248 x 8 H200; nccl-tests issue 283"),
    ("all_to_all", 64, 8 * 2**20, (), 28.4 * 63 / 64, "8 x 8 H800; nccl issue 1531"),
    ("all_gather", 256, 2 * 2**30, (), 200, "32 x 8 H100, 8 x 400 Gb/s, reported as low; nccl issue 1218"),
)


def public_rows() -> list[dict[str, Any]]:
    """Figures that others measured, beside the model's. The first one is where a constant is from."""
    rows = []
    for kind, gpus, size, algorithms, reported, source in PUBLIC_FIGURES:
        model = busbw(kind, gpus, size, algorithms)
        rows.append(
            {"collective": kind, "gpus": gpus, "bytes": size, "reported": reported, "model": model, "source": source}
        )
    return rows
