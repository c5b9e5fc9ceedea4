"""FullyShardedDataParallel modules (FSDP1): their flat parameters' gradients are reduced, one after the other."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from bucket_moo_ext import _C, private_torch
from bucket_moo_ext.adapters.parameters import check_device, check_dtype
from bucket_moo_ext.adapters.passes import Parameters, Passes, Places
from bucket_moo_ext.state import BucketMOO


class FlatModel:
    """The flat parameters of an FSDP1 model, of which each is a bucket.

    Made at registration, before anything is changed.
    """

    def __init__(self, root: nn.Module) -> None:
        """``root``: what ``find_flat`` found.

        Raises:
            TypeError: A parameter, or the dtype to reduce in, of an unsupported dtype.
            ValueError: Flat parameters that cannot be reduced, or not together.
            RuntimeError: A version of torch that this is not known to work with, a part of a model, or a model that has
                a communication hook already.
        """
        private_torch.check_sharded_version("FullyShardedDataParallel")
        self.root = root
        self.units = [FlatUnit(path, unit) for path, unit in private_torch.flat_units(root)]
        self._check()
        self.device: torch.device = private_torch.device_of_flat(root)
        self.process_group: dist.ProcessGroup = self.units[0].process_group
        check_device(self.device, f"module: FullyShardedDataParallel reduces its gradients on {self.device}")

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As the model without FSDP1 names them, with what optimizers are given for each."""
        for unit in self.units:
            yield from ((piece.name, piece.parameter) for piece in unit.pieces)

    def _check(self) -> None:
        if not self.units:
            raise ValueError("module: FullyShardedDataParallel has no parameter of it to reduce")
        if private_torch.is_part_of_flat(self.root):
            raise RuntimeError("module is a part of an FSDP model: register the whole, the outermost module")
        first = self.units[0]
        for unit in self.units:
            unit.check()
            if dist.get_process_group_ranks(unit.process_group) != dist.get_process_group_ranks(first.process_group):
                raise ValueError(
                    f"module: parameters {first.names[0]!r} and {unit.names[0]!r} are reduced over different ranks; a "
                    "state reduces over one group. Use the same process_group for all FullyShardedDataParallel calls"
                )
        if first.process_group.size() == 1:
            raise ValueError(
                "module: FullyShardedDataParallel runs on one rank, where nothing is reduced. In one process register "
                "the plain module: objectives are then passes, see BucketMOO.accumulate()"
            )


class FlatUnit:
    """An FSDP1 module with the flat parameter that it has itself, apart from those of FSDP1 modules in it."""

    def __init__(self, path: str, unit: nn.Module) -> None:
        """``path``: of the module in the whole, which goes before the names of its parameters."""
        self.unit = unit
        self.pieces = private_torch.flat_pieces(unit, path)
        self.names = [piece.name for piece in self.pieces]
        self.process_group = private_torch.group_of_flat(unit)

    def check(self) -> None:
        """Raises what ``FlatModel`` does."""
        name = self.names[0]
        strategy = private_torch.strategy_of(self.unit)
        if "HYBRID" in strategy:
            raise ValueError(
                f"module: parameter {name!r} has the sharding strategy {strategy}, for which FullyShardedDataParallel "
                "takes no communication hook. Use FSDP2: fully_shard()"
            )
        if private_torch.has_tensor_parallelism(self.unit):
            raise ValueError(
                f"module: parameter {name!r} is a DTensor, of which other ranks hold other pieces: tensor parallelism "
                "beside data parallelism is not supported"
            )
        if any(private_torch.steps_in_backward(piece.parameter) for piece in self.pieces):
            raise ValueError(
                "module: FullyShardedDataParallel with an optimizer in backward cannot be combined with "
                "bucket_moo_ext: it would take a step in every pass"
            )
        parameter_dtype, reduce_dtype = private_torch.dtypes_of_flat(self.unit)
        check_dtype(f"parameter {name!r} has dtype", parameter_dtype)
        check_dtype(f"the flat parameter of {name!r} has reduce_dtype", reduce_dtype)
        if hook := private_torch.comm_hook_of_flat(self.unit):
            raise RuntimeError(f"module already has a communication hook ({hook}); an FSDP model takes one, once")

    def trained(self) -> Parameters:
        """Names and elements of the parameters that are trained."""
        return [(piece.name, piece.numel) for piece in self.pieces if piece.parameter.requires_grad]

    def places(self) -> Places:
        """Where these lie in the flat gradient."""
        return [(piece.start, piece.numel) for piece in self.pieces if piece.parameter.requires_grad]

    def clear_frozen(self, gradient: torch.Tensor) -> None:
        """Zeros where parameters are frozen: beside trained ones FSDP1 computes their gradients, and drops them."""
        for piece in self.pieces:
            if not piece.parameter.requires_grad:
                gradient.narrow(0, piece.start, piece.numel).zero_()


