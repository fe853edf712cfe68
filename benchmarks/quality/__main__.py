"""python -m benchmarks.quality [NAME ...]: measure rows of the quality table and write docs/quality.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bertxfer_fast.errors import did_you_mean

from . import report
from .place import Place, fetch
from .rows import ROWS
from .runner import run_rows
from .training import quiet


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows (default: all of them)")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument(
        "--write", action="store_true", help="write docs/quality.md from the committed results"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/quality"),
        metavar="DIR",
        help="for text, teachers and results",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="text and encoder of your own in files named as examples/fetch.py does; the results are not published",
    )
    args = parser.parse_args(argv)
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in args.names if name not in known]:
        hint = did_you_mean(unknown[0], known, listing=False)
        parser.error(f"names: got {unknown[0]!r}, want some of {', '.join(known)}{hint}")
    if args.list:
        for row in ROWS:
            print(f"{row.name:12} about {row.minutes:3.0f} min  {row.title}")
        return 0
    quiet()
    if not args.write:
        rows = [known[name] for name in dict.fromkeys(args.names)] or list(ROWS)
        try:
            run_rows(rows, Place(args.output, args.data), None if args.data else report.RESULTS, say=_say)
        except fetch.FetchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if not args.data:
        report.write(ROWS)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
