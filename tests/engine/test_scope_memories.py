"""What methods with a memory keep of problems that scope= and support= make, and how it resumes."""

from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support import scopes
from tests.support.checks import ON_DEVICE
from tests.support.ddp import gradient_digest
from tests.support.errors import error_of, expect

pytestmark = pytest.mark.device

RunRanks = Callable[..., list[Any]]
SEED = 5


def by_layer(name: str) -> str:
    return name.split(".")[0]


def _resume(rank: int, world: int, method: Any, scope: Any, support: bool) -> Any:
    options: dict[str, Any] = {"scope": scope, "support": support}

    def new() -> tuple[Any, moo.BucketMOO]:
        ddp = DDP(scopes.Given(), bucket_cap_mb=0.03)
        return ddp, moo.register(ddp, method, **options)

    def step(ddp: Any, number: int) -> None:
        ddp.zero_grad()
        ddp(scopes.row(SEED + number, rank, 0, rank, torch.float64)).backward()

    ddp, state = new()
    for number in range(3):
        step(ddp, number)
    saved = state.state_dict()
    step(ddp, 3)
    expected = gradient_digest(ddp)
    ddp, state = new()
    step(ddp, 7)  # so that DDP has its buckets
    state.load_state_dict(saved)
    step(ddp, 3)
    return expected == gradient_digest(ddp), [bucket["parameters"] for bucket in saved["buckets"]]


@pytest.mark.parametrize(
    ("scope", "support"),
    [("model", True), (by_layer, True), (by_layer, False), ("bucket", True)],
    ids=["model-support", "layer-support", "layer", "bucket-support"],
)
@pytest.mark.parametrize("method", [moo.GradVac(), moo.Smoothed("mgda", 0.9)], ids=["gradvac", "smoothed"])
def test_memories_go_by_problem_and_resume(run_ranks: RunRanks, method: Any, scope: Any, support: bool) -> None:
    if ON_DEVICE and support:
        model = scopes.Given()
        moo.register(model, method, scope=scope, support=True)
        refused = error_of(model(scopes.row(SEED, 0, 0, 0, torch.float64)).backward)
        expect(refused, NotImplementedError, "GradVac.*on the host")
        return
    for same, parameters in run_ranks(2, _resume, method, scope, support):
        assert same
        names = [name for names in parameters for name in names]
        assert sorted(names) == sorted(scopes.SIZES)
        if scope == "model":  # two objectives: both, the first, the second, neither
            assert sorted(map(len, parameters)) == [1, 2, 2, 5]


def test_a_saved_state_of_another_scope() -> None:
    state = moo.BucketMOO(scope="parameter")
    saved = state.state_dict()
    assert (saved["scope"], saved["support"]) == ("parameter", False)
    expect(error_of(lambda: moo.BucketMOO().load_state_dict(saved)), ValueError, "scope 'parameter'.*'bucket'")
    expect(
        error_of(lambda: moo.BucketMOO(scope="parameter", support=True).load_state_dict(saved)), ValueError, "support"
    )
