"""The Python blocks of the pages, what each stands in, and how they are run."""

import ast
import contextlib
import copy
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/**/*.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
)

_BLOCK = re.compile(r"(?:^<!-- docs-test: ([^\n]*?) -->\n\n?)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"alternatives|ranks \d+")

Namespace = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is what the comment before it says, if there is one.

    - ``alternatives``: each statement is a program of its own;
    - ``ranks 4``: it runs on so many ranks, with the other blocks of the page that do.
    """

    page: str
    line: int
    source: str
    mark: str

    @property
    def ranks(self) -> int:
        return int(self.mark.split()[1]) if self.mark.startswith("ranks") else RANKS.get(self.page, 1)

    def programs(self) -> Iterator[Any]:
        """Compiled, with the lines of the page."""
        tree = ast.parse(self.source)
        ast.increment_lineno(tree, self.line - 1)
        parts = [[statement] for statement in tree.body] if self.mark == "alternatives" else [tree.body]
        for part in parts:
            yield compile(ast.Module(part, []), self.page, "exec")


def blocks_of(page: str) -> list[Block]:
    """In their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[2], match[1] or "")
        for match in _BLOCK.finditer(text)
    ]
    assert len(found) == len(re.findall(r"^ *```\s*(?:python|py)\b", text, re.MULTILINE)), f"{page}: a fence is odd"
    marks = re.findall(r"docs-test: (.*?) -->", text)
    assert len(marks) == sum(1 for block in found if block.mark), f"{page}: a mark before no block"
    assert all(_MARK.fullmatch(mark) for mark in marks), f"{page}: one of {marks} is no mark"
    return found


# --- what the blocks of a page find ---


class Layer(nn.Module):
    """Of a model in `layers`, as the pages shard them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x).tanh()


class Model(nn.Module):
    """16 numbers to 16."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Batches(dict[str, Any]):
    """A step's, as the pages have them: of three languages by name, or three passes in order."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(language, *self[language]) for language in ("de", "sw", "de")])


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 16), torch.randn(4, 16)


def _names() -> Namespace:
    """A model, its optimizer and its data, anew."""
    torch.manual_seed(0)
    model = Model()
    (x, y), (x1, y1), (x2, y2) = _batch(), _batch(), _batch()
    return {
        "contextlib": contextlib, "copy": copy, "dist": dist, "moo": moo, "np": np, "torch": torch,
        "DistributedDataParallel": DistributedDataParallel,
        # Without a GPU FSDP1 has to be told that it is to use none.
        "FullyShardedDataParallel": partial(FullyShardedDataParallel, device_id=torch.device("cpu")),
        "ModuleWrapPolicy": ModuleWrapPolicy, "fully_shard": fully_shard, "init_device_mesh": init_device_mesh,
        "parallelize_module": parallelize_module, "Layer": Layer,
        "plan": {"layers.0.linear": ColwiseParallel(), "layers.1.linear": RowwiseParallel()},
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.01), "loss_fn": nn.functional.mse_loss,
        "x": x, "y": y, "x1": x1, "y1": y1, "x2": x2, "y2": y2,
        "loader": [Batches({language: _batch() for language in ("de", "sw", "tr")})],
        "batches": [(language, *_batch()) for language in ("de", "sw")],
    }  # fmt: skip


def local(source: str) -> Namespace:
    """For one process without a wrapper."""
    return _names()


def replicated(source: str) -> Namespace:
    """The model under DDP; it has a hook already unless the block gives it one."""
    names = _names()
    rank, world = dist.get_rank(), dist.get_world_size()
    names |= {
        "world": world, "world_size": world, "nodes": 2, "ranks_per_node": world // 2,
        "language": "de" if rank < world / 2 else "sw",
    }  # fmt: skip
    if "register(model" in source or "fully_shard(" in source or "parallelize_module(" in source:
        return names
    names["ddp"] = DistributedDataParallel(names["model"])
    if "register" not in source:
        names["state"] = moo.register(names["ddp"], "mgda", objective=names["language"])
    return names


class _Writer:
    """Takes what TensorBoard, Weights & Biases and MLflow would."""

    def add_scalar(self, *_: Any, **__: Any) -> None: ...
    def log(self, *_: Any, **__: Any) -> None: ...
    def define_metric(self, *_: Any, **__: Any) -> None: ...
    def log_metrics(self, *_: Any, **__: Any) -> None: ...


def written_to(source: str) -> Namespace:
    """Beside whole programs: writers, losses, and a model that nobody reduces yet."""
    names = {"SummaryWriter": _Writer, "mlflow": _Writer(), "wandb": SimpleNamespace(init=_Writer)}
    names |= {"loss_de": torch.ones(()), "loss_sw": torch.ones(())}
    return names | ({"model": Model()} if "row_norms" in source else {})


# Before each block of a page. A page that is not here has whole programs.
PREAMBLES: dict[str, Callable[[str], Namespace]] = {
    "README.md": replicated,
    "docs/accuracy.md": local,
    "docs/frameworks.md": replicated,
    "docs/observe.md": written_to,
    "docs/profiling.md": replicated,
    "docs/quickstart/ddp.md": replicated,
    "docs/sketch.md": replicated,
    "docs/using.md": replicated,
}
RANKS = {
    "README.md": 2,
    "docs/frameworks.md": 4,
    "docs/profiling.md": 2,
    "docs/quickstart/ddp.md": 2,
    "docs/quickstart/fsdp2.md": 2,
    "docs/sketch.md": 2,
    "docs/using.md": 4,
}
# What would take minutes as it stands there, or a GPU.
REPLACED = {"docs/accuracy.md": ("10**8", "10**4"), "docs/frameworks.md": ('"cuda"', '"cpu"')}


def run(rank: int, world: int, page: str, numbers: list[int], folder: str) -> int:
    """Runs these blocks of a page in order, in one namespace; where it has a preamble, that comes before each."""
    here = Path(folder) / str(rank)
    here.mkdir()
    os.chdir(here)
    names: Namespace = {"__name__": page}
    done = 0
    blocks = blocks_of(page)
    for number in numbers:
        block = blocks[number]
        if page in REPLACED:
            block = Block(page, block.line, block.source.replace(*REPLACED[page]), block.mark)
        for program in block.programs():
            if page in PREAMBLES:
                names |= PREAMBLES[page](block.source)
            exec(program, names)
            if block.mark == "alternatives" and "ddp" in names:
                names["loss_fn"](names["ddp"](names["x"]), names["y"]).backward()
                names["optimizer"].step()
        done += 1
    return done
