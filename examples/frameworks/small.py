"""What these examples share: real text in four languages, a tokenizer trained on it, and a small model.

The text is that of examples/multilingual: ``python examples/multilingual/corpus.py de hu tr ja`` downloads it once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from a hub
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "multilingual"))

import corpus
from datasets import Dataset
from models import Preset, build_preset
from tokenizer import corpus_digest, train_tokenizer

LANGUAGES = ("de", "hu", "tr", "ja")
VOCABULARY = 2048


def texts(languages: tuple[str, ...] = LANGUAGES, lines: int = 3000) -> tuple[Dataset, Dataset, Any]:
    """For training and evaluation, rows of a ``text`` and its ``language``, and the tokenizer.

    ``lines``: at most so many a language for training, and a twentieth of that for evaluation.
    """
    loaded = corpus.load(LANGUAGES, corpus.cache_folder())
    path = corpus.cache_folder() / f"frameworks-{corpus_digest(loaded)}-{VOCABULARY}.json"
    tokenizer: Any = train_tokenizer(loaded, VOCABULARY, path)
    tokenizer.pad_token = tokenizer.eos_token
    return _rows(loaded.train, languages, lines), _rows(loaded.test, languages, lines // 20), tokenizer


def _rows(documents: dict[str, dict[str, str]], languages: tuple[str, ...], most: int) -> Dataset:
    rows = []
    for language in languages:
        lines = [line for document in documents[language].values() for line in document.splitlines()]
        rows += [{"text": line, "language": language} for line in lines[:most]]
    return Dataset.from_list(rows)


def model_of(tokenizer: Any, seed: int = 0) -> torch.nn.Module:
    """A Llama of 0.3 million parameters; the same on every rank."""
    shape = Preset("llama", hidden=64, layers=3, feed_forward=160, vocabulary=len(tokenizer))
    return build_preset(shape, length=128, end=tokenizer.eos_token_id, seed=seed)


def settings() -> dict[str, Any]:
    """Options of every trainer here: a few steps, on the CPU or on GPUs if there are some."""
    return {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 32,
        "learning_rate": 3e-3,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "seed": 0,
    }
