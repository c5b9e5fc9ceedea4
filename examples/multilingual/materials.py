"""What trainings are made from: text, tokens, test sets and pre-trained models, cached on disk and in the process."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from corpus import Corpus, cache_folder, load, write_atomically
from evaluation import TestSet, build_test_set
from models import PRESETS, build_preset, load_pretrained
from pretrain import pretrain
from sampler import BlockSampler, Tokens
from scenarios import Scenario, split
from tokenizer import corpus_digest, digest, end_token, token_stream, train_tokenizer
from torch import nn
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Recipe:
    """How presets are pre-trained."""

    steps: int
    batch_size: int
    """Blocks a step, of all known languages."""
    length: int
    """Tokens of a block."""
    lr: float


class Materials:
    """Of one corpus: what is held out in one scenario is held out in all, and from pre-training too."""

    def __init__(
        self, languages: Sequence[str], known: Sequence[str], recipe: Recipe, device: torch.device, *, shows: bool
    ) -> None:
        """`known`: languages that presets are pre-trained on; `shows`: whether to draw progress bars."""
        self.languages, self.known, self.recipe = tuple(languages), tuple(known), recipe
        self._device, self._shows = device, shows
        self.base = lru_cache(maxsize=4)(self._base)
        self.preset_tokenizer = lru_cache(maxsize=4)(self._preset_tokenizer)
        self.streams = lru_cache(maxsize=8)(self._streams)

    @cached_property
    def corpus(self) -> Corpus:
        """Of all languages. Raises CorpusUnavailable."""
        return load(self.languages, cache_folder())

    @cached_property
    def _known_corpus(self) -> Corpus:
        return replace(self.corpus, train={language: self.corpus.train[language] for language in self.known})

    def tokenizer(self, model: str) -> PreTrainedTokenizerBase:
        """Of a preset: byte-level BPE of the known languages, so that a new script comes byte by byte."""
        return self.preset_tokenizer(PRESETS[model].vocabulary) if model in PRESETS else self.base(model, 0)[1]

    def _preset_tokenizer(self, vocabulary: int) -> PreTrainedTokenizerBase:
        name = digest(corpus_digest(self._known_corpus), vocabulary)
        return train_tokenizer(self._known_corpus, vocabulary, cache_folder() / f"bpe-{name}.json")

    def _base(self, model: str, number: int) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        """A pre-trained model, not to be changed, and its tokenizer. Presets have as many as one likes, by number."""
        if model not in PRESETS:
            network, tokenizer = load_pretrained(model)
            return network.to(self._device), tokenizer
        tokenizer = self.tokenizer(model)
        end = end_token(tokenizer)
        network = build_preset(PRESETS[model], length=self.recipe.length, end=end, seed=number).to(self._device)
        name = digest(corpus_digest(self._known_corpus), self.known, model, vars(self.recipe), number)
        path = cache_folder() / f"base-{name}.pt"
        if not path.exists():
            streams = {
                language: token_stream(tokenizer, list(documents.values()))
                for language, documents in self._known_corpus.train.items()
            }
            pretrain(network, streams, self.recipe, end=end, seed=number, shows=self._shows)
            buffer = io.BytesIO()
            torch.save(network.state_dict(), buffer)
            write_atomically(path, buffer.getvalue())
        network.load_state_dict(torch.load(path, map_location=self._device, weights_only=True))
        return network, tokenizer

    def fresh(self, model: str, number: int) -> nn.Module:
        """A copy of the pre-trained model."""
        return copy.deepcopy(self.base(model, number)[0])

    def _streams(self, model: str, scenario: Scenario) -> dict[str, Tokens]:
        """Tokens of every objective's training text."""
        tokenizer = self.tokenizer(model)
        return {name: token_stream(tokenizer, text) for name, text in scenario.documents(self.corpus).items()}

    def samplers(
        self, model: str, scenario: Scenario, seed: int, *, batch: int, length: int, stream: str = ""
    ) -> dict[str, BlockSampler]:
        """Blocks of every objective; `stream` names another order."""
        shape: dict[str, Any] = {
            "length": length,
            "batch": batch,
            "seed": seed,
            "end": end_token(self.tokenizer(model)),
        }
        return {
            name: BlockSampler(tokens, stream=f"{name}{stream}", **shape)
            for name, tokens in self.streams(model, scenario).items()
        }

    def test_set(self, model: str, languages: Sequence[str], part: str, *, size: int, length: int) -> TestSet:
        """About `size` bytes of English, and as much in every language. `part`: "validation" or "test"."""
        return build_test_set(split(self.corpus, part), languages, self.tokenizer(model), size=size, length=length)

    def parallel(self, languages: Sequence[str], count: int) -> dict[str, list[str]]:
        """`count` segments of the test text in each language, translations of each other. Raises ValueError."""
        test = split(self.corpus, "test").test
        found: dict[str, list[str]] = {language: [] for language in languages}
        for component in test["en"]:
            lines = {language: test[language][component].split("\n") for language in languages}
            if len({len(text) for text in lines.values()}) == 1:  # else a segment has lines of its own
                for segment in zip(*lines.values(), strict=True):
                    if all(text.strip() for text in segment):
                        for language, text in zip(lines, segment, strict=True):
                            found[language].append(text)
        available = len(found[languages[0]])
        if available < count:
            raise ValueError(f"there are {available} parallel segments for {' '.join(languages)}, {count} are needed")
        return {language: text[:count] for language, text in found.items()}
