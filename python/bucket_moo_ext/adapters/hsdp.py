"""How a shard is reduced where FSDP2 shards over one dimension of a mesh and the other has replicas (HSDP)."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch.nn import functional

from bucket_moo_ext import _C
from bucket_moo_ext.adapters.passes import Parameters, Places
from bucket_moo_ext.levels import Levels

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Scatter:
    """From a bucket, a shard for every rank of the shard group, to this rank's shard of the result. No replicas."""

    replicas = 1
    _is_inside = False

    def __call__(
        self,
        engine: _C.Engine,
        output: torch.Tensor,
        input: torch.Tensor,
        bucket: Parameters,
        places: Places,
        leaves_open: bool,
    ) -> None:
        """Reduces over all ranks of the engine, which are those of the shard group."""
        engine.reduce_bucket_to_shard(output, input, bucket, (places, 0), self._is_inside, False)

    def begin(
        self, engine: _C.Engine, output: torch.Tensor, input: torch.Tensor, bucket: Parameters, places: Places
    ) -> torch.Tensor:
        """The same where the result comes at the end of the pass: returns memory for it, to be given to ``finish()``.

        ``output`` says how large a shard is.
        """
        late = torch.empty_like(output)
        engine.reduce_bucket_to_shard(late, input, bucket, (places, 0), self._is_inside, True)
        return late

    def finish(self, late: torch.Tensor, numel: int) -> torch.Tensor:
        """The shard, of ``numel`` elements, at the end of the pass."""
        return late


class ScatterAndReduce(Scatter):
    """The ranks of a shard group share an objective: the mean over them, then the reduction across replicas.

    Sends between replicas what an all-reduce of the shard does.
    """

    _is_inside = True

    def __init__(self, replicas: int) -> None:
        """``replicas``: how many ranks have each shard."""
        self.replicas = replicas


