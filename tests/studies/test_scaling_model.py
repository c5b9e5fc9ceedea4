"""The cost model of studies/scaling_model.py against sums done by hand."""

import json
import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "studies"))

import scaling_model as model  # noqa: E402
from scaling import device_path  # noqa: E402
from scaling.choices import choice_rows  # noqa: E402
from scaling.constants import Constants  # noqa: E402
from scaling.network import Network  # noqa: E402
from scaling.public_figures import public_rows  # noqa: E402
from scaling.reductions import Reductions  # noqa: E402
from scaling.setup import Setup  # noqa: E402

N = 1e9  # a size at which latencies still count for something


def _reductions(gpus: int, **options: int) -> Reductions:
    return Reductions(Setup(gpus, **options))


def _with(name: str, value: float) -> Constants:
    constants = Constants()
    return replace(constants, **{name: replace(getattr(constants, name), value=value)})


@pytest.mark.parametrize("gpus", [2, 3, 8, 16, 256])
def test_a_ring_sends_what_textbooks_say(gpus: int) -> None:
    cost = Network(Setup(gpus, objectives=2).world).ring(N)
    assert cost.nvlink_bytes + cost.nic_bytes == pytest.approx(2 * N * (gpus - 1) / gpus)


def test_one_node_sends_nothing_over_nics() -> None:
    for name, cost in _reductions(8).steps().items():
        assert cost.nic_bytes == 0, name
        assert cost.nvlink_bytes > 0, name
    network = Network(Setup(8).world)
    assert network.hierarchical_tree(N) is None
    assert network.hierarchical_ring(N) is None
    assert network.nvls(N).nvlink_bytes == pytest.approx(N * 9 / 8)  # type: ignore[union-attr]


def test_nvls_is_the_only_way_to_beat_a_ring_in_a_node() -> None:
    network = Network(Setup(8).world)
    assert network.all_reduce(N)[0] == "nvls"
    # 25 us, and a bucket at 275 GB/s
    assert network.nvls(25e6).total_us == pytest.approx(25 + 25e6 / 275e3)  # type: ignore[union-attr]
    assert network.nvls(N).total_us < network.ring(N).total_us  # type: ignore[union-attr]
    assert Network(Setup(16).world).nvls(N) is None


@pytest.mark.parametrize("nodes", [2, 4, 16, 128])
def test_all_to_all_sends_eight_times_a_hierarchical_reduce_scatter(nodes: int) -> None:
    # Of a GPU's gradient all but 8 of the W shards leave the node: N (W - 8) / W. A hierarchical reduce-scatter first
    # adds up in the node, so that each of 8 GPUs has an eighth left, of which (nodes - 1) / nodes leave.
    gpus = 8 * nodes
    network = Network(Setup(gpus).world)
    out = network.all_to_all(N).nic_bytes
    assert out == pytest.approx(N * (gpus - 8) / gpus)
    leg = N / 8 * (nodes - 1) / nodes
    assert out == pytest.approx(8 * leg)
    # An all-reduce is two such legs.
    assert network.hierarchical_ring(N).nic_bytes == pytest.approx(2 * leg)  # type: ignore[union-attr]
    # The exact way's last all-gather, by ring: of the W shards all but one enter a node of 8 GPUs.
    shards = network.all_gather(N / gpus).nic_bytes
    assert shards == pytest.approx(N / 8 * (gpus - 1) / gpus)


def test_exact_at_two_nodes() -> None:
    # All-to-all N/2; partial Gramians of 16 rows (136 doubles) and half a rest of 16 x 16 bytes, and shards, by ring.
    reductions = _reductions(16)
    message = 136 * 8 + 8 * 16
    expected = N / 2 + N / 8 * 15 / 16 + message * 15 / 8
    assert reductions.exact(N).nic_bytes == pytest.approx(expected)
    # NVLSTree, two nodes: each sends a bucket, an eighth a GPU.
    assert reductions.network.hierarchical_tree(N).nic_bytes == pytest.approx(N / 8)  # type: ignore[union-attr]
    # It reads the bucket, then reads it again and writes a shard; the messages are small.
    assert reductions.exact(N).hbm_bytes == pytest.approx(N * (2 + 1 / 16), rel=1e-3)


