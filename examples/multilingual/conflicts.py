"""How often languages' gradients conflict, beside how often a language conflicts with itself.

Every rank computes its languages' gradients on two halves of a probe batch. Two halves of the
*same* language share their true gradient, so whatever conflict they show is noise of a batch of
that size: the split-half control. A share of conflicting language pairs means something only
where it is above the control.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from models import mean_loss
from numpy.typing import NDArray
from torch import Tensor, nn
from world import World

Gramian = NDArray[np.float64]
"""`[2 K, 2 K]`: row 2 k + h is half h of language k."""
WHOLE = "whole model"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_CHUNK = 1 << 22


def group_of(parameter: str) -> str:
    """The layer group that a parameter's name belongs to."""
    layer = _LAYER.search(parameter)
    where = layer[1] if layer else ""
    if re.search(r"norm|\bln_|\.ln\d", parameter):
        return "norms"
    if layer and re.search(r"attn|attention", parameter):
        return f"attention {where}"
    if layer and re.search(r"mlp|ffn|feed_forward|expert|\.fc\d", parameter):
        return f"MLP {where}"
    if re.search(r"lm_head|embed_out", parameter):
        return "head"
    if re.search(r"embed|wte|wpe", parameter):
        return "embedding"
    return "other"


def group_order(name: str) -> tuple[int, int, bool]:
    """Sorts groups from input to output, the whole model last."""
    kind, _, layer = name.partition(" ")
    if kind in ("attention", "MLP"):
        return (1, int(layer), kind == "MLP")
    fixed = {"embedding": 0, "norms": 2, "head": 3, "other": 4}
    return (fixed.get(kind, 5), 0, False)


def gradient(model: nn.Module, blocks: Tensor, batch: int) -> list[Tensor]:
    """Gradient of the mean loss over all blocks; leaves `.grad` and DDP alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for part in blocks.split(batch):
        share = len(part) / len(blocks)
        loss = mean_loss(model, part) * share
        for sum_, g in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sum_ += g
    return total


def probe(model: nn.Module, languages: Sequence[Tensor], batch: int, world: World) -> dict[str, Gramian]:
    """Gramian of every layer group and of the whole model, on every rank.

    languages: blocks of each of this rank's languages, an even number; the first half against the second.
    """
    halves = [gradient(model, half, batch) for blocks in languages for half in blocks.chunk(2)]
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    rows: dict[str, list[Tensor]] = {}
    for name, *mine in zip(names, *halves, strict=True):
        rows.setdefault(group_of(name), []).append(torch.stack([g.flatten() for g in mine]))
    groups = sorted(rows, key=group_order)
    result = {group: gather_gramian(torch.cat(rows[group], 1), world) for group in groups}
    result[WHOLE] = np.sum(list(result.values()), axis=0)
    return result


def gather_gramian(mine: Tensor, world: World) -> Gramian:
    """Rows `[2 L, n]` of L languages on every rank -> the Gramian of all ranks' rows, chunk by chunk."""
    import bucket_moo_ext as moo

    total = np.zeros((len(mine) * world.size, len(mine) * world.size))
    for part in mine.split(_CHUNK, dim=1):
        everyone = [torch.empty_like(part.contiguous()) for _ in range(world.size)]
        dist.all_gather(everyone, part.contiguous())
        total += moo.gramian(torch.cat(everyone)).cpu().double().numpy()
    return total


def cosines(gramian: Gramian) -> Gramian:
    """Cosines of all pairs of rows; 0 where a row is zero."""
    norm = np.sqrt(np.diag(gramian))
    outer = np.outer(norm, norm)
    return np.divide(gramian, outer, out=np.zeros_like(gramian), where=outer > 0)


def measure(gramian: Gramian) -> dict[str, Any]:
    """Conflicts in one group, as counts so that several probes can be pooled.

    `languages`: pairs of different languages, a half of each; `control`: the two halves of each
    language; `languages_full`: pairs of languages with both halves together, less noisy.
    """
    count = len(gramian) // 2
    half = cosines(gramian)
    full = cosines(gramian.reshape(count, 2, count, 2).sum(axis=(1, 3)) / 4)
    pairs = list(combinations(range(count), 2))
    between = [half[2 * i + a, 2 * j + b] for i, j in pairs for a in (0, 1) for b in (0, 1)]
    within = [half[2 * i, 2 * i + 1] for i in range(count)]
    together = [full[i, j] for i, j in pairs]
    return {
        name: {
            "pairs": len(values),
            "conflicts": int(np.sum(np.array(values) < 0)),
            "cosine_sum": float(np.sum(values)),
        }
        for name, values in (
            ("languages", between),
            ("control", within),
            ("languages_full", together),
        )
    } | {"cosines": full.round(6).tolist()}


def pool(measured: Sequence[dict[str, Any]], kind: str) -> dict[str, float]:
    """Share of conflicts and mean cosine over several probes; NaN where there is no pair."""
    pairs = sum(m[kind]["pairs"] for m in measured)
    if pairs == 0:
        return {"pairs": 0, "share": float("nan"), "cosine": float("nan")}
    return {
        "pairs": pairs,
        "share": sum(m[kind]["conflicts"] for m in measured) / pairs,
        "cosine": sum(m[kind]["cosine_sum"] for m in measured) / pairs,
    }
