"""How far cosines spread from one recorded step to another."""

import math
from dataclasses import dataclass

import torch

MOST_OBJECTIVES = 256  # a step has at most 64


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the cosines of K objectives, each ``[K, K]``; NaN where there is too little to say it.

    Attributes:
        count: Records in which the pair had a cosine.
        mean: Their mean, recent ones counting more.
        spread: Their standard deviation.
        error: Standard error of the mean.
    """

    count: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    error: torch.Tensor


class CosineNoise:
    """Weighted mean and spread of each pair's cosine, over all objectives that one part of the gradients has had.

    A record counts ``decay`` times as much as the one after it in which the pair has a cosine. With the weights w:
    mean m = sum(w x) / sum(w), variance sum(w (x - m)^2) / (sum(w) - sum(w^2) / sum(w)), which is unbiased for
    independent x, and standard error of m sqrt(variance sum(w^2)) / sum(w). Beside it the weighted mean of the signals'
    inner products, as ``BucketReport.signal`` estimates them.

    Source: the recurrence of D. H. D. West, Communications of the ACM 22 (1979), 532, with weights that decay.
    """

    NUMBERS = ("count", "weight", "squared_weight", "mean", "squares", "signal_weight", "signal")

    def __init__(self, window: int | None) -> None:
        """``window``: as many records as equal weights would give the same standard error; None: all, equally."""
        self._decay = 1.0 if window is None else (window - 1) / (window + 1)
        self.objectives: tuple[str, ...] = ()
        self.numbers = torch.zeros(len(self.NUMBERS), 0, 0, dtype=torch.float64)
        self._seen: dict[str, int] = {}  # by objective: when it was last there
        self._added = 0

    def add(self, objectives: tuple[str, ...], cosines: torch.Tensor, signal: torch.Tensor | None = None) -> None:
        """One record's ``[K, K]`` cosines, and ``[K, K]`` products of signals. Those that are NaN count for nothing."""
        self._added += 1
        self._seen.update(dict.fromkeys(objectives, self._added))
        self._make_room(objectives)
        place = self._places(objectives)
        count, weight, squared_weight, mean, squares, *old_signal = self.numbers[:, place[:, None], place]
        has = cosines.isfinite()
        new_weight = self._decay * weight + 1
        apart = cosines - mean
        new_mean = mean + apart / new_weight
        new = (
            count + 1,
            new_weight,
            self._decay**2 * squared_weight + 1,
            new_mean,
            self._decay * squares + apart * (cosines - new_mean),
        )
        old = (count, weight, squared_weight, mean, squares)
        signal_weight, signal_mean = old_signal
        signal = torch.full_like(cosines, math.nan) if signal is None else signal
        has_signal = signal.isfinite()
        new_signal_weight = self._decay * signal_weight + 1
        new_signal = (new_signal_weight, signal_mean + (signal - signal_mean) / new_signal_weight)
        self.numbers[:, place[:, None], place] = torch.stack(
            [torch.where(has, after, before) for after, before in zip(new, old, strict=True)]
            + [torch.where(has_signal, after, before) for after, before in zip(new_signal, old_signal, strict=True)]
        )

    def of(self, objectives: tuple[str, ...]) -> Statistics:
        """For some of its objectives."""
        place = self._places(objectives)
        count, weight, squared_weight, mean, squares, *_ = self.numbers[:, place[:, None], place]
        freedom = weight - squared_weight / weight
        variance = torch.where(count > 1, squares / freedom, math.nan)
        spread = variance.clamp(min=0.0).sqrt()
        return Statistics(
            count.long(), torch.where(count > 0, mean, math.nan), spread, spread * squared_weight.sqrt() / weight
        )

    def signal_cosines(self, objectives: tuple[str, ...]) -> torch.Tensor:
        """``[K, K]``, of the mean signals; NaN where the length of one is unknown or not above 0."""
        place = self._places(objectives)
        weight, signal = self.numbers[5:, place[:, None], place]
        squared = torch.where((weight > 0) & (signal > 0), signal, math.nan).diagonal()
        cosines: torch.Tensor = signal / squared.outer(squared).sqrt()
        return cosines

    def restore(self, objectives: tuple[str, ...], numbers: torch.Tensor) -> None:
        """What ``objectives`` and ``numbers`` were."""
        self.objectives, self.numbers = objectives, numbers
        self._seen = dict.fromkeys(objectives, 0)

    def _places(self, objectives: tuple[str, ...]) -> torch.Tensor:
        of_name = {name: place for place, name in enumerate(self.objectives)}
        return torch.tensor([of_name[name] for name in objectives], dtype=torch.long)

    def _make_room(self, objectives: tuple[str, ...]) -> None:
        known = set(self.objectives)
        union = (*self.objectives, *(name for name in objectives if name not in known))
        if union == self.objectives:
            return
        if len(union) > MOST_OBJECTIVES:
            newest = set(sorted(union, key=self._seen.__getitem__)[-MOST_OBJECTIVES:])
            union = tuple(name for name in union if name in newest)
            self._seen = {name: self._seen[name] for name in union}
        stay = tuple(name for name in union if name in known)
        numbers = torch.zeros(len(self.NUMBERS), len(union), len(union), dtype=torch.float64)
        place = self._places(stay)
        numbers[:, : len(stay), : len(stay)] = self.numbers[:, place[:, None], place]
        self.objectives, self.numbers = union, numbers


def student_tail(z: float, freedom: int) -> float:
    """How often Student's t is above ``z`` > 0, for ``freedom`` >= 1 degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if freedom > 1000:
        return 0.5 * math.erfc(z / math.sqrt(2))
    angle = math.atan(z / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    is_odd = freedom % 2 == 1
    term = math.sin(angle) * (math.cos(angle) if is_odd else 1.0)
    inside = 0.0
    for n in range(2 + is_odd, freedom + 1, 2):
        inside += term
        term *= square * (n - 1) / n
    inside = 2 / math.pi * (angle + inside) if is_odd else inside
    return max((1 - inside) / 2, 0.0)