class ScatterPieces(Scatter):
    """Reduces over all ranks, of which each gets a piece of its shard, and gathers the pieces over the replicas.

    Pieces are padded with zeros to equal sizes, which change no Gramian.
    """

    def __init__(self, order: torch.Tensor, shards: int, replica: int, replica_group: dist.ProcessGroup) -> None:
        """Of this rank's shard and replica.

        ``order``: by rank of the engine, its shard's number times the number of replicas, plus its replica's.
        """
        self.replicas = replica_group.size()
        self._shards = shards
        self._replica = replica
        self._order = order
        self._group = replica_group

    def __call__(
        self,
        engine: _C.Engine,
        output: torch.Tensor,
        input: torch.Tensor,
        bucket: Parameters,
        places: Places,
        leaves_open: bool,
    ) -> None:
        """Where the step is left open nothing is gathered: the result is zero."""
        piece = self._reduce(engine, output, input, bucket, places, False)
        if leaves_open:
            output.zero_()
        else:
            output.copy_(self.finish(piece, output.numel()))

    def begin(
        self, engine: _C.Engine, output: torch.Tensor, input: torch.Tensor, bucket: Parameters, places: Places
    ) -> torch.Tensor:
        """Returns memory of a piece."""
        return self._reduce(engine, output, input, bucket, places, True)

    def finish(self, late: torch.Tensor, numel: int) -> torch.Tensor:
        """Gathers the pieces. Collective over the ranks that have this shard."""
        shard = torch.empty(late.numel() * self.replicas, dtype=late.dtype, device=late.device)
        dist.all_gather_into_tensor(shard, late, group=self._group)
        return shard[:numel]

    def _reduce(
        self,
        engine: _C.Engine,
        output: torch.Tensor,
        input: torch.Tensor,
        bucket: Parameters,
        places: Places,
        is_late: bool,
    ) -> torch.Tensor:
        size = -(-output.numel() // self.replicas)
        padded = functional.pad(input.view(self._shards, -1), (0, size * self.replicas - output.numel()))
        pieces = padded.view(-1, size).index_select(0, self._order).flatten()
        piece = torch.empty(size, dtype=output.dtype, device=output.device)
        engine.reduce_bucket_to_shard(piece, pieces, bucket, (places, self._replica * size), False, is_late)
        return piece


def find_scatter(
    shard_group: dist.ProcessGroup, mesh: "DeviceMesh", levels: Levels, group: dist.ProcessGroup, device: torch.device
) -> Scatter:
    """What reduces a model that is sharded over ``shard_group``, a line of ``mesh`` or all of it.

    Args:
        shard_group: The group of the mesh that the model is sharded over.
        mesh, levels: Of all ranks that reduce.
        group: Theirs.
        device: Where the model's gradients are reduced.

    Raises:
        ValueError: The mesh has other ranks than ``group``, or ``shard_group`` is neither.
    """
    levels.in_group(dist.get_process_group_ranks(group))
    shard_ranks = dist.get_process_group_ranks(shard_group)
    if shard_ranks == dist.get_process_group_ranks(group):
        return Scatter()
    ranks = mesh.mesh
    along = [d for d in range(ranks.ndim) if _line(mesh, d) == shard_ranks]
    if ranks.ndim != 2 or not along or not _ascends(ranks):
        raise ValueError(
            "mesh must be the one of two dimensions over one of which the module is sharded, with ascending ranks "
            f"along both; got {mesh} and a module that is sharded over ranks {', '.join(map(str, shard_ranks))}"
        )
    sharded = along[0]
    dimensions = mesh.mesh_dim_names or ()
    if levels.objectives == (dimensions[1 - sharded],):
        return ScatterAndReduce(ranks.shape[1 - sharded])
    replicas = ranks.shape[1 - sharded]
    place = {
        rank: s * replicas + r for s, row in enumerate(ranks.movedim(sharded, 0).tolist()) for r, rank in enumerate(row)
    }
    order = [place[rank] for rank in dist.get_process_group_ranks(group)]
    replica = place[dist.get_rank()] % replicas
    return ScatterPieces(torch.tensor(order, device=device), ranks.shape[sharded], replica, mesh.get_group(1 - sharded))


def _line(mesh: "DeviceMesh", dimension: int) -> list[int]:
    """The ranks along a dimension of which this one is."""
    place: list[int | slice] = list(mesh.get_coordinate() or ())
    place[dimension] = slice(None)
    return list(mesh.mesh[tuple(place)].tolist())


def _ascends(ranks: torch.Tensor) -> bool:
    """Whether groups, which are in the order of ranks, have them in the order of the mesh."""
    return all(bool((ranks.diff(dim=d) > 0).all()) for d in range(ranks.ndim))


class HasParameters(Protocol):
    """A sharded model."""

    shard_group: dist.ProcessGroup

    def named_parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Those that are sharded."""


def check_replicas(model: HasParameters, scatter: Scatter, group: dist.ProcessGroup) -> None:
    """Compares the replicas of every shard, bit by bit. Collective over ``group``.

    Raises:
        ValueError: On all ranks, if two replicas differ: their updates would be the same, and they would stay apart.
    """
    if scatter.replicas == 1:
        return
    digest = hashlib.blake2b()
    for name, parameter in model.named_parameters():
        shard = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        digest.update(name.encode())
        digest.update(shard.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    found: list[tuple[int, str] | None] = [None] * group.size()
    dist.all_gather_object(found, (model.shard_group.rank(), digest.hexdigest()), group=group)
    for shard_number in range(model.shard_group.size()):
        replicas = [(rank, has[1]) for rank, has in enumerate(found) if has is not None and has[0] == shard_number]
        for rank, has in replicas:
            if has != replicas[0][1]:
                raise ValueError(
                    f"module: parameters of rank {rank} are not those of rank {replicas[0][0]}, which has the same "
                    "shard in another replica. Replicas must start equal, as under plain HSDP: initialise them from "
                    "one seed, or load a checkpoint before this call"
                )
