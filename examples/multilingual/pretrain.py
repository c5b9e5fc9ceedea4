"""Pre-training of a preset: English and a little of everything, once, cached."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from corpus import write_atomically
from models import mean_loss
from sampler import MixtureSampler, Tokens
from schedule import learning_rate
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from world import World

ENGLISH_SHARE = 0.5
"""Of the pre-training blocks; the other languages share the rest evenly."""


def mixture(languages: list[str]) -> dict[str, float]:
    """Weight of each language in the pre-training text."""
    others = [x for x in languages if x != "en"]
    weights = {x: (1 - ENGLISH_SHARE) / max(1, len(others)) for x in others}
    return weights | ({"en": ENGLISH_SHARE} if "en" in languages else {})


def pretrain(
    model: nn.Module,
    streams: Mapping[str, Tokens],
    world: World,
    *,
    steps: int,
    batch: int,
    length: int,
    lr: float,
    end: int,
    path: Path,
) -> bool:
    """Trains `model` in place with plain DDP, or loads what is cached at `path`.

    Returns whether it came from the cache.
    """
    cached = world.gather(path.exists())[0]
    if not cached:
        _train(model, streams, world, steps=steps, batch=batch, length=length, lr=lr, end=end)
        if world.shows:
            buffer = io.BytesIO()
            torch.save(model.state_dict(), buffer)
            write_atomically(path, buffer.getvalue())
        world.barrier()
    state = torch.load(path, map_location=world.device, weights_only=True)
    model.load_state_dict(state)
    return bool(cached)


def _train(
    model: nn.Module,
    streams: Mapping[str, Tokens],
    world: World,
    *,
    steps: int,
    batch: int,
    length: int,
    lr: float,
    end: int,
) -> None:
    sample = MixtureSampler(
        streams,
        mixture(list(streams)),
        length=length,
        batch=batch,
        seed=0,
        rank=world.rank,
        end=end,
    )
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    bar = tqdm(range(steps), desc="pre-training", disable=not world.shows, unit="step")
    for step in bar:
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr)
        optimizer.zero_grad(set_to_none=True)
        loss = mean_loss(ddp, sample(step).to(world.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
