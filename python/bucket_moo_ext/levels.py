"""Which ranks share an objective, where ranks form a mesh."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from bucket_moo_ext.plain import text


@dataclass(frozen=True)
class Levels:
    """The ranks of a mesh in two levels, as plain values that pickle.

    Attributes:
        dimensions: Names of the mesh's dimensions.
        objectives: Those of them along which objectives differ, in the mesh's order.
        ranks: Global ranks: by the place along ``objectives``, then along the other dimensions. Those of one row share
            an objective.
    """

    dimensions: tuple[str, ...]
    objectives: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]

    @property
    def inside(self) -> int:
        """How many ranks share an objective."""
        return len(self.ranks[0])

    def across_of(self, rank: int) -> int:
        """The place of a global rank along ``objectives``."""
        return next(place for place, row in enumerate(self.ranks) if rank in row)

    @property
    def shared(self) -> tuple[str, ...]:
        """Those of the dimensions along which ranks share an objective."""
        return tuple(name for name in self.dimensions if name not in self.objectives)

    @property
    def across(self) -> tuple[tuple[int, ...], ...]:
        """``ranks`` by the place along the other dimensions: a row reduces the same part."""
        return tuple(zip(*self.ranks, strict=True))

    def in_group(self, group_ranks: Sequence[int]) -> list[list[int]]:
        """``ranks`` as a process group of these global ranks numbers them.

        Raises:
            ValueError: The group has other ranks than the mesh.
        """
        mesh_ranks = sorted(rank for row in self.ranks for rank in row)
        if mesh_ranks != sorted(group_ranks):
            raise ValueError(
                f"mesh: its ranks must be those of process_group (None: the default group); got a mesh of ranks "
                f"{_listed(mesh_ranks)} and a group of ranks {_listed(sorted(group_ranks))}"
            )
        place = {rank: number for number, rank in enumerate(group_ranks)}
        return [[place[rank] for rank in row] for row in self.ranks]

    @property
    def title(self) -> str:
        """For reports."""
        return f"({', '.join(self.dimensions)}) with objectives along {', '.join(self.objectives)}"

    def __str__(self) -> str:
        """One line, the same on all ranks that are given the same."""
        return f"{self.title}: {self.ranks}"


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown + (f", ... ({len(ranks)} in all)" if len(ranks) > 8 else "")


def read_levels(mesh: object, objectives: object) -> Levels | None:
    """``mesh`` and ``objectives`` as ``BucketMOO`` takes them; None: neither is given.

    Raises:
        TypeError, ValueError: One without the other, or something else.
    """
    if mesh is None and objectives is None:
        return None
    if mesh is None:
        raise ValueError(f"objectives names dimensions of mesh; got {objectives!r} without a mesh (mesh=...)")
    if not dist.is_available():
        raise ValueError("mesh: torch.distributed is not available in this build of torch")
    from torch.distributed.device_mesh import DeviceMesh

    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh must be a DeviceMesh or None; got {type(mesh).__name__}")
    dimensions = mesh.mesh_dim_names
    if not dimensions:
        raise ValueError(f"mesh must have names for its dimensions (mesh_dim_names); got {mesh}")
    if objectives is None:
        raise ValueError(f"objectives must name the dimension of mesh along which they differ: {_names(dimensions)}")
    named = [objectives] if isinstance(objectives, str) else objectives
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        raise TypeError(f"objectives must be a dimension of mesh or a tuple of them; got {objectives!r}")
    chosen = [text(name) for name in named]
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(dimensions):
        raise ValueError(f"objectives must be of the dimensions {_names(dimensions)} of mesh; got {objectives!r}")
    across = [d for d, name in enumerate(dimensions) if name in chosen]
    inside = [d for d, name in enumerate(dimensions) if name not in chosen]
    ranks = mesh.mesh.permute(*across, *inside).reshape(-1, *(mesh.mesh.shape[d] for d in inside))
    return Levels(
        tuple(dimensions),
        tuple(dimensions[d] for d in across),
        tuple(tuple(row) for row in ranks.reshape(len(ranks), -1).tolist()),
    )


def _names(dimensions: Sequence[str]) -> str:
    return ", ".join(map(repr, dimensions))
