"""Megatron's DistributedDataParallel with register(), on the CPU: what it asks of CUDA for its buffers is replaced."""

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("megatron.core", reason="needs requirements/frameworks.txt")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Apex and Transformer Engine, which are not there
    from bucket_moo_ext.contrib import megatron as ours
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, param_and_grad_buffer
    from megatron.core.transformer import TransformerConfig

from tests.support.ddp import assert_close, assert_mgda, batch_of, gradients, loss_of, mgda_weights, mlp
from tests.support.errors import error_of, expect

Runner = Callable[..., list[Any]]
SIZES = (8, 16, 12, 4)
Gradients = dict[str, np.ndarray]


def on_cpu(world: int) -> None:
    """Megatron's groups over all ranks, and its buffers in host memory."""
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.cuda.current_stream = lambda *_: SimpleNamespace(wait_event=lambda _: None)  # type: ignore[assignment]
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()


def wrap(model: nn.Module, per_token: bool = False, **options: Any) -> DistributedDataParallel:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=1,
        calculate_per_token_loss=per_token,
        use_cpu_initialization=True,
    )
    return DistributedDataParallel(config, DistributedDataParallelConfig(**options), model)


def train_step(ddp: DistributedDataParallel, rank: int, seed: int, step: int, micro_batches: int = 1) -> None:
    """Forward and backward passes as Megatron's schedules run them; gradients are reduced and left in their buffers."""
    ddp.zero_grad_buffer()
    dtype = next(ddp.parameters()).dtype
    for number in range(micro_batches):
        x, y = batch_of(seed, rank, step + number, torch.float32, SIZES)
        with ddp.no_sync() if number < micro_batches - 1 else contextlib.nullcontext():
            (ddp(x.to(dtype)).float() - y).square().mean().backward()
    ddp.finish_grad_sync()


def shards(ddp: DistributedDataParallel, rank: int, world: int) -> list[tuple[list[tuple[str, int, int]], np.ndarray]]:
    """Of every bucket: where parameters lie in it, and this rank's shard."""
    names = {p: name for name, p in ddp.module.named_parameters()}
    found = []
    for group in ddp.bucket_groups:
        for bucket in group.buckets:
            buffer = next(b for b in ddp.buffers if bucket.params_list[0] in b.param_index_map)
            places = []
            for parameter in bucket.params_list:
                start, end, *_ = buffer.param_index_map[parameter]
                places.append((names[parameter], start - bucket.offset, end - bucket.offset))
            found.append((places, bucket.grad_data.chunk(world)[rank].double().numpy().copy()))
    return found


def whole(by_rank: list[Any]) -> list[Gradients]:
    """Gradients of every bucket, put together from all ranks' shards."""
    found = []
    for pieces in zip(*by_rank, strict=True):
        flat = np.concatenate([shard for _, shard in pieces])
        found.append({name: flat[start:end] for name, start, end in pieces[0][0]})
    return found


SMALL = {"overlap_grad_reduce": True, "bucket_size": 200}
# Name: (options, buckets, what the update is multiplied by)
CASES: dict[str, tuple[dict[str, Any], int, float]] = {
    "one bucket": ({}, 1, 1.0),
    "averaged in the collective": ({"average_in_collective": True}, 1, 1.0),
    "buckets that overlap": (SMALL, 2, 1.0),
    "with fp32 accumulation": ({**SMALL, "reduce_scatter_with_fp32_accumulation": True}, 2, 1.0),
    "sum": ({"per_token": True}, 1, 2.0),
    "bf16": ({"grad_reduce_in_fp32": True}, 1, 1.0),
}
STEPS = 2


def run_cases(rank: int, world: int) -> dict[str, list[Any]]:
    on_cpu(world)
    found: dict[str, list[Any]] = {}
    for number, (name, (options, _, _)) in enumerate(CASES.items()):
        model = mlp(number, torch.bfloat16 if name == "bf16" else torch.float32, SIZES)
        ddp = wrap(model, use_distributed_optimizer=True, **options)
        ours.register(ddp, "mgda", objective="ab"[rank])
        found[name] = []
        for step in range(STEPS):
            train_step(ddp, rank, number, 10 * step, micro_batches=2)
            found[name].append(shards(ddp, rank, world))
    return found


def test_every_bucket_gets_the_shortest_vector(run_ranks: Runner) -> None:
    by_rank = run_ranks(2, run_cases)
    for number, (name, (_, count, scale)) in enumerate(CASES.items()):
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        model = mlp(number, dtype, SIZES).double()
        for step in range(STEPS):
            rows = []
            for rank in range(2):
                batches = [batch_of(number, rank, 10 * step + k, sizes=SIZES) for k in range(2)]
                rows.append(gradients(model, lambda m, b=batches: loss_of(m, b[0]) + loss_of(m, b[1])))  # type: ignore[misc]
            buckets = whole([rank[name][step] for rank in by_rank])
            assert len(buckets) == count, name
            assert sorted(n for bucket in buckets for n in bucket) == sorted(rows[0])
            for bucket in buckets:
                stacked = scale * np.stack([np.concatenate([row[n] for n in bucket]) for row in rows])
                got = np.concatenate(list(bucket.values()))
                if name == "bf16":
                    assert_close(got, mgda_weights(stacked) @ stacked, 0.03, name)
                else:
                    assert_mgda(stacked, got, 2e-6, f"{name}, step {step}")


