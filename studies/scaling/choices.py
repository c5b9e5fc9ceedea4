"""What to choose when: the decision table of docs/scaling.md, with the model's costs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from scaling.cost import Cost
from scaling.layouts import OPERATIONS, Layouts
from scaling.reductions import Reductions
from scaling.setup import Setup


@dataclass(frozen=True)
class Outcome:
    """A step as a multiple of its reference."""

    time: float
    nic: float | None
    memory: float | None


def _outcome(cost: Cost, reference: Cost, memory: float | None) -> Outcome:
    nic = cost.nic_bytes / reference.nic_bytes if reference.nic_bytes else None
    return Outcome(cost.total_us / reference.total_us, nic, memory)


def in_layout(name: str, operation: str, passes: int) -> Callable[[Setup], Outcome | None]:
    """A step in one of layouts.LAYOUTS; None where there is no such layout."""

    def outcome(setup: Setup) -> Outcome | None:
        layouts = Layouts(setup, passes)
        layout = layouts.layout(name)
        if layout is None:
            return None
        memory = layouts.memory(layout, operation).ratio
        return _outcome(layouts.step(layout, operation), layouts.reference(layout, operation), memory)

    return outcome


def sketched(operation: str) -> Callable[[Setup], Outcome]:
    """A step of one pass by a sketch with lag 1. What it holds is a few sketches, which the model does not count."""

    def outcome(setup: Setup) -> Outcome:
        reductions = Reductions(setup)
        sharded = operation == "reduce-scatter"
        plain = reductions.network.reduce_scatter if sharded else reductions.plain
        cost = reductions.step(lambda size: reductions.sketch(size, lag=1, sharded=sharded), reductions.records())
        return _outcome(cost, reductions.step(plain), None)

    return outcome


@dataclass(frozen=True)
class Choice:
    """A situation, what to choose in it, and what that costs."""

    gradients: str
    language: str  # what has one of its own
    passes: str
    nodes: tuple[tuple[int, int], ...]  # from, to
    choose: str
    outcome: Callable[[Setup], Outcome | None]


ONE_NODE, SOME_NODES, MANY_NODES = (1, 1), (2, 16), (32, 128)
SEVERAL, ANY = (SOME_NODES, MANY_NODES), (ONE_NODE, SOME_NODES, MANY_NODES)
REPLICATED, SHARDED, HSDP = "replicated (DDP)", "sharded (FSDP)", "sharded in the node (HSDP)"
KEPT = "1, or no_sync()"
CHANGING = 4
ALL_REDUCE, REDUCE_SCATTER = OPERATIONS
SKETCH = "sketch, lag 1"


def _exact(gradients: str, language: str, passes: int | str, nodes: tuple[tuple[int, int], ...], layout: str) -> Choice:
    operation = ALL_REDUCE if gradients == REPLICATED else REDUCE_SCATTER
    outcome = in_layout(layout, operation, passes if isinstance(passes, int) else 1)
    return Choice(gradients, language, str(passes), nodes, f"exact, {layout}", outcome)


CHOICES = (
    _exact(REPLICATED, "rank", KEPT, (ONE_NODE,), "ranks"),
    Choice(REPLICATED, "rank", KEPT, SEVERAL, SKETCH, sketched(ALL_REDUCE)),
    _exact(REPLICATED, "node", KEPT, SEVERAL, "two-level"),
    _exact(REPLICATED, "micro-batch", CHANGING, (ONE_NODE, SOME_NODES), "passes"),
    _exact(REPLICATED, "micro-batch", CHANGING, (MANY_NODES,), "two-level"),
    _exact(REPLICATED, "node and micro-batch", CHANGING, SEVERAL, "two-level"),
    _exact(REPLICATED, "rank and micro-batch", CHANGING, ANY, "ranks"),
    _exact(SHARDED, "rank", 1, (ONE_NODE,), "ranks"),
    Choice(SHARDED, "rank", "1", SEVERAL, SKETCH, sketched(REDUCE_SCATTER)),
    _exact(SHARDED, "micro-batch", CHANGING, ANY, "passes"),
    _exact(SHARDED, "rank and micro-batch", CHANGING, ANY, "ranks"),
    _exact(HSDP, "node", 1, SEVERAL, "two-level"),
    _exact(HSDP, "node and micro-batch", CHANGING, SEVERAL, "two-level"),
)


def _range(values: Iterable[float | None]) -> tuple[float, float] | None:
    found = [value for value in values if value is not None]
    return (min(found), max(found)) if found else None


def choice_rows(base: Setup, gpus: Iterable[int], nics: tuple[int, int]) -> list[dict[str, Any]]:
    """A line for every choice and range of nodes: the least and the most that it costs at the given numbers of GPUs.

    Times are for both numbers of NICs, bytes and memory for the first one.
    """
    setups = [replace(base, gpus=world) for world in gpus]
    rows = []
    for choice in CHOICES:
        for first, last in choice.nodes:
            met = [setup for setup in setups if first <= setup.nodes <= last]
            outcomes: dict[int, list[Outcome]] = {}
            for nic in nics:
                every = (choice.outcome(replace(setup, nics_per_node=nic)) for setup in met)
                outcomes[nic] = [outcome for outcome in every if outcome is not None]
            if not outcomes[nics[0]]:
                continue
            rows.append(
                {
                    "gradients": choice.gradients,
                    "language": choice.language,
                    "passes": choice.passes,
                    "nodes": (first, last),
                    "choose": choice.choose,
                    "time": {nic: _range(outcome.time for outcome in of_nic) for nic, of_nic in outcomes.items()},
                    "nic_bytes": _range(outcome.nic for outcome in outcomes[nics[0]]),
                    "memory": _range(outcome.memory for outcome in outcomes[nics[0]]),
                }
            )
    return rows
