"""What the sizes of the corpora mean for their batches."""

import warnings
from collections.abc import Hashable, Mapping


def warn_of_small(sizes: Mapping[Hashable, int], batch_size: int, rank: int) -> None:
    """One UserWarning, on rank 0, that names every objective with fewer examples than a batch has."""
    small = {name: size for name, size in sizes.items() if size < batch_size}
    if rank == 0 and small:
        counts = ", ".join(f"{name!r} has {size}" for name, size in small.items())
        warnings.warn(
            f"bucket_moo_ext: an objective has fewer examples than a batch: {counts}, "
            f"batch_size is {batch_size}. Each of its batches has some of them twice or more often; give it more "
            "examples, or take smaller batches",
            stacklevel=3,  # whoever makes the sampler
        )
