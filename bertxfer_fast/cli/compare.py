"""`bertxfer compare`: runs side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import user_input
from .console import say


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "compare",
        help="one table of several runs",
        description="Read the results.json of runs (`bertxfer distill`, `bertxfer evaluate --output`) and print a "
        "line for each: metrics with intervals, what is kept of the teacher's and gained over an undistilled twin, "
        "size, speed.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or a results file")
    parser.add_argument("--sort", metavar="COLUMN", help="column to sort by, largest first")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Read and print.

    Raises:
        InputError: a run without results, or a column that there is not.
    """
    with user_input():
        from ..evaluation.results import compared, read_results
        from ..evaluation.tables import table

        rows = compared([(_name(run), read_results(run)) for run in args.runs])
        if args.sort is not None:
            known = list(dict.fromkeys(name for row in rows for name in row))
            if args.sort not in known:
                raise ValueError(f"--sort: got {args.sort!r}, want one of {', '.join(known)}")
            rows.sort(key=lambda row: (row.get(args.sort) is not None, row.get(args.sort)), reverse=True)
    say(json.dumps(rows, indent=1, ensure_ascii=False) if args.json else table(rows, style="text"))


def _name(run: str) -> str:
    path = Path(run)
    return path.name if path.is_dir() or path.name != "results.json" else path.resolve().parent.name