class FlatPasses(Passes):
    """Follows the backward passes of an FSDP1 model."""

    BUCKET = "flat parameter"
    IF_TWICE = "Activation checkpointing with use_reentrant=True does this; use use_reentrant=False"
    IF_UNREACHED = (
        "Let every pass use every flat parameter, if need be by adding 0 times its module's output to the loss; or use "
        "FSDP2, fully_shard(), whose set_reduce_scatter_unused_params(True) does this"
    )
    IF_RANKS_DIFFER = (
        "let every rank use every flat parameter, in the same order; or use FSDP2, fully_shard(), with "
        "set_reduce_scatter_unused_params(True)"
    )

    def __init__(self, model: FlatModel, state: BucketMOO) -> None:
        """Becomes FSDP1's communication hook. Collective over the model's group."""
        super().__init__(state, model.root, model.device)
        self._root = model.root
        self._rank = dist.get_rank(model.process_group)
        private_torch.register_flat_hook(model.root, self.reduce, {unit.unit: unit for unit in model.units})

    def reduce(self, unit: FlatUnit, gradient: torch.Tensor, shard: torch.Tensor | None = None) -> None:
        """What FSDP1 calls: with the flat gradient, to be replaced, or with the rank's shard, to be written.

        FSDP1 divides nothing where there is a hook, and wants the mean.
        """
        parameters = unit.trained()
        unit.clear_frozen(gradient)
        with self._reduction(parameters) as engine:
            if self._is_late:
                self._reduce_late(engine, unit, gradient, shard, parameters)
            elif shard is None:
                engine.reduce_compared_bucket(gradient, parameters, (unit.places(), 0), False)
            else:
                engine.reduce_bucket_to_shard(shard, gradient, parameters, self._places(unit, shard), False, False)

    def _reduce_late(
        self,
        engine: _C.Engine,
        unit: FlatUnit,
        gradient: torch.Tensor,
        shard: torch.Tensor | None,
        parameters: Parameters,
    ) -> None:
        """Hands zeros to FSDP1; the result is added at the end of the pass."""
        if shard is None:
            late = gradient.clone()
            engine.reduce_compared_bucket(late, parameters, (unit.places(), 0), True)
            gradient.zero_()
        else:
            late = torch.empty_like(shard)
            engine.reduce_bucket_to_shard(late, gradient, parameters, self._places(unit, shard), False, True)
            shard.zero_()
        self._add_at_end(late, lambda result: private_torch.add_to_flat_gradient(unit.unit, result))

    def _places(self, unit: FlatUnit, shard: torch.Tensor) -> tuple[Places, int]:
        """A shard is a range of the flat gradient."""
        return unit.places(), self._rank * shard.numel()

    def _is_in_backward(self) -> bool:
        return private_torch.is_in_flat_backward(self._root)

    def _recover(self) -> None:
        raise RuntimeError(
            "bucket_moo_ext: an earlier backward pass of this model failed. FSDP1 does not come to the end of such a "
            "pass and cannot go on: make the model anew, from a checkpoint. FSDP2, fully_shard(), can, by "
            "reset_iter_state()"
        )
