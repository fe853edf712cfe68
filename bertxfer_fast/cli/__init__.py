"""The `bertxfer` command: `distill`, `transfer`, `evaluate` and others, each in a file of its own.

Whatever is wrong with a user's input is found before work starts, said in one line on stderr, and ends with exit
code 2 (`--debug` shows the traceback). A training that stops because a loss is not finite ends with code 1,
and so does a benchmark of what fails its tests.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import InputError, NonFiniteLossError, one_line
from . import augment, bench, compare, distill, evaluate, extract, finetune, info, store, transfer

__all__ = ["main"]

#: In the order of `bertxfer --help`. A command adds its parser to the others and sets `run` as its default.
COMMANDS = (distill, finetune, transfer, store, augment, extract, evaluate, compare, bench, info)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--debug"]
    args.words = words[1:]  # behind the command's name, for whoever writes down what was asked
    debug = args.debug or "--debug" in getattr(args, "flags", ())
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    # Models and data come from local files only. Libraries read this when they are imported: below, not above.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return args.run(args) or 0
    except (InputError, NonFiniteLossError, KeyboardInterrupt) as error:
        if debug:
            raise
        code, message = _ending(error, resumable=args.resumable)
        print(f"bertxfer: {message}", file=sys.stderr)
        return code


def _ending(error: BaseException, *, resumable: bool) -> tuple[int, str]:
    """The exit code and the one line that an error ends with."""
    if isinstance(error, InputError):
        return 2, f"error: {one_line(error)}"
    if isinstance(error, NonFiniteLossError):
        return 1, one_line(error)
    return 130, "interrupted" + ("; the same command goes on from the last checkpoint" if resumable else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertxfer", description="Distil BERT-family encoders into smaller ones.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"bertxfer_fast {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(resumable=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
    return parser
