"""Fine-tunes a byte-level language model, sharded by FSDP2, on two languages: one language a rank, or one a pass.

    torchrun --standalone --nproc-per-node 2 examples/fsdp2/finetune.py

In "ranks" rank r reads language r; in "passes" all ranks read the same one, and a step has a pass for each language.
"""

import argparse
import contextlib

import bucket_moo_ext as moo
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

TEXTS = {
    "de": "Jeder Mensch wird frei und gleich an Rechten geboren, mit Vernunft und Gewissen begabt. ",
    "sw": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri. ",
}
WIDTH, LENGTH, BATCH = 64, 48, 16


def new_model() -> nn.Module:
    """The same on every rank. Put your own here, and load what it was trained to before."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(2)]
    return nn.Sequential(nn.Embedding(256, WIDTH), *layers, nn.Linear(WIDTH, 256))


def batch_of(language: str, generator: torch.Generator) -> torch.Tensor:
    """Bytes, ``[BATCH, LENGTH + 1]``."""
    text = torch.tensor(list(TEXTS[language].encode() * 2))
    starts = torch.randint(len(text) - LENGTH - 1, (BATCH, 1), generator=generator)
    return text[starts + torch.arange(LENGTH + 1)]


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the byte behind each window."""
    return nn.functional.cross_entropy(model(tokens[:, :-1])[:, -1], tokens[:, -1])


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layout", choices=["ranks", "passes"], default="ranks")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    rank, world, languages = dist.get_rank(), dist.get_world_size(), list(TEXTS)
    mesh = init_device_mesh(device, (world,))
    model = new_model()
    for layer in model[1:-1]:  # type: ignore[index]  # a group of parameters each, with weights of its own
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)  # and one for the rest
    state = moo.register(model, method="mgda", layout=arguments.layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    generator = torch.Generator().manual_seed(rank)
    mine = [languages[rank % len(languages)]] if arguments.layout == "ranks" else languages
    for step in range(arguments.steps):
        optimizer.zero_grad()
        for language in mine:
            state.objective = language
            loss = loss_of(model, batch_of(language, generator).to(device))
            with contextlib.nullcontext() if language == mine[-1] else state.accumulate():
                loss.backward()
        optimizer.step()
        if step % 10 == 9 or step == arguments.steps - 1:
            print(f"step {step + 1}, rank {rank}: {language} {loss.item():.3f}", flush=True)
    if rank == 0:
        print(state.report())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
