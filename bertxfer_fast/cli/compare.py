"""`bertxfer compare`: runs side by side."""

from __future__ import annotations

import argparse
import json
from collections import Counter
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
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run (of several tasks: a line each), or a results file",
    )
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
        from ..evaluation.results import RESULTS_FILE, compared, read_results
        from ..evaluation.tables import table

        runs = [named for run in args.runs for named in _named(Path(run), RESULTS_FILE)]
        times = Counter(name for name, _ in runs)
        rows = compared([(name if times[name] == 1 else str(run), read_results(run)) for name, run in runs])
        if args.sort is not None:
            known = list(dict.fromkeys(name for row in rows for name in row))
            if args.sort not in known:
                raise ValueError(f"--sort: got {args.sort!r}, want one of {', '.join(known)}")
            rows.sort(key=lambda row: (row.get(args.sort) is not None, row.get(args.sort)), reverse=True)
    say(json.dumps(rows, indent=1, ensure_ascii=False) if args.json else table(rows, style="text"))


def _named(run: Path, results: str) -> list[tuple[str, Path]]:
    """A run under its name; of a run of several tasks, each of them."""
    if not run.is_dir():
        return [(run.resolve().parent.name if run.name == results else run.name, run)]
    name = run.resolve().name
    tasks = [] if (run / results).is_file() else sorted(file.parent for file in run.glob(f"*/{results}"))
    return [(f"{name}/{task.name}", task) for task in tasks] or [(name, run)]
