"""DeepSpeed engines with register(): the gradients that the optimizer gets, against float64 and DDP."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("deepspeed", reason="needs requirements/frameworks.txt")

from tests.frameworks import deepspeed_engines as engines  # first: it sets up DeepSpeed

# isort: split
from bucket_moo_ext.contrib.deepspeed import register

from tests.support.ddp import assert_close, assert_mgda, batch_of, digest, gradients, loss_of, same_on_all_ranks

Runner = Callable[..., list[Any]]

FIRST, SECOND, THIRD = (["0.weight", "0.bias"], ["2.weight", "2.bias"], ["4.weight", "4.bias"])
# Gradients come from the last layer to the first, a bias before its weight; a bucket takes parameters while they fit.
AS_THEY_COME = [["4.bias", "4.weight", "2.bias"], ["2.weight"], ["0.bias", "0.weight"]]
# ZeRO-3 puts hooks on a layer, whose weight comes first.
BY_LAYER = [["4.weight", "4.bias"], ["2.weight"], ["2.bias", "0.weight", "0.bias"]]
IN_ORDER = [["0.weight", "0.bias"], ["2.weight"], ["2.bias", "4.weight", "4.bias"]]
ALL = [[*FIRST, *SECOND, *THIRD]]

BF16 = {"more": {"bf16": {"enabled": True}}}
BF16_IN_FP32 = {"more": {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
SMALL = {"reduce_bucket_size": engines.SMALL}

# Name: (passes, configuration, buckets by the parameters in them)
CASES: dict[str, tuple[int, dict[str, Any], list[list[str]]]] = {
    "0": (1, {"stage": 0}, ALL),
    "0, passes": (3, {"stage": 0}, ALL),
    "0, bf16": (2, {"stage": 0, **BF16}, ALL),
    "1": (1, {"stage": 1, **SMALL}, IN_ORDER),
    "1, passes": (3, {"stage": 1, **SMALL}, IN_ORDER),
    "1, passes, overlap_comm": (3, {"stage": 1, "overlap_comm": True, **SMALL}, AS_THEY_COME),
    "1, passes, not contiguous": (2, {"stage": 1, "contiguous_gradients": False, **SMALL}, IN_ORDER),
    "1, passes, bf16": (2, {"stage": 1, **SMALL, **BF16}, IN_ORDER),
    "1, passes, bf16 in fp32": (2, {"stage": 1, **BF16_IN_FP32}, ALL),
    "2": (1, {"stage": 2, **SMALL}, AS_THEY_COME),
    "2, one bucket": (1, {"stage": 2}, ALL),
    "2, reduce_scatter off": (1, {"stage": 2, "reduce_scatter": False, **SMALL}, AS_THEY_COME),
    "2, sum": (2, {"stage": 2, "more": {"gradient_allreduce_op": "sum"}}, ALL),
    "2, fp16": (2, {"stage": 2, "more": {"fp16": {"enabled": True, "initial_scale_power": 4}}}, ALL),
    "2, passes": (3, {"stage": 2, **SMALL}, AS_THEY_COME),
    "2, passes, overlap_comm": (3, {"stage": 2, "overlap_comm": True, **SMALL}, AS_THEY_COME),
    "2, passes, not contiguous": (2, {"stage": 2, "contiguous_gradients": False, **SMALL}, AS_THEY_COME),
    "2, passes, offload": (2, {"stage": 2, **SMALL, **OFFLOAD}, AS_THEY_COME),
    "2, passes, bf16": (2, {"stage": 2, **SMALL, **BF16}, AS_THEY_COME),
    "2, passes, bf16 in fp32": (2, {"stage": 2, **SMALL, **BF16_IN_FP32}, AS_THEY_COME),
    "3": (1, {"stage": 3, **SMALL}, BY_LAYER),
    "3, passes": (3, {"stage": 3, **SMALL}, BY_LAYER),
    "3, reduce_scatter off": (1, {"stage": 3, "reduce_scatter": False, **SMALL}, BY_LAYER),
    "3, passes, offload": (2, {"stage": 3, **SMALL, **OFFLOAD}, BY_LAYER),
    "3, passes, bf16": (2, {"stage": 3, **SMALL, **BF16}, BY_LAYER),
}
STEPS = 2
SCALE = {"2, sum": 2.0, "2, fp16": 2.0**4}
"""What gradients are multiplied by: a sum over ranks, a loss scale."""


def run_cases(rank: int, world: int) -> dict[str, list[engines.Gradients]]:
    found = {}
    for number, (name, (passes, config, _)) in enumerate(CASES.items()):
        model = engines.model_of(number)
        engine = engines.engine_of(model, passes=passes, **copy.deepcopy(config))
        state = register(engine, method="mgda")
        found[name] = [engines.train_step(engine, state, rank, number, step, passes) for step in range(STEPS)]
        engine.destroy()
    return found


@pytest.fixture(scope="module")
def gradients_of_cases() -> list[Any]:
    from tests.support.ranks import run_ranks

    return run_ranks(2, run_cases, timeout=240.0)


@pytest.mark.parametrize("name", CASES)
def test_every_bucket_gets_the_shortest_vector(gradients_of_cases: list[Any], name: str, run_ranks: Runner) -> None:
    number, (passes, config, buckets) = list(CASES).index(name), CASES[name]
    reference = engines.model_of(number)
    short = {"bf16": torch.bfloat16, "fp16": torch.float16}
    (dtype,) = [short[key] for key in config.get("more", {}) if key in short] or [torch.float32]
    reference = reference.to(dtype).double()
    for step in range(STEPS):
        by_objective = engines.objective_gradients(reference, 2, number, step, passes)
        found = [rank[name][step] for rank in gradients_of_cases]
        for parameter in found[0]:
            np.testing.assert_array_equal(found[0][parameter], found[1][parameter])
        for bucket in buckets:
            rows = SCALE.get(name, 1.0) * engines.stack(by_objective, bucket)
            got = np.concatenate([found[0][parameter] for parameter in bucket])
            if dtype != torch.float32:
                assert_close(got, moo.aggregate(torch.from_numpy(rows), "mgda").numpy(), 0.03, f"{step}, {bucket}")
            else:
                assert_mgda(rows, got, 2e-6, f"step {step}, {bucket}")


def test_one_process(run_ranks: Runner) -> None:
    (found,) = run_ranks(1, run_cases)
    for number, (name, (passes, config, buckets)) in enumerate(CASES.items()):
        if "more" in config:
            continue
        by_objective = engines.objective_gradients(engines.model_of(number).double(), 1, number, 0, passes)
        for bucket in buckets:
            got = np.concatenate([found[name][0][parameter] for parameter in bucket])
            assert_mgda(engines.stack(by_objective, bucket), got, 2e-6, f"{name}, {bucket}")


def train_beside_ddp(rank: int, world: int, config: dict[str, Any], method: str, passes: int) -> list[float]:
    """How far the parameters of an engine are from those of a DDP module, beside the way that they went."""
    model = engines.model_of(7)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    ddp = DistributedDataParallel(copy.deepcopy(model))
    ddp_state = moo.register(ddp, method)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    engine = engines.engine_of(model, rate=0.1, passes=passes, **config)
    state = register(engine, method)
    for step in range(4):
        engines.train_step(engine, state, rank, 7, step, passes)
        for number in range(passes):
            ddp_state.objective = engines.objective_of(rank, number)
            batch = batch_of(7, rank, engines.seed_of(step, number), torch.float32, engines.SIZES)
            with ddp_state.accumulate() if number < passes - 1 else contextlib.nullcontext():
                loss_of(ddp, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.cat([p.detach().flatten() for p in ddp.parameters()])
    got = torch.cat([p.detach().flatten() for p in engine.module.parameters()])
    return [float((got - expected).norm()), float((expected - start).norm())]


@pytest.mark.parametrize(("method", "passes", "stage"), [("mgda", 3, 2), ("cagrad", 1, 2), ("upgrad", 2, 1)])
def test_trains_as_ddp_does(run_ranks: Runner, method: str, passes: int, stage: int) -> None:
    for error, way in run_ranks(2, train_beside_ddp, {"stage": stage}, method, passes):
        assert error <= 1e-5 * way


def mean_and_plain(rank: int, world: int) -> list[list[Any]]:
    found = []
    for stage in range(4):
        for passes in (1, 2):
            twins = []
            for state_of in (lambda _: None, lambda engine: register(engine, "mean", objective="all")):
                engine = engines.engine_of(engines.model_of(3), passes=passes, stage=stage, reduce_bucket_size=200)
                twins.append(engines.train_step(engine, state_of(engine), rank, 3, 0, passes))
            found.append(twins)
    return found


def test_an_engine_that_is_not_registered_averages_and_mean_is_that_average(run_ranks: Runner) -> None:
    cases = [(stage, passes) for stage in range(4) for passes in (1, 2)]
    for (_, passes), (plain, registered) in zip(cases, run_ranks(2, mean_and_plain)[0], strict=True):
        rows = engines.objective_gradients(engines.model_of(3).double(), 2, 3, 0, passes)
        counts = {"abc"[k]: sum(engines.objective_of(r, p) == "abc"[k] for r in range(2) for p in range(passes))
                  for k in range(3)}  # fmt: skip
        for name, gradient in plain.items():
            mean = sum(counts[k] * rows[k][name] for k in rows) / (2 * passes)
            assert_close(gradient, np.asarray(mean), 1e-6, f"plain {name}")
        if passes == 1:  # objectives of one rank each
            for name, gradient in registered.items():
                assert_close(gradient, plain[name], 1e-6, name)


def one_row(rank: int, world: int) -> list[Any]:
    found = []
    for stage, context in (
        (1, "no_sync"),
        (0, "no_sync"),
        (1, "coalesce_grad_reduction"),
        (2, "coalesce_grad_reduction"),
    ):
        engine = engines.engine_of(engines.model_of(4), passes=2, stage=stage)
        state = register(engine, "mgda", objective="ab"[rank])
        batches = [batch_of(4, rank, engines.seed_of(0, number), sizes=engines.SIZES) for number in range(2)]
        if context == "no_sync":
            engine.set_gradient_accumulation_boundary(False)
            with engine.no_sync():
                engine.backward(engines.loss_on(engine, batches[0]))
            engine.set_gradient_accumulation_boundary(True)
            engine.backward(engines.loss_on(engine, batches[1]))
        else:
            with engine.coalesce_grad_reduction():
                for batch in batches:
                    engine.backward(engines.loss_on(engine, batch))
            engine.set_gradient_accumulation_boundary(True)
        found.append(engines.whole_gradients(engine))
        engine.step()
        assert state.report().passes == 1
    return found


def test_passes_without_a_reduction_are_one_row(run_ranks: Runner) -> None:
    model = engines.model_of(4).double()
    rows = []
    for rank in range(2):
        batches = [batch_of(4, rank, engines.seed_of(0, number), sizes=engines.SIZES) for number in range(2)]
        model.zero_grad()
        sum(loss_of(model, batch) / 2 for batch in batches).backward()  # type: ignore[union-attr]
        rows.append(np.concatenate([p.grad.flatten().numpy() for p in model.parameters() if p.grad is not None]))
    for found in run_ranks(2, one_row)[0]:
        assert_mgda(np.stack(rows), np.concatenate(list(found.values())), 2e-6)


def reduce_in_two_levels(rank: int, world: int) -> list[engines.Gradients]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "rank"))
    found = []
    for stage in (2, 3):
        engine = engines.engine_of(engines.model_of(8), stage=stage)
        register(engine, "mgda", objective="ab"[rank // 2], mesh=mesh, objectives="node")
        engine.backward(engines.loss_on(engine, batch_of(8, rank, 0, sizes=engines.SIZES)))
        found.append(engines.whole_gradients(engine))
    return found


def test_a_language_a_node(run_ranks: Runner) -> None:
    model = engines.model_of(8).double()
    by_rank = [gradients(model, lambda m, r=r: loss_of(m, batch_of(8, r, 0, sizes=engines.SIZES))) for r in range(4)]  # type: ignore[misc]
    rows = np.stack([np.concatenate(list(row.values())) for row in by_rank]).reshape(2, 2, -1).mean(1)
    for rank in run_ranks(4, reduce_in_two_levels):
        for found in rank:
            assert_mgda(rows, np.concatenate(list(found.values())), 2e-6)


def reduce_by_passes(rank: int, world: int) -> list[engines.Gradients]:
    found = []
    for stage in range(4):
        engine = engines.engine_of(engines.model_of(9), passes=3, stage=stage)
        state = register(engine, "mgda", layout="passes")
        for number, objective in enumerate(engines.OBJECTIVES):
            state.objective = objective
            engine.backward(engines.loss_on(engine, batch_of(9, rank, number, sizes=engines.SIZES)))
            if number < 2:
                engine.step()
        found.append(engines.whole_gradients(engine))
    return found


def test_an_objective_a_pass(run_ranks: Runner) -> None:
    model = engines.model_of(9).double()
    rows = [
        [gradients(model, lambda m, r=r, k=k: loss_of(m, batch_of(9, r, k, sizes=engines.SIZES))) for r in range(2)]  # type: ignore[misc]
        for k in range(3)
    ]
    stacked = np.stack([[np.concatenate(list(row.values())) for row in of_pass] for of_pass in rows]).mean(1)
    for found in run_ranks(2, reduce_by_passes)[0]:
        assert_mgda(stacked, np.concatenate(list(found.values())), 2e-6)


METHODS = {"pcgrad": moo.PCGrad, "gradvac": moo.GradVac}


def resume(rank: int, world: int, folder: str, method: str, stage: int) -> list[str]:
    """Bits of the parameters of an uninterrupted run and of one that was saved and loaded after two steps."""
    config = {"stage": stage, "reduce_bucket_size": engines.SMALL}
    bits = []
    engine = engines.engine_of(engines.model_of(5), rate=0.05, passes=3, **config)
    state = register(engine, METHODS[method]())
    for step in range(4):
        if step == 2:
            engine.save_checkpoint(folder, tag="two", client_state={"moo": state.state_dict()})
        engines.train_step(engine, state, rank, 5, step, 3)
    bits.append(digest(engine.module.parameters()))
    engine = engines.engine_of(engines.model_of(6), rate=0.05, passes=3, **config)
    state = register(engine, METHODS[method]())
    _, client_state = engine.load_checkpoint(folder, tag="two")
    state.load_state_dict(client_state["moo"])
    for step in range(2, 4):
        engines.train_step(engine, state, rank, 5, step, 3)
    return [*bits, digest(engine.module.parameters())]


@pytest.mark.parametrize(("method", "stage"), [("pcgrad", 1), ("gradvac", 2)])
def test_a_resumed_run_has_the_same_bits(run_ranks: Runner, tmp_path: Any, method: str, stage: int) -> None:
    found = run_ranks(2, resume, str(tmp_path), method, stage)
    same_on_all_ranks(found)
    assert found[0][0] == found[0][1]
