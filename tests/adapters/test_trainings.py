"""Twenty steps of training under each wrapper against the same training in one process, and the mean against plain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import bucket_moo_ext as moo
import pytest
import torch
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

from tests.support.flat import whole_parameters, wrap
from tests.support.sharded import Reference, Transformer, full, loss_of, shard, tokens_of
from tests.support.sizes import NIGHTLY

Runner = Callable[..., list[Any]]
Parameters = dict[str, torch.Tensor]
STEPS, RATE = 20, 0.5
DIMENSIONS = ("replicate", "shard")
METHODS = ("mgda", "cagrad", "upgrad")
FLOAT64, BFLOAT16 = torch.float64, torch.bfloat16

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]


class Case(NamedTuple):
    """A training."""

    method: str
    reduce_dtype: torch.dtype = FLOAT64
    is_plain: bool = False  # the wrapper's own mean


def _fsdp2(model: Transformer, case: Case, world: int) -> Any:
    model = shard(model, world, mp_policy=MixedPrecisionPolicy(reduce_dtype=case.reduce_dtype))
    if not case.is_plain:
        moo.register(model, case.method)
    return model


def _hsdp(along: str | tuple[str, ...]) -> Callable[[Transformer, Case, int], Any]:
    def make(model: Transformer, case: Case, world: int) -> Any:
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=DIMENSIONS)
        policy = MixedPrecisionPolicy(reduce_dtype=case.reduce_dtype)
        if case.is_plain:
            return shard(model, mesh, mp_policy=policy)
        model = shard(model, mesh["shard"], mp_policy=policy)
        state = moo.register(model, case.method, mesh=mesh, objectives=along)
        state.objective = _objectives(f"hsdp {along}", world)[torch.distributed.get_rank()]
        return model

    return make


def _fsdp1(model: Transformer, case: Case, world: int) -> Any:
    flat = wrap(model, mixed_precision=MixedPrecision(reduce_dtype=case.reduce_dtype))
    if not case.is_plain:
        moo.register(flat, case.method)
    return flat


def _replicate(model: Transformer, case: Case, world: int) -> Any:
    replicated = replicate(model)
    if not case.is_plain:
        moo.register(replicated, case.method)
    return replicated


_WRAPPERS: dict[str, Callable[[Transformer, Case, int], Any]] = {
    "fsdp2": _fsdp2,
    "hsdp replicate": _hsdp("replicate"),
    "hsdp both": _hsdp(DIMENSIONS),
    "fsdp1": _fsdp1,
    "replicate": _replicate,
}


def _objectives(wrapper: str, world: int) -> list[int]:
    """Of each rank."""
    return [rank // (world // 2) if wrapper == "hsdp replicate" else rank for rank in range(world)]


def _loss(seed: int, rank: int, step: int) -> Callable[[torch.nn.Module], torch.Tensor]:
    return lambda model: loss_of(model, tokens_of(seed, rank, step))


def _trained(wrapper: str, case: Case, rank: int, world: int, seed: int) -> Parameters:
    """The parameters behind the last step. Collective."""
    model = _WRAPPERS[wrapper](Transformer(seed), case, world)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        _loss(seed, rank, step)(model).backward()
        optimizer.step()
    if wrapper == "fsdp1":
        return whole_parameters(model)
    return {name: p.detach() if wrapper == "replicate" else full(p) for name, p in model.named_parameters()}


def _expected(wrapper: str, case: Case, world: int, seed: int) -> Parameters:
    """The same in one process."""
    reference = Reference(Transformer(seed), case.method, case.reduce_dtype)
    if wrapper == "replicate":  # all in one bucket
        reference.groups = [[name for group in reference.groups for name in group]]
    for step in range(STEPS):
        reference.step([_loss(seed, r, step) for r in range(world)], RATE, _objectives(wrapper, world))
    return {name: p.detach() for name, p in reference.model.named_parameters()}


def _tolerance(case: Case) -> float:
    """In bfloat16 a sum near the middle of two numbers may be rounded to the other one, and steps carry that on."""
    return 1e-8 if case.reduce_dtype == FLOAT64 else 2e-2


def _assert_same(case: Case, got: Parameters, expected: Parameters, start: Parameters, tolerance: float) -> None:
    """Relative to how far each parameter has moved."""
    assert got.keys() == expected.keys()
    for name, parameter in expected.items():
        error, moved = (got[name] - parameter).norm(), (parameter - start[name]).norm()
        assert error <= tolerance * moved, f"{case}: {name} is off by {error / moved:.2e} of its way"


def _trainings(rank: int, world: int, seed: int, wrapper: str, cases: list[Case]) -> None:
    start = {name: p.detach() for name, p in Transformer(seed).named_parameters()}
    trained = {case: _trained(wrapper, case, rank, world, seed) for case in cases}
    if (mean := Case("mean")) in trained:
        plain = _trained(wrapper, Case("mean", is_plain=True), rank, world, seed)
        _assert_same(mean, trained.pop(mean), plain, start, 1e-12)
    for case, got in list(trained.items())[rank::world]:  # each reference is computed on one rank
        _assert_same(case, got, _expected(wrapper, case, world, seed), start, _tolerance(case))


def _worlds(wrapper: str) -> tuple[int, ...]:
    if wrapper.startswith("hsdp"):
        return (4,)
    return (2, 3, 4) if NIGHTLY else (3,)


def _cases(wrapper: str) -> list[Case]:
    """Usually all methods under FSDP2 and DDP, one under the others. DDP has no dtype of its own to reduce in."""
    if wrapper == "replicate":
        return [Case(method) for method in ("mean", *METHODS)]
    if NIGHTLY:
        return [Case("mean"), *(Case(method, dtype) for method in METHODS for dtype in (FLOAT64, BFLOAT16))]
    if wrapper == "fsdp2":
        return [Case("mean"), Case("mgda", BFLOAT16), Case("cagrad"), Case("upgrad")]
    return [Case("mgda", BFLOAT16)]


@pytest.mark.nightly
@pytest.mark.parametrize("wrapper", _WRAPPERS if NIGHTLY else [name for name in _WRAPPERS if name != "hsdp both"])
def test_training_is_that_of_one_process(run_ranks: Runner, random_seed: int, wrapper: str) -> None:
    for world in _worlds(wrapper):
        run_ranks(world, _trainings, random_seed, wrapper, _cases(wrapper))
