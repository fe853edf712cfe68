"""The `bertxfer` command: `distill`, `extract`, `bench`, `info`.

Whatever is wrong with a user's input is found before work starts, said in one line on stderr, and ends with exit
code 2 (`--debug` shows the traceback). A training that stops because a loss is not finite ends with code 1,
and so does a benchmark of what fails its tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import InputError, NonFiniteLossError, one_line, user_input
from .config.schema import describe, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
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
        code, message = _ending(error, resumable=args.run is _distill)
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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    distill = commands.add_parser(
        "distill",
        help="run a distillation recipe",
        description="Run the stages of a recipe. Running the same command again goes on where it stopped.",
        epilog=f"keys of the recipe, each also a flag (flags win):\n{describe()}\n"
        "  --training.FIELD, --stages.STAGE.FIELD, --options.NAME",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="bertxfer distill RECIPE.yaml [--debug] [--key value ...]",
        allow_abbrev=False,
    )
    distill.add_argument("recipe", metavar="RECIPE.yaml")
    distill.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    distill.set_defaults(run=_distill)

    extract = commands.add_parser("extract", help="write pooled features of texts", allow_abbrev=False)
    extract.add_argument("model", metavar="MODEL", help="directory of an encoder with its tokenizer")
    extract.add_argument("--input", required=True, help="csv, tsv, jsonl, parquet or txt file")
    extract.add_argument("--text", default="text", help="column with the text (default: text)")
    extract.add_argument("--text-pair", help="column with the second text of a pair")
    extract.add_argument("--output", required=True, help="file ending in .npy, .safetensors or .csv")
    extract.add_argument(
        "--layers", default="-1", help="hidden states to average, for example --layers=-4,-3,-2,-1"
    )
    extract.add_argument("--mode", default="mean", help="mean (default), cls, max or mean_sqrt")
    extract.add_argument("--normalize", action="store_true", help="scale each vector to length 1")
    extract.add_argument("--max-length", type=int, help="cut texts to so many tokens")
    extract.add_argument("--tokens-per-batch", type=int, default=8192)
    extract.set_defaults(run=_extract)

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

    info = commands.add_parser("info", help="versions, devices, and which implementation each op uses")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    for command in (distill, extract, bench, info):
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
    return parser


def _quiet() -> None:
    """Progress bars and warnings are for the training, not for loading."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


# ---- commands -----------------------------------------------------------------------------------------------


def _distill(args: argparse.Namespace) -> None:
    flags = [word for word in args.flags if word != "--debug"]
    if "--help" in flags or "-h" in flags:
        _parser().parse_args(["distill", "--help"])
    config = load(args.recipe, flags)
    _quiet()
    from .run.distill import distill

    distill(config)


def _extract(args: argparse.Namespace) -> None:
    _quiet()
    from ..data import encoding as data
    from ..features import OUTPUT_SUFFIXES, FeatureExtractor, save_features

    output = Path(args.output)
    if output.suffix not in OUTPUT_SUFFIXES:
        raise InputError(
            f"--output: wants a name ending in {', '.join(OUTPUT_SUFFIXES)}, got {output.name!r}"
        )
    if not output.resolve().parent.is_dir():
        raise InputError(f"--output: no such directory: {output.parent}")
    try:
        layers = [int(word) for word in args.layers.split(",")]
    except ValueError:
        raise InputError(f"--layers: wants whole numbers with commas, got {args.layers!r}") from None
    with user_input():
        extractor = FeatureExtractor(
            args.model,
            layers=layers,
            mode=args.mode,
            normalize=args.normalize,
            max_length=args.max_length,
            tokens_per_batch=args.tokens_per_batch,
        )
        features = data.encode(
            args.input,
            extractor.tokenizer,
            text=args.text,
            text_pair=args.text_pair,
            max_length=extractor.max_length,
        )
    rows = extractor.extract_ids(features)
    with user_input("--output"):
        save_features(rows, output)
    print(f"{rows.shape[0]:,} x {rows.shape[1]} features in {output}")


def _bench(args: argparse.Namespace) -> int:
    """Starts `benchmarks/`, which stands beside the package in a source checkout and is no part of it."""
    root = Path(__file__).resolve().parents[2]
    if not ((root / "benchmarks" / "run.py").is_file() and (root / "tests" / "ops").is_dir()):
        raise InputError(
            "bench: run it from a source checkout, with benchmarks/ and tests/ beside the package"
        )
    sys.path.insert(0, str(root))
    if args.docs:
        if args.names:
            raise InputError("--docs: measures nothing, so it takes no NAME")
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


def _info(args: argparse.Namespace) -> None:
    from ..evaluation.report import environment

    facts = environment()
    if args.json:
        print(json.dumps(facts, indent=2, default=str))
        return
    for section in ("versions", "devices", "build"):
        print(section)
        for key, value in facts[section].items():
            print(f"  {key}: {value}")
    print("ops")
    for op, devices in facts["ops"].items():
        for device, choice in devices.items():
            reasons = "; ".join(f"{name}: {why}" for name, why in choice["reasons"].items())
            print(
                f"  {op} on {device}: {choice['implementation']}" + (f" (not {reasons})" if reasons else "")
            )
