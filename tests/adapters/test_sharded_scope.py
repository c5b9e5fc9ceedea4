"""scope="model" under FSDP2, HSDP and FSDP1: training against one process that solves one problem for all groups."""

import contextlib
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffload, CPUOffloadPolicy, MixedPrecision, MixedPrecisionPolicy

from tests.support import checks, emulated_cuda
from tests.support.errors import error_of, expect
from tests.support.flat import NO_SHARD, SHARD_GRAD_OP, whole_parameters, wrap
from tests.support.sharded import Reference, Transformer, full, loss_of, shard, tokens_of

Runner = Callable[..., list[Any]]
Parameters = dict[str, torch.Tensor]
RATE = 0.5
DIMENSIONS = ("replicate", "shard")
OFFLOAD = CPUOffloadPolicy(pin_memory=False)

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore")]


def _backward(model: nn.Module, seed: int, row: int, step: int, language: str = "") -> None:
    loss_of(model, tokens_of(seed, row, step), language).backward()


def _loss(seed: int, row: int, step: int) -> Callable[[nn.Module], torch.Tensor]:
    return lambda model: loss_of(model, tokens_of(seed, row, step))


def _reference(seed: int, method: str) -> Reference:
    """Solves for the gradient of the whole model."""
    reference = Reference(Transformer(seed), method)
    reference.groups = [[name for group in reference.groups for name in group]]
    return reference


def _parameters(model: Any) -> Parameters:
    """Whole, in float64. Collective."""
    if isinstance(model, torch.distributed.fsdp.FullyShardedDataParallel):
        return whole_parameters(model)
    return {
        name: full(p) if hasattr(p, "full_tensor") else p.detach().double().clone()
        for name, p in model.named_parameters()
    }


def _assert_same(got: Parameters, expected: Parameters, start: Parameters, tolerance: float, what: object) -> None:
    """Relative to how far each parameter has moved."""
    assert got.keys() == expected.keys()
    for name, parameter in expected.items():
        error, moved = (got[name] - parameter).norm(), (parameter - start[name]).norm()
        assert error <= tolerance * moved, f"{what}: {name} is off by {error / moved:.2e} of its way"


def _descend(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=RATE)


_WRAPPERS: dict[str, Callable[[Transformer, int], Any]] = {
    "fsdp2": shard,
    "fsdp1": lambda model, world: wrap(model),
    "fsdp1 flat": lambda model, world: wrap(model, SHARD_GRAD_OP, use_orig_params=False),
    "fsdp1 whole": lambda model, world: wrap(model, NO_SHARD),
}


def _training(rank: int, world: int, seed: int, wrapper: str) -> None:
    for method in ("mgda", "cagrad", "upgrad"):
        reference = _reference(seed, method)
        start = _parameters(reference.model)
        model = _WRAPPERS[wrapper](Transformer(seed), world)
        state = moo.register(model, method, scope="model")
        for step in range(3):
            model.zero_grad()
            _backward(model, seed, rank, step)
            _descend(model)
            reference.step([_loss(seed, row, step) for row in range(world)], RATE)
            report = state.report()
            assert (report.step, report.scope, len(report.buckets)) == (step + 1, "model", 3)
            for bucket in report.buckets:
                assert bucket.weights.tolist() == report.buckets[0].weights.tolist()
        _assert_same(_parameters(model), _parameters(reference.model), start, 1e-7, (wrapper, method))


@pytest.mark.parametrize("wrapper", _WRAPPERS)
def test_training_is_that_of_one_process(run_ranks: Runner, random_seed: int, wrapper: str) -> None:
    run_ranks(3, _training, random_seed, wrapper)


