"""Writes what `make bench` and `make bench-peer` measured into the pages, and draws the README's figure.

    python bench/tables.py

From bench/results/cpu_2_cores.json and peer.json. In a page a table stands between ``<!-- bench: NAME -->`` and
``<!-- end -->``; what is there is replaced. A test compares.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from harness import Result, Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = sorted((ROOT / "docs").glob("*.md"))
FIGURE = ROOT / "docs" / "figures" / "step_overhead.svg"
MARK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = dict[str, Result]


def load() -> Results:
    """Of both runs."""
    return {**Run.load(RESULTS / "cpu_2_cores.json").results, **Run.load(RESULTS / "peer.json").results}


def figures(value: float, digits: int = 3) -> str:
    """So many significant digits, zeros at the end included, or all before the point."""
    whole = len(f"{value:.0f}") if value >= 1 else 0
    return f"{value:,.{max(digits - whole, 0)}f}" if value >= 1 else f"{value:#.{digits}g}"


def power(n: int) -> str:
    """Of ten: 1e5."""
    return f"{n:.0e}".replace("e+0", "e")


def ratio(result: Result | None) -> str:
    """With the noise of one run."""
    return "" if result is None else f"{figures(result.value)} ± {100 * result.noise:.0f} %"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Of Markdown; numbers stand on the right."""
    head = list(titles)
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reductions(results: Results, cases: dict[str, str]) -> str:
    """Of cases by their label: time, bytes and memory beside the plain wrapper."""

    def row(label: str, case: str) -> list[str]:
        time, wire, held, peak = (results.get(f"{kind}[{case}]") for kind in ("backward", "wire", "memory", "peak"))
        assert time is not None, case
        return [
            label,
            figures(time.detail["reference_ms"]),
            figures(time.detail["median_ms"]),
            ratio(time),
            f"{wire.value:.3f}" if wire else "",
            f"{held.detail['ours_mb']:.0f}" if held else "",
            f"{peak.detail['more_mb']:+.0f}" if peak else "",
        ]

    titles = ("", "plain, ms", "ours, ms", "ratio", "bytes sent, ratio", "held, MB", "peak, MB more")
    return table(titles, (row(label, case) for label, case in cases.items()))


DDP = {
    'W = 4: `moo.register(ddp, "mgda")`': "ddp,W=4",
    "the same, `gramian=moo.Sketch()`": "ddp,W=4,sketch",
    "a hook that all-gathers every bucket": "ddp,W=4,all-gather hook",
    "W = 1": "ddp,W=1",
    "W = 2": "ddp,W=2",
    "W = 2, `gramian=moo.Sketch()`": "ddp,W=2,sketch",
    "W = 3": "ddp,W=3",
    "W = 4, two nodes of two ranks (`mesh=`)": "ddp,W=4,2 nodes",
    "W = 2, `row_norms=True`": "ddp,W=2,row_norms",
    "W = 2, one bucket of 4 kB": "ddp,W=2,1 bucket of 4 kB",
    "W = 2, 100 buckets of 4 kB": "ddp,W=2,100 buckets of 4 kB",
    "W = 2, 500 buckets of 4 kB": "ddp,W=2,500 buckets of 4 kB",
}
COST = dict(list(DDP.items())[:3])
SKETCHES = {
    "W = 4, exact": "ddp,W=4",
    "W = 4, `Sketch()`": "ddp,W=4,sketch",
    "W = 4, `Sketch(lag=1)`": "ddp,W=4,sketch,lag",
    "W = 2, exact": "ddp,W=2",
    "W = 2, `Sketch()`": "ddp,W=2,sketch",
}
SCOPES = {
    '`scope="bucket"`': "ddp,W=4",
    "`support=True`": "ddp,W=4,support",
    '`scope="parameter"`': "ddp,W=4,scope=parameter",
    '`scope="model"`': "ddp,W=4,scope=model",
}
WRAPPERS = {
    "FSDP2, W = 4": "fsdp2,W=4",
    "FSDP1, W = 4": "fsdp1,W=4",
    "HSDP, W = 4, 2 replicas": "hsdp,W=4",
    "DDP, W = 4": "ddp,W=4",
    "FSDP2, W = 2, 4 passes": "fsdp2,W=2,4 passes",
    "HSDP, W = 4, 4 passes": "hsdp,W=4,4 passes",
    "DDP, W = 2, 4 passes": "ddp,W=2,4 passes",
}


