"""`bertxfer transfer`: a teacher's weights blended into a student, by one share or by the best of several."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, user_input
from .console import quiet, say

RECORD_FILE, SWEEP_FILE, TABLE_FILE, PLOT_FILE = "transfer.json", "sweep.json", "sweep.md", "sweep.png"
_RULES = ("error", "truncate", "svd")
# What a sweep does unless it is told otherwise; the parser's defaults are None, which says that nothing was told.
_SWEEP_DEFAULTS = {
    "text": "text",
    "label": "label",
    "empty_rows": "error",
    "steps": 0,
    "learning_rate": 5e-5,
    "batch_size": 32,
}
_OF_SWEEP = ("dev", "train", "metric", "text_pair", "max_length", *_SWEEP_DEFAULTS)
_OF_STEPS = ("train", "learning_rate", "batch_size")


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "transfer",
        help="blend a teacher's weights into a student",
        description="Write a student whose weights are BETA * teacher + (1 - BETA) * student, layer by layer. "
        "With --sweep every share is tried, fine-tuned for --steps if asked, and the best on the dev file is kept.",
        allow_abbrev=False,
    )
    parser.add_argument("teacher", metavar="TEACHER", help="directory of the teacher")
    parser.add_argument("student", metavar="STUDENT", help="directory of the student")
    parser.add_argument("--output", required=True, help="new directory for the blended student")
    parser.add_argument("--beta", type=float, help="the teacher's share, 0 to 1 (default: 1)")
    parser.add_argument(
        "--layers",
        default="uniform",
        help="uniform (default), first, last, a teacher layer for each of the student (1,3,5), or student:teacher "
        "pairs (0:1,2:5); from 0",
    )
    parser.add_argument(
        "--width-rule", choices=_RULES, default="error", help="for a student of other widths (default: error)"
    )
    parser.add_argument("--no-embeddings", action="store_true", help="leave the student's embeddings")
    parser.add_argument("--no-head", action="store_true", help="leave the student's pooler and head")
    parser.add_argument(
        "--task",
        help="load the student with the head of this task, and a teacher that has one (default: each with its own)",
    )
    sweep = parser.add_argument_group("sweep")
    sweep.add_argument("--sweep", metavar="BETAS", help="shares to try, for example 0,0.25,0.5,0.75,1")
    sweep.add_argument("--dev", help="labelled file that picks")
    sweep.add_argument("--train", help="labelled file of the fine-tuning")
    sweep.add_argument("--text", help="column with the text (default: text)")
    sweep.add_argument("--text-pair", help="column with the second text of a pair")
    sweep.add_argument("--label", help="column with the label (default: label)")
    sweep.add_argument("--max-length", type=int, help="cut texts to so many tokens")
    sweep.add_argument(
        "--empty-rows",
        choices=("error", "skip", "keep"),
        help="rows without text: refuse the file (default), leave them out, or encode the empty text",
    )
    sweep.add_argument("--steps", type=int, help="optimizer steps of fine-tuning on --train (default: 0)")
    sweep.add_argument("--learning-rate", type=float, help="of the fine-tuning (default: 5e-5)")
    sweep.add_argument("--batch-size", type=int, help="sequences in a training batch (default: 32)")
    sweep.add_argument("--metric", help="the dev metric that picks (default: the task's first)")
    parser.add_argument(
        "--seed", type=int, default=42, help="of new weights and the fine-tuning (default: 42)"
    )
    parser.set_defaults(run=run)
    return parser


@dataclass
class _Models:
    """Both models, the student's task and tokenizer, and what the teacher's own head is for."""

    teacher: Any
    student: Any
    task: Any
    tokenizer: Any
    teacher_task: Any


@quiet()
def run(args: argparse.Namespace) -> None:
    """Check, load, blend, write.

    Raises:
        InputError: something given cannot be used; nothing was written.
    """
    options = {
        "layer_map": _layers(args.layers),
        "width_rule": args.width_rule,
        "embeddings": not args.no_embeddings,
        "head": not args.no_head,
    }
    betas = _betas(args)
    for name, default in _SWEEP_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output: got {args.output!r}, want a new directory: there is something")
    for name in ("dev", "train"):
        path = getattr(args, name)
        if path is not None and not Path(path).is_file():
            raise InputError(f"--{name}: no such file: {path}")
    models = _load(args)
    if args.sweep is None:
        from ..students import transfer_weights

        with user_input():
            record = transfer_weights(models.teacher, models.student, betas[0], **options)
        _write(output, models.student, models, record)
        say(f"{record}\nthe student and {RECORD_FILE} are in {output}")
        return
    _sweep(args, models, betas, options, output)


def _sweep(
    args: argparse.Namespace, models: _Models, betas: list[float], options: dict[str, Any], output: Path
) -> None:
    from ..evaluation.results import dump
    from ..evaluation.sweeps import sweep_curve
    from ..evaluation.tables import table
    from ..models.loans import default_device
    from ..training.sweep import sweep_weights

    if models.task.labels is None or not models.task.label_column:
        raise InputError(
            f"--sweep: got task {models.task.name!r}, want one whose data has a column of labels to measure by"
        )
    arguments = {"learning_rate": args.learning_rate, "per_device_train_batch_size": args.batch_size}
    with user_input():
        data = _encoded(args, models)
        for model in (models.teacher, models.student):
            model.to(default_device())
        found = sweep_weights(
            models.teacher,
            models.student,
            betas,
            data["dev"],
            train=data.get("train"),
            steps=args.steps,
            arguments=arguments,
            task=models.task,
            metric=args.metric,
            seed=args.seed,
            **options,
        )
    _write(output, found.model, models, found.transfer, rows=list(found.rows), data=data)
    told = {
        "teacher": args.teacher,
        "student": args.student,
        "metric": found.metric,
        "steps": args.steps,
        "rows": found.rows,
        "best": found.best,
    }
    (output / SWEEP_FILE).write_text(dump(told), encoding="utf-8")
    (output / TABLE_FILE).write_text(table(found.rows) + "\n", encoding="utf-8")
    sweep_curve(
        found.rows, output / PLOT_FILE, best=found.best["beta"], title=f"{found.metric} on the dev file"
    )
    say(table(found.rows, style="text"))
    say(
        f"\nbest: beta {found.best['beta']:g}; {found.transfer}\nthe student, {RECORD_FILE}, {SWEEP_FILE}, "
        f"{TABLE_FILE} and {PLOT_FILE} are in {output}"
    )


# ---- what the user wrote ------------------------------------------------------------------------------------


def _betas(args: argparse.Namespace) -> list[float]:
    if args.sweep is None:
        beta = 1.0 if args.beta is None else args.beta
        if not 0 <= beta <= 1:
            raise InputError(f"--beta: got {beta:g}, want 0 to 1")
        _check_beside(args, _OF_SWEEP, "--sweep")
        return [beta]
    if args.beta is not None:
        raise InputError(f"--beta: got {args.beta:g} beside --sweep, want one of them")
    if args.dev is None:
        raise InputError("--sweep: got no --dev file, want one that picks")
    if args.steps is not None and args.steps < 0:
        raise InputError(f"--steps: got {args.steps}, want 0 or more")
    if args.steps and args.train is None:
        raise InputError(f"--steps: got {args.steps} without --train, want a file to fine-tune on")
    if not args.steps:
        _check_beside(args, _OF_STEPS, "--steps")
    try:
        betas = [float(word) for word in args.sweep.split(",")]
    except ValueError:
        raise InputError(f"--sweep: got {args.sweep!r}, want numbers with commas") from None
    if any(not 0 <= beta <= 1 for beta in betas) or len(set(betas)) < len(betas):
        raise InputError(f"--sweep: got {args.sweep!r}, want shares from 0 to 1, none twice")
    return betas


def _check_beside(args: argparse.Namespace, names: Iterable[str], wanted: str) -> None:
    """Refuse options that do nothing without another one."""
    for name in names:
        value = getattr(args, name)
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')}: got {value!r} without {wanted}, want both")


def _layers(text: str) -> Any:
    """`uniform`, `first`, `last`; `1,3` as teacher layers; `0:1,2:5` as pairs."""
    if not text[:1].isdigit():
        return text
    try:
        if ":" in text:
            return [tuple(int(layer) for layer in pair.split(":")) for pair in text.split(",")]
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise InputError(
            f"--layers: got {text!r}, want layers with commas, or student:teacher pairs"
        ) from None


def _load(args: argparse.Namespace) -> _Models:
    """Both models, each with its own head or that of `--task`."""
    with user_input():  # the operators read the environment when they are imported
        from transformers import AutoConfig, set_seed

        from .. import tasks
        from ..distillation.distiller import check_tokenizers
        from ..models.hf.loading import has_tokenizer, load_model, load_tokenizer, model_folder
    with user_input():
        task = None if args.task is None else tasks.get(args.task)
    set_seed(args.seed)  # a head that is new
    found = {}
    for role, path in (("TEACHER", args.teacher), ("STUDENT", args.student)):
        with user_input():
            folder = model_folder(path, role)
        with user_input(role):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            saved = (config.architectures or [""])[0]
            own = tasks.task_of(saved, config.num_labels, config.problem_type)
            model, new = load_model(folder, (task or own).auto_class)
            if role == "TEACHER" and new and task is not None:
                # A head that it was not saved with says nothing; its own one stays out of a student of another kind.
                model, _ = load_model(folder, own.auto_class)
            found[role] = model, own
    tokenizers = [load_tokenizer(path) for path in (args.student, args.teacher) if has_tokenizer(path)]
    if len(tokenizers) == 2 and not args.no_embeddings:
        with user_input("STUDENT"):
            check_tokenizers(tokenizers[1], tokenizers[0])
    (teacher, teacher_task), (student, own) = found.values()
    return _Models(teacher, student, task or own, tokenizers[0] if tokenizers else None, teacher_task)


def _encoded(args: argparse.Namespace, models: _Models) -> dict[str, Any]:
    """Features of the dev file and, where there is one, of the training file."""
    from .. import data

    if models.tokenizer is None:
        raise InputError("STUDENT: got no tokenizer there or in TEACHER, want one to read --dev")
    label2id = None
    if models.task.has_classes:
        label2id = _label_map(args, models)
    features = {}
    for name in ("dev", "train"):
        path = getattr(args, name)
        if path is not None:
            with user_input(f"--{name}: {Path(path).name}"):
                features[name] = data.encode(
                    path,
                    models.tokenizer,
                    text=args.text,
                    text_pair=args.text_pair,
                    label=args.label,
                    task=models.task,
                    label2id=label2id,
                    max_length=_longest(models) if args.max_length is None else args.max_length,
                    empty_rows=args.empty_rows,
                )
    return features


def _label_map(args: argparse.Namespace, models: _Models) -> dict[str, int]:
    """Names of the classes -> ids: the teacher's where its head is blended, the student's, or those of the data."""
    from .. import data

    heads = [
        (task.head, model.config.num_labels)
        for task, model in ((models.teacher_task, models.teacher), (models.task, models.student))
    ]
    blended = heads[0] == heads[1] and not args.no_head
    named = (models.teacher, models.student) if blended else (models.student,)
    for model in named:
        label2id = {str(name): int(i) for name, i in (model.config.label2id or {}).items()}
        if not all(name.startswith("LABEL_") for name in label2id):
            return label2id
    label2id = data.label_map(args.train or args.dev, args.label)
    if len(label2id) != models.student.config.num_labels:
        raise InputError(
            f"--label: got {len(label2id)} classes in column {args.label!r}, want the model's "
            f"{models.student.config.num_labels}"
        )
    for model in named:
        model.config.label2id, model.config.id2label = label2id, {i: name for name, i in label2id.items()}
    return label2id


def _longest(models: _Models) -> int | None:
    from ..models.spec import EncoderSpec

    limits = [EncoderSpec.of(models.student).max_positions, models.tokenizer.model_max_length]
    longest = min(limit for limit in limits if limit is not None)
    return longest if longest < 1_000_000 else None


# ---- what is left -------------------------------------------------------------------------------------------


def _write(
    output: Path,
    student: Any,
    models: _Models,
    record: Any,
    rows: list[dict[str, float]] | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """The student with its tokenizer, card and record."""
    from ..evaluation.card import ModelCard, how_to_load
    from ..evaluation.speed import student_facts

    with user_input("--output"):
        output.mkdir(parents=True, exist_ok=True)
    student.eval().save_pretrained(output)
    if models.tokenizer is not None:
        models.tokenizer.save_pretrained(output)
    ModelCard(
        teacher=models.teacher.config.name_or_path,
        student=student_facts(student),
        data={split: len(features) for split, features in (data or {}).items()},
        metrics=rows or (),
        **how_to_load(student),
    ).write(output)
    (output / RECORD_FILE).write_text(json.dumps(record.to_dict(), indent=1), encoding="utf-8")
