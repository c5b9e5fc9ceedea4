"""The arithmetic of the benchmarks: noise, and what is called worse. No timing."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import compare
import harness
from harness import Result, Run


def blocks_of(
    rng: np.random.Generator, ratio: float, noise: float, between: float = 0.0, blocks: int = 2, rounds: int = 15
) -> list[harness.Times]:
    """Pairs whose reference wanders by itself."""
    found = []
    for _ in range(blocks):
        shift = math.exp(between * rng.standard_normal())
        reference = np.exp(rng.standard_normal(rounds))
        ours = reference * ratio * shift * np.exp(noise * rng.standard_normal(rounds))
        found.append(list(zip(ours.tolist(), reference.tolist(), strict=True)))
    return found


def run_of(*results: Result, **environment: Any) -> Run:
    known = dict.fromkeys(harness.COMPARED, "same") | environment
    return Run(known, {result.name: result for result in results})


def time_of(name: str, value: float, noise: float = 0.01) -> Result:
    return Result(name, "a copy", "time", value, noise, 10)


def test_the_median_of_paired_ratios(rng: np.random.Generator) -> None:
    result = harness.paired_result("x", "y", blocks_of(rng, 1.25, 0.02, rounds=400), megabytes=3.0)
    assert result.value == pytest.approx(1.25, rel=0.01)
    assert result.rounds == 800
    assert result.detail["megabytes"] == 3.0
    pairs = [(3.0, 2.0), (8.0, 4.0), (0.1, 0.1)]
    exact = harness.paired_result("x", "y", [pairs])
    assert exact.value == pytest.approx(1.5)
    assert exact.detail["median_ms"] == pytest.approx(3000)
    assert exact.detail["reference_ms"] == pytest.approx(2000)


def test_noise_is_that_of_the_median(rng: np.random.Generator) -> None:
    """From many runs: what one run says of it is what they spread by."""
    results = [harness.paired_result("x", "y", blocks_of(rng, 1.0, 0.1)) for _ in range(300)]
    spread = np.std([math.log(result.value) for result in results])
    assert np.mean([result.noise for result in results]) == pytest.approx(spread, rel=0.35)


def test_noise_between_blocks_counts(rng: np.random.Generator) -> None:
    quiet = harness.paired_result("x", "y", [[(1.0, 1.0)] * 9, [(1.0, 1.0)] * 9])
    apart = harness.paired_result("x", "y", [[(1.0, 1.0)] * 9, [(1.2, 1.0)] * 9])
    assert quiet.noise == 0
    assert apart.noise == pytest.approx(math.log(1.2) / math.sqrt(2))


def test_bad_blocks() -> None:
    for blocks in ([], [[(1.0, 1.0)], []]):
        with pytest.raises(ValueError, match="every block must have a round"):
            harness.paired_result("x", "y", blocks)
    with pytest.raises(ValueError, match="finite number > 0"):
        Result("x", "", "instructions", 0.0, 0.0, 1)
    with pytest.raises(ValueError, match="kind must be one of"):
        Result("x", "", "speed", 1.0, 0.0, 1)


def test_who_goes_first_alternates() -> None:
    order: list[str] = []

    def of(name: str) -> Any:
        def call() -> float:
            order.append(name)
            return float(len(order))

        return call

    pairs = harness.take_turns(of("ours"), of("reference"), rounds=2, warmup=2)
    assert order == ["reference", "ours", "ours", "reference"] * 2
    assert pairs == [(6.0, 5.0), (7.0, 8.0)]


def test_what_got_worse_is_named(rng: np.random.Generator) -> None:
    old = run_of(
        time_of("a", 1.0), time_of("b", 2.0), time_of("gone", 1.0), Result("n", "", "instructions", 1e6, 0.0, 1)
    )
    new = run_of(
        time_of("a", 1.2), time_of("b", 2.02), time_of("fresh", 1.0), Result("n", "", "instructions", 1.02e6, 0, 1)
    )
    text, is_fine = compare.report(old, new)
    assert not is_fine
    assert text.splitlines()[0] == "worse (2):"
    assert "  a: 1 -> 1.2, 1.200 times" in text
    assert "  n: 1e+06 -> 1.02e+06, 1.020 times (limit 1.010)" in text
    assert "in the old run alone (1): gone" in text
    assert "in the new run alone (1): fresh" in text
    assert "unchanged: 1 of 3" in text


def test_bytes_may_grow_by_a_hundredth_and_peaks_by_a_fifth() -> None:
    def of(held: float, peak: float) -> Run:
        return run_of(Result("held", "", "bytes", held, 0.0, 1), Result("peak", "", "peak", peak, 0.03, 2))

    (held, peak) = compare.changes(of(1.0, 1.0), of(1.02, 1.15))
    assert (held.verdict, peak.verdict) == ("worse", "same")
    assert compare.changes(of(1.0, 1.0), of(1.0, 1.3))[1].verdict == "worse"


def test_what_seems_worse_is_measured_again() -> None:
    """The one that is slower stays, and the one that was only unlucky is cleared."""

    def of(name: str, value: float) -> Result:
        return Result(name, "a copy", "time", value, 0.01, 10, test=f"test_x.py::test[{name}]")

    old, new = run_of(*(of(n, 1.0) for n in "abc")), run_of(of("a", 1.3), of("b", 1.3), of("c", 1.0))
    asked: list[list[str]] = []

    def again(tests: list[str]) -> tuple[Run, Run]:
        asked.append(tests)
        return run_of(of("a", 1.0), of("b", 1.0)), run_of(of("a", 1.28), of("b", 1.01))

    text, is_fine = compare.report(old, new, again)
    assert asked == [["test_x.py::test[a]", "test_x.py::test[b]"]]
    assert not is_fine
    assert "seemed worse, and was not when measured again (1):\n  b: 1 -> 1.3" in text
    assert "worse (1):\n  a: 1 -> 1.3" in text
    assert compare.report(run_of(of("b", 1.0)), run_of(of("b", 1.3)), again)[1]
    asked.clear()
    assert compare.report(old, old, again)[1]
    assert not asked


def test_what_got_better_fails_nothing() -> None:
    text, is_fine = compare.report(run_of(time_of("a", 1.0)), run_of(time_of("a", 0.7)))
    assert is_fine
    assert "better (1):" in text


def test_noise_widens_the_limit() -> None:
    (narrow,) = compare.changes(run_of(time_of("a", 1.0)), run_of(time_of("a", 1.15)))
    (wide,) = compare.changes(run_of(time_of("a", 1.0, 0.1)), run_of(time_of("a", 1.15)))
    assert (narrow.verdict, wide.verdict) == ("worse", "same")
    (small,) = compare.changes(run_of(time_of("a", 1.0, 0.0)), run_of(time_of("a", 1.04, 0.0)))
    assert small.verdict == "same"  # below what anybody would act on


def test_equal_code_is_seldom_called_worse(rng: np.random.Generator) -> None:
    """100 comparisons of 40 results each, with the noise that each run finds for itself."""
    alarms = 0
    for _ in range(100):
        old, new = (
            run_of(*(harness.paired_result(str(i), "y", blocks_of(rng, 1.0, 0.05, rounds=20)) for i in range(40)))
            for _ in range(2)
        )
        alarms += not compare.report(old, new)[1]
    assert alarms <= 5


def test_a_fifth_slower_is_found(rng: np.random.Generator) -> None:
    found = 0
    for _ in range(50):
        old, new = (
            run_of(*(harness.paired_result(str(i), "y", blocks_of(rng, r if i == 3 else 1.0, 0.05)) for i in range(40)))
            for r in (1.0, 1.2)
        )
        found += [change.name for change in compare.changes(old, new) if change.verdict == "worse"] == ["3"]
    assert found >= 45


def drifting(rng: np.random.Generator, drift: float, slower: float = 1.0) -> harness.Run:
    """Kernels with a drift of their own, of which five Gramians may be slower, and solvers without."""
    names = [
        *(f"gramian[{i}]" for i in range(12)),
        *(f"combine[{i}]" for i in range(12)),
        *(f"sketch[{i}]" for i in "ab"),
    ]
    results = []
    for place, name in enumerate(names):
        shift = math.exp(drift * rng.standard_normal()) * (slower if place < 5 else 1.0)
        results.append(harness.paired_result(name, "y", blocks_of(rng, shift, 0.02)))
    return run_of(*results, *(harness.paired_result(f"solve[{i}]", "y", blocks_of(rng, 1.0, 0.02)) for i in range(30)))


def test_a_drift_that_no_run_sees_by_itself_raises_no_alarm(rng: np.random.Generator) -> None:
    alarms = sum(not compare.report(drifting(rng, 0.1), drifting(rng, 0.1))[1] for _ in range(60))
    assert alarms <= 6


def test_a_drift_of_kernels_hides_no_slower_solver(rng: np.random.Generator) -> None:
    limits = {change.name: change.limit for change in compare.changes(drifting(rng, 0.1), drifting(rng, 0.1))}
    assert limits["solve[3]"] < 1.15 < limits["gramian[3]"]


def test_several_slower_kernels_do_not_hide_themselves(rng: np.random.Generator) -> None:
    found = []
    for _ in range(30):
        changes = compare.changes(drifting(rng, 0.0), drifting(rng, 0.0, slower=1.2))
        found.append(
            {change.name for change in changes if change.verdict == "worse"} == {f"gramian[{i}]" for i in range(5)}
        )
    assert sum(found) >= 27


def test_runs_together() -> None:
    together = harness.merged([time_of("a", 1.0), time_of("a", 1.21)])
    assert together.value == pytest.approx(1.1)
    assert together.noise == pytest.approx(math.log(1.21) / math.sqrt(2))
    assert together.rounds == 20
    same = Result("n", "", "instructions", 5.0, 0.0, 1)
    assert harness.merged([same, same]).noise == 0


def test_files(tmp_path: Path) -> None:
    run = run_of(time_of("a", 1.0), Result("n", "", "instructions", 12345.0, 0.0, 1), commit="abc")
    run.save(tmp_path / "deep" / "run.json")
    assert Run.load(tmp_path / "deep" / "run.json") == run
    table = run.markdown()
    assert "| `a` | a copy | 1.000 | 1.0 % |" in table
    assert "| `n` | 12,345 |" in table
    (tmp_path / "other.json").write_text('{"schema": "x", "version": 2}')
    with pytest.raises(ValueError, match=r"other\.json is no file of `make bench`"):
        Run.load(tmp_path / "other.json")


def test_another_machine_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    run_of(time_of("a", 1.0)).save(old)
    run_of(time_of("a", 1.0), processor="another").save(new)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(old), "--new", str(new)])
    assert compare.main() == 2
    assert "processor: 'same' and 'another'" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["compare.py", str(old), "--new", str(new), "--any-machine"])
    assert compare.main() == 0


def test_a_base_of_several_runs_knows_how_far_they_are_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One run says that 1 % is no chance, and another one was a fifth slower."""
    files = [tmp_path / f"{name}.json" for name in ("first", "second", "new", "elsewhere")]
    for file, value in zip(files, (1.0, 1.2, 1.25, 1.0), strict=True):
        run_of(time_of("a", value), processor="another" if file.stem == "elsewhere" else "same").save(file)
    first, second, new, elsewhere = map(str, files)
    monkeypatch.setattr(sys, "argv", ["compare.py", first, "--new", new])
    assert compare.main() == 1
    monkeypatch.setattr(sys, "argv", ["compare.py", first, second, "--new", new])
    assert compare.main() == 0
    monkeypatch.setattr(sys, "argv", ["compare.py", first, elsewhere, "--new", new])
    with pytest.raises(SystemExit):
        compare.main()
    assert "the base must be runs on one machine; processor: 'same' and 'another'" in capsys.readouterr().err


def test_a_base_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    old = tmp_path / "old.json"
    old.write_text('{"schema": "bucket_moo_ext.bench", "version": 1}')
    monkeypatch.setattr(sys, "argv", ["compare.py", str(old), "--new", str(old)])
    with pytest.raises(SystemExit):
        compare.main()
    assert f"{old} is no file of `make bench`, version 2: version 1" in capsys.readouterr().err


def test_the_results_that_are_kept_can_be_compared_with(repository: Path) -> None:
    for name in ("cpu_2_cores", "cpu_2_cores_again", "instructions", "peer"):
        assert Run.load(repository / "bench" / "results" / f"{name}.json").results


def test_a_base_that_is_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "no-such-thing"])
    with pytest.raises(SystemExit):
        compare.main()
    assert "base must be files or a git revision; got 'no-such-thing'" in capsys.readouterr().err
