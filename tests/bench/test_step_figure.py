"""The README's figure is what the results say."""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import step_figure


def test_the_figure_is_drawn_from_the_results() -> None:
    results = json.loads(step_figure.RESULTS.read_text())
    assert step_figure.FIGURE.read_text(encoding="utf-8") == step_figure.draw(results)


def test_bars_are_as_long_as_times() -> None:
    results = json.loads(step_figure.RESULTS.read_text())
    bars = [float(width) for width in re.findall(r'width="([\d.]+)" height="24"', step_figure.draw(results))]
    times = [results["rows"][name]["median_ms"] for name in step_figure.NAMES]
    assert all(abs(bar / bars[0] - time / times[0]) < 0.01 for bar, time in zip(bars, times, strict=True))
