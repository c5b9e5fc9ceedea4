"""A reduction between two processes of this machine, compared with its definition in float64."""

import multiprocessing
import socket
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist

import bucket_moo_ext as moo
from bucket_moo_ext.observe.finding import Finding

WORLD = 2
NUMEL = 10_007  # above what is sent in one message, and with a rest: every exchange of the protocol happens
TIMEOUT = 60.0  # seconds; a slow machine may need many to import torch
TOLERANCE = 1e-5  # relative, of a float32 result

_REPORT = "If this persists, please report it with all of the above."


def run() -> list[Finding]:
    """One finding: whether the two ranks got the right result."""
    name = "all_reduce, 2 ranks, Gloo"
    if not (dist.is_available() and dist.is_gloo_available()):
        return [Finding(name, "not run: there is no Gloo", "Install a torch with torch.distributed and Gloo.")]
    start = time.monotonic()
    results, problems = _results()
    seconds = time.monotonic() - start
    if problems:
        interfaces = ", ".join(interface for _, interface in socket.if_nameindex())
        advice = (
            "Where connections fail, set GLOO_SOCKET_IFNAME to an interface over which this machine reaches itself "
            f"(there are {interfaces}), or make its host name resolve to an address of its own. {_REPORT}"
        )
        return [Finding(name, "; ".join(problems), advice)]
    return [_judged(name, results, seconds)]


def expected() -> torch.Tensor:
    """The shortest vector of the segment between the two ranks' gradients, float64.

    Source: Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization (2018), equation 4.
    """
    a, b = (gradient(rank).double() for rank in range(WORLD))
    share = float(((b - a) @ b / (b - a).square().sum()).clamp(0.0, 1.0))
    return share * a + (1 - share) * b


def gradient(rank: int) -> torch.Tensor:
    """What a rank brings: gradients of different lengths, which conflict."""
    common = torch.randn(NUMEL, generator=torch.Generator().manual_seed(WORLD))
    own = torch.randn(NUMEL, generator=torch.Generator().manual_seed(rank))
    return (1.0 + rank) * own + (0.5 - rank) * common


def _judged(name: str, results: list[list[float]], seconds: float) -> Finding:
    of_rank = [torch.tensor(result, dtype=torch.float64) for result in results]
    right = expected()
    off = max(float((result - right).abs().max() / right.abs().max()) for result in of_rank)
    if not off <= TOLERANCE:
        return Finding(name, f"wrong result: off by {off:.1e}, allowed {TOLERANCE:.0e}", f"Do not train. {_REPORT}")
    if not torch.equal(of_rank[0], of_rank[1]):
        return Finding(name, "the ranks have different results", f"Do not train. {_REPORT}")
    return Finding(name, f"right to {off:.0e}, in {seconds:.1f} s")


def _results() -> tuple[list[list[float]], list[str]]:
    """What the ranks got, or what went wrong with them."""
    context = multiprocessing.get_context("spawn")
    results: list[list[float]] = [[] for _ in range(WORLD)]
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        processes, waiting = [], {}
        for rank in range(WORLD):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(theirs, rank, f"{folder}/store"), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            waiting[mine] = rank
        end = time.monotonic() + TIMEOUT
        while waiting and (left := end - time.monotonic()) > 0:
            for connection in wait(list(waiting), timeout=left):
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                try:
                    results[rank], problem = connection.recv()
                except EOFError:
                    processes[rank].join(5.0)
                    problem = f"died with exit code {processes[rank].exitcode}"
                if problem:
                    problems.append(f"rank {rank} {problem}")
            if problems:
                break  # the other one would wait for it
        else:
            problems += [f"rank {rank} did not finish in {TIMEOUT:.0f} s" for rank in waiting.values()]
        for process in processes:
            process.join(0.0 if problems else 5.0)
            if process.is_alive():
                process.kill()
                process.join()
    return results, problems


def _rank(connection: Connection, rank: int, store: str) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=WORLD,
            timeout=timedelta(seconds=TIMEOUT / 2),
        )
        state = moo.BucketMOO("mgda")
        tensor = gradient(rank)
        moo.all_reduce(tensor, state)
        dist.barrier()  # nobody leaves while another one still connects
        connection.send((tensor.tolist(), ""))
        dist.destroy_process_group()
    except BaseException as error:
        traceback.print_exc()
        connection.send(([], f"raised {type(error).__name__}: {error}"))
