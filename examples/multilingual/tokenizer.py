"""Byte-level BPE of the presets, cached, and token streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from corpus import Corpus, write_atomically
from numpy.typing import NDArray
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END = "<|end|>"
"""Ends a document and begins every block."""


def digest(*parts: object) -> str:
    """Short stable name of what something was made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def corpus_digest(corpus: Corpus) -> str:
    """Changes whenever any training text changes."""
    return digest(corpus.train)


def train_tokenizer(corpus: Corpus, vocabulary: int, path: Path) -> PreTrainedTokenizerBase:
    """Trains on the training documents of all languages, or loads what is cached at `path`."""
    if not path.exists():
        bpe = ByteLevelBPETokenizer()
        lines = (d for documents in corpus.train.values() for d in documents.values())
        bpe.train_from_iterator(lines, vocab_size=vocabulary, special_tokens=[END], show_progress=False)
        write_atomically(path, bpe.to_str().encode())
    tokenizer = Tokenizer.from_str(path.read_text())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends documents and begins blocks."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("--model: its tokenizer has neither an end nor a beginning token")


def encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> list[list[int]]:
    """Tokens of each document, without special ones."""
    encoded: list[list[int]] = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return encoded


def token_stream(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> NDArray[np.int32]:
    """All documents, each followed by the end token: `[tokens]`."""
    end = end_token(tokenizer)
    return np.array([t for d in encode(tokenizer, documents) for t in (*d, end)], dtype=np.int32)
