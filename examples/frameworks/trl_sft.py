"""Fine-tunes on four languages with TRL's SFTTrainer; docs/trl.md goes through it.

    torchrun --standalone --nproc-per-node 2 examples/frameworks/trl_sft.py

With ``--model FOLDER`` it fine-tunes a model of yours instead of a small one of random weights.
"""

import argparse

from bucket_moo_ext.contrib.transformers import attach
from small import model_of, settings, texts
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Trains, and prints what was solved in the last step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a folder with a model and its tokenizer")
    parser.add_argument("--method", default="mgda")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/trl_sft")
    arguments = parser.parse_args()

    train, test, tokenizer = texts()  # rows of a "text" and its "language"
    model = model_of(tokenizer)
    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            gradient_accumulation_steps=2,  # passes of a step: with two ranks room for four languages
            max_length=64,
            bf16=False,
            **settings(),
        ),
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
    )
    attached = attach(trainer, method=arguments.method, objective="language")  # the one line
    trainer.train()
    losses = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(attached.report())
        print("held-out loss:", {name: round(losses[f"eval_{name}_loss"], 3) for name in attached.objectives})


if __name__ == "__main__":
    main()
