"""``python -m bucket_moo_ext``: what this machine has, and pages of what was recorded."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

STATUS_OF_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command of the command line, and gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bucket_moo_ext", description="Conflict-aware gradient reduction.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="what to paste into a bug report: versions, devices, wrappers, and a reduction between two local ranks",
        description="Looks at this machine and runs a reduction between two local ranks. Exit status 0: all is well; "
        "1: there are problems, each with what to do about it.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    report = commands.add_parser(
        "report",
        help="an HTML page of recordings",
        description="Writes one page that stands alone of files that Recorder.save() wrote.",
    )
    report.add_argument("recordings", nargs="+", type=Path, help="files, or folders with files that end in .jsonl")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="PAGE", help="the HTML file")
    compare = commands.add_parser(
        "compare",
        help="two recordings side by side, as text or as an HTML page",
        description="Prints what two files that Recorder.save() wrote say of the same things, or writes a page.",
    )
    compare.add_argument("recordings", nargs=2, type=Path, help="files of Recorder.save()")
    compare.add_argument("-o", "--output", type=Path, metavar="PAGE", help="an HTML file in place of text")
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        return _doctor(given.json)
    try:
        return _report(given.recordings, given.output, side_by_side=given.command == "compare")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return STATUS_OF_BAD_INPUT


def _doctor(as_json: bool) -> int:
    from bucket_moo_ext.observe.doctor import examine

    diagnosis = examine()
    print(diagnosis.to_json() if as_json else diagnosis)
    return 1 if diagnosis.problems else 0


def _report(paths: Sequence[Path], output: Path | None, *, side_by_side: bool) -> int:
    from bucket_moo_ext.observe.comparison import compare
    from bucket_moo_ext.observe.page import write_page
    from bucket_moo_ext.observe.recordings import load_all

    recorders = load_all(paths)
    if side_by_side and len(recorders) != len(paths):
        raise ValueError(f"compare takes two recordings; got {len(recorders)}: {', '.join(recorders)}")
    if output is not None:
        write_page(output, recorders, side_by_side=side_by_side)
        print(f"written: {output}")
        return 0
    (first, ours), (second, theirs) = recorders.items()
    print(compare(ours, theirs, (first, second)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
