"""What studies/scaling_model.py makes of the layouts of objectives, against sums done by hand."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "studies"))

from scaling.choices import CHOICES, choice_rows  # noqa: E402
from scaling.cost import Cost  # noqa: E402
from scaling.layouts import LAYOUTS, OPERATIONS, Layout, Layouts, cases, layout_row, tile_bytes  # noqa: E402
from scaling.network import Network  # noqa: E402
from scaling.setup import Setup  # noqa: E402

N = 1e9  # a size beside which messages are small
NODES = [2, 4, 16, 128]


def _layouts(gpus: int, passes: int = 1, summed: bool = False, **options: int) -> Layouts:
    return Layouts(Setup(gpus, **options), passes, summed)


def _layout(layouts: Layouts, name: str) -> Layout:
    layout = layouts.layout(name)
    assert layout is not None
    return layout


def _bytes(cost: Cost) -> tuple[float, float]:
    return cost.nvlink_bytes, cost.nic_bytes


@pytest.mark.parametrize("gpus", [2, 8, 64, 1024])
@pytest.mark.parametrize("dtype_bytes", [2, 4])
def test_one_pass_of_ranks_is_the_exact_way(gpus: int, dtype_bytes: int) -> None:
    layouts = _layouts(gpus, objectives=2, dtype_bytes=dtype_bytes)
    cost, exact = layouts.bucket(_layout(layouts, "ranks"), "all-reduce", N), layouts.reductions.exact(N)
    assert _bytes(cost) == pytest.approx(_bytes(exact))
    assert cost.hbm_bytes == pytest.approx(exact.hbm_bytes)
    assert cost.total_us == pytest.approx(exact.total_us)
    assert cost.launches == exact.launches


@pytest.mark.parametrize("gpus", [2, 3, 8, 16, 256])
def test_a_reduce_scatter_sends_half_of_a_ring_all_reduce(gpus: int) -> None:
    network = Network(Setup(gpus, objectives=2).world)
    assert sum(_bytes(network.reduce_scatter(N))) == pytest.approx(N * (gpus - 1) / gpus)
    # Rings and their hierarchy leave the node once a shard: (nodes - 1) / nodes, or a shard more, of an eighth a GPU.
    if gpus > 8:
        least = N / 8 * (1 - 8 / gpus)
        assert least <= network.reduce_scatter(N).nic_bytes <= least + N / gpus
    # All-gather is the same the other way round.
    assert network.all_gather(N / gpus).total_us >= network.reduce_scatter(N).total_us


@pytest.mark.parametrize("gpus", [8, 16, 64, 1024])
@pytest.mark.parametrize("passes", [1, 4])
def test_passes_send_what_plain_sharded_accumulation_sends(gpus: int, passes: int) -> None:
    layouts = _layouts(gpus, passes)
    passes_layout = _layout(layouts, "passes")
    scatter = layouts.world.reduce_scatter(N)
    assert _bytes(layouts.open_pass(passes_layout, "reduce-scatter", N)) == _bytes(scatter)
    assert _bytes(layouts.reference_bucket(passes_layout, "reduce-scatter", N)) == pytest.approx(
        tuple(passes * sent for sent in _bytes(scatter))
    )
    # In all the closing pass adds partial Gramians, at most 136 doubles from every rank.
    extra = sum(_bytes(layouts.bucket(passes_layout, "reduce-scatter", N))) - passes * sum(_bytes(scatter))
    rows = min(16, passes)
    assert extra == pytest.approx(rows * (rows + 1) / 2 * 8 * (gpus - 1), abs=1)
    # Replicated gradients: an all-gather of the shards more, and tails.
    tails = layouts.setup.tail_bytes * (1 if passes == 1 else 2 * min(passes, 8)) * (gpus - 1)
    more = sum(_bytes(layouts.bucket(passes_layout, "all-reduce", N))) - passes * sum(_bytes(scatter)) - extra
    assert more == pytest.approx(N * (gpus - 1) / gpus + tails)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_two_levels_send_over_nics_what_a_hierarchical_all_reduce_sends(nodes: int, passes: int) -> None:
    layouts = _layouts(8 * nodes, passes)
    two_level = _layout(layouts, "two-level")
    hierarchical = layouts.world.hierarchical_ring(N)
    assert hierarchical is not None
    both = two_level.exchange(N) + two_level.gathers["all-reduce"](N)
    assert both.nic_bytes == pytest.approx(hierarchical.nic_bytes)
    assert both.nvlink_bytes == pytest.approx(hierarchical.nvlink_bytes)
    # Every pass crosses nodes, and the answer does once. The rest of a bucket are messages: Gramian, and tails.
    sent = layouts.bucket(two_level, "all-reduce", N).nic_bytes
    message = 136 * 8 if nodes * passes >= 16 else nodes * passes * (nodes * passes + 1) * 4
    message += layouts.setup.tail_bytes * (1 if passes == 1 else 2 * min(passes, 8))
    assert sent == pytest.approx((passes + 1) / 2 * hierarchical.nic_bytes + message * (8 * nodes - 1) / 8)
    # HSDP does not gather in the node.
    nvlink = layouts.bucket(two_level, "reduce-scatter", N).nvlink_bytes
    assert nvlink == pytest.approx(passes * N * 7 / 8, rel=1e-2)


@pytest.mark.parametrize("nodes", NODES)
def test_ranks_send_eight_times_as_much_over_nics(nodes: int) -> None:
    layouts = _layouts(8 * nodes, 4)
    ranks, passes = (_layout(layouts, name).exchange(N).nic_bytes for name in ("ranks", "passes"))
    assert ranks / passes == pytest.approx(8, rel=1 / nodes)
    assert ranks == pytest.approx(N * (nodes - 1) / nodes)


@pytest.mark.parametrize("case", [(name, operation) for name in LAYOUTS for operation in OPERATIONS])
def test_a_pass_more_costs_an_open_pass(case: tuple[str, str]) -> None:
    name, operation = case
    # From K passes on the tile has all of its rows, and from 16 on messages have all of their room.
    before, after = _layouts(64, 16), _layouts(64, 17)
    layout = _layout(after, name)
    more = after.bucket(layout, operation, N).total_us - before.bucket(_layout(before, name), operation, N).total_us
    assert more == pytest.approx(after.open_pass(layout, operation, N).total_us, rel=1e-6)


def test_many_passes_of_passes_cost_their_reduce_scatters_and_a_tile() -> None:
    # With memory and kernels for nothing, the limit is plain accumulation; with them, reading and writing a row.
    size, passes = 1e12, 1000
    layouts = _layouts(64, passes)
    layout = _layout(layouts, "passes")
    ratio = layouts.bucket(layout, "reduce-scatter", size).total_us
    ratio /= layouts.reference_bucket(layout, "reduce-scatter", size).total_us
    # A pass reads a shard, reads and writes a row twice as wide, and writes zeros, beside 7/8 of 1/8 over 48 GB/s.
    scatter = layouts.world.reduce_scatter(size).total_us
    by_hand = 1 + (1 + 2 * 2 + 1) * size / 64 / (0.9 * 3350e3) / scatter
    assert ratio == pytest.approx(by_hand, rel=1e-3)
    assert by_hand < 1.02


def test_no_layout_of_replicated_gradients_is_cheaper_than_one_all_reduce() -> None:
    for gpus in (8, 16, 64, 1024):
        for nics in (1, 8):
            for passes in (1, 4):
                layouts = _layouts(gpus, passes, nics_per_node=nics)
                for layout, operation in cases(layouts):
                    ratio = layouts.step(layout, operation).total_us / layouts.reference(layout, operation).total_us
                    assert ratio > 1, (gpus, nics, passes, layout.name, operation)


def test_launches_are_counted() -> None:
    budget = json.loads((ROOT / "cuda" / "operations.json").read_text())
    operations = {name: sum(counts.values()) - counts["events"] for name, counts in budget.items()}
    one, four = _layouts(16), _layouts(16, 4)
    for name in ("ranks", "passes"):
        layout = _layout(one, name)
        assert one.bucket(layout, "all-reduce", N).launches == operations["all-reduce, shards and a tail"]
        assert one.bucket(layout, "reduce-scatter", N).launches == operations["reduce-scatter"]
        # A pass more: exchange, addition, zeros. And the last rows are added as well.
        layout = _layout(four, name)
        assert four.open_pass(layout, "all-reduce", N).launches == 3
        assert four.bucket(layout, "all-reduce", N).launches == 3 * 3 + operations["all-reduce, shards and a tail"] + 1
        assert four.reference_bucket(layout, "all-reduce", N).launches == 1
        assert four.reference_bucket(layout, "reduce-scatter", N).launches == 4
    # Two levels exchange twice and, replicated, gather twice.
    layout = _layout(one, "two-level")
    assert one.bucket(layout, "all-reduce", N).launches == operations["all-reduce, shards and a tail"] + 2
    assert _layout(four, "two-level").exchange(N).launches == 2
    # Records begin every pass.
    step = Layouts(Setup(8, gradient_bytes=1e8, bucket_bytes=1e8), 4)
    ranks = _layout(step, "ranks")
    of_bucket = step.bucket(ranks, "all-reduce", 1e8).launches
    assert step.step(ranks, "all-reduce").launches == of_bucket + 4 * operations["a step"]


@pytest.mark.parametrize(
    ("name", "received", "met", "kept"),
    [("ranks", 1, 8, 1 / 64), ("passes", 1 / 64, 1, 1 / 64), ("two-level", 1 / 8, 8, 1 / 8)],
)
def test_passes_over_memory(name: str, received: float, met: int, kept: float) -> None:
    layouts = _layouts(64, 2)
    layout = _layout(layouts, name)
    row = N / 64 * 2
    # What came is read, the rows that it belongs to are read and written, and zeros go where the gradient is.
    addition = received * N + 2 * met * row
    assert layouts.open_pass(layout, "all-reduce", N).hbm_bytes == pytest.approx(addition + N)
    assert layouts.open_pass(layout, "reduce-scatter", N).hbm_bytes == pytest.approx(addition + kept * N)
    # The tile is read twice, a shard written; messages of all ranks are written and read.
    rows, room = (2, 2) if name == "passes" else (8, 16)
    by_hand = addition + 2 * rows * row + N / 64 + 2 * 64 * room * (room + 1) * 4
    assert layouts.closing_pass(layout, "reduce-scatter", N).hbm_bytes == pytest.approx(by_hand)


def test_memory() -> None:
    # K rows of a shard, four bytes an element where the gradient has two.
    assert tile_bytes(2e9, 8, 64, 2) == pytest.approx(8 * 2e9 / 64 * 2)
    assert tile_bytes(2e9, 8, 64, 4) == pytest.approx(8 * 2e9 / 64)
    assert tile_bytes(2e9, 8, 64, 8) == pytest.approx(8 * 2e9 / 64)
    bucket = Setup(8).bucket_bytes
    one, four = _layouts(64), _layouts(64, 4)
    for name, rows, kept, received in (
        ("ranks", 8, 64, 63 / 64),
        ("passes", 4, 64, 1 / 64),  # a pass has one objective
        ("two-level", 8, 8, 1 / 8 + 7 / 64),
    ):
        assert one.memory(_layout(one, name), "all-reduce").tiles == 0, name
        held = four.memory(_layout(four, name), "reduce-scatter")
        assert held.gradients == pytest.approx(2e9 / kept), name
        assert held.tiles == pytest.approx(rows * 2e9 / 64 * 2), name
        # Beside the rows, a message of every rank.
        room = 4 if name == "passes" else 16
        assert held.scratch == pytest.approx(received * bucket + 64 * room * (room + 1) * 4), name
        assert four.memory(_layout(four, name), "all-reduce").gradients == 2e9
        assert held.ratio == pytest.approx((held.gradients + held.tiles + held.scratch) / held.gradients)


def test_objectives_of_a_step_are_at_most_its_rows() -> None:
    for passes, ranks, in_passes, two_level in ((1, 8, 1, 2), (3, 8, 3, 6), (8, 8, 8, 8)):
        layouts = _layouts(16, passes)
        met = [layouts.objectives(_layout(layouts, name)) for name in LAYOUTS]
        assert met == [ranks, in_passes, two_level]


def test_two_levels_take_several_nodes_of_several_gpus() -> None:
    for setup in (Setup(8), Setup(8, gpus_per_node=1)):
        assert Layouts(setup).layout("two-level") is None
        names = {layout.name for layout, _ in cases(Layouts(setup))}
        assert names == {"ranks", "passes"}
        assert set(layout_row(Layouts(setup))["layouts"]) == {f"{op}, {name}" for op in OPERATIONS for name in names}
        assert not any(row["choose"] == "exact, two-level" for row in choice_rows(setup, [8], (8, 1)))


def test_a_group_of_one_gpu_a_node_has_its_own_gpus_nics() -> None:
    setup = Setup(64, nics_per_node=4)
    across = Network(setup.across)
    assert across.group.gpus == 8
    cost = across.all_to_all(N)
    # Half a NIC at 48 GB/s for 7/8 of the bytes, none of them over NVLink; one message to each of 7 peers.
    assert _bytes(cost) == (0, pytest.approx(N * 7 / 8))
    assert cost.wire_us == pytest.approx(N * 7 / 8 / 24e3)
    assert cost.latency_us == pytest.approx(8.4 + 3.4 + 14 + 7)
    # NCCL's parallel aggregated trees: 3 levels of 14 / 3.5, and 2.8 a rank; a ring with LL, 7 steps of 5.
    assert across.all_gather(1e5).latency_us == pytest.approx(8 + 3 * 4 + 8 * 2.8)
    assert across.all_gather(1).latency_us == pytest.approx(6.6 + 7 * 5)


def test_added_gramians_pay_with_many_ranks() -> None:
    times = {}
    for gpus in (8, 1024):
        for summed in (False, True):
            layouts = _layouts(gpus, summed=summed)
            layout = _layout(layouts, "passes")
            times[gpus, summed] = layouts.bucket(layout, "reduce-scatter", N).total_us
    assert times[8, True] > times[8, False]
    assert times[1024, True] < times[1024, False]


def test_a_row_holds_multiples_of_its_references() -> None:
    row = layout_row(_layouts(64, 4))
    assert (row["gpus"], row["nics_per_node"], row["passes"]) == (64, 8, 4)
    assert set(row["layouts"]) == {f"{operation}, {name}" for operation in OPERATIONS for name in LAYOUTS}
    for case, found in row["layouts"].items():
        assert found["time_ratio"] == pytest.approx(found["ms"] / found["reference_ms"]), case
    assert layout_row(_layouts(8))["layouts"]["all-reduce, ranks"]["nic_ratio"] is None


def test_choices_are_ranges_over_their_nodes() -> None:
    gpus = (8, 16, 32, 1024)
    rows = choice_rows(Setup(8), gpus, (8, 1))
    assert len(rows) == sum(len(choice.nodes) for choice in CHOICES)
    for row in rows:
        assert set(row["time"]) == {8, 1}
        assert (row["nic_bytes"] is None) == (row["nodes"] == (1, 1))
    for operation, gradients in zip(OPERATIONS, ("replicated (DDP)", "sharded (FSDP)"), strict=True):
        (row,) = [
            row
            for row in rows
            if row["gradients"] == gradients and "passes" in row["choose"] and row["nodes"] == (2, 16)
        ]
        ratios = [layout_row(_layouts(count, 4))["layouts"][f"{operation}, passes"]["time_ratio"] for count in (16, 32)]
        assert row["time"][8] == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="passes must be an integer of at least 1, got 0"):
        _layouts(8, 0)
    with pytest.raises(ValueError, match="layout must be one of"):
        _layouts(8).layout("columns")
    layouts = _layouts(8)
    with pytest.raises(ValueError, match="operation must be one of"):
        layouts.bucket(_layout(layouts, "ranks"), "broadcast", N)
