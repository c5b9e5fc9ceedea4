"""A small transformer, its sharding by FSDP2, and the same training in one process without the package."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from tests.support import reference as ref

VOCABULARY, WIDTH, HIDDEN, LENGTH = 37, 10, 23, 5  # no multiples of the number of ranks


class Block(nn.Module):
    """Attention of one head and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: torch.Tensor = x + self.down(functional.gelu(self.up(x)))
        return result


class Transformer(nn.Module):
    """Tied embeddings, two blocks; an adapter for each language if asked for."""

    def __init__(self, seed: int, languages: Sequence[str] = ()) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.adapters = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in languages})
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, tokens: torch.Tensor, language: str = "") -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        if language:
            x = x + self.adapters[language](x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def mesh_of(world: int) -> DeviceMesh:
    return init_device_mesh("cpu", (world,))


def shard(model: Transformer, over: int | DeviceMesh, **options: Any) -> Transformer:
    """A group for each block and adapter, one for the rest. ``over``: a mesh, or a number of ranks."""
    mesh = mesh_of(over) if isinstance(over, int) else over
    for part in (*model.blocks, *model.adapters.values()):
        fully_shard(part, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def tokens_of(seed: int, row: int, step: int) -> torch.Tensor:
    """A language's sentences: languages prefer other successors, so that gradients conflict."""
    generator = np.random.default_rng([seed, row, step])
    start = generator.integers(VOCABULARY, size=(3, 1))
    return torch.from_numpy((start + np.arange(LENGTH + 1) * (3 * row + 1)) % VOCABULARY)


def loss_of(model: nn.Module, tokens: torch.Tensor, language: str = "") -> torch.Tensor:
    logits = model(tokens[:, :-1], language) if language else model(tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten())


def groups_of(model: Transformer) -> list[list[str]]:
    """Names of the parameters of each group that shard() makes."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = [f"blocks.{i}." for i in range(len(model.blocks))] + [f"adapters.{name}." for name in model.adapters]
    own = [[name for name in names if name.startswith(part)] for part in parts]
    rest = [name for name in names if not name.startswith(("blocks.", "adapters."))]
    return [group for group in (*own, rest) if group]


def combined(rows: np.ndarray, method: str) -> np.ndarray:
    """The update of one group for rows [K, n]."""
    if method != "upgrad":
        return ref.combine(rows, ref.weights(rows, method))
    active = rows[rows.any(axis=1)]
    on = active / np.abs(active).max()
    projections = [row + nnls(on.T, -row)[0] @ on for row in on]  # on {d: <g_i, d> >= 0 for all i}
    return np.mean(projections, axis=0) * np.abs(active).max()


class Reference:
    """Training in one process: the gradient of every row, combined group by group.

    With ``rounds_to`` gradients, their means and the update are rounded to that dtype, as a reduction in it does.
    """

    def __init__(self, model: Transformer, method: str, rounds_to: torch.dtype = torch.float64) -> None:
        self.model, self.method, self.rounds_to = model, method, rounds_to
        self.groups = groups_of(model)
        self.update: dict[str, torch.Tensor] = {}

    def gradients(self, loss: Callable[[nn.Module], torch.Tensor]) -> dict[str, np.ndarray]:
        self.model.zero_grad()
        loss(self.model).backward()
        return {
            name: torch.zeros_like(p).numpy() if p.grad is None else p.grad.numpy().copy()
            for name, p in self.model.named_parameters()
        }

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        return torch.from_numpy(values).to(self.rounds_to).double().numpy()

    def _means(self, rows: list[np.ndarray], objective: Sequence[int]) -> np.ndarray:
        """By objective, [K, n]."""
        means = [np.mean([row for row, k in zip(rows, objective, strict=True) if k == of], 0) for of in {*objective}]
        return self._rounded(np.stack(means))

    def step(
        self,
        losses: Sequence[Callable[[nn.Module], torch.Tensor]],
        rate: float,
        objective: Sequence[int] | None = None,
    ) -> None:
        """``objective``: of each loss; None: all different."""
        rows = [self.gradients(loss) for loss in losses]
        objective = range(len(rows)) if objective is None else objective
        of_name = dict(self.model.named_parameters())
        for group in self.groups:
            flat = [self._rounded(np.concatenate([row[name].ravel() for name in group])) for row in rows]
            update = self._rounded(combined(self._means(flat, objective), self.method))
            pieces = np.split(update, np.cumsum([of_name[name].numel() for name in group])[:-1])
            for name, piece in zip(group, pieces, strict=True):
                self.update[name] = torch.from_numpy(piece.reshape(of_name[name].shape))
                with torch.no_grad():
                    of_name[name].sub_(rate * self.update[name])


def full(tensor: torch.Tensor | None) -> torch.Tensor:
    """The whole of a sharded tensor, in float64. Collective."""
    assert tensor is not None
    whole: torch.Tensor = tensor.full_tensor().detach()  # type: ignore[attr-defined]
    return whole.double()


def assert_same_model(sharded: nn.Module, expected: nn.Module, tolerance: float) -> None:
    """All parameters, relative to their own norm."""
    got = dict(sharded.named_parameters())
    for name, parameter in expected.named_parameters():
        error = (full(got[name]) - parameter.detach()).norm()
        assert error <= tolerance * parameter.detach().norm(), f"{name}: {error:.3e}"
