"""Times a training step of one process with several objectives: plain accumulation, ours, and TorchJD's where it is.

    python bench/one_process.py                      # K = 2, 4, 8
    python bench/one_process.py --objectives 4 --rounds 31 --width 1024
    python bench/one_process.py --objectives 4 --demo     # the demo's model, batches, buckets and optimizer

A step of a small transformer: a forward and a backward pass for each objective, then SGD (the demo: AdamW). Plain
accumulation adds the gradients up; ours are put aside as rows; with a sketch whose weights lag, in one sum; TorchJD's
autojac.backward gets all losses at once. The ways take turns within each round, in rotating order, each on a copy of
the model. Memory is the peak of a process that runs one way alone, from its first step on, beside that of one that runs
plain accumulation.
"""

import argparse
import importlib.util
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import bucket_moo_ext as moo
import torch
from torch import nn

LAYERS, VOCABULARY = 6, 4096
DEMO = Path(__file__).resolve().parent.parent / "examples" / "multilingual"


class Workload(NamedTuple):
    """What is trained on."""

    batch: int = 4  # sequences of an objective
    tokens: int = 64  # of a sequence
    width: int = 256  # of the transformer
    bucket_cap_mb: float = 25.0
    is_demo: bool = False


def demo() -> Workload:
    """The demo's, with its default settings."""
    sys.path.insert(0, str(DEMO))
    from settings import Settings

    settings = Settings()
    return Workload(settings.batch_size, settings.length + 1, 0, settings.bucket_cap_mb, True)


def new_model(work: Workload) -> nn.Module:
    """From tokens to logits, the same in every call."""
    torch.manual_seed(0)
    if work.is_demo:
        sys.path.insert(0, str(DEMO))
        from models import PRESETS, build_preset
        from settings import Settings

        model: nn.Module = build_preset(PRESETS[Settings().model], length=work.tokens - 1, end=0, seed=0)
        return model
    layer = nn.TransformerEncoderLayer(work.width, 4, 4 * work.width, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, work.width), nn.TransformerEncoder(layer, LAYERS), nn.Linear(work.width, VOCABULARY)
    )


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the tokens themselves; the demo's is of the next ones."""
    if isinstance(model, nn.Sequential):
        return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    logits = model(input_ids=tokens[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def batches_of(objectives: int, work: Workload) -> list[torch.Tensor]:
    """Tokens, ``[batch, tokens]`` for each objective."""
    generator = torch.Generator().manual_seed(1)
    shape = (work.batch, work.tokens)
    return [torch.randint(1, VOCABULARY, shape, generator=generator) for _ in range(objectives)]


def plain(model: nn.Module, batches: list[torch.Tensor], cap: float) -> Callable[[], None]:
    """The mean adds up in ``.grad``."""

    def run() -> None:
        for tokens in batches:
            (loss_of(model, tokens) / len(batches)).backward()

    return run


def ours(
    model: nn.Module, batches: list[torch.Tensor], cap: float, gramian: str | moo.Sketch = "exact"
) -> Callable[[], None]:
    """A pass for each objective."""
    state = moo.register(model, "mgda", gramian=gramian, bucket_cap_mb=cap)
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


def torchjd(model: nn.Module, batches: list[torch.Tensor], cap: float) -> Callable[[], None]:
    """All losses at once."""
    from torchjd.aggregation import MGDA
    from torchjd.autojac import backward, jac_to_grad

    def run() -> None:
        backward([loss_of(model, tokens) for tokens in batches])
        jac_to_grad(model.parameters(), MGDA())

    return run


def lagged(model: nn.Module, batches: list[torch.Tensor], cap: float) -> Callable[[], None]:
    """The same with a sketch, by the weights of the step before."""
    return ours(model, batches, cap, moo.Sketch(lag=1))


WAYS = {"plain": plain, "ours": ours, "lagged": lagged, "torchjd": torchjd}


def step_of(way: str, objectives: int, work: Workload) -> Callable[[], None]:
    """A training step of one way, on a model of its own."""
    model = new_model(work)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if work.is_demo:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = WAYS[way](model, batches_of(objectives, work), work.bucket_cap_mb)

    def step() -> None:
        optimizer.zero_grad()
        run()
        optimizer.step()

    return step


def peak(way: str, objectives: int, work: Workload) -> int:
    """Bytes. Not getrusage's figure, which a process inherits from the one that started it."""
    step = step_of(way, objectives, work)
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
    parser.add_argument("--demo", action="store_true", help="what examples/multilingual trains instead")
    arguments = parser.parse_args()
    work = demo() if arguments.demo else Workload(batch=arguments.batch, width=arguments.width)
    ways = [way for way in WAYS if way != "torchjd" or importlib.util.find_spec("torchjd")]
    size = sum(p.nbytes for p in new_model(work).parameters())
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{size / 1e6:.0f} MB of gradients, median (median of paired ratios, their quartiles)"
    )
    context = multiprocessing.get_context("spawn")
    for objectives in arguments.objectives:
        steps = {way: step_of(way, objectives, work) for way in ways}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(arguments.rounds + 2):
            for way in itertools.islice(itertools.cycle(ways), round_, round_ + len(ways)):  # in turns
                start = time.perf_counter()
                steps[way]()
                if round_ >= 2:  # the first builds buckets
                    times[way].append(time.perf_counter() - start)
        with context.Pool(1, maxtasksperchild=1) as pool:
            peaks = {way: pool.apply(peak, (way, objectives, work)) for way in ways}
        for way in ways:
            ratios = [a / b for a, b in zip(times[way], times["plain"], strict=True)]
            first, middle, third = statistics.quantiles(ratios)
            print(
                f"K = {objectives}  {way:8} {1e3 * statistics.median(times[way]):8.1f} ms  "
                f"({middle:.3f}, {first:.3f} to {third:.3f})  "
                f"{(peaks[way] - peaks['plain']) / 1e6:+8.0f} MB  ({peaks[way] / peaks['plain']:.3f})"
            )


if __name__ == "__main__":
    main()