@pytest.mark.parametrize(
    ("gpus", "objectives", "exact", "sketch"),
    [(2, 2, 2, 2), (8, 1, 8, 4), (8, 8, 8, 8), (16, 5, 16, 8), (64, 8, 16, 8), (32, 9, 32, 16), (128, 33, 64, 64)],
)
def test_room_for_objectives(gpus: int, objectives: int, exact: int, sketch: int) -> None:
    setup = Setup(gpus, objectives=objectives)
    assert (setup.rows, setup.sketch_rows) == (exact, sketch)
    assert setup.sketch_bytes == sketch * 16384 * 4
    # Sketches of float64 are float64.
    assert replace(setup, dtype_bytes=4).sketch_bytes == sketch * 16384 * 4
    assert replace(setup, dtype_bytes=8).sketch_bytes == sketch * 16384 * 8


@pytest.mark.parametrize(("gpus", "objectives", "rows"), [(8, 8, 8), (64, 2, 4), (32, 9, 16), (1024, 64, 64)])
@pytest.mark.parametrize(("dtype_bytes", "scaling"), [(2, 2), (4, 0)])
def test_a_sketch_sends_an_all_reduce_of_its_columns_more(
    gpus: int, objectives: int, rows: int, dtype_bytes: int, scaling: int
) -> None:
    reductions = _reductions(gpus, objectives=objectives, dtype_bytes=dtype_bytes)
    size = reductions.setup.bucket_bytes
    extra = reductions.network.all_reduce(rows * 16384 * 4.0)[1]
    both, alone = reductions.sketch(size), reductions.weighted_sum(size)
    assert both.nic_bytes - alone.nic_bytes == pytest.approx(extra.nic_bytes)
    assert both.nvlink_bytes - alone.nvlink_bytes == pytest.approx(extra.nvlink_bytes)
    # One reading of the bucket; writing and reading the sketches. A kernel that scales reads and writes the bucket.
    assert both.hbm_bytes - alone.hbm_bytes == pytest.approx(size + 2 * rows * 16384 * 4)
    assert alone.hbm_bytes == pytest.approx(scaling * size)


def test_a_sketch_of_large_buckets_costs_its_passes_over_memory() -> None:
    # Reading, and scaling (reading and writing), at 0.9 x 3350 GB/s, beside 275 GB/s of NVLS.
    size = 1e15
    by_hand = 1 + 3 * 275 / (0.9 * 3350)
    reductions = _reductions(8)
    assert reductions.sketch(size).total_us / reductions.plain(size).total_us == pytest.approx(by_hand, rel=1e-3)
    # float32 is not scaled by a kernel, but by a ring at 370 GB/s, since NVLS has no pre-multiplied sum.
    by_hand = 275 * (2 * 7 / 8 / 370 + 1 / (0.9 * 3350))
    reductions = _reductions(8, dtype_bytes=4)
    assert reductions.sketch(size).total_us / reductions.plain(size).total_us == pytest.approx(by_hand, rel=1e-3)
    # With memory for nothing it costs what plain all-reduce costs; the exact way still sends more.
    reductions = Reductions(Setup(8), _with("hbm", 1e9))
    plain = reductions.plain(size).total_us
    assert reductions.sketch(size).total_us / plain == pytest.approx(1, rel=1e-3)
    assert reductions.exact(size).total_us / plain == pytest.approx(2 * 7 / 8 / 370 * 275, rel=1e-3)
    # Over several nodes with one NIC the bucket's bytes over it outweigh memory.
    reductions = _reductions(1024, nics_per_node=1)
    assert reductions.sketch(size).total_us / reductions.plain(size).total_us == pytest.approx(1, abs=0.03)


def test_a_premultiplied_sum_is_not_for_the_switches() -> None:
    network = Network(Setup(8).world)
    name, cost = network.all_reduce(N, Network.PREMULTIPLIED)
    assert name in ("ring", "tree")
    assert cost.total_us > network.all_reduce(N)[1].total_us


