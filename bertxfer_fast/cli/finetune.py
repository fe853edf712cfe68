"""`bertxfer finetune`: `bertxfer distill` with the recipe `finetune`: labels alone, no teacher."""

from __future__ import annotations

import argparse
from typing import Any

from . import distill


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = distill.add_run_parser(
        commands,
        "finetune",
        help="train a model on labels alone",
        description="Fine-tune the student directory on the labels of the data (a masked LM: on the text alone). "
        "Running the same command again goes on where it stopped.",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """As `distill.run`, whose recipe need not be said."""
    args.flags = ["--recipe", "finetune", *args.flags]
    distill.run(args)