def _passes(rank: int, world: int, seed: int, wrapper: str) -> None:
    for layout in ("ranks", "passes"):
        reference = _reference(seed, "mgda")
        start = _parameters(reference.model)
        model = _WRAPPERS[wrapper](Transformer(seed), world)
        state = moo.register(model, "mgda", layout=layout, scope="model")
        for step in range(2):
            model.zero_grad()
            objective = [(r + p) % 3 if layout == "ranks" else p for p in range(3) for r in range(world)]
            for p in range(3):
                state.objective = objective[p * world + rank]
                with state.accumulate() if p < 2 else contextlib.nullcontext():
                    _backward(model, seed, p * world + rank, step)
                if p < 2:
                    assert all(q.grad is None or not _local(q.grad).any() for q in model.parameters())
            _descend(model)
            reference.step([_loss(seed, row, step) for row in range(3 * world)], RATE, objective)
            assert state.report().passes == 3
        _assert_same(_parameters(model), _parameters(reference.model), start, 1e-7, (wrapper, layout))


def _local(gradient: Any) -> torch.Tensor:
    local: torch.Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local


@pytest.mark.parametrize("wrapper", ["fsdp2", "fsdp1"])
def test_steps_of_several_passes(run_ranks: Runner, random_seed: int, wrapper: str) -> None:
    run_ranks(2, _passes, random_seed, wrapper)


