"""Trains a small model on four languages with a loop of one's own and Accelerate: a pass a language.

    torchrun --standalone --nproc-per-node 2 examples/frameworks/accelerate_finetune.py

``accelerator.accumulate()`` makes the passes of all languages one step.
"""

import argparse
from typing import Any

import torch
from accelerate import Accelerator
from bucket_moo_ext.contrib.accelerate import register
from small import LANGUAGES, model_of, texts
from torch.utils.data import DataLoader

BATCH, LENGTH = 8, 64


def loader_of(rows: Any, language: str, tokenizer: Any) -> DataLoader[Any]:
    """Batches of one language; Accelerate deals them to the ranks."""

    def collate(texts: list[str]) -> Any:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

    chosen = rows.filter(lambda row: row["language"] == language)["text"]
    return DataLoader(list(chosen), batch_size=BATCH, shuffle=True, drop_last=True, collate_fn=collate)


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="mgda")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--save", help="a folder for a checkpoint, with the state in it")
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=len(LANGUAGES))

    train, _, tokenizer = texts()
    model = model_of(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)  # of the order of the data
    model, optimizer = accelerator.prepare(model, optimizer)
    loaders = [accelerator.prepare(loader_of(train, language, tokenizer)) for language in LANGUAGES]
    state = register(accelerator, model, method=arguments.method)

    for step, batches in enumerate(zip(*loaders, strict=False)):
        if step == arguments.steps:
            break
        losses = {}
        for language, batch in zip(LANGUAGES, batches, strict=True):
            with accelerator.accumulate(model):
                state.objective = language
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()  # takes a step behind the last pass
                optimizer.zero_grad()
            losses[language] = round(loss.item(), 3)
        if step in (0, arguments.steps - 1):
            print(f"step {step + 1}, rank {accelerator.process_index}: {losses}", flush=True)
    accelerator.print(state.report())
    if arguments.save:
        accelerator.save_state(arguments.save)
    accelerator.end_training()


if __name__ == "__main__":
    main()