def one_process(results: Results) -> str:
    """A step of K passes beside accumulation."""

    def row(k: int, is_wide: bool) -> list[str]:
        size = results[f"training[one process,exact,K=4{',wide' if is_wide else ''}]"].detail["gradient_mb"]
        cells = [f"{figures(size, 2)} MB", str(k)]
        for way in ("exact", "lagging sketch"):
            name = f"one process,{way},K={k}"
            time = results.get(f"training[{name}{',wide' if is_wide else ''}]")
            held, peak = (results[f"{kind}[{name}]"] if is_wide else None for kind in ("memory", "peak"))
            cells += [ratio(time)]
            cells += [f"{held.value:.2f}, {peak.value:.2f}" if held and peak else ""]
        return cells

    titles = (
        "gradients",
        "K",
        "exact: time",
        "held (gradients), peak (ratio)",
        "`Sketch(lag=1)`: time",
        "held (gradients), peak (ratio)",
    )
    sizes = [(2, False), (4, False), (8, False), (2, True), (4, True), (8, True)]
    return table(titles, (row(k, is_wide) for k, is_wide in sizes))


def kernels(results: Results) -> str:
    """By rows and elements."""
    found = sorted(
        {(int(k), int(n)) for name in results for k, n in re.findall(r"^gramian\[\w+,K=(\d+),n=(\d+)\]", name)},
        key=lambda size: (size[1], size[0]),
    )

    def cells(k: int, n: int) -> list[str]:
        names = [f"{kernel}[{dtype},K={k},n={n}]" for kernel in ("gramian", "combine") for dtype in DTYPES]
        sketches = [f"sketch[{dtype},n={n}]" for dtype in DTYPES] if k == SKETCHED.get(n) else [""] * len(DTYPES)
        return [power(n), str(k), *(ratio(results.get(name)) for name in names + sketches)]

    titles = ["n", "K", *(f"{kernel}, {dtype}" for kernel in ("Gramian", "weighted sum", "sketch") for dtype in DTYPES)]
    return table(titles, (cells(k, n) for k, n in found))


DTYPES = ("float32", "bfloat16")
SKETCHED = {100_000: 4, 10_000_000: 4, 100_000_000: 2}  # in which row of a size its sketch stands


def solvers(results: Results) -> str:
    """Microseconds of a Gramian of a batch."""
    timed = [name for name, result in results.items() if result.kind == "time"]  # and not counted
    names = sorted({found for name in timed for found in re.findall(r"^solve\[(\w+),", name)})
    sizes = (2, 4, 16, 64)

    def cell(name: str, k: int) -> str:
        solve = results[f"solve[{name},K={k}]"]
        return f"{figures(1e3 * solve.detail['median_ms'] / solve.detail['solves'], 2)} ({figures(solve.value, 2)})"

    rows = ([f"`{name}`", *(cell(name, k) for k in sizes)] for name in names)
    return table(["", *(f"K = {k}" for k in sizes)], rows)


def collectives(results: Results) -> str:
    """Beside Gloo's all-reduce of the same tensor."""

    def row(name: str) -> list[str]:
        gramian, world, n = re.findall(r"\[(\w+),W=(\d+),n=(\d+)\]", name)[0]
        return [f"{power(int(n))} elements, W = {world}, {gramian}", ratio(results[name])]

    names = [name for name in results if name.startswith("all_reduce[")]
    names.sort(key=lambda name: tuple(map(int, re.findall(r"=(\d+)", name))))
    return table(["", "ratio"], map(row, names))


