"""The learning-rate schedule of pre-training and fine-tuning."""

from __future__ import annotations


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth, then linear decay to a tenth of `peak`."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    rest = (step - warm_up) / max(1, steps - warm_up)
    return peak * (1 - 0.9 * rest)
