"""`bertxfer distill`: run the stages of a recipe."""

from __future__ import annotations

import argparse
from typing import Any

from .config.schema import describe, load
from .config.several import load_several
from .console import command_line, quiet


def add_parser(commands: Any) -> argparse.ArgumentParser:
    return add_run_parser(
        commands,
        "distill",
        help="run a distillation recipe",
        description="Run the stages of a recipe. Running the same command again goes on where it stopped.",
    )


def add_run_parser(commands: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    """A command that takes a recipe file, all of whose keys are also flags."""
    parser = commands.add_parser(
        name,
        **texts,
        epilog=f"keys of the recipe, each also a flag (flags win):\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"bertxfer {name} RECIPE.yaml [--debug] [--key value ...]",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, parser=parser, command=name, resumable=True)
    return parser


def run(args: argparse.Namespace) -> None:
    """Plan, run, report: each reads what the one before it made.

    Raises:
        InputError: something given cannot be used; nothing was written.
        NonFiniteLossError: see `DistillationTrainer.train`.
    """
    flags = [word for word in args.flags if word != "--debug"]
    if "--help" in flags or "-h" in flags:
        args.parser.parse_args(["--help"])
    several = load_several(args.recipe, flags)
    command = command_line([args.command, *args.words])
    if several is not None:
        with quiet():
            from .run.several import run_several

            run_several(several, command=command)
        return
    config = load(args.recipe, flags)
    with quiet():
        from .run.plan import make_plan
        from .run.report import report
        from .run.stages import run_stages
        from .run.twin import TWIN, start_twin, train_twin

        plan = make_plan(config)
        twin = start_twin(plan)
        records = run_stages(plan)
        if twin is not None:
            records[TWIN] = train_twin(plan, twin, records)
        report(plan, records, command=command, twin=twin)