def plain_and_passes(rank: int, world: int) -> list[Any]:
    on_cpu(world)
    plain = wrap(mlp(1, torch.float32, SIZES), use_distributed_optimizer=True)
    registered = wrap(mlp(1, torch.float32, SIZES), use_distributed_optimizer=True)
    state = ours.register(registered, "mgda")
    train_step(plain, rank, 1, 0)
    found = [shards(plain, rank, world)]
    for number, objective in enumerate("abc"):
        state.objective = objective
        with state.accumulate() if objective != "c" else contextlib.nullcontext():
            train_step(registered, rank, 1, number)
    found.append(shards(registered, rank, world))
    assert state.report().passes == 3
    assert state.report().objectives == ("a", "b", "c")
    return found


def test_a_module_that_is_not_registered_averages_and_passes_are_one_step(run_ranks: Runner) -> None:
    by_rank = run_ranks(2, plain_and_passes)
    model = mlp(1, torch.float32, SIZES).double()
    rows = [
        [gradients(model, lambda m, r=r, k=k: loss_of(m, batch_of(1, r, k, sizes=SIZES))) for r in range(2)]  # type: ignore[misc]
        for k in range(3)
    ]
    (plain,), (passes,) = (whole([found[place] for found in by_rank]) for place in range(2))
    for name, gradient in plain.items():
        assert_close(gradient, (rows[0][0][name] + rows[0][1][name]) / 2, 1e-6, name)
    means = np.stack([np.concatenate([(a[name] + b[name]) / 2 for name in passes]) for a, b in rows])
    assert_mgda(means, np.concatenate(list(passes.values())), 2e-6)


def refuse(rank: int, world: int) -> dict[str, Any]:
    on_cpu(world)
    found: dict[str, Any] = {"class": error_of(lambda: ours.register(mlp(1)))}
    found["optimizer"] = error_of(lambda: ours.register(wrap(mlp(1, torch.float32, SIZES))))
    two = SimpleNamespace(size=lambda: 2)
    for name, value in (
        ("tp_group", two),
        ("dp_group", SimpleNamespace(size=lambda: 1)),
        ("pp_group", [two]),
        ("expert_parallel_bucket_groups", [None]),
    ):  # what Megatron sets where it has these
        ddp = wrap(mlp(1, torch.float32, SIZES), use_distributed_optimizer=True)
        setattr(ddp, name, value)
        found[name] = error_of(lambda ddp=ddp: ours.register(ddp))  # type: ignore[misc]
    ddp = wrap(mlp(1, torch.float32, SIZES), use_distributed_optimizer=True)
    for name in ours.PRIVATE:
        original = getattr(param_and_grad_buffer, name)
        delattr(param_and_grad_buffer, name)
        found[name] = error_of(lambda: ours.register(ddp))
        setattr(param_and_grad_buffer, name, original)
    ours.register(ddp)
    found["twice"] = error_of(lambda: ours.register(ddp))
    found["force"] = error_of(lambda: ddp.finish_grad_sync(force_all_reduce=True))
    return found


def test_register_refuses(run_ranks: Runner) -> None:
    for found in run_ranks(2, refuse):
        expect(found["class"], TypeError, "must be megatron.core.distributed.DistributedDataParallel .*got Sequential")
        expect(found["optimizer"], NotImplementedError, "use_distributed_optimizer=False")
        expect(found["tp_group"], NotImplementedError, "tensor parallelism")
        expect(found["dp_group"], NotImplementedError, "context parallelism")
        expect(found["pp_group"], NotImplementedError, "pipeline parallelism")
        expect(found["expert_parallel_bucket_groups"], NotImplementedError, "expert parallelism")
        for name in ours.PRIVATE:
            expect(found[name], RuntimeError, f"has no {name} any more, which bucket_moo_ext.contrib.megatron replaces")
        expect(found["twice"], RuntimeError, "registered already")
        expect(found["force"], RuntimeError, "force_all_reduce=True")


def test_without_megatron_the_import_says_what_to_install() -> None:
    code = (
        "import sys, bucket_moo_ext; assert 'megatron' not in sys.modules; sys.modules['megatron'] = None\n"
        "try:\n    import bucket_moo_ext.contrib.megatron\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bucket_moo_ext[megatron]'" in done.stdout
