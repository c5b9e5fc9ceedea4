"""Models, batches and float64 references of the DDP tests. Shares no code with the package."""

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Layers of some 20, 29 and 1 KB of float32: with a cap of 0.016 MB three buckets, of which two are sharded over the
# ranks (above 16 KB) and one travels whole.
SIZES = (40, 120, 60, 5)
CAP_MB = 0.016

WAYS = ("register", "hook")
"""How a module gets its hook: natively, or by DDP's register_comm_hook."""

Batch = tuple[torch.Tensor, torch.Tensor]


def mlp(seed: int, dtype: torch.dtype = torch.float64, sizes: Sequence[int] = SIZES) -> nn.Module:
    """The same network on every rank."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        layer = nn.Linear(size_in, size_out, dtype=torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / size_in**0.5)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def batch_of(
    seed: int,
    rank: int,
    step: int,
    dtype: torch.dtype = torch.float64,
    sizes: Sequence[int] = SIZES,
) -> Batch:
    """What `rank` trains on in `step`; any rank can make any other's. Targets differ by rank: gradients conflict."""
    generator = torch.Generator().manual_seed(hash((seed, rank, step)) % 2**63)
    x = torch.randn(6, sizes[0], generator=generator, dtype=torch.float64)
    y = 2.0 * torch.randn(sizes[-1], generator=generator, dtype=torch.float64).expand(6, -1)
    return x.to(dtype), y.to(dtype)


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def gradients(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> dict[str, np.ndarray]:
    """Gradients of a fresh copy of `model` that DDP knows nothing about: float64, flat, zero where there is none."""
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    loss(twin).backward()
    return {name: flat(p.grad, p) for name, p in twin.named_parameters() if p.requires_grad}


def flat(gradient: torch.Tensor | None, parameter: torch.Tensor) -> np.ndarray:
    """As DDP lays it out in a bucket: complex numbers as pairs."""
    if gradient is None:
        gradient = torch.zeros_like(parameter)
    gradient = gradient.detach()
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    return gradient.reshape(-1).double().numpy().copy()


def rows_of(
    local: Sequence[dict[str, np.ndarray]], parameters: Iterable[str], groups: Sequence[int] | None
) -> np.ndarray:
    """[K, n] of one bucket: a row a rank, or the mean over the ranks of each group."""
    names = list(parameters)
    by_rank = np.stack([np.concatenate([grads[name] for name in names]) for grads in local])
    if groups is None:
        return by_rank
    members = [np.array(groups) == k for k in range(max(groups) + 1)]
    return np.stack([by_rank[member].mean(0) for member in members])


def mgda_weights(rows: np.ndarray) -> np.ndarray:
    """Shortest vector in the hull of the non-zero rows, by trying every support (K <= 6)."""
    active = np.flatnonzero((rows != 0).any(axis=1))
    best, weights = np.inf, np.zeros(len(rows))
    gram = rows @ rows.T
    for size in range(1, len(active) + 1):
        for support in itertools.combinations(active, size):
            sub = gram[np.ix_(support, support)]
            system = np.zeros((size + 1, size + 1))
            system[:size, :size] = sub / np.trace(sub)
            system[size, :size] = system[:size, size] = 1.0
            solution = np.linalg.lstsq(system, np.eye(size + 1)[size], rcond=None)[0][:size]
            if abs(solution.sum() - 1) > 1e-9 or solution.min() < -1e-12:
                continue
            value = solution @ sub @ solution
            if value < best:
                best, weights = value, np.zeros(len(rows))
                weights[list(support)] = solution
    return weights


def pcgrad_weights(rows: np.ndarray) -> np.ndarray:
    """The weights of every update that PCGrad's random orders can give: [orders, K] (rows are not zero)."""
    k = len(rows)
    gram = rows @ rows.T
    choices = []
    for i in range(k):
        projected = []
        for order in itertools.permutations(j for j in range(k) if j != i):
            c = np.eye(k)[i]
            for j in order:
                c[j] -= min(gram[j] @ c, 0.0) / gram[j, j]
            projected.append(c)
        choices.append(projected)
    return np.stack([np.mean(pick, axis=0) for pick in itertools.product(*choices)])


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """|got - expected| <= tolerance * |expected|, in the Euclidean norm, with the worst element in the message."""
    error = float(np.linalg.norm(got - expected))
    scale = float(np.linalg.norm(expected))
    assert error <= tolerance * scale, f"{what}: error {error:.3e}, norm {scale:.3e}, got {got[:5]}"


def assert_mgda(rows: np.ndarray, d: np.ndarray, tolerance: float, what: str = "") -> None:
    """`d` is the shortest vector in the hull of the non-zero rows and conflicts with none of them."""
    expected = mgda_weights(rows) @ rows
    scale = float(np.linalg.norm(rows, axis=1).max())
    assert np.linalg.norm(d - expected) <= tolerance * scale, (
        f"{what}: {np.linalg.norm(d - expected):.3e} off, scale {scale:.3e}"
    )
    active = rows[(rows != 0).any(axis=1)]
    if len(active):
        assert (active @ d).min() >= d @ d - tolerance * scale**2, f"{what}: {active @ d} vs {d @ d}"


def check_buckets(
    ddp: DistributedDataParallel,
    state: moo.BucketMOO,
    local: Sequence[dict[str, np.ndarray]],
    tolerance: float,
    *,
    check: Callable[[np.ndarray, np.ndarray, float, str], None] = assert_mgda,
    groups: Sequence[int] | None = None,
) -> None:
    """Every bucket of the newest step against the gradients of all ranks; every gradient is in one bucket."""
    of_name = {n: p for n, p in ddp.module.named_parameters() if p.requires_grad}
    report = state.report()
    seen = [name for bucket in report.buckets for name in bucket.parameters]
    assert sorted(seen) == sorted(of_name), f"buckets hold {seen}"
    for bucket in report.buckets:
        rows = rows_of(local, bucket.parameters, groups)
        assert rows.shape[1] == bucket.numel
        got = np.concatenate([flat(of_name[n].grad, of_name[n]) for n in bucket.parameters])
        what = f"step {report.step}, bucket {bucket.index} ({', '.join(bucket.parameters)})"
        check(rows, got, tolerance, what)


def hook(ddp: DistributedDataParallel, way: str, method: Any = "mgda", gramian: Any = "exact") -> moo.BucketMOO:
    """Registers on a module in one of WAYS, with its group, its cap and the names of its parameters."""
    if way == "register":
        return moo.register(ddp, method, gramian=gramian)
    state = moo.BucketMOO(
        method, gramian=gramian, process_group=ddp.process_group, bucket_cap_mb=ddp.bucket_bytes_cap / 2**20
    )
    ddp.register_comm_hook(state, moo.bucket_moo_hook)
    state.name_parameters(ddp.module.named_parameters())
    return state


def check_step(
    model: nn.Module, ddp: DistributedDataParallel, state: moo.BucketMOO, rank: int, world: int, seed: int, step: int
) -> None:
    """A step through `model`, which runs `ddp`, against the reference."""
    local = [gradients(ddp.module, lambda m, r=r: loss_of(m, batch_of(seed, r, step))) for r in range(world)]  # type: ignore[misc]
    model.zero_grad()
    loss_of(model, batch_of(seed, rank, step)).backward()
    check_buckets(ddp, state, local, 1e-9)


def digest(tensors: Iterable[torch.Tensor | None]) -> str:
    """Equal for equal bits."""
    bits = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            bits.update(b"none")
            continue
        dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
        bits.update(dense.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()


def gradient_digest(model: nn.Module) -> str:
    return digest(p.grad for p in model.parameters())


# Relative, of gradients against the float64 references.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def local_gradients(
    model: nn.Module, world: int, seed: int, step: int, dtype: torch.dtype = torch.float64
) -> list[dict[str, np.ndarray]]:
    """Of every rank in a step."""
    return [
        gradients(model, lambda m, r=r: loss_of(m, batch_of(seed, r, step, dtype)))  # type: ignore[misc]
        for r in range(world)
    ]


def same_on_all_ranks(results: list[Any]) -> None:
    """What the ranks returned is equal."""
    assert all(result == results[0] for result in results), results
