"""Trains a small model with DeepSpeed's ZeRO-2 on four languages: two a rank, one after the other in a step.

    torchrun --standalone --nproc-per-node 2 examples/frameworks/deepspeed_finetune.py

Every backward pass of a step is of one language; the engine says which one closes the step.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from bucket_moo_ext.contrib.deepspeed import register
from small import LANGUAGES, model_of, texts

PASSES, BATCH, LENGTH = 2, 8, 64
CONFIG = {
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_accumulation_steps": PASSES,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 150_000},  # what shares weights, in elements
    "zero_allow_untested_optimizer": True,
}


def batches_of(rows: Any, language: str, tokenizer: Any, seed: int) -> Iterator[torch.Tensor]:
    """Tokens, ``[BATCH, LENGTH]``, without end."""
    text = "\n".join(rows.filter(lambda row: row["language"] == language)["text"])
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH, 1), generator=generator)
        yield tokens[starts + torch.arange(LENGTH)]


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="mgda")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    deepspeed.init_distributed(verbose=False)  # over Gloo where there is no GPU
    rank = dist.get_rank()

    train, _, tokenizer = texts()
    model = model_of(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    state = register(engine, method=arguments.method)

    mine = [LANGUAGES[(PASSES * rank + number) % len(LANGUAGES)] for number in range(PASSES)]
    streams = {language: batches_of(train, language, tokenizer, seed=rank) for language in mine}
    for step in range(arguments.steps):
        losses = {}
        for language in mine:
            tokens = next(streams[language]).to(engine.device)
            state.objective = language
            loss = engine(input_ids=tokens, labels=tokens).loss
            engine.backward(loss)
            engine.step()  # takes a step behind the last pass
            losses[language] = round(loss.item(), 3)
        if step in (0, arguments.steps - 1):
            print(f"step {step + 1}, rank {rank}: {losses}", flush=True)
    if rank == 0:
        print(state.report())  # of the bucket that was reduced last
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
