"""Times the backward pass of a wrapped model: with the wrapper alone, and with the reduction of this package.

    python bench/wrapped_backward.py    # FSDP2: 4 ranks, 100 MB of gradients in groups of 25 MB, 1 and 4 passes
    python bench/wrapped_backward.py --ranks 2 --rounds 31
    python bench/wrapped_backward.py --wrapper hsdp     # two replicas, one objective each
    python bench/wrapped_backward.py --wrapper ddp

The backward pass does nothing but hand over gradients, so that what is seen is the reduction. "one pass" is the plain
wrapper beside ``moo.register(model, "mgda")``. "accumulation" is a step of several passes: plain FSDP2 with a
reduce-scatter in every pass, which is how sharded gradients are accumulated, or plain DDP under ``no_sync()``, beside
``layout="passes"``, one objective a pass. The two take turns within each round. With ``--wrapper hsdp`` plain is
FSDP2's own over a mesh of two dimensions, which reduces over replicas in the last pass of an accumulation alone, and
ours is sharded over one of them. A round's time is that of its slowest rank, and the ratio is the median over rounds.
The memory is what the reduction holds on a rank beside the wrapper's own, ``state.memory()``, after its last step.
"""

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import workloads
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from workloads import Gradient, shard


def new_model(rank: int, mesh: DeviceMesh | None, megabytes: float, groups: int) -> nn.Module:
    """Sharded over the mesh, with a root that has no parameters of its own; None: in DDP, a bucket a parameter."""
    generator = torch.Generator().manual_seed(rank)
    model = nn.Sequential(*(Gradient(round(megabytes * 1e6 / 4 / groups), generator) for _ in range(groups)))
    if mesh is None:
        return DistributedDataParallel(model, bucket_cap_mb=megabytes / groups)
    return shard(model, mesh)


def step_of(model: nn.Module, state: moo.BucketMOO | None, passes: int) -> Callable[[], float]:
    """A step, which returns the seconds of its backward passes on the slowest rank."""
    own = workloads.step_of(model, state, passes)

    def step() -> float:
        slowest = torch.tensor(own())
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return float(slowest)

    return step


def compare(ours: list[float], plain: list[float], digits: int = 2) -> str:
    """The median of the paired ratios, and their quartiles."""
    ratios = sorted(a / b for a, b in zip(ours, plain, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return f"{statistics.median(ratios):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def join(rank: int, store: str, world: int) -> None:
    """The process group of the ranks that ``start()`` has started."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.set_num_threads(1)


def start(main_of_rank: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Runs ``main_of_rank(rank, store, arguments)`` on ``arguments.ranks`` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(main_of_rank, (os.path.join(folder, "store"), arguments), nprocs=arguments.ranks)


def main_of_rank(rank: int, store: str, arguments: argparse.Namespace) -> None:
    """Prints on rank 0."""
    world = arguments.ranks
    join(rank, store, world)
    given: dict[str, Any] = {}
    meshes: dict[str, DeviceMesh | None] = {"plain": None, "ours": None}
    if arguments.wrapper == "fsdp2":
        mesh = init_device_mesh("cpu", (world,))
        meshes = {"plain": mesh, "ours": mesh}
    elif arguments.wrapper == "hsdp":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
        meshes = {"plain": mesh, "ours": mesh["shard"]}
        given = {"mesh": mesh, "objectives": "replicate"}
    for passes in (1, arguments.passes):
        steps: dict[str, Callable[[], float]] = {}
        held: moo.BucketMOO | None = None
        for way in ("plain", "ours"):
            model = new_model(rank, meshes[way], arguments.megabytes, arguments.groups)
            layout = "passes" if passes > 1 else "ranks"
            state = moo.register(model, "mgda", layout=layout, **given) if way == "ours" else None
            steps[way] = step_of(model, state, passes)
            held = state or held
        times: dict[str, list[float]] = {way: [] for way in steps}
        for round_ in range(arguments.rounds + 2):
            for way, step in steps.items():
                seconds = step()
                if round_ >= 2:  # the first ones allocate
                    times[way].append(seconds)
        if rank == 0:
            name = "one pass" if passes == 1 else f"accumulation, {passes} passes"
            plain, ours = (1e3 * statistics.median(times[way]) for way in ("plain", "ours"))
            ratio = compare(times["ours"], times["plain"])
            memory = 0 if held is None else held.memory()
            print(
                f"{name}: plain {plain:.0f} ms, ours {ours:.0f} ms, paired ratio {ratio}, memory {memory / 1e6:.0f} MB"
            )
    dist.destroy_process_group()


def main() -> None:
    """Starts the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrapper", choices=("fsdp2", "hsdp", "ddp"), default="fsdp2")
    parser.add_argument("--ranks", type=int, default=4, help="with hsdp an even number")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of float32 gradients")
    parser.add_argument("--groups", type=int, default=4, help="of parameters, of one size")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.ranks % 2 and arguments.wrapper == "hsdp":
        parser.error(f"--ranks must be even with --wrapper hsdp; got {arguments.ranks}")
    print(
        f"{arguments.wrapper}, {arguments.ranks} ranks on {os.cpu_count()} cores ({platform.machine()}), "
        f"torch {torch.__version__}, {arguments.megabytes:g} MB in {arguments.groups} groups, "
        f"median of {arguments.rounds} rounds"
    )
    start(main_of_rank, arguments)


if __name__ == "__main__":
    main()
