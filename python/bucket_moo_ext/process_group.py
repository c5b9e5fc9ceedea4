"""The groups that a state reduces over, and the nodes of a group."""

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from bucket_moo_ext import private_torch
from bucket_moo_ext.levels import Levels

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# The groups that a forked child has from its parent. Kept, since destroying them where their threads are not hangs.
_inherited: list[dist.ProcessGroup] = []


def _note_inherited() -> None:
    if dist.is_available():
        _inherited.extend(group for group in private_torch.all_groups() if group not in _inherited)


os.register_at_fork(after_in_child=_note_inherited)


def is_alone() -> bool:
    """Whether there are no other ranks."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def parent_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """``group``, or the default group.

    Raises:
        RuntimeError: torch.distributed is not initialised, or the group is that of the process from which this one was
            forked.
        TypeError: Not a process group.
        ValueError: This rank is not in the group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("torch.distributed is not initialised; call init_process_group first")
    chosen: object = dist.group.WORLD if group is None else group
    if chosen == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group: this rank is not a member of the group")
    if not isinstance(chosen, dist.ProcessGroup):
        raise TypeError(f"process_group must be a ProcessGroup or None; got {type(chosen).__name__}")
    if chosen.size() > 1 and chosen in _inherited:
        raise RuntimeError(
            "process_group was made before this process was forked, and the parent process goes on using it: the other "
            "ranks would take this one for its parent. A process that is to reduce needs a process group of its own: "
            "start it with multiprocessing's 'spawn' or 'forkserver'"
        )
    return chosen


def _timeout(group: dist.ProcessGroup) -> timedelta:
    try:
        return private_torch.timeout_of(private_torch.backend_of(group, "cpu"))
    except RuntimeError:  # no CPU backend in this group: torch's default for Gloo
        return dist.default_pg_timeout


def device_group(parent: dist.ProcessGroup, device: torch.device) -> dist.ProcessGroup | None:
    """``parent``, for reductions on its ranks' devices, or None for a single rank.

    Not a group of our own: two NCCL communicators in flight on one GPU may wait for each other.

    Raises:
        ValueError: The group has no backend for this device.
    """
    if parent.size() == 1:
        return None
    try:
        private_torch.backend_of(parent, device.type)
    except RuntimeError as error:
        raise ValueError(
            f"process_group has no backend for {device.type} tensors; initialise it with one, for example "
            'init_process_group("cpu:gloo,cuda:nccl")'
        ) from error
    return parent


def level_groups(
    levels: Levels, mesh: "DeviceMesh | None", parent: dist.ProcessGroup, device: torch.device
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """This rank's groups across objectives and inside, for reductions on its ranks' devices; None for a single rank.

    The mesh's own where one of its dimensions makes up a level. Else new ones, which is collective over ``parent``, and
    they stay until ``destroy_process_group()``.

    Raises:
        NotImplementedError: Ranks that do not ascend along both levels, since torch numbers the ranks of a group in
            ascending order, which has to be that of the mesh; or new groups inside a part of the default group.
        ValueError: As ``device_group``.
    """
    for name, rows in (("the dimensions that objectives does not name", levels.ranks), ("objectives", levels.across)):
        for row in rows:
            if list(row) != sorted(row):
                raise NotImplementedError(
                    f"mesh: on {device} ranks must ascend along objectives and along the other dimensions, as those of "
                    f"init_device_mesh() do; got {', '.join(map(str, row))} along {name}"
                )
    across = _level_group(levels.objectives, levels.across, mesh, parent, device)
    return across, _level_group(levels.shared, levels.ranks, mesh, parent, device)


def _level_group(
    dimensions: Sequence[str],
    groups: Sequence[Sequence[int]],
    mesh: "DeviceMesh | None",
    parent: dist.ProcessGroup,
    device: torch.device,
) -> dist.ProcessGroup | None:
    """That of ``groups`` which this rank is in."""
    if len(groups[0]) == 1:
        return None
    if mesh is not None:
        names = mesh.mesh_dim_names or ()
        wide = [d for d, name in enumerate(names) if name in dimensions and mesh.size(d) > 1]
        if len(wide) == 1:
            return device_group(mesh.get_group(wide[0]), device)
    device_group(parent, device)  # new ones have its backends
    if parent.size() != dist.get_world_size():
        raise NotImplementedError(
            f"mesh: dimensions {', '.join(dimensions)} together have no group; on {device} that takes a process_group "
            "of all ranks, or a mesh with one dimension for objectives and one for the ranks that share them"
        )
    timeout = private_torch.timeout_of(private_torch.backend_of(parent, device.type))
    # Every rank makes all of them, in the same order.
    made: list[dist.ProcessGroup] = [dist.new_group(list(ranks), timeout=timeout) for ranks in groups]
    return next(group for group, ranks in zip(made, groups, strict=True) if dist.get_rank() in ranks)


def private_group(parent: dist.ProcessGroup) -> dist.ProcessGroup | None:
    """A Gloo group over the ranks of ``parent`` that nothing else uses, or None for a single rank.

    Collective over ``parent``; has its timeout. With a group of its own the order of our messages depends on nothing
    else that the program sends. It goes with its last reference.
    """
    if parent.size() == 1:
        return None
    # Not dist.new_group: it needs every rank of the default group, or else (use_local_synchronization) names groups by
    # how many there are, so that ranks which destroyed or garbage-collected theirs at other times miss each other.
    # Here the parent's store counts, for each rank, how many groups it has made of this parent.
    store = private_torch.store_of(parent)
    number = store.add(f"bucket_moo/rank{parent.rank()}", 1)
    store = dist.PrefixStore(f"bucket_moo/group{number}", store)
    group = private_torch.gloo_group(store, parent.rank(), parent.size(), _timeout(parent))
    # A rank that left at once would close its connections while others still make theirs, and these would fail.
    group.barrier().wait()
    return group


def _node() -> str:
    """A name of this machine that no other has."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


def announce_node(group: dist.ProcessGroup) -> dist.Store:
    """Tells the other ranks of ``group`` which machine this one is on; returns where all of them say so."""
    store = private_torch.store_of(group)
    number = store.add(f"bucket_moo/nodes/rank{group.rank()}", 1)  # of calls; the same on every rank
    store = dist.PrefixStore(f"bucket_moo/nodes{number}", store)
    store.set(str(group.rank()), _node())
    return store


def count_nodes(group: dist.ProcessGroup, announced: dist.Store) -> int:
    """How many machines the ranks of ``group`` are on, all of which announce theirs."""
    return len({bytes(node) for node in announced.multi_get([str(rank) for rank in range(group.size())])})
