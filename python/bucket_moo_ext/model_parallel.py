"""The ranks that hold other pieces of a model, and the parameters of which they all have copies."""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from bucket_moo_ext import _C, private_torch
from bucket_moo_ext.process_group import device_group, parent_group, private_group
from bucket_moo_ext.scope import digest


class ModelParallel:
    """``model_parallel_group`` and ``replicated`` as ``BucketMOO`` takes them."""

    def __init__(self, group: object, replicated: object) -> None:
        """Raises TypeError or ValueError for a bad argument, which it names."""
        if replicated is not None and not callable(replicated):
            raise TypeError(
                f"replicated must be a function of a parameter's name or None; got {type(replicated).__name__}"
            )
        if replicated is not None and group is None:
            raise ValueError(
                "replicated is for models of which other ranks hold other pieces: give model_parallel_group"
            )
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"model_parallel_group must be a ProcessGroup or None; got {type(group).__name__}")
        self._group: dist.ProcessGroup | None = group
        self._is_replicated: Callable[[str], bool] | None = replicated
        self._names: dict[str, bool] = {}  # of parameters, and whether torch notes that they are pieces

    @property
    def is_given(self) -> bool:
        """Whether other ranks hold other pieces."""
        return self._group is not None

    def add(self, name: str, parameter: torch.Tensor) -> None:
        """This parameter will be reduced."""
        if self.is_given:
            self._names[name] = private_torch.is_piece(parameter)

    def note(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """Which of the parameters are pieces, where that is known better."""
        self._names.update(pieces)

    @property
    def replicated(self) -> set[str]:
        """Names of parameters of which every rank of the group has a copy, where it is known that some are pieces."""
        if self._is_replicated is not None:
            return {name for name in self._names if self._is_replicated(name)}
        return {name for name, is_piece in self._names.items() if not is_piece} if any(self._names.values()) else set()

    def check_named(self) -> None:
        """Raises ValueError where a module's parameters have no names, without which copies are not known."""
        if self.is_given and not self._names:
            raise ValueError(
                "model_parallel_group: which parameters are copies goes by their names; call name_parameters() before "
                "the first backward pass"
            )

    def check_not_too_late(self, names: list[str], has_engine: bool) -> None:
        """Raises RuntimeError for names of parameters that come when copies are settled."""
        if self.is_given and has_engine and not set(names) <= self._names.keys():
            raise RuntimeError(
                "name_parameters(): with model_parallel_group parameters must be named before the state is first used"
            )

    @property
    def configuration(self) -> list[tuple[str, str]]:
        """What ranks must have alike: those that hold the same piece, and but for the place those of one model."""
        place = "none" if self._group is None else f"{dist.get_rank(self._group)} of {self._group.size()}"
        copies = sorted(self.replicated)
        return [
            ("place in model_parallel_group", place),
            ("replicated", f"{len(copies)} of {len(self._names)} parameters ({digest([copies, list(self._names)])})"),
        ]

    def connect(self, data_parallel: dist.ProcessGroup | None, device: torch.device) -> dist.ProcessGroup | None:
        """A group over these ranks for tensors on `device`, or None where there is one rank. Collective over them.

        Raises:
            ValueError: The group has ranks that hold this rank's piece, too, or no backend for this device.
        """
        if self._group is None:
            return None
        mine = dist.get_process_group_ranks(self._group)
        others = [dist.get_rank()] if data_parallel is None else dist.get_process_group_ranks(data_parallel)
        if set(mine) & set(others) != {dist.get_rank()}:
            raise ValueError(
                "model_parallel_group must have this rank and ranks that hold other pieces of the model, none of "
                f"which is in process_group; got ranks {mine} beside ranks {list(others)}"
            )
        if _C.reduces_on_device(device):
            return device_group(parent_group(self._group), device)
        return private_group(parent_group(self._group))
