"""Modules that fully_shard() made (FSDP2): their parameter groups are reduced and scattered, group by group."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bucket_moo_ext import _C, private_torch
from bucket_moo_ext.adapters.hsdp import Scatter
from bucket_moo_ext.adapters.parameters import check_device, check_dtype
from bucket_moo_ext.adapters.passes import Parameters, Passes
from bucket_moo_ext.state import BucketMOO


class ShardedModel:
    """The parameter groups of a sharded model, of which each is a bucket.

    Made at registration, before anything is changed.
    """

    def __init__(self, root: nn.Module, has_pieces: bool = False) -> None:
        """``root``: what ``find_sharded`` found. ``has_pieces``: whether other ranks hold other pieces of parameters.

        Raises:
            TypeError: A parameter, or the dtype to reduce in, of an unsupported dtype.
            ValueError: Groups that cannot be reduced, or not together.
            RuntimeError: A version of torch that this is not known to work with, or a module that has a reduce-scatter
                of its own already.
        """
        private_torch.check_sharded_version()
        self.root = root
        self.groups = _groups_of(root)
        for _, group in self.groups:
            private_torch.note_replaced(group)
        named = {parameter: name for name, parameter in root.named_parameters()}
        self.names = [[named[parameter] for parameter in private_torch.registered(group)] for _, group in self.groups]
        self._mesh_of = private_torch.shard_mesh_of_group if has_pieces else private_torch.mesh_of_group
        self.device = self._check()
        self.mesh = self._mesh_of(self.groups[0][1])
        self.shard_group: dist.ProcessGroup = self.mesh.get_group()

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Those that are sharded."""
        for (_, group), names in zip(self.groups, self.names, strict=True):
            yield from zip(names, private_torch.sharded_parameters(group), strict=True)

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Their names, and whether other ranks hold other pieces of them than shards."""
        for name, parameter in self.named_parameters():
            yield name, private_torch.is_piece_beside(parameter, self.mesh)

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
        meshes = [self._mesh_of(group) for _, group in self.groups]
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
                if parameter.is_meta:
                    raise ValueError(
                        f"module: parameter {name!r} is on the meta device; give parameters memory first: "
                        "model.to_empty(device=...), then their values"
                    )
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
            "method, mesh=mesh, objectives='replicate'). For tensor parallelism give the group of the ranks that hold "
            "the other pieces, which would solve for weights of their own: model_parallel_group=mesh.get_group('tp')"
        )
    if mesh.size() == 1:
        raise ValueError(
            "module: its mesh has one rank, where FSDP2 reduces nothing. In one process register the plain module, "
            "without fully_shard(): objectives are then passes, see BucketMOO.accumulate()"
        )


class GroupPasses(Passes):
    """Follows the backward passes of an FSDP2 model.

    Behind a backward pass FSDP2 itself still reduces what autograd did not come to, the root's group as a rule.
    """

    BUCKET = "group"
    IF_TWICE = (
        "Its module runs forward more than once in a step, under set_reduce_scatter_unused_params(True): switch that "
        "off, or do not shard this module by itself"
    )
    IF_UNREACHED = "Call model.set_reduce_scatter_unused_params(True), so that every pass reduces every group"
    IF_RANKS_DIFFER = (
        "model.set_reduce_scatter_unused_params(True), and the same modules on every rank in the same order"
    )

    def __init__(self, model: ShardedModel, state: BucketMOO, scatter: Scatter) -> None:
        """Takes the place of FSDP2's reduce-scatters. Collective over the state's group."""
        super().__init__(state, model.root, model.device)
        self._scatter = scatter
        self._groups = [group for _, group in model.groups]
        self._states = private_torch.sharding_states(module for module, _ in model.groups)
        self._ranks = dist.get_process_group_ranks(model.shard_group)
        for (module, group), names in zip(model.groups, model.names, strict=True):
            module.set_custom_reduce_scatter(_comm(self, group, names))  # type: ignore[operator]

    def reduce(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        group: dist.ProcessGroup,
        op: object,
        parameters: Parameters,
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
        with self._reduction(parameters) as engine:
            self._check_whole(engine, input.numel(), parameters, sharded)
            before, behind = private_torch.divisors_of(sharded, input.dtype)
            if before != 1.0:  # lest a sum overflow, which ours does not: Gramians are those of the gradients
                input.mul_(before)
                scale /= before
            if self._is_late:
                self._reduce_late(engine, output, input, parameters, sharded, scale / behind)
                return
            self._scatter(engine, output, input, parameters, private_torch.places_in_shard(sharded), self._leaves_open)
        if scale != 1.0:
            output.mul_(scale)

    def _reduce_late(
        self,
        engine: _C.Engine,
        output: torch.Tensor,
        input: torch.Tensor,
        parameters: Parameters,
        sharded: Any,
        scale: float,
    ) -> None:
        """Hands zeros to FSDP2; the shard of the group's update, times ``scale``, is added at the end of the pass."""
        numel = output.numel()
        late = self._scatter.begin(engine, output, input, parameters, private_torch.places_in_shard(sharded))
        output.zero_()

        def add(result: torch.Tensor) -> None:
            shard = self._scatter.finish(result, numel)
            if scale != 1.0:
                shard.mul_(scale)
            private_torch.add_to_sharded_gradients(sharded, shard)

        self._add_at_end(late, add)

    def _check_whole(self, engine: _C.Engine, numel: int, parameters: Parameters, sharded: Any) -> None:
        """Refuses a part of a group: FSDP2 does not say which, and other ranks or passes may have another one."""
        whole = private_torch.whole_numel(sharded, len(self._ranks))
        if numel == whole:
            return
        engine.refuse_reduction()
        raise ValueError(
            f"bucket_moo_ext: a backward pass gave gradients to some trained parameters of the group of "
            f"{parameters[0][0]!r} and not to others: {numel} elements of {whole}. Call "
            "model.set_reduce_scatter_unused_params(True), so that every pass reduces whole groups; or shard modules "
            "that are used apart by themselves, or freeze what is never used"
        )

    def _check_begin(self) -> None:
        private_torch.check_backward_ends_itself(self._states)
        if self._state._scope.spans_buckets:
            self._check_may_be_late()

    def _check_may_be_late(self) -> None:
        """Refuses functions that FSDP2 would call with zeros, before a group's gradients are there."""
        for group in self._groups:
            if private_torch.has_all_reduce_hook(group):
                raise RuntimeError(
                    "bucket_moo_ext: this scope cannot be combined with set_all_reduce_hook(): gradients are there "
                    "at the end of the backward pass; use scope='bucket'"
                )
            for parameter in private_torch.sharded_parameters(group):
                if private_torch.has_gradient_hook(parameter):
                    raise RuntimeError(
                        "bucket_moo_ext: this scope cannot be combined with register_post_accumulate_grad_hook() on "
                        "sharded parameters (an optimizer in backward): gradients are there at the end of the backward "
                        "pass; use scope='bucket'"
                    )

    def _is_in_backward(self) -> bool:
        return private_torch.is_in_sharded_backward(self._states)

    def _recover(self) -> None:
        private_torch.drop_gathered_gradients(self._groups)  # or they were added to those of the next pass


def _comm(passes: GroupPasses, sharded: Any, names: list[str]) -> Any:
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

        def _parameters(self) -> Parameters:
            """Names and elements of those that are trained."""
            return [
                (name, parameter.numel())
                for name, parameter in zip(names, private_torch.sharded_parameters(sharded), strict=True)
                if parameter.requires_grad
            ]

    return ConflictAwareReduceScatter()
