"""Modules that fully_shard() made (FSDP2): their parameter groups are reduced and scattered, group by group."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bucket_moo_ext import private_torch
from bucket_moo_ext.adapters.hsdp import Scatter
from bucket_moo_ext.adapters.parameters import check_device, check_dtype
from bucket_moo_ext.state import BucketMOO


class ShardedModel:
    """The parameter groups of a sharded model, of which each is a bucket.

    Made at registration, before anything is changed.
    """

    def __init__(self, root: nn.Module) -> None:
        """``root``: what ``find_sharded`` found.

        Raises:
            TypeError: A parameter, or the dtype to reduce in, of an unsupported dtype.
            ValueError: Groups that cannot be reduced, or not together.
            RuntimeError: A version of torch that this is not known to work with, or a module that has a reduce-scatter
                of its own already.
        """
        private_torch.check_sharded_version()
        self.root = root
        self.groups = _groups_of(root)
        named = {parameter: name for name, parameter in root.named_parameters()}
        self.names = [[named[parameter] for parameter in private_torch.registered(group)] for _, group in self.groups]
        self.device = self._check()
        self.shard_group: dist.ProcessGroup = private_torch.mesh_of_group(self.groups[0][1]).get_group()

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Those that are sharded."""
        for (_, group), names in zip(self.groups, self.names, strict=True):
            yield from zip(names, private_torch.sharded_parameters(group), strict=True)

    def check_not_reduced_elsewhere(self) -> None:
        """Refuses a function of the user's that reduces over replicas what is reduced over them here.

        Raises:
            RuntimeError: There is one.
        """
        for (_, group), names in zip(self.groups, self.names, strict=True):
            if private_torch.has_all_reduce_hook(group):
                raise RuntimeError(
                    f"module: the group of parameter {names[0]!r} has an all-reduce hook (set_all_reduce_hook); with "
                    "mesh=... its replicas are reduced here"
                )

    def _check(self) -> torch.device:
        if not self.groups:
            raise ValueError("module: fully_shard() has sharded no parameter of it")
        meshes = [private_torch.mesh_of_group(group) for _, group in self.groups]
        for mesh, names in zip(meshes, self.names, strict=True):
            _check_mesh(mesh, names[0])
            if mesh != meshes[0]:
                raise ValueError(
                    f"module: parameters {self.names[0][0]!r} and {names[0]!r} are sharded over different meshes; a "
                    "state reduces over one. Use the same mesh for all fully_shard() calls"
                )
        device: torch.device = self.groups[0][1].device
        check_device(device, f"module: fully_shard() reduces its gradients on {device}")
        for (_, group), names in zip(self.groups, self.names, strict=True):
            for name, parameter in zip(names, private_torch.sharded_parameters(group), strict=True):
                check_dtype(f"parameter {name!r} has dtype", parameter.dtype)
            reduce_dtype = group.mp_policy.reduce_dtype
            if reduce_dtype is not None:
                check_dtype(f"the group of parameter {names[0]!r} has reduce_dtype", reduce_dtype)
            if not private_torch.has_own_reduce_scatter(group):
                raise RuntimeError(
                    f"module: the group of parameter {names[0]!r} has a custom reduce-scatter already "
                    f"({private_torch.reduce_scatter_of(group)}); a module takes one, and is registered once"
                )
        return device