def test_lag_and_refresh() -> None:
    reductions = _reductions(64)
    size = 25e6
    now, late = reductions.sketch(size), reductions.sketch(size, lag=1)
    assert late.total_us < now.total_us
    assert (late.nic_bytes, late.nvlink_bytes, late.hbm_bytes) == (now.nic_bytes, now.nvlink_bytes, now.hbm_bytes)
    assert late.latency_us == reductions.plain(size).latency_us
    alone, seldom = reductions.weighted_sum(size), reductions.sketch(size, refresh_every=4)
    for name in ("nic_bytes", "nvlink_bytes", "hbm_bytes", "latency_us", "wire_us", "hbm_us"):
        rest = getattr(alone, name)
        assert getattr(seldom, name) - rest == pytest.approx((getattr(now, name) - rest) / 4), name
    # With lag the sketches, summed by a ring within a node, keep NVLink busy, but none of the rest counts.
    reductions = _reductions(8)
    busy = reductions.sketch(size, lag=1).wire_us - reductions.plain(size).wire_us
    assert busy == pytest.approx(8 * 16384 * 4 * 2 * 7 / 8 / 370e3)


def test_kernels_are_counted() -> None:
    # At 2 us; a solve at 15. Gramian, copy of the tail, combination.
    reductions = _reductions(8)
    assert reductions.exact(N).fixed_us == pytest.approx(3 * 2 + 15)
    # Two for the sketch, its Gramian, scaling.
    assert reductions.sketch(N).fixed_us == pytest.approx(4 * 2 + 15)
    # A float32 bucket's factor takes a kernel as well.
    assert _reductions(8, dtype_bytes=4).sketch(N).fixed_us == pytest.approx(4 * 2 + 15)
    # Every fourth step solves; all scale, by what is kept or not.
    assert reductions.sketch(N, refresh_every=4).fixed_us == pytest.approx((3 * 2 + 15) / 4 + 2)
    # With lag the sketch and scaling are waited for.
    assert reductions.sketch(N, lag=1).fixed_us == pytest.approx(3 * 2)
    assert reductions.sketch(N, lag=1, refresh_every=4).fixed_us == pytest.approx(2 * 2 / 4 + 2)


def test_kernels_are_those_of_the_device_path() -> None:
    # What tests/collectives/test_operation_budget.py counts. A solve is a kernel there and no count of the model's.
    budget = json.loads((ROOT / "cuda" / "operations.json").read_text())
    kernels = {name: counts["kernels"] for name, counts in budget.items()}
    assert kernels["a step"] == device_path.RECORD_KERNELS
    assert kernels["all-reduce, shards and a tail"] == device_path.EXACT_KERNELS + 1
    assert budget["all-reduce, shards and a tail"]["memory"] == device_path.TAIL_COPIES
    sketch, solve, scale = device_path.SKETCH_KERNELS, device_path.SKETCHED_SOLVE_KERNELS + 1, device_path.SCALE_KERNELS
    assert kernels["sketch"] == sketch + solve + scale
    assert kernels["sketch, kept weights"] == scale
    assert kernels["sketch, lag=1"] == sketch + scale
    assert kernels["sketch, lag=1, behind the step"] == solve
    for name in ("a step", "sketch", "sketch, kept weights", "sketch, lag=1", "sketch, lag=1, behind the step"):
        assert budget[name]["memory"] == 0, name
    # Launches are all of them, collectives included.
    operations = {name: sum(counts.values()) - counts["events"] for name, counts in budget.items()}
    reductions = _reductions(8)
    assert reductions.plain(N).launches == 1
    assert reductions.records().launches == operations["a step"]
    assert reductions.exact(N).launches == operations["all-reduce, shards and a tail"]
    assert reductions.sketch(N).launches == operations["sketch"]
    lag = operations["sketch, lag=1"] + operations["sketch, lag=1, behind the step"]
    assert reductions.sketch(N, lag=1).launches == lag


