"""Models whose backward pass costs next to nothing, and small ones that cost something."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

# torch 2.13 renamed it and warns about the old name.
ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Gradient(nn.Module):
    """A parameter whose gradient is a given vector."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(size))
        self.gradient = torch.randn(size, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        return x + self.parameter @ self.gradient


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Its children are groups of FSDP2; the root has no parameters of its own."""
    for part in model.children():
        fully_shard(part, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


class Case(NamedTuple):
    """A wrapper, what its gradients are, and how they are reduced."""

    world: int
    wrapper: str = "ddp"  # or "fsdp1", "fsdp2", "hsdp": two replicas
    megabytes: float = 40.0  # of float32 gradients
    buckets: int = 4  # that DDP makes of them, or groups of parameters
    parameters: int = 1  # of a bucket
    passes: int = 1
    options: tuple[tuple[str, Any], ...] = ()  # of register()
    nodes: int = 0  # a mesh of so many, with an objective each
    hook: str = "ours"  # or "all_gather"


_PASSES = (("layout", "passes"),)

CASES = {
    # ranks
    "ddp,W=1": Case(1),
    "ddp,W=2": Case(2),
    "ddp,W=3": Case(3),
    "ddp,W=4": Case(4),
    "ddp,W=4,all-gather hook": Case(4, hook="all_gather"),
    # ways to the Gramian, and what shares weights
    "ddp,W=2,sketch": Case(2, options=(("gramian", moo.Sketch()),)),
    "ddp,W=4,sketch": Case(4, options=(("gramian", moo.Sketch()),)),
    "ddp,W=4,sketch,lag": Case(4, options=(("gramian", moo.Sketch(lag=1)),)),
    "ddp,W=4,scope=parameter": Case(4, parameters=25, options=(("scope", "parameter"),)),
    "ddp,W=4,scope=model": Case(4, parameters=25, options=(("scope", "model"),)),
    "ddp,W=4,support": Case(4, parameters=25, options=(("support", True),)),
    "ddp,W=2,row_norms": Case(2, options=(("row_norms", True), ("objective", "one"))),
    "ddp,W=4,2 nodes": Case(4, nodes=2),
    # buckets
    "ddp,W=2,1 bucket of 4 kB": Case(2, megabytes=0.004, buckets=1),
    "ddp,W=2,100 buckets of 4 kB": Case(2, megabytes=0.4, buckets=100),
    "ddp,W=2,500 buckets of 4 kB": Case(2, megabytes=2.0, buckets=500),
    # wrappers, and passes
    "ddp,W=2,4 passes": Case(2, passes=4, options=_PASSES),
    "fsdp1,W=4": Case(4, wrapper="fsdp1"),
    "fsdp2,W=4": Case(4, wrapper="fsdp2"),
    "fsdp2,W=2,4 passes": Case(2, wrapper="fsdp2", passes=4, options=_PASSES),
    "hsdp,W=4": Case(4, wrapper="hsdp"),
    "hsdp,W=4,4 passes": Case(4, wrapper="hsdp", passes=4, options=_PASSES),
}


def wrapped(rank: int, case: Case, is_ours: bool) -> tuple[nn.Module, moo.BucketMOO | None]:
    """The model of a case, whose gradients differ from rank to rank, and what it is registered with."""
    generator = torch.Generator().manual_seed(rank)
    size = round(case.megabytes * 1e6 / 4 / case.buckets / case.parameters)
    model: Any = nn.Sequential(*(Gradient(size, generator) for _ in range(case.buckets * case.parameters)))
    options = dict(case.options)
    if case.wrapper == "fsdp1":
        policy = ModuleWrapPolicy({Gradient})
        model = FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
    elif case.wrapper == "fsdp2":
        model = shard(model, init_device_mesh("cpu", (case.world,)))
    elif case.wrapper == "hsdp":
        mesh = init_device_mesh("cpu", (2, case.world // 2), mesh_dim_names=("replicate", "shard"))
        model = shard(model, mesh["shard"] if is_ours else mesh)
        options |= {"mesh": mesh, "objectives": "replicate"}
    else:
        # A bucket is closed by the parameter that fills it.
        model = DistributedDataParallel(model, bucket_cap_mb=0.999e6 * case.megabytes / case.buckets / 2**20)
    if case.nodes:
        options |= {
            "mesh": init_device_mesh("cpu", (case.nodes, case.world // case.nodes), mesh_dim_names=("node", "rank")),
            "objectives": "node",
            "objective": str(rank // (case.world // case.nodes)),
        }
    if not is_ours:
        return model, None
    if case.hook == "all_gather":
        model.register_comm_hook({"method": "mgda", "memory": torch.empty(0)}, all_gather_hook)
        return model, None
    return model, moo.register(model, "mgda", **options)


def step_of(model: nn.Module, state: moo.BucketMOO | None, passes: int) -> Callable[[], float]:
    """A step, which returns the seconds of its backward passes on this rank."""

    def left_open(number: int) -> contextlib.AbstractContextManager[Any]:
        """Around a pass of a step."""
        if number == passes - 1:
            return contextlib.nullcontext()
        if state is not None:
            return state.accumulate()
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def step() -> float:
        model.zero_grad()
        seconds = 0.0
        for number in range(passes):
            if state is not None and passes > 1:
                state.objective = number
            if isinstance(model, FSDPModule) and state is None:
                model.set_requires_all_reduce(number == passes - 1)  # HSDP's
            with left_open(number):
                loss = model(torch.ones((), requires_grad=True))
                dist.barrier()
                start = time.perf_counter()
                loss.backward()
                seconds += time.perf_counter() - start
        return seconds

    return step


def all_gather_hook(state: dict[str, Any], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The textbook way: bring all K gradients of the bucket to every rank, then solve and combine there.

    Its memory is kept between buckets like ours, and it uses our kernels; it does not overlap with the backward pass.
    """
    buffer = bucket.buffer()
    world = dist.get_world_size()
    if state["memory"].numel() < world * buffer.numel():
        state["memory"] = torch.empty(world * buffer.numel(), dtype=buffer.dtype)
    gathered = state["memory"][: world * buffer.numel()]
    ALL_GATHER(gathered, buffer)
    buffer.copy_(moo.aggregate(gathered.view(world, -1), state["method"]))
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(buffer)
    return future


VOCABULARY = 2048


def transformer(width: int = 128, layers: int = 4) -> nn.Module:
    """From tokens to logits, the same in every call."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, width), nn.TransformerEncoder(layer, layers), nn.Linear(width, VOCABULARY)
    )


def loss_of(model: nn.Module, seed: int, batch: int = 4, length: int = 64) -> torch.Tensor:
    """Cross entropy of the tokens themselves."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (batch, length), generator=generator)
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


class Steps(NamedTuple):
    """A training step of one process with an objective a pass."""

    step: Callable[[], None]
    state: moo.BucketMOO | None


def accumulation(k: int, width: int = 128) -> Steps:
    """The mean adds up in ``.grad``."""
    model = transformer(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        for number in range(k):
            (loss_of(model, number) / k).backward()
        optimizer.step()

    return Steps(step, None)


def one_process(k: int, gramian: str | moo.Sketch, width: int = 128) -> Steps:
    """Ours: a pass for each of K objectives."""
    model = transformer(width)
    state = moo.register(model, "mgda", gramian=gramian)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    totals = dict.fromkeys(range(k), 1.0)

    def step() -> None:
        optimizer.zero_grad()
        for number in range(k):
            state.objective = number
            with contextlib.nullcontext() if number == k - 1 else state.accumulate(totals):
                loss_of(model, number).backward()
        optimizer.step()

    return Steps(step, state)