def peer(results: Results) -> str:
    """By what factor TorchJD takes longer, for a solve of one Gramian and for a step of one process."""
    names = dict.fromkeys(found for name in results for found in re.findall(r"^peer\[solve,(\w+),", name))
    sizes = (2, 4, 8, 16, 32, 64)

    def cell(question: str, k: int) -> str:
        found = results.get(f"peer[{question},K={k}]")
        return figures(1 / found.value, 2) if found else ""

    rows = [[name, *(cell(f"solve,{name}", k) for k in sizes)] for name in sorted(names)]
    rows.append(["a step of one process, MGDA", *(cell("one process", k) for k in sizes)])
    return table(["", *(f"K = {k}" for k in sizes)], rows)


def about(results: Results) -> str:
    """On what and when it was."""
    run = Run.load(RESULTS / "cpu_2_cores.json").environment
    return (
        f"Measured on {run['date']}: {run['processor']}, {run['cores']} cores that others use too, "
        f"torch {run['torch']}, {run['compiler']}, one thread a process, Gloo over the loopback.\n"
    )


TABLES: dict[str, Callable[[Results], str]] = {
    "about": about,
    "cost": lambda results: reductions(results, COST),
    "ddp": lambda results: reductions(results, DDP),
    "sketches": lambda results: reductions(results, SKETCHES),
    "scopes": lambda results: reductions(results, SCOPES),
    "wrappers": lambda results: reductions(results, WRAPPERS),
    "one_process": one_process,
    "kernels": kernels,
    "solvers": solvers,
    "collectives": collectives,
    "peer": peer,
}


def filled(page: str, results: Results) -> str:
    """The page with its tables."""
    return MARK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](results)}\n{found[3]}", page)


BARS = {
    'moo.register(ddp, "mgda")': "ddp,W=4",
    "the same, gramian=moo.Sketch()": "ddp,W=4,sketch",
    "a hook that all-gathers": "ddp,W=4,all-gather hook",
}
LEFT, WIDTH, ROW, TOP = 215, 400, 34, 58


def figure(results: Results) -> str:
    """An SVG with a background of its own, legible on light and dark pages: ratios as bars, memory in words."""
    times = {title: results[f"backward[{case}]"] for title, case in BARS.items()}
    scale = WIDTH / max(time.value for time in times.values())
    height = TOP + ROW * (1 + len(times)) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" width="760" height="{height}" role="img" '
        'font-family="sans-serif" font-size="13" fill="#1f2328">',
        "  <title>Time of a backward pass and peak memory of a rank beside plain DDP, under three reductions</title>",
        f'  <rect width="760" height="{height}" rx="8" fill="#f6f8fa"/>',
        '  <text x="20" y="26" font-size="14">A backward pass that hands over 40 MB of gradients, 4 processes: time '
        "beside plain DDP</text>",
        '  <text x="20" y="45" font-size="11">ratio of medians; on the right, peak memory of a rank beside plain '
        "DDP</text>",
    ]
    rows = [("plain DDP", 1.0, "")]
    for title, case in BARS.items():
        rows.append((title, times[title].value, f"{results[f'peak[{case}]'].detail['more_mb']:+.0f} MB"))
    for number, (title, value, memory) in enumerate(rows):
        y, bar = TOP + ROW * number, scale * value
        color = "#54aeff" if "moo" in title.lower() else "#8c959f"
        lines += [
            f'  <text x="{LEFT - 8}" y="{y + 16}" text-anchor="end" font-size="12">{escape(title)}</text>',
            f'  <rect x="{LEFT}" y="{y}" width="{bar:.1f}" height="24" fill="{color}"/>',
            f'  <text x="{LEFT + bar + 8:.1f}" y="{y + 17}">{value:.2f}</text>',
            f'  <text x="740" y="{y + 17}" text-anchor="end">{memory}</text>',
        ]
    lines += [
        f'  <text x="20" y="{height - 14}" font-size="11">Over Gloo on two cores, so that every pass over memory '
        "shows; nothing was measured on a GPU.</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes pages and figure."""
    results = load()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text, results), encoding="utf-8")
    FIGURE.write_text(figure(results), encoding="utf-8")


if __name__ == "__main__":
    main()