def test_a_solve_has_the_threads_and_products_of_the_kernel() -> None:
    source = (ROOT / "cuda" / "solve.cu").read_text()
    constants = dict(re.findall(r"^ *constexpr int (k\w+) = (\d+);$", source, re.MULTILINE))
    assert int(constants["kStepThreads"]) == device_path.SOLVE_THREADS
    assert int(constants["kMostProducts"]) == device_path.SOLVE_PRODUCTS


@pytest.mark.parametrize(
    ("gpus", "objectives", "dtype_bytes", "taken"),
    # 4 W elements of two bytes; a solve takes 256 with 16 rows, 28 with 64 (nine products an element and thread).
    [(64, 8, 2, True), (128, 8, 2, False), (128, 8, 4, True), (256, 8, 4, False), (64, 9, 2, False), (16, 9, 8, True)],
)
def test_a_long_tail_takes_a_kernel_more(gpus: int, objectives: int, dtype_bytes: int, taken: bool) -> None:
    reductions = _reductions(gpus, objectives=objectives, dtype_bytes=dtype_bytes)
    assert reductions.setup.tail_bytes == 8 * gpus
    assert reductions.setup.solve_takes_tail is taken
    assert reductions.exact(N).fixed_us == pytest.approx((3 if taken else 4) * 2 + 15)


def test_every_step_with_objectives_gathers_records() -> None:
    # Seven steps of a ring by LL; two kernels. The bytes take less than a hundredth.
    reductions = Reductions(Setup(8, gradient_bytes=1e8, bucket_bytes=1e8))
    steps = reductions.steps()
    for name, way in (
        ("exact", reductions.exact(1e8)),
        ("sketch", reductions.sketch(1e8)),
        ("sketch, lag 1", reductions.sketch(1e8, lag=1)),
        ("sketch, lag 1, every 4", reductions.sketch(1e8, 1, 4)),
    ):
        assert steps[name].total_us - way.total_us == pytest.approx(6.6 + 7 * 0.6 + 2 * 2, rel=0.01), name
    assert steps["plain"].total_us == pytest.approx(reductions.plain(1e8).total_us)


@pytest.mark.parametrize("nics", [1, 4, 8])
def test_more_of_anything_costs_more(nics: int) -> None:
    for gpus in (8, 64, 1024):
        reductions = _reductions(gpus, nics_per_node=nics)
        for way in (reductions.plain, reductions.exact, reductions.sketch, reductions.all_gather):
            times = [way(size).total_us for size in (1e6, 1e7, 1e8, 1e9)]
            assert times == sorted(times)
    steps = [_reductions(8 * 2**i, nics_per_node=nics).steps() for i in range(1, 8)]
    for name in steps[0]:
        times = [step[name].total_us for step in steps]
        assert times == sorted(times), name


def test_fewer_nics_take_longer_for_the_same_bytes() -> None:
    one, eight = (_reductions(64, nics_per_node=nics).steps() for nics in (1, 8))
    for name in one:
        assert one[name].total_us > eight[name].total_us, name
        assert one["exact"].nic_bytes == eight["exact"].nic_bytes
    # Bound by NICs: 8 GPUs share 48 GB/s.
    cost = Network(Setup(64, nics_per_node=1).world).all_to_all(N)
    assert cost.wire_us == pytest.approx(N * 56 / 64 * 8 / 48e3)


def test_the_all_gather_receives_every_gradient() -> None:
    cost = _reductions(8).all_gather(N)
    assert cost.nvlink_bytes == pytest.approx(7 * N)
    assert cost.hbm_bytes == pytest.approx(17 * N)
    cost = _reductions(64).all_gather(N)
    assert cost.nvlink_bytes + cost.nic_bytes == pytest.approx(63 * N)


