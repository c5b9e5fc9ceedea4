"""One run: fine-tuning in one process, a backward pass for each objective, and what is measured of it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import bucket_moo_ext as moo
import torch
from arms import SCOPES
from evaluation import evaluate
from materials import Materials
from models import mean_loss
from noise import Noise
from registration import Registration
from schedule import learning_rate
from separability import describe, hidden_states
from tasks import Run, loss_weights
from torch import Tensor, nn
from world import World


class Trainer:
    """A model with its optimizer and the reduction of its objectives' gradients."""

    def __init__(self, model: nn.Module, run: Run, registration: Registration) -> None:
        """`model`: is trained in place."""
        training = registration.training
        self.model, self._run, self._steps = model, run, training.steps
        self._weights = loss_weights(run.scenario, run.focus_weight)
        self.state = moo.register(
            model,
            run.arm.build(),
            scope="parameter" if run.purpose == "noise" else SCOPES[run.arm.scope],
            layout="passes",
            seed=run.seed,
            row_norms=run.purpose == "noise",
            bucket_cap_mb=training.bucket_cap_mb,
        )
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=run.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def step(self, number: int, passes: Sequence[tuple[str, Tensor]]) -> dict[str, float]:
        """A training step of one pass after the other; the mean loss of each objective."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(number, self._steps, self._run.lr)
        self.optimizer.zero_grad(set_to_none=True)
        found: dict[str, list[Tensor]] = {}
        for place, (name, blocks) in enumerate(passes):
            self.state.objective = name
            is_last = place == len(passes) - 1
            with contextlib.nullcontext() if is_last else self.state.accumulate():
                loss = mean_loss(self.model, blocks)
                (loss * self._weights[name]).backward()
            found.setdefault(name, []).append(loss.detach())
        if self._run.arm.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._run.arm.clip)
        self.optimizer.step()
        return {name: float(torch.stack(losses).mean()) for name, losses in found.items()}

    @torch.no_grad()
    def losses(self, blocks: Mapping[str, Tensor]) -> dict[str, float]:
        """Of every objective, without training."""
        return {name: float(mean_loss(self.model, part)) for name, part in blocks.items()}


def fine_tune(run: Run, registration: Registration, materials: Materials, world: World) -> dict[str, Any]:
    """The run's result, of plain types. A loss that is not finite ends it: `diverged` is the step."""
    began = time.perf_counter()
    scenario, training = run.scenario, registration.training
    shape: dict[str, Any] = {"batch": training.batch_size * run.rows, "length": training.length}
    sample = materials.samplers(run.model, scenario, run.seed, **shape)
    fresh = materials.samplers(run.model, scenario, run.seed, **shape, stream=" fresh")
    model = materials.fresh(run.model, run.base)
    trainer = Trainer(model, run, registration)
    look = _Separability(run, registration, materials)
    result: dict[str, Any] = {"diverged": None, "losses": [], "taken": [], "separability": look(model, "before")}
    noise = Noise(training.steps) if run.purpose == "noise" else None
    probe = moo.StepProbe(trainer.state, model)
    for step in range(training.steps):
        blocks = {name: draw(step).to(world.device) for name, draw in sample.items()}
        passes = [(name, part[row :: run.rows]) for name, part in blocks.items() for row in range(run.rows)]
        if run.purpose == "test" and step % registration.anatomy.probe_every == 0:
            others = {name: draw(step).to(world.device) for name, draw in fresh.items()}
            before = trainer.losses(others)
            with probe:
                losses = trainer.step(step, passes)
            result["taken"].append(_taken(probe.result, trainer, losses, blocks, before, others))
        else:
            losses = trainer.step(step, passes)
        result["losses"].append(list(losses.values()))
        if not all(math.isfinite(value) for value in losses.values()):
            result["diverged"] = step
            return result
        if noise is not None:
            noise.add(step, trainer.state.report())
    if noise is not None:
        result["noise"] = noise.to_dict()
    else:
        is_tuning = run.purpose == "tuning"
        test = materials.test_set(
            run.model,
            scenario.measured if is_tuning else (*scenario.objectives, *scenario.kept),
            "validation" if is_tuning else "test",
            size=training.validation_bytes if is_tuning else training.eval_bytes,
            length=training.length,
        )
        result["bits_per_byte"] = evaluate(model, test, world, batch=32, title="")
    result["separability"] += look(model, "after")
    result["seconds"] = round(time.perf_counter() - began, 2)
    return result


def _taken(
    found: moo.TakenStep,
    trainer: Trainer,
    losses: Mapping[str, float],
    blocks: Mapping[str, Tensor],
    fresh_before: Mapping[str, float],
    fresh: Mapping[str, Tensor],
) -> dict[str, Any]:
    """First-order changes beside real ones: on the step's own blocks, and on others of the same objectives.

    "gradient" and "taken" are of the losses times their weights, the others of the losses.
    """
    report = trainer.state.report()
    after, fresh_after = trainer.losses(blocks), trainer.losses(fresh)
    values = found.to_dict()
    return {
        "step": found.step,
        "objectives": list(found.objectives),
        **{name: values[name] for name in ("gradient", "taken", "gradient_cosines", "taken_cosines")},
        "gradient_norm": found.gradient_norm,
        "taken_norm": found.taken_norm,
        "measured": [after[name] - losses[name] for name in found.objectives],
        "fresh": [fresh_after[name] - fresh_before[name] for name in found.objectives],
        "conflicts": sum(bucket.conflicts for bucket in report.buckets),
        "pairs": sum(bucket.pairs for bucket in report.buckets),
        "buckets": len(report.buckets),
    }


class _Separability:
    """Looks at hidden states where a run asks for it."""

    def __init__(self, run: Run, registration: Registration, materials: Materials) -> None:
        self._texts: dict[str, list[str]] = {}
        if run.separability:
            languages = run.scenario.objectives
            self._texts = materials.parallel(languages, registration.anatomy.segments)
            self._tokenizer = materials.tokenizer(run.model)

    def __call__(self, model: nn.Module, when: str) -> list[dict[str, Any]]:
        if not self._texts:
            return []
        states = hidden_states(model, self._tokenizer, self._texts)
        return [{"when": when, "layer": i, **describe(layer)} for i, layer in enumerate(states)]
