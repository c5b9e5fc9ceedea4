"""Which blocks a step sees: a pure function of seed, language and step.

There is no hidden position: a method cannot see other data than its rival, and a resumed run goes
on exactly where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int32]


def generator(*key: int | str) -> np.random.Generator:
    """A random generator for this key, the same on every machine."""
    name = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(name[:16], "big"))


class BlockSampler:
    """Blocks of one language in a shuffled order, each once an epoch.

    tokens: `[tokens]`. A block is the end token followed by `length` tokens, so that every one of
    them is predicted.
    """

    def __init__(self, tokens: Tokens, *, length: int, batch: int, seed: int, stream: str, end: int) -> None:
        """`stream` names the order beside the seed; `end` is the token that begins blocks."""
        self.blocks = len(tokens) // length
        if self.blocks < 1:
            raise ValueError(f"{stream}: {len(tokens)} tokens are no block of {length}")
        self._rows = tokens[: self.blocks * length].reshape(self.blocks, length)
        self._batch, self._seed, self._stream, self._end = batch, seed, stream, end
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return generator(self._seed, self._stream, epoch).permutation(self.blocks)

    def indices(self, step: int) -> list[int]:
        """Blocks of a step, by number."""
        places = range(step * self._batch, (step + 1) * self._batch)
        return [int(self._order(p // self.blocks)[p % self.blocks]) for p in places]

    def __call__(self, step: int) -> Tensor:
        """`[batch, 1 + length]`, int64."""
        return as_blocks(self._rows[self.indices(step)], self._end)


class PassSampler:
    """What a rank trains on in a step: blocks of one language for each of its passes."""

    def __init__(self, languages: Mapping[str, BlockSampler], *, part: int = 0, parts: int = 1) -> None:
        """`languages`: in the order of the passes; of their blocks this rank gets those of one of `parts`."""
        self._languages, self._part, self._parts = languages, part, parts

    def __call__(self, step: int) -> dict[str, Tensor]:
        """By language `[batch / parts, 1 + length]`, int64."""
        return {name: sample(step)[self._part :: self._parts] for name, sample in self._languages.items()}


class MixtureSampler:
    """Blocks of many languages, drawn by weight; every (rank, step) draws its own."""

    def __init__(
        self,
        streams: Mapping[str, Tokens],
        weights: Mapping[str, float],
        *,
        length: int,
        batch: int,
        seed: int,
        rank: int,
        end: int,
    ) -> None:
        """`weights` need not sum to 1."""
        self._rows = {x: t[: len(t) // length * length].reshape(-1, length) for x, t in streams.items()}
        self._names = sorted(streams)
        total = sum(weights[x] for x in self._names)
        self._share = [weights[x] / total for x in self._names]
        self._batch, self._key, self._end = batch, (seed, "mixture", rank), end

    def __call__(self, step: int) -> Tensor:
        """`[batch, 1 + length]`, int64."""
        random = generator(*self._key, step)
        drawn = random.choice(len(self._names), size=self._batch, p=self._share)
        rows = [self._rows[self._names[i]] for i in drawn]
        return as_blocks(np.stack([r[random.integers(len(r))] for r in rows]), self._end)


def as_blocks(rows: Tokens, end: int) -> Tensor:
    """`[n, length]` -> `[n, 1 + length]` with the end token in front."""
    start = np.full((len(rows), 1), end, dtype=np.int64)
    return torch.from_numpy(np.concatenate([start, rows.astype(np.int64)], axis=1))