def test_a_step_is_its_buckets() -> None:
    setup = Setup(8, gradient_bytes=2.5e8, bucket_bytes=1e8)
    assert setup.buckets() == [(2, 1e8), (1, 5e7)]
    reductions = Reductions(setup)
    by_hand = 2 * reductions.plain(1e8).total_us + reductions.plain(5e7).total_us
    assert reductions.steps()["plain"].total_us == pytest.approx(by_hand)
    assert reductions.steps()["exact"].total_us > 2 * reductions.exact(1e8).total_us + reductions.exact(5e7).total_us
    assert Setup(8, gradient_bytes=1e7, bucket_bytes=1e8).buckets() == [(1, 1e7)]


def test_what_others_measured_is_within_a_factor_of_two() -> None:
    for row in public_rows():
        assert 0.5 < row["model"] / row["reported"] < 2, row


def test_every_constant_has_a_unit_and_a_source() -> None:
    for field in fields(Constants):
        constant = getattr(Constants(), field.name)
        assert constant.value > 0, field.name
        assert math.isfinite(constant.value), field.name
        assert constant.unit, field.name
        assert len(constant.source) > 20, field.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpus", 1),
        ("gpus", 12),
        ("gpus", 8.0),
        ("gpus_per_node", 0),
        ("nics_per_node", 0),
        ("objectives", 0),
        ("objectives", 17),
        ("gradient_bytes", 0),
        ("gradient_bytes", math.inf),
        ("bucket_bytes", -1),
        ("dtype_bytes", 3),
        ("sketch_columns", 0),
        ("sketch_columns", 2**30),
    ],
)
def test_wrong_arguments_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {value!r}"):
        Setup(**{"gpus": 16, name: value})  # type: ignore[arg-type]


def test_wrong_lag_and_refresh_are_named() -> None:
    with pytest.raises(ValueError, match="lag must be 0 or 1, got 2"):
        _reductions(8).sketch(N, lag=2)
    with pytest.raises(ValueError, match="refresh_every must be at least 1, got 0"):
        _reductions(8).sketch(N, refresh_every=0)


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    script = ROOT / "studies" / "scaling_model.py"
    # -S: without site-packages, as on a machine that has nothing but Python
    command = [sys.executable, "-S", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_script_needs_python_alone(tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    done = _run("--gpus", "8", "64", "--nics", "8", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "not a measurement" in done.stdout
    document = json.loads(out.read_text())
    assert [row["gpus"] for row in document["rows"]] == [8, 64]
    assert document["rows"][0]["ways"]["plain"]["ratio"] == 1
    assert document["constants"]["nic"]["value"] == 48
    wrong = _run("--gpus", "12")
    assert wrong.returncode == 2
    assert "gpus must be" in wrong.stderr


def test_the_stored_results_are_the_models() -> None:
    document = json.loads((ROOT / "studies" / "results" / "scaling_model.json").read_text())
    rows = model.model_rows(Setup(8), model.DEFAULT_GPUS, model.DEFAULT_NICS)
    assert len(document["rows"]) == len(rows)
    for stored, row in zip(document["rows"], rows, strict=True):
        assert stored["gpus"] == row["gpus"]
        assert stored["nics_per_node"] == row["nics_per_node"]
        for name, way in row["ways"].items():
            assert stored["ways"][name]["ms"] == pytest.approx(way["ms"])
    layouts = model.layout_rows(Setup(8), model.DEFAULT_GPUS, model.DEFAULT_NICS, model.DEFAULT_PASSES)
    assert len(document["layouts"]) == len(layouts)
    for stored, row in zip(document["layouts"], layouts, strict=True):
        for name in ("gpus", "nics_per_node", "passes"):
            assert stored[name] == row[name]
        for case, layout in row["layouts"].items():
            assert stored["layouts"][case]["ms"] == pytest.approx(layout["ms"])
    choices = choice_rows(Setup(8), model.DEFAULT_GPUS, (8, 1))
    assert [row["choose"] for row in document["choices"]] == [row["choose"] for row in choices]


def test_the_documentation_shows_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    model.main([])
    printed = capsys.readouterr().out.splitlines()
    text = (ROOT / "docs" / "scaling.md").read_text()
    rows = [line for line in text.split("## Constants")[0].splitlines() if line.startswith("|")]
    assert len(rows) > 140
    for row in rows:
        assert row in printed
