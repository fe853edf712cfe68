"""`bertxfer evaluate`: measure a model on a file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.empty_rows import EMPTY_ROWS
from ..errors import InputError, user_input
from .console import command_line, quiet, say
from .outputs import check_output


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        help="measure a model on a file",
        description="Metrics with confidence intervals (bootstrap over sequences), a table by class, size and speed.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="directory of a model with its tokenizer")
    parser.add_argument("--data", required=True, help="csv, tsv, jsonl, parquet or txt file")
    parser.add_argument("--text", default="text", help="column with the text, or with lists of words")
    parser.add_argument("--text-pair", help="column with the second text of a pair")
    parser.add_argument("--label", help="column with the label; left out: size and speed alone")
    parser.add_argument(
        "--label-map", help="json file of label names and ids (default: the model's own names)"
    )
    parser.add_argument("--task", help="what the head does (default: the model's own head)")
    parser.add_argument("--max-length", type=int, help="cut texts to so many tokens")
    parser.add_argument(
        "--empty-rows",
        choices=[choice for choice in EMPTY_ROWS if choice != "zeros"],
        default="error",
        help="rows without text: refuse the file, leave them out, or encode the empty text",
    )
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--bf16", action="store_true", help="run in bfloat16 autocast")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default: 1000)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--output", help="also write results.json, or the .html of a report")
    parser.add_argument("--predictions", help="write what is predicted: .csv, .tsv, .jsonl or .parquet")
    parser.set_defaults(run=run)
    return parser


@quiet()
def run(args: argparse.Namespace) -> None:
    """Read, encode, measure, tell.

    Raises:
        InputError: something given cannot be used; nothing was written.
    """
    with user_input():  # the operators read the environment when they are imported
        from .. import data, students  # noqa: F401  # importing students makes their kinds known to transformers
        from ..data.encoding import checked_max_length
        from ..evaluation.assessment import Resampling, assess
        from ..evaluation.card import short_name
        from ..evaluation.report import html_report
        from ..evaluation.results import dump, measured
        from ..models.hf.loading import load_tokenizer, model_folder
        from ..models.spec import EncoderSpec
        from .run.resume import write_whole

    _check(args)
    with user_input():
        folder = model_folder(args.model, "model")
        tokenizer = load_tokenizer(folder)
        model, task = _model(folder, args.task)
        spec = EncoderSpec.of(model)
        if args.label is not None and not task.label_column:
            raise InputError(
                f"--label: got {args.label!r} for task {task.name!r}, want it left out: its labels come from no column"
            )
        if args.predictions and task.head == "token" and Path(args.predictions).suffix in (".csv", ".tsv"):
            raise InputError(
                f"--predictions: got {args.predictions!r} for task {task.name!r}, want .jsonl or .parquet: a table has "
                "no place for lists"
            )
        label2id = None if args.label is None else _label_map(args, spec, task)
        rows = data.load(args.data)
        features = data.encode(
            rows,
            tokenizer,
            text=args.text,
            text_pair=args.text_pair,
            label=args.label,
            task=task,
            label2id=label2id,
            max_length=checked_max_length(
                tokenizer, args.max_length, pair=args.text_pair is not None, positions=spec.max_positions
            ),
            empty_rows=args.empty_rows,
        )
        resampling = Resampling(args.resamples, args.seed, args.confidence)
        found = assess(
            short_name(args.model),
            model,
            features,
            task=task,
            tokens_per_batch=args.tokens_per_batch,
            bf16=args.bf16,
            names=None if label2id is None else sorted(label2id, key=label2id.__getitem__),
            resampling=resampling,
        )
    name = Path(args.data).name
    results = measured(
        [found],
        resampling,
        on=name,
        command=command_line(["evaluate", *args.words]),
        task=task.name,
        data={"evaluated": {"file": name, "sequences": len(features)}},
    )
    with user_input("--predictions"):
        if args.predictions:
            _write_predictions(args, found.predictions, rows)
    with user_input("--output"):
        if args.output:
            text = html_report(results) if args.output.endswith(".html") else dump(results)
            write_whole(Path(args.output), text)
    print(dump(results), end="") if args.json else _tell(found)


def _check(args: argparse.Namespace) -> None:
    """What can be seen before anything is loaded."""
    from ..data.writing import SUFFIXES

    if args.predictions and args.label is None:
        raise InputError("--predictions: got a file without --label, want the column to compare with")
    outputs = (("output", args.output, (".json", ".html")), ("predictions", args.predictions, SUFFIXES))
    for flag, value, suffixes in outputs:
        if value is None:
            continue
        if Path(value).suffix not in suffixes:
            raise InputError(f"--{flag}: got {value!r}, want a name ending in {', '.join(suffixes)}")
        if not Path(value).resolve().parent.is_dir() or Path(value).is_dir():
            raise InputError(f"--{flag}: got {value!r}, want a file in a directory that exists")
        check_output(f"--{flag}", value, args.model, args.data, args.label_map)
    for flag, number in (("resamples", args.resamples), ("tokens-per-batch", args.tokens_per_batch)):
        if number < 1:
            raise InputError(f"--{flag}: got {number}, want 1 or more")
    if not 0 < args.confidence < 1:
        raise InputError(f"--confidence: got {args.confidence}, want a number between 0 and 1")
    if args.seed < 0:
        raise InputError(f"--seed: got {args.seed}, want 0 or more")


def _model(folder: Path, name: str | None) -> tuple[Any, Any]:
    """The model with the head of its task, and the task."""
    from .. import tasks
    from ..models.hf.loading import load_model
    from ..models.loans import default_device
    from .run.roles import saved_task

    own = saved_task(folder)
    task = own if name is None else tasks.get(name)
    if task.head is not None and (task.auto_class, task.labels) != (own.auto_class, own.labels):
        raise ValueError(f"task: got {task.name!r}, want {own.name!r}: the model's head does that")
    return load_model(folder, task.auto_class)[0].eval().to(default_device()), task


def _label_map(args: argparse.Namespace, spec: Any, task: Any) -> Mapping[str, int] | None:
    """Names of the classes -> ids: of a file, or the model's own."""
    from .. import data

    if args.label_map is not None:
        with user_input(f"--label-map: {args.label_map}"):
            found = data.load_label_map(args.label_map)
            if len(found) != spec.num_labels:
                raise ValueError(f"got {len(found)} labels, want the {spec.num_labels} of the model")
            _check_places(found, spec.labels)
            return found
    return {name: i for i, name in enumerate(spec.labels)} if task.has_classes else None


