"""Keeps what a model knew: text of before is an objective beside the new one, instead of a share of the mixture.

    torchrun --standalone --nproc-per-node 2 examples/frameworks/replay.py

A small model learns German, then Japanese. In the second training one rank reads Japanese and the other replays German,
and the update must not raise either loss (to first order). ``--method none`` trains on Japanese alone.
"""

import argparse
from typing import Any

from bucket_moo_ext.contrib.transformers import attach
from small import model_of, settings, texts
from trl import SFTConfig, SFTTrainer

BEFORE, NEW = "de", "ja"


def main() -> None:
    """Trains twice, and prints the loss of both languages after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="upgrad")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/replay")
    arguments = parser.parse_args()

    train, test, tokenizer = texts((BEFORE, NEW))
    model = model_of(tokenizer)

    def trainer_of(train_dataset: Any) -> Any:
        options = SFTConfig(
            output_dir=arguments.output, max_steps=arguments.steps, max_length=64, bf16=False, **settings()
        )
        parts = {name: only(test, name) for name in (BEFORE, NEW)}
        return SFTTrainer(
            model=model, args=options, train_dataset=train_dataset, eval_dataset=parts, processing_class=tokenizer
        )

    def only(rows: Any, language: str) -> Any:
        return rows.filter(lambda row: row["language"] == language)

    def say(trainer: Any, when: str) -> None:
        losses = trainer.evaluate()
        if trainer.is_world_process_zero():
            print(f"{when}: " + ", ".join(f"{name} {losses[f'eval_{name}_loss']:.3f}" for name in (BEFORE, NEW)))

    first = trainer_of(only(train, BEFORE))
    first.train()
    say(first, f"after {BEFORE}")

    replays = arguments.method != "none"
    second = trainer_of(train if replays else only(train, NEW))
    if replays:
        attach(second, method=arguments.method, objective="language")
    second.train()
    say(second, f"after {NEW}, " + (f"with {BEFORE} as an objective" if replays else "alone"))


if __name__ == "__main__":
    main()
