"""How a bucket's Gramian is found: exactly, or from random sketches."""

import numbers
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch.distributed as dist

from bucket_moo_ext import _C
from bucket_moo_ext.plain import integer_within, text
from bucket_moo_ext.process_group import announce_node, count_nodes

_LIMITS = _C.build_info()
_MIN_WIDTH: int = _LIMITS["min_sketch_width"]
_MAX_WIDTH: int = _LIMITS["max_sketch_width"]

AUTO_EXACT_RANKS = 16
"""Up to this many ranks on one node ``gramian="auto"`` is exact."""


def check_width(name: str, value: object) -> int:
    """A sketch's number of columns.

    Raises:
        TypeError, ValueError: It is no integer, or none that a sketch can have.
    """
    width = integer_within(name, value, _MIN_WIDTH, _MAX_WIDTH)
    if width & (width - 1):
        raise ValueError(
            f"{name} must be a power of two from {_MIN_WIDTH} to {_MAX_WIDTH}; got {value!r} "
            f"(near it: {2 ** (width.bit_length() - 1)} and {2 ** width.bit_length()})"
        )
    return width


@dataclass(frozen=True)
class Sketch:
    """The Gramian from random sketches of the gradients, instead of from the gradients.

    Every rank projects its bucket of n elements to ``width`` columns (random signs, the same on every rank, new for
    every step and bucket), the ranks exchange the sketches, and the weights are solved for from the sketches' Gramian.
    It is unbiased, and a cosine is off by at most ``(1 - cos**2) / sqrt(width)`` in the root mean square: 0.8 % for the
    default. Then each rank scales its bucket by its weight and joins one ordinary sum all-reduce, which any algorithm
    and any network can do.

    Buckets of at most ``2 * width`` elements are reduced with their exact Gramian.

    Args:
        width: Columns: a power of two from 64 to 2**28; or a fraction of the bucket's elements, above 0 and up to 1,
            from which the columns are that number of elements, raised to a power of two.
        seed: With step, bucket and element the key of the random signs, 0 to 2**64 - 1.
        refresh_every: A bucket's weights serve for this many steps, >= 1 (periodic weights, as in PSMGD); steps between
            neither sketch nor solve. They know nothing of their own gradients: an objective that has become inactive
            keeps its weight until the next solve.
        lag: 1: a step uses the weights that the last solve before it found, so that nothing waits for a solve; the
            first step of a bucket waits for its own. 0: it uses its own.

    The same on every rank. With ``refresh_every`` above 1 or ``lag`` weights are kept for the objectives that they were
    solved for; a step with others solves anew, and on a GPU is an error.

    Raises:
        TypeError, ValueError: A bad argument, named, with what is allowed.

    Source: CountSketch (Charikar, Chen, Farach-Colton, ICALP 2002); docs/sketch.md has the derivation. PSMGD: Xu, Yang,
        Yin, Rostami, "PSMGD: Periodic Stochastic Multi-Gradient Descent", AAAI 2025.
    """

    width: int | float = 16384
    seed: int = 0
    refresh_every: int = 1
    lag: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if isinstance(self.width, numbers.Real) and not isinstance(self.width, numbers.Integral):
            object.__setattr__(self, "width", float(self.width))
            if not 0.0 < self.width <= 1.0:
                raise ValueError(f"Sketch: width as a fraction must be above 0 and up to 1; got {self.width!r}")
        else:
            object.__setattr__(self, "width", check_width("Sketch: width", self.width))
        object.__setattr__(self, "seed", integer_within("Sketch: seed", self.seed, 0, 2**64 - 1))
        object.__setattr__(
            self, "refresh_every", integer_within("Sketch: refresh_every", self.refresh_every, 1, 2**31 - 1)
        )
        object.__setattr__(self, "lag", integer_within("Sketch: lag", self.lag, 0, 1))

    def width_for(self, numel: int) -> int:
        """Columns for a bucket of `numel` elements; 0: its Gramian is exact."""
        return self._native().width_for(integer_within("Sketch: numel", numel, 0, 2**62))

    def _native(self) -> _C.Sketch:
        fraction = self.width if isinstance(self.width, float) else 0.0
        width = 0 if isinstance(self.width, float) else self.width
        return _C.Sketch(width, fraction, self.seed, self.refresh_every, bool(self.lag))


GramianSource: TypeAlias = str | Sketch


class Chosen(NamedTuple):
    """What a state reduces with.

    Attributes:
        sketch: None: the exact Gramian.
        description: For reports.
    """

    sketch: Sketch | None
    description: str


def check_source(gramian: object) -> GramianSource:
    """``gramian`` as ``BucketMOO`` takes it.

    Raises:
        TypeError, ValueError: It is something else.
    """
    allowed = "gramian must be 'exact', 'auto' or a Sketch"
    if isinstance(gramian, str):
        if gramian not in ("exact", "auto"):
            raise ValueError(f"{allowed}; got {gramian!r}")
        return text(gramian)
    if not isinstance(gramian, Sketch):
        raise TypeError(f"{allowed}; got {type(gramian).__name__} {gramian!r}")
    return gramian


def choose(gramian: GramianSource, group: dist.ProcessGroup | None) -> Chosen:
    """What `gramian` means for the ranks of `group`, or for one process without one. Collective over the group."""
    if group is None:
        if isinstance(gramian, Sketch):
            return Chosen(gramian, repr(gramian))
        return Chosen(None, "exact" if gramian == "exact" else "exact (auto: one process)")
    # Whatever this rank was given: another one may be "auto", and must not wait before the ranks can compare.
    announced = announce_node(group)
    if isinstance(gramian, Sketch):
        return Chosen(gramian, repr(gramian))
    if gramian == "exact":
        return Chosen(None, "exact")
    ranks, nodes = group.size(), count_nodes(group, announced)
    sketch = None if nodes == 1 and ranks <= AUTO_EXACT_RANKS else Sketch()
    what = "exact" if sketch is None else repr(sketch)
    return Chosen(sketch, f"{what} (auto: {ranks} rank{'s'[: ranks > 1]} on {nodes} node{'s'[: nodes > 1]})")
