"""The trainings of a campaign: a tiny model, each layout of objectives and each wrapper."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

# Layers of 19, 28 and 1 KB: with this cap three buckets, of which two are sharded over the ranks and one travels whole.
SIZES = (40, 120, 60, 5)
CAP_MB = 0.016
SKETCH = 256  # columns: two buckets are sketched, the small one is exact
PASSES = 3


class FailingLayer(torch.autograd.Function):
    """Passes gradients; raises in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, about_to_raise: Callable[[], None]) -> torch.Tensor:
        """The same tensor."""
        ctx.about_to_raise = about_to_raise
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Raises."""
        ctx.about_to_raise()
        raise ArithmeticError("this rank was made to raise in its backward pass")


class Training:
    """One rank's: ``step(number)`` is a step of the optimizer, ``digest()`` of the parameters' bits."""

    def __init__(self, rank: int, model: nn.Module, passes: int, state: moo.BucketMOO, wrapped: nn.Module) -> None:
        self._rank, self._model, self._passes, self.state, self._wrapped = rank, model, passes, state, wrapped
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        self._before_layer: Any = None

    def raise_in_backward(self, layer: int, about_to_raise: Callable[[], None]) -> None:
        """In the next backward pass, when it comes to this layer (0, 1, 2)."""
        module = self._model.get_submodule(str(2 * layer))
        hook = module.register_forward_pre_hook(lambda _, inputs: (FailingLayer.apply(inputs[0], about_to_raise),))
        self._before_layer = hook

    def step(self, number: int) -> None:
        """Forward and backward passes and the optimizer."""
        for number_of_pass in range(self._passes):
            if self._passes > 1:
                self.state.objective = (self._rank + number_of_pass) % (self._passes + 1)
            generator = torch.Generator().manual_seed(1000 * number + 10 * self._rank + number_of_pass)
            x = torch.randn(4, SIZES[0], generator=generator)
            x.requires_grad_()  # the first layer can fail too
            y = 2.0 * torch.randn(SIZES[-1], generator=generator)
            is_last = number_of_pass == self._passes - 1
            with contextlib.nullcontext() if is_last else self.state.accumulate():
                (self._wrapped(x) - y).square().mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def digest(self) -> str:
        """Of the bits of all parameters; collective where they are sharded."""
        bits = hashlib.sha256()
        for parameter in self._model.parameters():
            whole = parameter.detach()
            if hasattr(whole, "full_tensor"):
                whole = whole.full_tensor()
            bits.update(whole.contiguous().view(torch.uint8).numpy().tobytes())
        return bits.hexdigest()


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(SIZES):
        layers += [nn.Linear(size_in, size_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _ddp(rank: int, world: int, passes: int = 1, **options: Any) -> Training:
    model = _model()
    wrapped = DistributedDataParallel(model, bucket_cap_mb=CAP_MB)
    return Training(rank, model, passes, moo.register(wrapped, "mgda", **options), wrapped)


def _two_levels(rank: int, world: int) -> Training:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("node", "rank"))
    return _ddp(rank, world, mesh=mesh, objectives="node")


def _fsdp2(rank: int, world: int, passes: int = 1, **options: Any) -> Training:
    model = _model()
    mesh = init_device_mesh("cpu", (world,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return Training(rank, model, passes, moo.register(model, "mgda", **options), model)


class _Direct(Training):
    """The collectives themselves, on rows that are drawn."""

    def __init__(self, rank: int, world: int) -> None:
        self._world = world
        parameters = nn.Module()
        parameters.register_parameter("whole", nn.Parameter(torch.zeros(12_000)))
        parameters.register_parameter("part", nn.Parameter(torch.zeros(6_000)))
        super().__init__(rank, parameters, 2, moo.BucketMOO("mgda"), parameters)

    def raise_in_backward(self, layer: int, about_to_raise: Callable[[], None]) -> None:
        """Between two collectives of the next step."""
        self._before_layer = about_to_raise

    def step(self, number: int) -> None:
        """Two calls of ``all_reduce``, of which the second closes the step, and a ``reduce_scatter``."""
        generator = torch.Generator().manual_seed(1000 * number + self._rank)
        rows = torch.randn(3, 12_000, generator=generator)
        with self.state.accumulate():
            moo.all_reduce(rows[0], self.state)
        if self._before_layer is not None:
            self._before_layer()
            raise ArithmeticError("this rank was made to raise between two collectives")
        moo.all_reduce(rows[1], self.state)
        shard = torch.empty(12_000 // self._world)
        moo.reduce_scatter(shard, rows[2], self.state)
        gathered = torch.empty(12_000)
        dist.all_gather_into_tensor(gathered, shard)
        with torch.no_grad():
            self._model.get_parameter("whole").sub_(rows[1])
            self._model.get_parameter("part").sub_(gathered[:6_000])


LAYOUTS: dict[str, Callable[[int, int], Training]] = {
    "DDP": _ddp,
    "DDP, passes": lambda rank, world: _ddp(rank, world, PASSES),
    "DDP, scope=model": lambda rank, world: _ddp(rank, world, scope="model"),
    "DDP, two levels": _two_levels,
    "sketch": lambda rank, world: _ddp(rank, world, gramian=moo.Sketch(SKETCH)),
    "sketch, lag=1": lambda rank, world: _ddp(rank, world, gramian=moo.Sketch(SKETCH, lag=1)),
    "FSDP2": _fsdp2,
    "FSDP2, passes": lambda rank, world: _fsdp2(rank, world, PASSES),
    "direct calls": _Direct,
}
"""A module that one process trains (no wrapper) has no ranks to lose, so it is not among them."""

WORLDS = {"DDP, two levels": (4,)}
"""Numbers of ranks of a layout, where they are not 2, 3 and 4."""


def worlds_of(layout: str) -> tuple[int, ...]:
    """Numbers of ranks that a layout may have."""
    return WORLDS.get(layout, (2, 3, 4))
