"""The group of its own that a state reduces over."""

from datetime import timedelta

import torch
import torch.distributed as dist


def parent_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """``group``, or the default group.

    Raises:
        RuntimeError: torch.distributed is not initialised.
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
    return chosen


def _timeout(group: dist.ProcessGroup) -> timedelta | None:
    try:
        options = group._get_backend(torch.device("cpu")).options
    except RuntimeError:  # no CPU backend in this group: take torch's default
        return None
    timeout = options._timeout
    assert isinstance(timeout, timedelta)
    return timeout


def private_group(parent: dist.ProcessGroup) -> dist.ProcessGroup | None:
    """A Gloo group over the ranks of ``parent`` that nothing else uses, or None for a single rank.

    Collective over ``parent``; has its timeout. With a group of its own the order of our messages depends on nothing
    else that the program sends.
    """
    if parent.size() == 1:
        return None
    group: dist.ProcessGroup = dist.new_group(
        dist.get_process_group_ranks(parent),
        timeout=_timeout(parent),
        backend="gloo",
        use_local_synchronization=True,
        group_desc="bucket_moo",
    )
    return group


def discard(group: dist.ProcessGroup | None) -> None:
    """Destroys a group made by ``private_group`` unless torch.distributed has done so already."""
    if group is not None and dist.is_initialized() and group in dist.distributed_c10d._world.pg_map:
        dist.destroy_process_group(group)
