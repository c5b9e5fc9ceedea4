"""A tiny language model, its text, and what ranks need to run a Trainer on the CPU without any hub."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

LANGUAGES = ("de", "sw", "tr", "el")
OWN = 8  # tokens that only one language has; so a batch tells its language
VOCABULARY = 4 + OWN * len(LANGUAGES)
PAD = 0


def no_hub() -> None:
    """Nothing is asked of a hub, and nothing drawn."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")


def rank_environment(rank: int, world: int) -> None:
    """What torchrun would set."""
    no_hub()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",  # of nobody: the process group is there already
    )


def tiny_llama(seed: int = 0, vocabulary: int = VOCABULARY) -> Any:
    """The same on every rank, without dropout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sentences(seed: int, per_language: int, languages: Sequence[str] = LANGUAGES) -> list[dict[str, Any]]:
    """Sentences of 4 to 9 tokens of their language, in the order of the languages."""
    generator = np.random.default_rng(seed)
    rows = []
    for language in languages:
        first = 4 + OWN * LANGUAGES.index(language)
        for _ in range(per_language):
            tokens = [1, *(first + generator.integers(OWN, size=generator.integers(4, 10))).tolist()]
            rows.append({"input_ids": tokens, "labels": tokens, "language": language})
    return rows


def language_of(batch: Any) -> str:
    """By its tokens."""
    own = {int(token - 4) // OWN for token in torch.as_tensor(batch["input_ids"]).flatten() if token >= 4}
    (place,) = own
    return LANGUAGES[place]


def pad(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates: nothing but tensors, and no column that a model does not know."""
    assert all(set(example) <= {"input_ids", "labels", "attention_mask"} for example in examples), examples[0].keys()
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, with_: int) -> torch.Tensor:
        return torch.tensor([[*example[name], *[with_] * (longest - len(example[name]))] for example in examples])

    ids = padded("input_ids", PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": padded("labels", -100)}


class Recorder:
    """Collates, and remembers every batch."""

    def __init__(self) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad(examples)
        self.batches.append(dict(batch))
        return batch


def arguments_of(folder: str | Path, **options: Any) -> Any:
    """TrainingArguments for a few steps of SGD on the CPU."""
    from transformers import TrainingArguments

    return TrainingArguments(**{**defaults(folder), **options})


def defaults(folder: str | Path) -> dict[str, Any]:
    """Options that all trainers share."""
    return {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 7,
        "per_device_train_batch_size": 2, "learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0, "save_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip


def new_folder() -> str:
    """Of this rank alone."""
    return tempfile.mkdtemp(prefix="bucket_moo_")


def gradients_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies, in float64."""
    return {
        name: parameter.grad.detach().double().numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def parameters_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies, with their bits."""
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def gradient_recorder() -> Any:
    """A callback with ``steps``: the gradients that the optimizer got in each."""
    from transformers import TrainerCallback

    class Gradients(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps: list[dict[str, np.ndarray]] = []

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps.append(gradients_of(kwargs["model"]))

    return Gradients()


def assert_equal_gradients(got: Any, expected: Any, tolerance: float) -> None:
    """Relative to each parameter's own norm."""
    assert got.keys() == expected.keys(), (got.keys(), expected.keys())
    for name, gradient in expected.items():
        error, norm = np.linalg.norm(got[name] - gradient), np.linalg.norm(gradient)
        assert error <= tolerance * norm, f"{name}: error {error:.3e}, norm {norm:.3e}"


def tiny_tokenizer() -> Any:
    """Words ``t4`` to ``t35`` and characters of nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"t{number}" for number in range(4, VOCABULARY))]
    model = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def words(seed: int, language: str, count: int) -> str:
    """A sentence of that language, of the tokenizer's words."""
    first = 4 + OWN * LANGUAGES.index(language)
    return " ".join(f"t{first + token}" for token in np.random.default_rng([seed, first]).integers(OWN, size=count))
