"""Copies of a hooked DDP module: which of them say that they average, and which are silent."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.support.ddp import CAP_MB, WAYS, batch_of, check_step, gradients, hook, loss_of, mlp

RunRanks = Callable[..., list[Any]]


COPIES: dict[str, Callable[[DDP], DDP]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda ddp: pickle.loads(pickle.dumps(ddp)),
    "torch.save": lambda ddp: _saved(ddp),
    "a copy of a copy": lambda ddp: copy.deepcopy(pickle.loads(pickle.dumps(ddp))),
}


def _saved(ddp: DDP) -> DDP:
    buffer = io.BytesIO()
    torch.save(ddp, buffer)
    buffer.seek(0)
    loaded: DDP = torch.load(buffer, weights_only=False)
    return loaded


def _copied(rank: int, world: int, seed: int, way: str, how: str) -> None:
    ddp = DDP(mlp(seed), bucket_cap_mb=CAP_MB)
    state = hook(ddp, way)
    check_step(ddp, ddp, state, rank, world, seed, 0)

    # A copy that trains says so, once; one that does not (an average of weights, an evaluation) says nothing.
    idle = COPIES[how](ddp) if rank == 0 else None
    twin = COPIES[how](ddp)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if idle is not None:
            with torch.no_grad():
                idle(batch_of(seed, rank, 1)[0])
            with idle.no_sync():
                loss_of(idle, batch_of(seed, rank, 1)).backward()
        twin.eval()
        with torch.no_grad():
            twin(batch_of(seed, rank, 1)[0])
        assert not said
        twin.train()
        local = [gradients(twin.module, lambda m, r=r: loss_of(m, batch_of(seed, r, 1))) for r in range(world)]  # type: ignore[misc]
        for _ in range(2):
            twin.zero_grad()
            loss_of(twin, batch_of(seed, rank, 1)).backward()
            assert len(said) == 1
    for words in ("copy", "averages gradients", "moo.register("):
        assert words in str(said[0].message)
    for name, parameter in twin.module.named_parameters():  # it is true
        mean = np.mean([grads[name] for grads in local], axis=0)
        np.testing.assert_allclose(parameter.grad.reshape(-1).numpy(), mean, atol=1e-12)

    # Registered again, as it says, it reduces as the original does. Neither says anything.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in WAYS:
            twin = COPIES[how](ddp)
            check_step(twin, twin, hook(twin, again), rank, world, seed, 2)
        check_step(ddp, ddp, state, rank, world, seed, 2)
        # A module that never had our hook is copied as ever.
        plain = COPIES[how](DDP(mlp(seed)))
        loss_of(plain, batch_of(seed, rank, 0)).backward()


def _count(run: Callable[[], Any]) -> int:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run()
    return len([w for w in said if "averages gradients" in str(w.message)])


def _wrapped_hook(state: moo.BucketMOO, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return moo.bucket_moo_hook(state, bucket)


def _peculiar_copies(rank: int, world: int, seed: int) -> list[int]:
    batch = batch_of(seed, rank, 0)
    ddp = DDP(mlp(seed))
    moo.register(ddp)
    counts = []

    def train(model: DDP) -> Callable[[], None]:
        return lambda: loss_of(model, batch).backward()

    # A teacher, and an average that is evaluated with gradients: no copy that trains.
    teacher = copy.deepcopy(ddp).eval().requires_grad_(False)
    average = torch.optim.swa_utils.AveragedModel(ddp)
    counts.append(_count(lambda: (ddp(batch[0]) - teacher(batch[0])).square().mean().backward()))
    counts.append(_count(lambda: average(batch[0])))
    teacher.requires_grad_(True)
    counts.append(_count(train(teacher)))
    # A shallow copy shares the parameters with the original, which may train first.
    shallow = copy.copy(ddp)
    ddp.zero_grad()
    counts.append(_count(train(ddp)))
    counts += [_count(train(shallow)), _count(train(shallow))]
    # forward() by itself, and a hook of the user's around ours.
    direct = copy.deepcopy(ddp)
    counts.append(_count(lambda: ((direct.forward(batch[0]) - batch[1]).square().mean()).backward()))
    ddp = DDP(mlp(seed))
    ddp.register_comm_hook(moo.BucketMOO(), _wrapped_hook)
    counts.append(_count(train(copy.deepcopy(ddp))))
    # One that is gone.
    twin = copy.copy(ddp)
    del twin
    counts.append(_count(train(ddp)))
    return counts


def test_copies_that_train_or_do_not(run_ranks: RunRanks, seed: int) -> None:
    assert run_ranks(2, _peculiar_copies, seed) == [[0, 0, 1, 0, 1, 0, 1, 1, 0]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("way", WAYS)
def test_copies_of_a_module(run_ranks: RunRanks, way: str, how: str, seed: int) -> None:
    run_ranks(2, _copied, seed, way, how)
