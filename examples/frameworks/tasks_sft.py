"""Objectives that are tasks: instructions, arithmetic and refusals in one supervised fine-tuning.

    python examples/frameworks/tasks_sft.py

One process; a step has a pass for each task, of the prompts and completions in tasks.jsonl.
"""

import argparse
from pathlib import Path

from bucket_moo_ext.contrib.transformers import attach
from datasets import Dataset
from small import model_of, settings, texts
from trl import SFTConfig, SFTTrainer

TASKS = Path(__file__).with_name("tasks.jsonl")


def main() -> None:
    """Trains, and prints how often the tasks were in conflict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="upgrad")
    parser.add_argument("--scope", choices=["bucket", "model", "parameter"], default="parameter")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", default="runs/tasks_sft")
    arguments = parser.parse_args()

    _, _, tokenizer = texts()
    rows = Dataset.from_json(str(TASKS))  # "prompt", "completion", "task"
    trainer = SFTTrainer(
        model=model_of(tokenizer),
        args=SFTConfig(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            gradient_accumulation_steps=len(set(rows["task"])),
            max_length=96,
            bf16=False,
            **settings(),
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    attached = attach(trainer, method=arguments.method, objective="task", scope=arguments.scope)
    trainer.train()
    for log in trainer.state.log_history:
        if "moo/conflict_share" in log:
            print(
                f"step {log['step']:3}: loss {log['loss']:.3f}, {100 * log['moo/conflict_share']:.0f} % of pairs in "
                f"conflict, {100 * log['moo/global_conflict_share']:.0f} % of whole gradients"
            )
    worst = max(attached.report().buckets, key=lambda bucket: bucket.conflicts)
    print(f"most conflicts in {worst.parameters[0]}: cosines of {', '.join(worst.objectives)}\n{worst.cosines}")


if __name__ == "__main__":
    main()
