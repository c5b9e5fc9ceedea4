"""Trains a small model on four languages with Lightning's Trainer, a step being of all four.

    torchrun --standalone --nproc-per-node 2 examples/frameworks/lightning_finetune.py

Two ranks with two passes each: in a pass every rank has another language.
"""

import argparse
import os
from typing import Any

import torch
from bucket_moo_ext.contrib.lightning import MooCallback
from bucket_moo_ext.data import ObjectiveBatchSampler
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from small import LANGUAGES, model_of, texts
from torch.utils.data import DataLoader

# ruff: noqa: D102
PASSES = 2


class FineTuning(LightningModule):
    """A language model and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.train_rows, self.test_rows, self.tokenizer = texts()
        self.model = model_of(self.tokenizer)

    def training_step(self, batch: dict[str, Any]) -> Any:
        return self.model(**batch["inputs"]).loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int) -> None:
        loss = self.model(**batch["inputs"]).loss
        self.log(f"held_out/{batch['language']}", loss, batch_size=batch["tokens"], add_dataloader_idx=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def train_dataloader(self) -> Any:  # here Lightning has started the ranks, which the sampler asks for
        sampler = ObjectiveBatchSampler(self.train_rows["language"], 8, passes=PASSES)
        return DataLoader(self.train_rows, batch_sampler=sampler, collate_fn=self.collate)

    def val_dataloader(self) -> Any:  # all of it on every rank
        parts = [[row for row in self.test_rows if row["language"] == language] for language in LANGUAGES]
        return [DataLoader(part, batch_size=32, collate_fn=self.collate) for part in parts]

    def collate(self, rows: list[dict[str, str]]) -> dict[str, Any]:
        """One language, its name beside the tokens."""
        lines = [row["text"] for row in rows]
        inputs = self.tokenizer(lines, truncation=True, max_length=64, padding=True, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        tokens = int((labels[:, 1:] != -100).sum())
        return {"inputs": {**inputs, "labels": labels}, "language": rows[0]["language"], "tokens": tokens}


def main() -> None:
    """Trains, and prints what was solved in the last step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="mgda")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    moo_callback = MooCallback(arguments.method, objective="language", weight="tokens")  # the one line
    trainer = Trainer(
        callbacks=[moo_callback], use_distributed_sampler=False, accumulate_grad_batches=PASSES,
        devices=int(os.environ.get("WORLD_SIZE", 1)), strategy=DDPStrategy(bucket_cap_mb=0.25), max_epochs=1,
        limit_train_batches=PASSES * arguments.steps, logger=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(FineTuning())
    if trainer.is_global_zero:
        print(moo_callback.report())
        losses = {name: round(float(trainer.callback_metrics[f"held_out/{name}"]), 3) for name in LANGUAGES}
        print("held-out loss:", losses)


if __name__ == "__main__":
    main()
