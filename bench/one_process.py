"""Times a training step of one process with several objectives: plain accumulation, ours, and TorchJD's where it is.

    python bench/one_process.py                      # K = 2, 4, 8
    python bench/one_process.py --objectives 4 --rounds 31 --width 1024

A step of a small transformer: a forward and a backward pass for each objective, then SGD. Plain accumulation adds the
gradients up; ours are put aside as rows; with a sketch whose weights lag, in one sum; TorchJD's autojac.backward gets
all losses at once. The ways take turns within each round, each on a copy of the model. Memory is the peak of a process
that runs one way alone, from its first step on, beside that of one that runs plain accumulation.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import bucket_moo_ext as moo
import torch
from torch import nn

LAYERS, TOKENS, VOCABULARY = 6, 64, 4096


def new_model(width: int) -> nn.Module:
    """The same in every call."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, width), nn.TransformerEncoder(layer, LAYERS), nn.Linear(width, VOCABULARY)
    )


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the tokens themselves."""
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def batches_of(objectives: int, batch: int) -> list[torch.Tensor]:
    """Tokens, ``[batch, TOKENS]`` for each objective."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (batch, TOKENS), generator=generator) for _ in range(objectives)]


def plain(model: nn.Module, batches: list[torch.Tensor]) -> Callable[[], None]:
    """Gradients add up in ``.grad``."""

    def run() -> None:
        for tokens in batches:
            loss_of(model, tokens).backward()

    return run


def ours(model: nn.Module, batches: list[torch.Tensor], gramian: str | moo.Sketch = "exact") -> Callable[[], None]:
    """A pass for each objective."""
    state = moo.register(model, "mgda", gramian=gramian)
    totals = dict.fromkeys(range(len(batches)), 1.0)

    def run() -> None:
        for number, tokens in enumerate(batches):
            state.objective = number
            if number < len(batches) - 1:
                with state.accumulate(totals):
                    loss_of(model, tokens).backward()
            else:
                loss_of(model, tokens).backward()

    return run


def torchjd(model: nn.Module, batches: list[torch.Tensor]) -> Callable[[], None]:
    """All losses at once."""
    from torchjd.aggregation import MGDA
    from torchjd.autojac import backward, jac_to_grad

    def run() -> None:
        backward([loss_of(model, tokens) for tokens in batches])
        jac_to_grad(model.parameters(), MGDA())

    return run


def lagged(model: nn.Module, batches: list[torch.Tensor]) -> Callable[[], None]:
    """The same with a sketch, by the weights of the step before."""
    return ours(model, batches, moo.Sketch(lag=1))


WAYS = {"plain": plain, "ours": ours, "lagged": lagged, "torchjd": torchjd}


def step_of(way: str, objectives: int, batch: int, width: int) -> Callable[[], None]:
    """A training step of one way, on a model of its own."""
    model = new_model(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run = WAYS[way](model, batches_of(objectives, batch))

    def step() -> None:
        optimizer.zero_grad()
        run()
        optimizer.step()

    return step


def peak(way: str, objectives: int, batch: int, width: int) -> int:
    """Bytes. Not getrusage's figure, which a process inherits from the one that started it."""
    step = step_of(way, objectives, batch, width)
    for _ in range(4):
        step()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Prints a line for each number of objectives and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batch", type=int, default=4, help="sequences of an objective")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=256, help="of the transformer")
    arguments = parser.parse_args()
    ways = [way for way in WAYS if way != "torchjd" or importlib.util.find_spec("torchjd")]
    size = sum(p.nbytes for p in new_model(arguments.width).parameters())
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {size / 1e6:.0f} MB of gradients, median (paired ratio)")
    context = multiprocessing.get_context("spawn")
    for objectives in arguments.objectives:
        steps = {way: step_of(way, objectives, arguments.batch, arguments.width) for way in ways}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(arguments.rounds + 2):
            for way, step in steps.items():
                start = time.perf_counter()
                step()
                if round_ >= 2:  # the first builds buckets
                    times[way].append(time.perf_counter() - start)
        with context.Pool(1, maxtasksperchild=1) as pool:
            peaks = {way: pool.apply(peak, (way, objectives, arguments.batch, arguments.width)) for way in ways}
        for way in ways:
            ratio = statistics.median(a / b for a, b in zip(times[way], times["plain"], strict=True))
            print(
                f"K = {objectives}  {way:8} {1e3 * statistics.median(times[way]):8.1f} ms  ({ratio:.3f})  "
                f"{(peaks[way] - peaks['plain']) / 1e6:+8.0f} MB  ({peaks[way] / peaks['plain']:.3f})"
            )


if __name__ == "__main__":
    main()
