"""`bertxfer extract`: write pooled features of texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data.empty_rows import EMPTY_ROWS
from ..errors import InputError, user_input
from .console import quiet
from .outputs import check_output


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "extract",
        help="write pooled features of texts",
        description="Write a row of features for each text of a file: hidden states of a frozen encoder, pooled.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="directory of an encoder with its tokenizer")
    parser.add_argument("--input", required=True, help="csv, tsv, jsonl, parquet or txt file")
    parser.add_argument("--text", default="text", help="column with the text (default: text)")
    parser.add_argument("--text-pair", help="column with the second text of a pair")
    parser.add_argument("--output", required=True, help="file ending in .npy, .safetensors or .csv")
    parser.add_argument("--layers", default="-1", help="hidden states, for example --layers=-4,-3,-2,-1")
    parser.add_argument("--pooling", default="mean", help="mean (default), cls, max or mean_sqrt")
    parser.add_argument(
        "--combine",
        default="average",
        help="several layers: average (default), or concat: side by side",
    )
    parser.add_argument("--normalize", action="store_true", help="scale each vector to length 1")
    parser.add_argument(
        "--max-length",
        type=int,
        help="cut texts to so many tokens (default: what model and tokenizer can take)",
    )
    parser.add_argument(
        "--empty-rows",
        choices=tuple(EMPTY_ROWS),
        default="error",
        help="rows without text: " + "; ".join(f"{choice}: {what}" for choice, what in EMPTY_ROWS.items()),
    )
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.set_defaults(run=run)
    return parser


@quiet()
def run(args: argparse.Namespace) -> None:
    """Read, encode, extract, write.

    Raises:
        InputError: something given cannot be used; nothing was written.
    """
    with user_input():  # the operators read the environment when they are imported
        from .. import data
        from ..features import OUTPUT_SUFFIXES, FeatureExtractor, save_features

    output = Path(args.output)
    if output.suffix not in OUTPUT_SUFFIXES:
        raise InputError(f"--output: got {output.name!r}, want a name ending in {', '.join(OUTPUT_SUFFIXES)}")
    if not output.resolve().parent.is_dir():
        raise InputError(
            f"--output: got {args.output!r}, want a file in a directory: no such directory: {output.parent}"
        )
    if output.is_dir():
        raise InputError(f"--output: got {args.output!r}, want a file: this is a directory")
    check_output("--output", args.output, args.model, args.input)
    try:
        layers = [int(word) for word in args.layers.split(",")]
    except ValueError:
        raise InputError(f"--layers: got {args.layers!r}, want whole numbers with commas") from None
    with user_input():
        extractor = FeatureExtractor(
            args.model,
            layers=layers,
            pooling=args.pooling,
            combine=args.combine,
            normalize=args.normalize,
            max_length=args.max_length,
            tokens_per_batch=args.tokens_per_batch,
        )
        ready = extractor.load()
        features = data.encode(
            args.input,
            ready.tokenizer,
            text=args.text,
            text_pair=args.text_pair,
            max_length=ready.max_length,
            empty_rows=args.empty_rows,
        )
        rows = extractor.extract_ids(features)
    with user_input("--output"):
        save_features(rows, output)
    print(f"{rows.shape[0]:,} x {rows.shape[1]} features in {output}")
