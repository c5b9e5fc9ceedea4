"""``python -m bucket_moo_ext doctor``: what this machine has, and whether reductions work on it."""

import argparse
import sys
from collections.abc import Sequence


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
    given = parser.parse_args(arguments)

    from bucket_moo_ext.observe.doctor import examine

    diagnosis = examine()
    print(diagnosis.to_json() if given.json else diagnosis)
    return 1 if diagnosis.problems else 0


if __name__ == "__main__":
    sys.exit(main())
