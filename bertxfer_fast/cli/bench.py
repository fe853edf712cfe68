"""`bertxfer bench`: measure the operators against plain and compiled PyTorch."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError


def add_parser(commands: Any) -> argparse.ArgumentParser:
    bench = commands.add_parser(
        "bench",
        help="measure the operators against plain and compiled PyTorch",
        description="Test each operator, then time it and read its memory beside what it replaces, in one process. "
        "Needs a source checkout. An operator whose tests fail gets no numbers, and the exit code is 1.",
        allow_abbrev=False,
    )
    bench.add_argument(
        "names", nargs="*", metavar="NAME", help="for example attention_map, step (default: all)"
    )
    bench.add_argument(
        "--quick", action="store_true", help="tiny shapes, to see that all runs; means nothing"
    )
    bench.add_argument("--threads", type=int, help="default: as many as this process may use")
    bench.add_argument(
        "--output", type=Path, help="results file (default: one per processor in benchmarks/results/)"
    )
    bench.add_argument("--no-plots", action="store_true", help="leave docs/plots/ alone")
    bench.add_argument("--skip-compile", action="store_true", help="leave torch.compile out")
    bench.add_argument(
        "--docs", action="store_true", help="measure nothing: put the results on disk into the documentation"
    )
    bench.set_defaults(run=_bench)
    return bench


def _bench(args: argparse.Namespace) -> int:
    """Starts `benchmarks/`, which stands beside the package in a source checkout and is no part of it."""
    root = Path(__file__).resolve().parents[2]
    if not ((root / "benchmarks" / "run.py").is_file() and (root / "tests" / "ops").is_dir()):
        raise InputError(
            "bench: got an installed package, want a source checkout with benchmarks/ and tests/ beside it"
        )
    sys.path.insert(0, str(root))
    if args.docs:
        if args.names:
            raise InputError(f"--docs: got {' '.join(args.names)}, want no NAME: it measures nothing")
        importlib.import_module("benchmarks.docs").write_docs(root, args.output)
        return 0
    code: int = importlib.import_module("benchmarks.run").run(
        args.names,
        quick=args.quick,
        threads=args.threads,
        output=args.output,
        plots=not args.no_plots,
        skip_compile=args.skip_compile,
    )
    return code