def _check_places(label2id: Mapping[str, int], labels: Sequence[str]) -> None:
    """A name that the model has itself stands where the model has it; upper and lower case count as the same."""
    from ..students.heads import has_names

    if not has_names(labels):
        return
    for name, i in label2id.items():
        own = [place for place, label in enumerate(labels) if str(label).casefold() == name.casefold()]
        if own and i not in own:
            raise ValueError(f"got {name!r} as {i}, want {own[0]}, as the model has it: {list(labels)}")


def _write_predictions(args: argparse.Namespace, predictions: Any, read: Any) -> None:
    """The predictions, numbered as the rows are in the file, of which some may have been left out."""
    from datasets import Dataset

    from ..data.encoding import incomplete_rows
    from ..data.writing import check_writable, open_rows
    from ..evaluation.predictions import prediction_rows

    gone: set[int] = set()
    if args.empty_rows == "skip":
        texts = [args.text] if args.text_pair is None else [args.text, args.text_pair]
        gone = gone.union(*incomplete_rows(read, texts, args.label).values())
    numbers = [i + 1 for i in range(len(read)) if i not in gone]
    told = prediction_rows(predictions, numbers)
    if predictions.task.labels == "multi-hot" and Path(args.predictions).suffix in (".csv", ".tsv"):
        told = [{**row, **{key: " ".join(row[key]) for key in ("label", "predicted")}} for row in told]
    rows = Dataset.from_list(told)
    check_writable(args.predictions, rows)
    with open_rows(args.predictions, rows.features) as write:
        for row in rows:
            write(row)


def _tell(found: Any) -> None:
    from ..evaluation.tables import table

    say(table([found.row()], style="text"))
    if found.classes:
        say("\n" + table(found.classes, style="text"))
    if found.confusion is not None:
        names, counts = found.confusion["classes"], found.confusion["counts"]
        rows = [
            {"is / taken for": n, **dict(zip(names, row, strict=True))}
            for n, row in zip(names, counts, strict=True)
        ]
        say("\n" + table(rows, style="text"))
