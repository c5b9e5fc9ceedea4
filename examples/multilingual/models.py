"""Models: small presets with random weights, or anything that AutoModelForCausalLM loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Preset:
    """Shape of a small model, to be pre-trained by the demo."""

    architecture: str
    """`model_type` of transformers."""
    hidden: int
    layers: int
    feed_forward: int
    vocabulary: int = 4096
    heads: int = 4


PRESETS: dict[str, Preset] = {
    "llama-1m": Preset("llama", hidden=128, layers=4, feed_forward=320),
    "qwen3-1m": Preset("qwen3", hidden=128, layers=4, feed_forward=320),
    "gemma3-1m": Preset("gemma3_text", hidden=128, layers=4, feed_forward=320),
    "mistral-1m": Preset("mistral", hidden=128, layers=4, feed_forward=320),
    "olmo2-1m": Preset("olmo2", hidden=128, layers=4, feed_forward=320),
    "llama-4m": Preset("llama", hidden=256, layers=4, feed_forward=640),
    "llama-11m": Preset("llama", hidden=320, layers=6, feed_forward=1024, vocabulary=8192),
}


def build_preset(preset: Preset, *, length: int, end: int, seed: int) -> nn.Module:
    """A causal language model with random weights, float32, tied embeddings."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        preset.architecture,
        vocab_size=preset.vocabulary,
        hidden_size=preset.hidden,
        intermediate_size=preset.feed_forward,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        head_dim=preset.hidden // preset.heads,
        max_position_embeddings=2 * length,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        use_cache=False,
    )
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def load_pretrained(path: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Model (float32) and tokenizer of a local folder, or of a `.gguf` file; nothing is fetched."""
    source: dict[str, Any] = {"local_files_only": True}
    folder = Path(path)
    if folder.suffix == ".gguf":
        source["gguf_file"] = folder.name
        folder = folder.parent
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source)
    model.config.use_cache = False
    return model, tokenizer


def loss_sum(model: nn.Module, blocks: Tensor) -> Tensor:
    """Negative log-likelihood, in nats, summed over the tokens after the first of each block.

    blocks: `[batch, 1 + length]`, int64; tokens below 0 are padding.
    """
    targets = blocks[:, 1:].flatten()
    logits = model(input_ids=blocks[:, :-1].clamp(min=0)).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=-1, reduction="sum")


def mean_loss(model: nn.Module, blocks: Tensor) -> Tensor:
    """The training loss: mean negative log-likelihood of a token, in nats."""
    return loss_sum(model, blocks) / (blocks.shape[0] * (blocks.shape[1] - 1))
