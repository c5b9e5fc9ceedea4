"""MooCallback in Lightning's Trainer, against plain loops with ``moo.register`` on the same batches."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning", reason="needs requirements/frameworks.txt")

import bucket_moo_ext as moo
import lightning
import torch
from bucket_moo_ext.contrib.lightning import PRIVATE, MooCallback
from bucket_moo_ext.data import ObjectiveBatchSampler, ObjectiveStream
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

Runner = Callable[..., list[Any]]
LANGUAGES = ("de", "sw", "tr")
EACH = 24  # examples of a language
SMALL_BUCKETS = 0.0005  # of a few hundred bytes


class Examples(Dataset[dict[str, Any]]):
    """Inputs that are alike and targets that are not, language by language."""

    def __len__(self) -> int:
        return EACH * len(LANGUAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng(index)
        language = index // EACH
        x = generator.normal(size=8).astype(np.float32)
        y = np.roll(x[:4], language) * (1 if language else -1)
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(y), "language": LANGUAGES[language], "index": index}


LABELS = [LANGUAGES[index // EACH] for index in range(EACH * len(LANGUAGES))]


def _net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    )


def _loss(net: Callable[[Any], Any], batch: Any) -> torch.Tensor:
    return functional.mse_loss(net(batch["x"]), batch["y"])


class Module(LightningModule):  # type: ignore[misc]
    """One that knows nothing of objectives."""

    def __init__(self, per: str = "rank", passes: int = 1, steps: int = 4, workers: int = 0) -> None:
        super().__init__()
        self.net = _net()
        self.dealing: dict[str, Any] = {"per": per, "passes": passes, "steps": steps}
        self.workers = workers
        self.draws: list[float] = []  # random numbers, one a call
        self.losses = 0  # that were logged

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.draws.append(torch.rand(()).item())
        loss = _loss(self.net, batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def log(self, name: str, *arguments: Any, **options: Any) -> None:
        self.losses += name == "loss"
        super().log(name, *arguments, **options)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)

    def train_dataloader(self) -> Any:
        sampler = ObjectiveBatchSampler(LABELS, 4, seed=5, **self.dealing)
        return DataLoader(Examples(), batch_sampler=sampler, num_workers=self.workers)


class Sharded(Module):
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        if not hasattr(self.net, "unshard"):
            fully_shard(self.net[0], mesh=mesh)
            fully_shard(self.net, mesh=mesh)
            fully_shard(self, mesh=mesh)


class Recorder(Callback):  # type: ignore[misc]
    """What the module and the optimizer got."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.gradients: list[dict[str, np.ndarray]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(_gradients(pl_module.net))


class Log(lightning.pytorch.loggers.logger.DummyLogger):  # type: ignore[misc]
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:  # type: ignore[override,unused-ignore]
        self.entries.append((step, dict(metrics)))


def _whole(tensor: torch.Tensor) -> np.ndarray:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return np.asarray(whole.detach().numpy().copy())


def _gradients(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: _whole(value.grad) for name, value in net.named_parameters() if value.grad is not None}


def _parameters(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: _whole(value) for name, value in [*module.named_parameters(), *module.named_buffers()]}


def _assert_near(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 2e-6) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        error = np.linalg.norm(got[name] - gradient)
        assert error <= tolerance * np.linalg.norm(gradient) + 1e-9, (name, error)


