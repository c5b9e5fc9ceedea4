"""Held-out loss in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from corpus import Corpus, stable_hash
from models import loss_sum
from tokenizer import encode, end_token
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from world import World


def bits_per_byte(nats: float, size: int) -> float:
    """Summed negative log-likelihood in nats, UTF-8 bytes of the text -> bits per byte."""
    return nats / math.log(2) / size


def windows(tokens: Sequence[int], length: int, end: int) -> Tensor:
    """A document's tokens, each exactly once a target: `[windows, 1 + length]`, padded with -1."""
    rows = [[end, *tokens[i : i + length]] for i in range(0, len(tokens), length)]
    return torch.tensor([row + [-1] * (1 + length - len(row)) for row in rows])


def choose(documents: dict[str, str], size: int) -> list[str]:
    """Components, in a fixed order, until their documents hold `size` bytes."""
    chosen: list[str] = []
    total = 0
    for component in sorted(documents, key=lambda c: stable_hash(f"test {c}")):
        if total >= size:
            break
        chosen.append(component)
        total += len(documents[component].encode())
    return sorted(chosen)


@dataclass(frozen=True)
class TestSet:
    """Windows and size of every language's held-out documents; the same documents in all."""

    __test__ = False

    windows: dict[str, Tensor]
    size: dict[str, int]
    components: list[str]


def build_test_set(
    corpus: Corpus,
    languages: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    size: int,
    length: int,
) -> TestSet:
    """Held-out components with about `size` bytes of English, in every one of `languages`."""
    components = choose(corpus.test["en"], size)
    blocks: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for language in languages:
        texts = [corpus.test[language][c] for c in components]
        encoded = encode(tokenizer, texts)
        blocks[language] = torch.cat([windows(tokens, length, end_token(tokenizer)) for tokens in encoded])
        sizes[language] = sum(len(text.encode()) for text in texts)
    return TestSet(blocks, sizes, components)


def uniform_loss(test: TestSet, vocabulary: int) -> dict[str, float]:
    """Bits per byte of a model that finds all tokens equally likely."""
    return {
        language: bits_per_byte(int((blocks[:, 1:] >= 0).sum()) * math.log(vocabulary), size)
        for (language, blocks), size in zip(test.windows.items(), test.size.values(), strict=True)
    }


@torch.no_grad()
def evaluate(model: nn.Module, test: TestSet, world: World, *, batch: int, title: str) -> dict[str, float]:
    """Bits per byte of every language; the ranks share the work, all get the result."""
    model.eval()
    nats = torch.zeros(len(test.windows), dtype=torch.float64, device=world.device)
    work = [(i, part) for i, blocks in enumerate(test.windows.values()) for part in blocks.split(batch)]
    mine = work[world.rank :: world.size]
    for i, part in tqdm(mine, desc=title, leave=False, disable=not (world.shows and title), unit="batch"):
        nats[i] += loss_sum(model, part.to(world.device)).double()
    world.sum(nats)
    model.train()
    return {language: bits_per_byte(float(nats[i]), test.size[language]) for i, language in enumerate(test.windows)}
