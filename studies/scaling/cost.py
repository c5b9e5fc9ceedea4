"""What an operation costs one GPU."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """What one GPU sends, what it moves in memory, and how many microseconds that takes."""

    nvlink_bytes: float = 0.0
    nic_bytes: float = 0.0
    hbm_bytes: float = 0.0
    latency_us: float = 0.0  # of collectives
    wire_us: float = 0.0
    hbm_us: float = 0.0
    fixed_us: float = 0.0  # kernels that are waited for, and solves
    launches: float = 0.0  # kernels, collectives, copies and fills

    @property
    def total_us(self) -> float:
        """All of it, one after another."""
        return self.latency_us + self.wire_us + self.hbm_us + self.fixed_us

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(getattr(self, f.name) * factor for f in fields(Cost)))