def _groups_of(root: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Modules with their groups of parameters, each group once: fully_shard([a, b]) makes one of two modules."""
    found: dict[int, tuple[nn.Module, Any]] = {}
    for path, module in root.named_modules():
        if not private_torch.is_sharded(module):
            continue
        groups = private_torch.parameter_groups(module)
        if len(groups) > 1:
            raise ValueError(
                f"module: {path or 'the root module'!r} has {len(groups)} groups of parameters, as a "
                "shard_placement_fn with several meshes makes them; that is not supported. Shard over one mesh"
            )
        for group in groups:
            found.setdefault(id(group), (module, group))
    return list(found.values())


def _check_mesh(mesh: Any, name: str) -> None:
    dimensions = ", ".join(mesh.mesh_dim_names or ("unnamed",))
    if mesh.ndim > 1:
        raise ValueError(
            f"module: parameter {name!r} is sharded over a mesh of {mesh.ndim} dimensions ({dimensions}). Of such a "
            "mesh FSDP2 hands over the mean of a shard group alone. For hybrid sharding (HSDP) shard over one "
            "dimension and give the whole mesh here: fully_shard(model, mesh=mesh['shard']), moo.register(model, "
            "method, mesh=mesh, objectives='replicate'). Tensor parallelism beside FSDP2 is not supported: ranks that "
            "hold other pieces of a parameter would solve for weights of their own"
        )
    if mesh.size() == 1:
        raise ValueError(
            "module: its mesh has one rank, where FSDP2 reduces nothing. In one process register the plain module, "
            "without fully_shard(): objectives are then passes, see BucketMOO.accumulate()"
        )


class Passes:
    """Follows the backward passes of a sharded model: all groups that one of them reduces are one pass of the engine.

    A pass begins with the first group that FSDP2 reduces, and ends behind FSDP2's own end of the backward pass, in
    which it reduces what autograd did not come to, the root's group as a rule.
    """

    def __init__(self, model: ShardedModel, state: BucketMOO, scatter: Scatter) -> None:
        """Takes the place of FSDP2's reduce-scatters. Collective over the state's group."""
        self._state = state
        self._scatter = scatter
        self._device = model.device
        self._groups = [group for _, group in model.groups]
        self._states = private_torch.sharding_states(module for module, _ in model.groups)
        self._ranks = dist.get_process_group_ranks(model.shard_group)
        self._in_pass = False
        self._leaves_open = False
        self._reduced: set[tuple[str, ...]] = set()  # buckets of this pass
        self._put_aside: set[tuple[str, ...]] = set()  # of the passes of this step before
        state.name_parameters(model.named_parameters())
        state._bound(model.device)
        for (module, group), names in zip(model.groups, model.names, strict=True):
            module.set_custom_reduce_scatter(_comm(self, group, names))  # type: ignore[operator]
        model.root.register_forward_pre_hook(self._forget_broken_pass)

    def reduce(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        group: dist.ProcessGroup,
        op: object,
        parameters: list[tuple[str, int]],
        sharded: Any,
    ) -> None:
        """The shard of a group's update, complete on return; on a GPU, enqueued on the current stream.

        ``sharded``: the group of parameters.
        """
        scale = private_torch.scale_of(op, len(self._ranks))
        if private_torch.has_divide_factor(sharded):  # which is for the sum over all ranks
            scale *= self._scatter.replicas
        if dist.get_process_group_ranks(group) != self._ranks:
            raise RuntimeError("bucket_moo_ext: fully_shard() reduces over other ranks than at registration")
        bucket = tuple(name for name, _ in parameters)
        if not self._in_pass:
            self._begin()
        if bucket in self._reduced:
            raise RuntimeError(
                f"bucket_moo_ext: the group of parameter {bucket[0]!r} was reduced twice in one backward pass, with a "
                "part of its gradient each time. Its module runs forward more than once in a step, under "
                "set_reduce_scatter_unused_params(True): switch that off, or do not shard this module by itself"
            )
        self._reduced.add(bucket)
        try:
            self._scatter(self._state._bound(self._device), output, input, parameters, self._leaves_open)
        except ValueError as error:
            raise _explained(error) from error
        if scale != 1.0:
            output.mul_(scale)

    def _begin(self) -> None:
        private_torch.check_backward_ends_itself(self._states)
        engine = self._state._bound(self._device)
        if engine.open_passes() == 0:  # also after discard()
            self._put_aside.clear()
        self._reduced.clear()
        self._leaves_open = self._state._accumulating
        engine.begin_pass()
        self._in_pass = True
        private_torch.at_end_of_backward(self._end)

    def _end(self) -> None:
        """The backward pass is over."""
        self._in_pass = False
        if private_torch.is_in_sharded_backward(self._states):
            raise RuntimeError(
                "bucket_moo_ext: a backward pass inside another one reduced gradients, as activation checkpointing "
                "with use_reentrant=True makes them; use use_reentrant=False"
            )
        try:
            self._state._bound(self._device).end_compared_pass()
        except ValueError as error:
            raise _explained(error) from error
        if self._leaves_open:
            self._put_aside |= self._reduced
            return
        missing = self._put_aside - self._reduced
        self._put_aside.clear()
        if missing:
            raise RuntimeError(
                f"bucket_moo_ext: the pass that closes a step did not reach the group of parameter "
                f"{min(missing)[0]!r}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, whose gradients "
                "earlier passes put aside: they are lost. Call model.set_reduce_scatter_unused_params(True), so that "
                "every pass reduces every group"
            )

    @private_torch.not_compiled
    def _forget_broken_pass(self, *_: object) -> None:
        """A forward pass outside of a backward pass: one that has not come to its end has failed."""
        if self._in_pass and not private_torch.is_in_backward():
            self._in_pass = False
            private_torch.drop_gathered_gradients(self._groups)  # or they were added to those of the next pass


def _explained(error: ValueError) -> ValueError:
    """With what to do where ranks have made different calls."""
    if "the same calls in the same order" not in str(error):
        return error
    return ValueError(
        f"{error}. If ranks use different parameters in a pass: model.set_reduce_scatter_unused_params(True), and the "
        "same modules on every rank in the same order"
    )


def _comm(passes: Passes, sharded: Any, names: list[str]) -> Any:
    """The reduce-scatter of the group of parameters ``sharded``, for FSDPModule.set_custom_reduce_scatter()."""

    class ConflictAwareReduceScatter(private_torch.reduce_scatter_interface()):  # type: ignore[misc]
        def allocate(self, size: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(
            self,
            output_tensor: torch.Tensor,
            input_tensor: torch.Tensor,
            group: dist.ProcessGroup,
            op: object,
            async_op: bool = False,
        ) -> None:
            passes.reduce(output_tensor, input_tensor, group, op, self._parameters(), sharded)

        def _parameters(self) -> list[tuple[str, int]]:
            """Names and elements of those that are trained."""
            return [
                (name, parameter.numel())
                for name, parameter in zip(names, private_torch.sharded_parameters(sharded), strict=True)
                if parameter.requires_grad
            ]

    return ConflictAwareReduceScatter()
