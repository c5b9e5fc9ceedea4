"""Draws the results of step_overhead.py: docs/figures/step_overhead.svg.

python bench/step_figure.py
"""

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "step_overhead_cpu.json"
FIGURE = ROOT / "docs" / "figures" / "step_overhead.svg"

NAMES = {
    "ddp": "plain DDP",
    "exact": 'moo.register(ddp, "mgda")',
    "sketch": "the same, gramian=moo.Sketch()",
    "all_gather": "a hook that all-gathers",
}
LEFT, WIDTH, ROW, TOP = 215, 330, 34, 58


def draw(results: dict[str, Any]) -> str:
    """An SVG with a background of its own, legible on light and dark pages: time, its range, and memory in words."""
    rows = results["rows"]
    scale = WIDTH / max(row["max_ms"] for row in rows.values())
    height = TOP + ROW * len(rows) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" width="760" height="{height}" role="img" '
        'font-family="sans-serif" font-size="13" fill="#1f2328">',
        "  <title>Time of a backward pass and peak memory under four reductions</title>",
        f'  <rect width="760" height="{height}" rx="8" fill="#f6f8fa"/>',
        f'  <text x="20" y="26" font-size="14">A backward pass that hands over {results["options"]["gradients"]} MB of '
        f"gradients, {results['options']['world']} processes: milliseconds</text>",
        '  <text x="20" y="45" font-size="11">median and range; on the right, peak memory beside plain DDP</text>',
    ]
    for number, (name, title) in enumerate(NAMES.items()):
        row, y = rows[name], TOP + ROW * number
        bar, low, high = (scale * row[key] for key in ("median_ms", "min_ms", "max_ms"))
        color = "#8c959f" if name in ("ddp", "all_gather") else "#54aeff"
        memory = "" if name == "ddp" else f"{row['extra_peak_mb']:+.0f} MB"
        lines += [
            f'  <text x="{LEFT - 8}" y="{y + 16}" text-anchor="end" font-size="12">{escape(title)}</text>',
            f'  <rect x="{LEFT}" y="{y}" width="{bar:.1f}" height="24" fill="{color}"/>',
            f'  <path d="M{LEFT + low:.1f} {y + 12} H{LEFT + high:.1f}" stroke="#1f2328"/>',
            f'  <text x="{LEFT + high + 8:.1f}" y="{y + 17}">{row["median_ms"]:.0f}</text>',
            f'  <text x="740" y="{y + 17}" text-anchor="end">{memory}</text>',
        ]
    lines += [
        f'  <text x="20" y="{height - 14}" font-size="11">Over Gloo on two cores, so that every pass over memory '
        f"shows; median of {results['options']['repeat']}. Nothing was measured on a GPU.</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FIGURE.write_text(draw(json.loads(RESULTS.read_text())), encoding="utf-8")