def _replicas(rank: int, world: int, seed: int, over: list[str | tuple[str, ...]]) -> None:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=DIMENSIONS)
    for along in over:
        objective = [r // (world // 2) if along == "replicate" else r for r in range(world)]
        reference = _reference(seed, "mgda")
        start = _parameters(reference.model)
        model = shard(Transformer(seed), mesh["shard"])
        state = moo.register(model, "mgda", mesh=mesh, objectives=along, scope="model")
        state.objective = objective[rank]
        for step in range(2):
            model.zero_grad()
            with state.accumulate():
                _backward(model, seed, rank, 2 * step)
            _backward(model, seed, rank, 2 * step + 1)
            _descend(model)
            losses = [_loss(seed, r, 2 * step + p) for p in range(2) for r in range(world)]
            reference.step(losses, RATE, objective * 2)
        _assert_same(_parameters(model), _parameters(reference.model), start, 1e-7, along)


def test_replicas(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(4, _replicas, random_seed, [DIMENSIONS] if checks.ON_DEVICE else ["replicate", DIMENSIONS])


# --- what the plain wrapper gives, where the method is the mean ---


def _policy(**dtypes: Any) -> dict[str, Any]:
    return {"mp_policy": MixedPrecisionPolicy(**dtypes)}


def _none(model: Any) -> None:
    pass


def _freeze(model: Transformer) -> None:
    model.blocks[0].up.requires_grad_(False)


def _divide(model: Any) -> None:
    for part in (model, *model.blocks):
        part.set_gradient_divide_factor(5.0)


def _force_sum(model: Any) -> None:
    model.set_force_sum_reduction_for_comms(True)


def _options(rank: int, world: int, seed: int) -> None:
    """The second pass adds to gradients that nobody zeroed; one without synchronisation comes before each."""
    float32, bfloat16, float16 = torch.float32, torch.bfloat16, torch.float16
    cases: list[tuple[str, dict[str, Any], Callable[[Any], None], float]] = [
        ("float64", {}, _none, 1e-12),
        ("float32", _policy(reduce_dtype=float32), _none, 1e-6),
        ("bfloat16", _policy(reduce_dtype=bfloat16), _none, 2e-2),
        ("float16", _policy(reduce_dtype=float16), _none, 2e-3),
        ("bfloat16 parameters", _policy(param_dtype=bfloat16, reduce_dtype=float32), _none, 1e-6),
        ("divided", {}, _divide, 1e-12),
        ("divided float16", _policy(reduce_dtype=float16), _divide, 2e-3),
        ("divided apart", {}, lambda model: model.set_gradient_divide_factor(8.0), 1e-12),  # before, by 2 and by 4
        ("sum", _policy(reduce_dtype=float32), _force_sum, 1e-6),
        ("offloaded", {"offload_policy": OFFLOAD}, _none, 1e-12),
        ("frozen", {}, _none, 1e-12),
    ]
    for name, options, prepare, tolerance in cases:
        models = []
        for is_ours in (False, True):
            model: Any = Transformer(seed)
            if name == "frozen":
                _freeze(model)
            model = shard(model, world, **options)
            prepare(model)
            if is_ours:
                moo.register(model, "mean", scope="model")
            for step in range(2):
                model.set_requires_gradient_sync(False)
                _backward(model, seed, rank, 2 * step)
                model.set_requires_gradient_sync(True)
                _backward(model, seed, rank, 2 * step + 1)
            models.append(model)
        for (parameter, plain), ours in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert (plain.grad is None) == (ours.grad is None), (name, parameter)
            if plain.grad is not None:
                assert (ours.grad.dtype, ours.grad.device) == (plain.grad.dtype, plain.grad.device)
                error = (full(ours.grad) - full(plain.grad)).norm()
                assert error <= tolerance * full(plain.grad).norm(), (name, parameter, float(error))


@pytest.mark.host
def test_the_mean_is_plain_fsdp2(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _options, random_seed)


def _flat_options(rank: int, world: int, seed: int) -> None:
    torch.Tensor.pin_memory = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    torch.cpu.Stream.synchronize = lambda stream: None  # type: ignore[attr-defined]
    bfloat16, float16, float32 = torch.bfloat16, torch.float16, torch.float32
    cases: list[tuple[str, dict[str, Any], float]] = [
        ("sharded", {}, 1e-12),
        ("flat", {"strategy": SHARD_GRAD_OP, "use_orig_params": False}, 1e-12),
        ("replicated", {"strategy": NO_SHARD}, 1e-12),
        ("float32", {"mixed_precision": MixedPrecision(reduce_dtype=float32)}, 1e-6),
        ("float16", {"mixed_precision": MixedPrecision(reduce_dtype=float16), "strategy": NO_SHARD}, 3e-3),
        ("bfloat16", {"mixed_precision": MixedPrecision(reduce_dtype=bfloat16)}, 3e-2),
        ("offloaded", {"cpu_offload": CPUOffload(offload_params=True)}, 1e-12),
        ("frozen", {}, 1e-12),
    ]
    for name, options, tolerance in cases:
        start = _parameters(Transformer(seed))
        results = []
        for is_ours in (False, True):
            model: Any = Transformer(seed)
            if name == "frozen":
                _freeze(model)
            model = wrap(model, **options)
            if is_ours:
                moo.register(model, "mean", scope="model")
            # Without sharding a gradient that nobody zeroed is a part of the next row, divided once more.
            for step in range(1 if options.get("strategy") == NO_SHARD else 2):
                with model.no_sync():
                    _backward(model, seed, rank, 2 * step)
                _backward(model, seed, rank, 2 * step + 1)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.data.sub_(parameter.grad)
            results.append(_parameters(model))
        _assert_same(results[1], results[0], start, tolerance, name)


@pytest.mark.host
def test_the_mean_is_plain_fsdp1(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _flat_options, random_seed)


def _sketches(rank: int, world: int, seed: int) -> None:
    """Whatever the weights are, the update is the sum of the gradients by them."""
    reference = _reference(seed, "mean")
    for wrapper in ("fsdp2", "fsdp1 whole"):
        for sketch in (moo.Sketch(64), moo.Sketch(64, lag=1)):
            for passes in (1, 2):
                model = _WRAPPERS[wrapper](Transformer(seed), world)
                state = moo.register(model, "mgda", scope="model", gramian=sketch)
                for step in range(2):
                    before = _parameters(model)
                    model.zero_grad()
                    for p in range(passes):
                        with state.accumulate() if p + 1 < passes else contextlib.nullcontext():
                            _backward(model, seed, rank, 2 * step + p)
                    _descend(model)
                    with torch.no_grad():
                        for name, parameter in reference.model.named_parameters():
                            parameter.copy_(before[name])
                    weights = {name: b.weights.tolist() for b in state.report().buckets for name in b.parameters}
                    expected = {name: parameter.clone() for name, parameter in before.items()}
                    for r in range(world):
                        for p in range(passes):
                            for name, row in reference.gradients(_loss(seed, r, 2 * step + p)).items():
                                expected[name] -= RATE * weights[name][r] / passes * torch.from_numpy(row)
                    _assert_same(_parameters(model), expected, before, 1e-5, (wrapper, sketch, passes, step))


@pytest.mark.host
def test_sketches(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _sketches, random_seed)


# --- around the pass ---


def _memory(rank: int, world: int) -> None:
    """The row of a bucket that waits for the model's weights is in shards: the whole of it may go."""
    state = moo.BucketMOO("mgda", scope="model")
    engine = state._bound(torch.device("cpu"))
    for _ in range(2):
        engine.begin_pass()
        outputs = []
        for name in ("a", "b"):
            gradient = torch.full((6,), float(rank + 1))
            is_there = weakref.ref(gradient)
            outputs.append(torch.empty(3))
            engine.reduce_bucket_to_shard(outputs[-1], gradient, [(name, 6)], ([], 0), False, True)
            del gradient
            assert is_there() is None
        engine.end_compared_pass()
        for output in outputs:
            torch.testing.assert_close(output, torch.ones(3))  # of (1, 1, ...) and (2, 2, ...) the shorter


def test_gradients_that_wait_are_shards(run_ranks: Runner) -> None:
    run_ranks(2, _memory)


def _streams(rank: int, world: int, seed: int) -> None:
    """A wrapper reduces on a stream of its own; the stream on which the pass ends is the one that waits."""
    sizes = (5000, 64)
    state = moo.BucketMOO("mgda", scope="model")
    with emulated_cuda.stream():
        engine = state._bound(torch.device("cuda", 0))
        for step in range(4):
            rows = {n: [checks.draw(seed, (step, r, n), n * world, torch.float32) for r in range(world)] for n in sizes}
            with emulated_cuda.stream():
                gradients = {n: rows[n][rank].to("cuda") for n in sizes}
                shards = {n: torch.empty(n, device="cuda") for n in sizes}
                with emulated_cuda.counting() as in_pass:
                    engine.begin_pass()
                    for n, gradient in gradients.items():
                        engine.reduce_bucket_to_shard(shards[n], gradient, [(str(n), n * world)], ([], 0), False, True)
                gradients.clear()
                del gradient
            with emulated_cuda.counting() as at_end:
                engine.end_compared_pass()
            assert "synchronisations" not in at_end
            assert ("synchronisations" in in_pass) == (step == 0)
            model = torch.cat([torch.stack(rows[n]) for n in sizes], 1).double()
            weights = moo.weights(model @ model.T, "mgda").float()
            for n, shard in shards.items():
                torch.testing.assert_close(shard.cpu(), (weights @ torch.stack(rows[n])).chunk(world)[rank])


@pytest.mark.skipif(not checks.ON_DEVICE, reason="needs the build with emulated CUDA kernels")
def test_the_stream_that_ends_a_pass_waits(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _streams, random_seed, backend=emulated_cuda.nccl)


def _unreached(rank: int, world: int, seed: int) -> None:
    model: Any = shard(Transformer(seed, ("de", "sw")), world)
    state = moo.register(model, "mgda", layout="passes", scope="model")

    def step() -> None:
        state.objective = "de"
        with state.accumulate():
            _backward(model, seed, rank, 0, "de")
        state.objective = "sw"
        _backward(model, seed, rank, 1, "sw")

    expect(error_of(step), RuntimeError, "did not reach", "adapters.de")
    if not hasattr(model, "set_reduce_scatter_unused_params"):
        return
    model.set_reduce_scatter_unused_params(True)
    model.zero_grad()
    step()
    reference = Reference(Transformer(seed, ("de", "sw")), "mgda")
    reference.groups = [[name for group in reference.groups for name in group]]
    losses = [
        lambda m, r=r, p=p, language=language: loss_of(m, tokens_of(seed, r, p), language)
        for p, language in enumerate(("de", "sw"))
        for r in range(world)
    ]
    reference.step(losses, 0.0, [0] * world + [1] * world)
    for name, parameter in model.named_parameters():
        expected = reference.update[name]
        assert (full(parameter.grad) - expected).norm() <= 1e-7 * expected.norm(), name


@pytest.mark.host
def test_groups_that_a_pass_does_not_reach(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _unreached, random_seed)


def _broken(rank: int, world: int, seed: int) -> None:
    """Ranks disagree in the midst of a step, then go on."""
    model: Any = shard(Transformer(seed), world)
    state = moo.register(model, "mgda", layout="passes", scope="model")
    state.objective = rank
    expect(error_of(lambda: _backward(model, seed, rank, 0)), ValueError, "layout='passes'", "rank 1 '1'")
    if not hasattr(model, "reset_iter_state"):
        return
    model.reset_iter_state()
    model.zero_grad()
    state.objective = "both"
    _backward(model, seed, rank, 0)
    reference = _reference(seed, "mean")
    reference.step([_loss(seed, r, 0) for r in range(world)], 0.0)
    for name, parameter in model.named_parameters():
        assert (full(parameter.grad) - reference.update[name]).norm() <= 1e-9 * reference.update[name].norm()


@pytest.mark.host
def test_a_pass_after_a_broken_one(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(2, _broken, random_seed, group_timeout=timedelta(seconds=20))


def _one_ends_before(rank: int, world: int, is_whole: bool) -> tuple[Any, Any]:
    """A rank has a bucket more than the other, which has ended the pass."""
    state = moo.BucketMOO(moo.Smoothed("mgda", 0.5), scope="model")
    engine = state._bound(torch.device("cpu"))

    def reduce(name: str) -> None:
        gradient = torch.full((6,), float(rank + 1))
        if is_whole:  # whose results are gathered
            engine.reduce_compared_bucket(gradient, [(name, 6)], ([], 0), True)
        else:
            engine.reduce_bucket_to_shard(torch.empty(3), gradient, [(name, 6)], ([], 0), False, True)

    engine.begin_pass()
    reduce("a")
    error = error_of(engine.end_compared_pass if rank == 0 else lambda: reduce("b"))
    return error, state.state_dict()["buckets"]


@pytest.mark.host
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_step_that_one_rank_has_ended_is_not_solved(run_ranks: Runner, is_whole: bool) -> None:
    """Or ranks would remember different things, or wait for each other's results."""
    for error, memory in run_ranks(2, _one_ends_before, is_whole, group_timeout=timedelta(seconds=20)):
        expect(error, ValueError, "the same calls in the same order")
        assert memory == []


def _refused(rank: int, world: int, seed: int) -> None:
    def refused(prepare: Callable[[Any], object], kind: type[BaseException], *words: str) -> None:
        model: Any = shard(Transformer(seed), world)
        moo.register(model, "mgda", scope="model")
        prepare(model)
        expect(error_of(lambda: _backward(model, seed, rank, 0)), kind, *words)

    hook = "register_post_accumulate_grad_hook"
    refused(lambda model: getattr(next(model.parameters()), hook)(_none), RuntimeError, "use scope='bucket'", hook)
    refused(lambda model: model.set_all_reduce_hook(_none), RuntimeError, "this scope", "set_all_reduce_hook")


@pytest.mark.host
def test_refusals(run_ranks: Runner, random_seed: int) -> None:
    run_ranks(4, _refused, random_seed)
