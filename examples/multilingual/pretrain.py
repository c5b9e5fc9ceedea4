"""Pre-training of a preset in one process: English and a little of everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from models import mean_loss
from sampler import MixtureSampler, Tokens
from schedule import learning_rate
from torch import nn
from tqdm import tqdm

if TYPE_CHECKING:
    from materials import Recipe

ENGLISH_SHARE = 0.5
"""Of the pre-training blocks; the other languages share the rest evenly."""


def mixture(languages: list[str]) -> dict[str, float]:
    """Weight of each language in the pre-training text."""
    others = [x for x in languages if x != "en"]
    weights = {x: (1 - ENGLISH_SHARE) / max(1, len(others)) for x in others}
    return weights | ({"en": ENGLISH_SHARE} if "en" in languages else {})


def pretrain(
    model: nn.Module, streams: Mapping[str, Tokens], recipe: Recipe, *, end: int, seed: int, shows: bool
) -> None:
    """Trains `model` in place. `seed`: of the blocks that it sees."""
    device = next(model.parameters()).device
    sample = MixtureSampler(
        streams,
        mixture(list(streams)),
        length=recipe.length,
        batch=recipe.batch_size,
        seed=seed,
        rank=0,
        end=end,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    bar = tqdm(range(recipe.steps), desc="pre-training", disable=not shows, unit="step")
    for step in bar:
        optimizer.param_groups[0]["lr"] = learning_rate(step, recipe.steps, recipe.lr)
        optimizer.zero_grad(set_to_none=True)
        loss = mean_loss(model, sample(step).to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