def _ranks(rank: int, world: int) -> None:
    """What torchrun would set. The process group is there already."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500",
    )  # fmt: skip


def _trainer(world: int, *callbacks: Any, folder: str | None = None, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "devices": world, "strategy": _ddp() if world > 1 else "auto", "max_steps": 4,
        "use_distributed_sampler": False, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "callbacks": list(callbacks),
        "default_root_dir": folder or tempfile.mkdtemp(prefix="bucket_moo_"),
    }  # fmt: skip
    return Trainer(**{**settings, **options})


def _ddp(**options: Any) -> Any:
    return DDPStrategy(bucket_cap_mb=SMALL_BUCKETS, **options)


def _replay(
    batches: Any, wrapped: Any, net: nn.Module, state: Any, passes: int, weigh: Any, in_bfloat16: bool = False
) -> Any:
    """Yields what the gradients of each step are in a plain loop."""
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.5)
    for start in range(0, len(batches), passes):
        for number, batch in enumerate(batches[start : start + passes]):
            state.objective, state.weight = batch["language"][0], weigh(batch)
            with contextlib.nullcontext() if number == passes - 1 else state.accumulate():
                with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                    loss = _loss(wrapped, batch)
                loss.backward()
        yield _gradients(net)
        optimizer.step()
        optimizer.zero_grad()


def _counts(batch: Any) -> torch.Tensor:
    """For every example, as collation makes it of numbers."""
    counts: torch.Tensor = batch["index"] % 5 + 1
    return counts


def _tokens(batch: Any) -> float:
    return float(_counts(batch).sum())


# --- gradients ---


def _under_ddp(rank: int, world: int, passes: int, layout: str) -> Any:
    _ranks(rank, world)
    recorder, module = Recorder(), Module("pass" if layout == "passes" else "rank", passes)
    callback = MooCallback("mgda", weight=_counts, layout=layout)
    trainer = _trainer(world, callback, recorder, accumulate_grad_batches=passes)
    trainer.fit(module)
    net = _net()
    wrapped = DistributedDataParallel(net, bucket_cap_mb=SMALL_BUCKETS)
    state = moo.register(wrapped, "mgda", layout=layout)
    expected = list(_replay(recorder.batches, wrapped, net, state, passes, _tokens))
    for got, gradient in zip(recorder.gradients, expected, strict=True):
        _assert_near(got, gradient)
    assert len(expected) == 4
    assert len(state.report().buckets) == len(callback.report().buckets) > 1, str(callback.report())
    assert callback.report().passes == passes
    assert "block_backward_sync" not in vars(trainer.strategy)
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(module)  # in another DDP module
    assert trainer.global_step == callback.state.step == 6
    batches = recorder.batches[: 4 * passes]
    return [batch["language"] for batch in batches], [batch["index"].tolist() for batch in batches]


@pytest.mark.parametrize(("passes", "layout"), [(1, "ranks"), (2, "ranks"), (3, "passes")])
def test_gradients_under_ddp_are_those_of_a_plain_loop(run_ranks: Runner, passes: int, layout: str) -> None:
    (first, mine), (second, other) = run_ranks(2, _under_ddp, passes, layout)
    assert all(len({*languages}) == 1 for languages in (*first, *second))
    assert (first == second) == (layout == "passes")
    assert {languages[0] for languages in (*first, *second)} == {*LANGUAGES}
    assert all({*a}.isdisjoint(b) for a, b in zip(mine, other, strict=True))


def _alone(folder: str, precision: str) -> None:
    recorder, module = Recorder(), Module("pass", 3)
    callback = MooCallback("upgrad", bucket_cap_mb=SMALL_BUCKETS)
    options: dict[str, Any] = {"accumulate_grad_batches": 3, "precision": precision}
    trainer = _trainer(1, callback, recorder, folder=folder, **options)
    trainer.fit(module)
    net = _net()
    state = moo.register(net, "upgrad", bucket_cap_mb=SMALL_BUCKETS)
    expected = list(_replay(recorder.batches, net, net, state, 3, lambda batch: 1.0, precision == "bf16-mixed"))
    for got, gradient in zip(recorder.gradients, expected, strict=True):
        _assert_near(got, gradient)
    assert callback.report().objectives == LANGUAGES
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(module)  # goes on with the same state
    assert callback.state.step == 8
    assert trainer.global_step == 8


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_process_with_a_pass_a_language(alone: Callable[..., None], precision: str) -> None:
    alone(_alone, precision)


def _by_hand(rank: int, world: int, passes: int) -> Any:
    _ranks(rank, world)
    callback, recorder = MooCallback("mgda"), Recorder()

    class Manual(Module):
        def __init__(self) -> None:
            super().__init__(passes=passes)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            closes = batch_idx % passes == passes - 1
            with contextlib.nullcontext() if closes else callback.state.accumulate():
                self.manual_backward(_loss(self.net, batch))
            if closes:
                self.optimizers().step()
                self.optimizers().zero_grad()

    log = Log()
    _trainer(world, callback, recorder, logger=log, log_every_n_steps=1).fit(Manual())
    net = _net()
    wrapped = DistributedDataParallel(net, bucket_cap_mb=SMALL_BUCKETS)
    state = moo.register(wrapped, "mgda")
    expected = list(_replay(recorder.batches, wrapped, net, state, passes, lambda batch: 1.0))
    for got, gradient in zip(recorder.gradients, expected, strict=True):
        _assert_near(got, gradient)
    return len(expected), len({metrics["moo/residual"] for _, metrics in log.entries if "moo/residual" in metrics})


@pytest.mark.parametrize("passes", [1, 2])
def test_manual_optimization(run_ranks: Runner, passes: int) -> None:
    assert run_ranks(2, _by_hand, passes) == [(4, 4), (4, 4)]


# --- what a run without the callback sees of one with it ---


def _beside(rank: int, world: int) -> None:
    _ranks(rank, world)

    def run(*callbacks: Any) -> Any:
        module, log = Module(passes=2), Log()
        trainer = _trainer(world, *callbacks, accumulate_grad_batches=2, logger=log, log_every_n_steps=1)
        trainer.fit(module)
        return _parameters(module), log.entries

    before, _ = run()
    with_it, _ = run(MooCallback("mgda"))
    after, entries = run()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert not all(np.array_equal(before[name], with_it[name]) for name in before)
    assert not any(name.startswith("moo/") for _, metrics in entries for name in metrics)


def test_a_run_without_the_callback_is_untouched(run_ranks: Runner) -> None:
    run_ranks(2, _beside)


# --- logs ---


def _logged(rank: int, world: int, log_every: int | None) -> Any:
    _ranks(rank, world)
    log = Log()
    callback = MooCallback("mgda", log_every=log_every)
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "logger": log, "log_every_n_steps": 2}
    _trainer(world, callback, **options).fit(Module(passes=2, steps=6))
    steps = [step for step, metrics in log.entries if "moo/residual" in metrics]
    report = callback.report()
    if steps and steps[-1] == 3:
        metrics = [metrics for _, metrics in log.entries if "moo/residual" in metrics][-1]
        assert metrics["moo/residual"] == pytest.approx(report.residual)
        assert metrics["moo/conflict_share"] == pytest.approx(report.conflict_share)
        assert metrics["moo/norm_de"] == pytest.approx(float(report.gramian[0, 0]) ** 0.5)
        weights = [(b.weights[b.objectives.index("de")] * b.numel, b.numel) for b in report.buckets]
        expected = sum(float(weight) for weight, _ in weights) / sum(numel for _, numel in weights)
        assert metrics["moo/weight_de"] == pytest.approx(expected)
    return steps, report.objectives


@pytest.mark.parametrize(("log_every", "expected"), [(None, [1, 3]), (4, [3]), (0, [])])
def test_logs(run_ranks: Runner, log_every: int | None, expected: list[int]) -> None:
    first, second = run_ranks(2, _logged, log_every)
    assert first == second == (expected, LANGUAGES)


# --- checkpoints ---

METHOD = moo.Smoothed(moo.PCGrad(), 0.5)  # that remembers, and draws
STOP = 4  # after as many steps


def _known(log: Log) -> dict[int, dict[str, float]]:
    """Without what is NaN: objectives of other steps."""
    found: dict[int, dict[str, float]] = {}
    for step, metrics in log.entries:
        found.setdefault(step, {}).update({name: value for name, value in metrics.items() if value == value})
    return found


def _resume_ranks(rank: int, world: int, *arguments: Any) -> Any:
    _ranks(rank, world)
    return _resume(world, *arguments)


def _resume(world: int, folder: str, strategy: str, passes: int, steps: int, workers: int) -> Any:
    def run(resume: str | None = None) -> Any:
        kind = Sharded if strategy == "fsdp2" else Module
        module, recorder, callback = kind(passes=passes, steps=steps, workers=workers), Recorder(), MooCallback(METHOD)
        saver = ModelCheckpoint(folder, "stopped", every_n_train_steps=10**6 if resume else STOP, save_top_k=-1)
        options: dict[str, Any] = {"max_steps": 6, "accumulate_grad_batches": passes, "enable_checkpointing": True}
        if strategy == "fsdp2":
            options["strategy"] = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
        log = Log()
        trainer = _trainer(world, callback, recorder, saver, folder=folder, logger=log, log_every_n_steps=1, **options)
        trainer.fit(module, ckpt_path=resume)
        batches = [batch["index"].tolist() for batch in recorder.batches]
        return _parameters(module), callback.state.state_dict(), batches, _known(log), module.draws, module.losses

    whole, state, batches, log, *_ = run()
    resumed, state_after, rest, log_after, draws, losses = run(f"{folder}/stopped.ckpt")
    assert rest == batches[STOP * passes :]
    assert state_after == state
    assert state["step"] == 6
    assert state["buckets"]
    expected = {step: metrics for step, metrics in log.items() if step >= STOP}
    if steps != STOP:  # Lightning's means over an epoch begin anew
        for metrics in (*expected.values(), *log_after.values()):
            metrics.pop("loss_epoch", None)
    assert log_after == expected, (log_after, expected)
    assert len(draws) == len(rest) + (strategy == "ddp")
    assert losses == len(rest)
    assert (draws[0] == draws[1]) == (strategy == "ddp")
    return {
        name: bool(np.array_equal(value, resumed[name]))
        for name, value in whole.items()
        if strategy != "fsdp2" or "running" not in name  # of which checkpoints have one rank's
    }


@pytest.mark.parametrize(
    ("strategy", "passes", "steps"),
    [("ddp", 1, 8), ("ddp", 1, 4), ("ddp", 2, 8), ("ddp", 2, 5), ("ddp", 2, 4), ("fsdp2", 2, 8)],
)
def test_a_resumed_run_has_the_same_bits(
    run_ranks: Runner, tmp_path: Path, strategy: str, passes: int, steps: int
) -> None:
    """In the midst of an epoch and at its end."""
    for same in run_ranks(2, _resume_ranks, str(tmp_path), strategy, passes, steps, 0):
        assert all(same.values()), same


@pytest.mark.filterwarnings("ignore")  # Lightning's, of what it would have otherwise
@pytest.mark.parametrize("steps", [4, 5])
def test_a_resumed_run_with_workers_that_read_ahead(tmp_path: Path, steps: int) -> None:
    same = _resume(1, str(tmp_path), "none", 2, steps, 2)
    assert all(same.values()), same


def _saved_within_a_step(folder: str) -> None:
    class Saver(Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                trainer.save_checkpoint(f"{folder}/open.ckpt")

    callback = MooCallback(METHOD)
    _trainer(1, callback, Saver(), folder=folder, accumulate_grad_batches=3).fit(Module("pass", 3))
    saved = torch.load(f"{folder}/open.ckpt", weights_only=True)["callbacks"]["MooCallback"]
    assert saved["place"] == {"epoch": 0, "position": 5}
    assert 0 < saved["state"]["step"] < callback.state.step
    resumed = MooCallback(METHOD)
    _trainer(1, resumed, folder=folder, accumulate_grad_batches=3).fit(
        Module("pass", 3), ckpt_path=f"{folder}/open.ckpt"
    )
    assert resumed.state.step > saved["state"]["step"]
    plain = _trainer(1, folder=folder, enable_checkpointing=True)
    plain.fit(Module("pass"))
    plain.save_checkpoint(f"{folder}/plain.ckpt")
    with pytest.warns(UserWarning, match="has no state of MooCallback"):
        _trainer(1, MooCallback(), folder=folder, max_steps=5).fit(Module("pass"), ckpt_path=f"{folder}/plain.ckpt")


def test_a_checkpoint_within_a_step_and_one_without_the_callback(alone: Callable[..., None]) -> None:
    alone(_saved_within_a_step)


# --- what Lightning's private names are to be ---


def test_lightning_has_the_private_names_that_are_used() -> None:
    fit_loop = _trainer(1).fit_loop
    gone = [name for name in PRIVATE if not hasattr(fit_loop, name)]
    assert not gone, f"lightning {lightning.__version__}: Trainer.fit_loop has no {gone}: change contrib/lightning.py"


def test_a_stream_of_examples(alone: Callable[..., None]) -> None:
    alone(_stream)


def _stream(folder: str) -> None:
    examples = Examples()
    stream = ObjectiveStream(list(examples), "language", LANGUAGES, 4, 4, passes=3)  # type: ignore[call-overload]
    callback, recorder = MooCallback(), Recorder()
    trainer = _trainer(1, callback, recorder, folder=folder, accumulate_grad_batches=3, max_steps=6)
    trainer.fit(Module(), DataLoader(stream, batch_size=4))
    assert len(recorder.gradients) == 6
    assert callback.report().objectives == LANGUAGES
    assert stream.epoch == 1
