"""`bertxfer augment`: copies of rows in which words are changed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, user_input
from .console import quiet, say

#: What `data.augmentation` has of its own; asking it would import what `--help` does not need.
METHODS = ("masking", "ngrams", "tinybert", "words")
_CHOICES = ("error", "skip", "keep")


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "augment",
        help="write copies of texts in which words are changed",
        description="Write every row of a file and copies of it in which words are changed, labels and all other "
        "columns carried along. The copies of a row depend on the seed and its texts alone.",
        allow_abbrev=False,
    )
    parser.add_argument("input", metavar="DATA", help="csv, tsv, jsonl, parquet or txt file")
    parser.add_argument(
        "--model",
        required=True,
        help="directory of an encoder with its tokenizer; one with a masked-LM head proposes words by context",
    )
    parser.add_argument(
        "--method",
        action="append",
        required=True,
        help=f"built in: {', '.join(METHODS)}; given more than once they follow one another",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of a method, for example p=0.3 or masking.p=0.3",
    )
    parser.add_argument("--output", required=True, help="new file ending in .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--copies", type=int, help="of every row (default: what the method's authors made)")
    parser.add_argument("--no-originals", action="store_true", help="write the copies alone")
    parser.add_argument("--text", default="text", help="column with the text (default: text)")
    parser.add_argument("--text-pair", help="column with the second text of a pair; it is changed, too")
    parser.add_argument("--word-labels", help="column with a label for each word, cut where the words are")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--empty-rows", choices=_CHOICES, default="error", help="rows without text (keep: they get no copies)"
    )
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.set_defaults(run=run)
    return parser


@quiet()
def run(args: argparse.Namespace) -> None:
    """Read, check, then write row by row.

    Raises:
        InputError: something given cannot be used; nothing was written.
    """
    with user_input():
        from ..data import augmentation, writing
        from ..data.encoding import checked_max_length
        from ..models.hf.loading import load_tokenizer, model_folder
        from ..models.words import WordModel

    if Path(args.output).is_file():  # it may be the input, or somebody's data
        raise InputError(f"--output: got {args.output!r}, want a new file: there is something")
    with user_input():
        options = _options(args.method, args.option)
        methods = [augmentation.get(name, **options[name]) for name in args.method]
        folder = model_folder(args.model, "model")
        tokenizer = load_tokenizer(folder)
        needed = any(method.needs_proposals for method in methods)
        proposals = WordModel.load(folder, tokenizer) if needed else None
        positions = proposals.encoder.spec.max_positions if proposals is not None else None
        rows = augmentation.Augmentation(
            args.input,
            tokenizer,
            methods,
            text=args.text,
            text_pair=args.text_pair,
            word_labels=args.word_labels,
            proposals=proposals,
            copies=args.copies,
            originals=not args.no_originals,
            seed=args.seed,
            empty_rows=args.empty_rows,
            tokens_per_batch=args.tokens_per_batch,
            max_length=checked_max_length(tokenizer, None, positions=positions),
        )
        writing.check_writable(args.output, rows.rows)
    for line in rows.told:
        say(line)
    written = 0
    with user_input(), writing.open_rows(args.output, rows.rows.features) as write:
        for row in rows:
            write(row)
            written += 1
    say(f"{len(rows.rows):,} rows -> {written:,} rows in {Path(args.output)}")


def _options(methods: list[str], words: list[str]) -> dict[str, dict[str, Any]]:
    """The options of every method; one without a method's name is the only method's."""
    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    if len(found) < len(methods):
        raise InputError(f"--method: got {' '.join(methods)}, want each once")
    for word in words:
        name, equals, value = word.partition("=")
        method, dot, option = name.rpartition(".")
        method = method if dot else methods[0]
        if not equals or method not in found or (not dot and len(methods) > 1):
            raise InputError(
                f"--option: got {word!r}, want "
                + ("NAME=VALUE" if len(methods) == 1 else "METHOD.NAME=VALUE of one of the methods")
            )
        if option in found[method]:
            raise InputError(f"--option: got {name} twice, want it once")
        found[method][option] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
