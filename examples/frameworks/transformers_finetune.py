"""Trains a small model on four languages with transformers' Trainer, a step being of all four.

    torchrun --standalone --nproc-per-node 2 examples/frameworks/transformers_finetune.py

Two ranks with two passes each: in a pass every rank has another language. With ``--method mean`` each language counts
the same and conflicts stay; without attach() every token counts the same.
"""

import argparse

from bucket_moo_ext.contrib.transformers import attach
from small import model_of, settings, texts
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments


def main() -> None:
    """Trains, and prints what was solved in the last step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="mgda")
    parser.add_argument(
        "--layout", choices=["ranks", "passes"], default="ranks", help="passes: a language on all ranks"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/transformers_finetune")
    arguments = parser.parse_args()

    train, test, tokenizer = texts()

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": tokenizer(rows["text"], truncation=True, max_length=64)["input_ids"]}

    trainer = Trainer(
        model=model_of(tokenizer),
        args=TrainingArguments(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            gradient_accumulation_steps=2 if arguments.layout == "ranks" else 4,
            **settings(),
        ),
        train_dataset=train.map(encode, batched=True, remove_columns="text"),  # the column "language" stays
        eval_dataset=test.map(encode, batched=True, remove_columns="text"),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    attached = attach(trainer, method=arguments.method, objective="language", layout=arguments.layout)  # the one line
    trainer.train()
    losses = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(attached.report())
        print("held-out loss:", {name: round(losses[f"eval_{name}_loss"], 3) for name in attached.objectives})


if __name__ == "__main__":
    main()
