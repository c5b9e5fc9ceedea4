"""How apart languages lie in a model's hidden states, and how near translations.

Four measures of every layer, each beside the same measure of permuted labels, which is what chance gives:

- language: accuracy of a linear probe that tells the language of a segment, trained on other segments;
- identity: accuracy of a linear probe that tells which segment it is, trained on the other languages' translations;
- fisher: variance between languages over variance within, of the states (traces of the scatter matrices);
- cka: linear centred kernel alignment of two languages' states of the same segments (Kornblith et al., ICML 2019,
  eq. 3), mean over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import PreTrainedTokenizerBase

States = NDArray[np.float64]
"""`[languages, segments, hidden]`, the same segments in all languages."""


@torch.no_grad()
def hidden_states(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Sequence[str]], *, most: int = 64
) -> list[States]:
    """Mean over a segment's tokens, for the embedding and each layer; of at most `most` tokens."""
    device = next(model.parameters()).device
    languages: list[list[States]] = []
    for segments in texts.values():
        rows: list[list[NDArray[np.float64]]] = []
        for text in segments:
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:most]
            out = model(input_ids=torch.tensor([tokens], device=device), output_hidden_states=True)
            rows.append([layer[0].double().mean(0).cpu().numpy() for layer in out.hidden_states])
        languages.append([np.stack(layer) for layer in zip(*rows, strict=True)])
    return [np.stack(layer) for layer in zip(*languages, strict=True)]


def describe(states: States, *, seed: int = 0) -> dict[str, float]:
    """All measures with their controls."""
    random = np.random.default_rng(seed)
    languages, segments, _ = states.shape
    labels = np.repeat(np.arange(languages)[:, None], segments, axis=1)
    mixed = random.permuted(labels, axis=0)  # each segment keeps one of every label
    shuffled = np.stack([states[k, random.permutation(segments)] for k in range(languages)])
    return {
        "language": language_probe(states, labels),
        "language_control": language_probe(states, mixed),
        "identity": identity_probe(states),
        "identity_control": identity_probe(shuffled),
        "fisher": fisher_ratio(states, labels),
        "fisher_control": fisher_ratio(states, mixed),
        "cka": mean_cka(states),
        "cka_control": mean_cka(shuffled),
    }


def language_probe(states: States, labels: NDArray[np.int64]) -> float:
    """Accuracy on the second half of the segments of a ridge classifier of the first."""
    half = states.shape[1] // 2
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0))
    probe.fit(_rows(states[:, :half]), labels[:, :half].ravel())
    return float(probe.score(_rows(states[:, half:]), labels[:, half:].ravel()))


def identity_probe(states: States) -> float:
    """Accuracy on each language in turn of a ridge classifier of the others; languages are centred first."""
    centred = states - states.mean(1, keepdims=True)
    languages, segments, _ = states.shape
    scores = []
    for left_out in range(languages):
        others = [k for k in range(languages) if k != left_out]
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0))
        probe.fit(_rows(centred[others]), np.tile(np.arange(segments), len(others)))
        scores.append(probe.score(centred[left_out], np.arange(segments)))
    return float(np.mean(scores))


def fisher_ratio(states: States, labels: NDArray[np.int64]) -> float:
    """Trace of the scatter between the labels over that within."""
    rows, flat = _rows(states), labels.ravel()
    mean = rows.mean(0)
    between = within = 0.0
    for label in np.unique(flat):
        members = rows[flat == label]
        centre = members.mean(0)
        between += len(members) * float(np.sum((centre - mean) ** 2))
        within += float(np.sum((members - centre) ** 2))
    return between / within


def mean_cka(states: States) -> float:
    """Linear CKA, mean over pairs of languages."""
    centred = states - states.mean(1, keepdims=True)
    values = []
    for a, b in combinations(centred, 2):
        cross = np.sum((a.T @ b) ** 2)
        values.append(cross / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))
    return float(np.mean(values))


def _rows(states: States) -> NDArray[np.float64]:
    return states.reshape(-1, states.shape[-1])
