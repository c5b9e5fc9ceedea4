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
from small import model_of, texts
from torch.utils.data import DataLoader

PASSES = 2


class FineTuning(LightningModule):
    """A language model and its text."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.train_rows, self.test_rows, self.tokenizer = texts()
        self.model = model_of(self.tokenizer)

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch["inputs"]).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any]) -> None:
        loss = self.model(**batch["inputs"]).loss
        self.log(f"held_out/{batch['language'][0]}", loss, batch_size=len(batch["language"]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def train_dataloader(self) -> Any:
        return self.loader(self.train_rows, 8, self.steps)

    def val_dataloader(self) -> Any:
        return self.loader(self.test_rows, 32, 4)

    def loader(self, rows: Any, size: int, steps: int) -> Any:
        """Batches of one language; called by Lightning when ranks are known."""
        sampler = ObjectiveBatchSampler(rows["language"], size, passes=PASSES, steps=steps)
        return DataLoader(rows, batch_sampler=sampler, collate_fn=self.collate)

    def collate(self, rows: list[dict[str, str]]) -> dict[str, Any]:
        """One language, its name beside the tokens."""
        texts_of = [row["text"] for row in rows]
        inputs = self.tokenizer(texts_of, truncation=True, max_length=64, padding=True, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return {
            "inputs": {**inputs, "labels": labels},
            "language": [row["language"] for row in rows],
            "tokens": int((labels[:, 1:] != -100).sum()),
        }


def main() -> None:
    """Trains, and prints what was solved in the last step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="mgda")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/lightning_finetune")
    arguments = parser.parse_args()
    moo_callback = MooCallback(arguments.method, objective="language", weight="tokens")  # the one line
    trainer = Trainer(
        callbacks=[moo_callback], use_distributed_sampler=False, accumulate_grad_batches=PASSES, devices=int(os.environ.get("WORLD_SIZE", 1)),
        strategy=DDPStrategy(bucket_cap_mb=0.25), max_steps=arguments.steps, default_root_dir=arguments.output,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(FineTuning(arguments.steps))
    if trainer.is_global_zero:
        print(moo_callback.report())
        names = sorted(name for name in trainer.callback_metrics if name.startswith("held_out/"))
        print("held-out loss:", {name[9:]: round(trainer.callback_metrics[name].item(), 3) for name in names})


if __name__ == "__main__":
    main()
