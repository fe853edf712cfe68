"""The `bertxfer` command: `distill`, `extract`, `info`.

Whatever is wrong with a user's input is found before work starts, said in one line on stderr, and ends with exit
code 2 (`--debug` shows the traceback). A training that stops because a loss is not finite ends with code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import __version__
from .config import ConfigError, DistillConfig, check_stages, describe, load

if TYPE_CHECKING:
    from .distiller import Distiller
    from .recipes import Recipe, Stage
    from .trainer import DistillationArguments, DistillationTrainer

RUN_FILE, STAGE_FILE = "run.json", "stage.json"
PLOT_FILE, TABLE_FILE = "losses.png", "summary.md"

# Keys that may change between the start of a run and its continuation: they do not change what is learned.
_FREE_KEYS = {"output_dir", "data.test"}
_FREE_TRAINING = {
    "disable_tqdm",
    "log_level",
    "report_to",
    "run_name",
    "save_total_limit",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
}


class InputError(ValueError):
    """Something the user gave cannot be used. Printed as one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    debug = args.debug or "--debug" in getattr(args, "flags", ())
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except (InputError, ConfigError) as error:
        if debug:
            raise
        print(f"bertxfer: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except ArithmeticError as error:  # NonFiniteLossError, whose module is heavy to import here
        if debug or type(error).__name__ != "NonFiniteLossError":
            raise
        print(f"bertxfer: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        print("bertxfer: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


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

    info = commands.add_parser("info", help="versions, devices, and which implementation each op uses")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    for command in (distill, extract, info):
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
    return parser


@contextmanager
def _user_input(where: str = "") -> Iterator[None]:
    """Errors about input raised in here become one `InputError` that starts with where the input stands."""
    try:
        yield
    except (InputError, ConfigError):
        raise
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{where}: {_one_line(error)}" if where else _one_line(error)) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _say(text: str) -> None:
    print(text, flush=True)


# ---- distill ------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """A distillation with everything loaded and checked; nothing is written yet."""

    config: DistillConfig
    recipe: Recipe
    arguments: dict[str, DistillationArguments]
    teacher: Any
    student: Any
    tokenizer: Any
    task: str
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    def distiller(self, stage: Stage) -> Distiller:
        from .distiller import Distiller

        return Distiller(self.teacher, self.student, stage.build_objectives())


def _distill(args: argparse.Namespace) -> int:
    flags = [word for word in args.flags if word != "--debug"]
    if "--help" in flags or "-h" in flags:
        _parser().parse_args(["distill", "--help"])
    _quiet_offline()
    with _user_input():
        config = load(args.recipe, flags)
    run = _prepare(config)
    _start(run)
    histories: dict[str, list[dict[str, Any]]] = {}
    rows = []
    for stage in run.recipe.stages:
        record = _run_stage(run, stage)
        histories[stage.name] = record["log_history"]
        rows.append(record["summary"])
    _finish(run, histories, rows)
    return 0


def _quiet_offline() -> None:
    """Models and data come from local files only; progress bars are for the training, not for loading."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from datasets import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()


def _prepare(config: DistillConfig) -> _Run:
    """Load and check everything. Raises InputError or ConfigError; writes nothing."""
    from . import recipes

    with _user_input(config.where("recipe")):
        recipes.options(config.recipe)
    with _user_input(config.where("options")):
        recipe = recipes.get(config.recipe, **config.options)
    check_stages(config, [stage.name for stage in recipe.stages])
    arguments = {stage.name: _arguments(config, stage) for stage in recipe.stages}
    _check_files(config)
    _check_output(config, list(arguments))
    tokenizer = _tokenizer(config)
    teacher, task = _teacher(config)
    _check_vocabulary(config, teacher, tokenizer)
    student = _student(config, teacher, task)
    run = _Run(config, recipe, arguments, teacher, student, tokenizer, task)
    distillers = {}
    for stage in recipe.stages:
        with _user_input(f"stage {stage.name}"):
            distillers[stage.name] = run.distiller(stage)
    run.data = _data(run)
    for name, distiller in distillers.items():
        _check_best_metric(run, name, distiller)
    return run


def _arguments(config: DistillConfig, stage: Stage) -> DistillationArguments:
    """The stage's training arguments: the command's defaults, the recipe's, the user's."""
    from .trainer import DistillationArguments

    has_dev = config.data.eval is not None
    chosen = {
        # A checkpoint an epoch makes an interrupted run cheap to resume; the dev set is measured, it picks nothing.
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "disable_tqdm": not sys.stderr.isatty(),
        "eval_strategy": "epoch" if has_dev else "no",
        **stage.training,
        **config.training_for(stage.name),
    }
    with _user_input(f"stage {stage.name}"):
        arguments = DistillationArguments(
            output_dir=str(Path(config.output_dir) / stage.name), seed=config.seed, **chosen
        )
        if arguments.eval_strategy != "no" and not has_dev:
            raise InputError(
                f"stage {stage.name}: eval_strategy is {chosen['eval_strategy']!r} but data.eval is missing"
            )
    return arguments


def _check_output(config: DistillConfig, stages: Sequence[str]) -> None:
    """Only an empty place, or a run of these very settings, is written to."""
    folder = Path(config.output_dir)
    where = config.where("output_dir")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{where}: {folder} is a file")
    record = folder / RUN_FILE
    if not record.is_file():
        found = next((name for name in ("config.json", *stages) if (folder / name).exists()), None)
        if found:
            raise InputError(f"{where}: {folder} holds {found} of something else; choose another output_dir")
        return
    with _user_input(str(record)):
        before = _flat(json.loads(record.read_text(encoding="utf-8")))
    now = _flat(_identity(config))
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key)
        and key not in _FREE_KEYS
        and not (key.split(".")[0] in ("training", "stages") and key.rpartition(".")[2] in _FREE_TRAINING)
    )
    if changed:
        raise InputError(
            f"{where}: {folder} holds a run that differs ({', '.join(changed)}); choose another output_dir, "
            "or delete that folder to start anew"
        )


def _identity(config: DistillConfig) -> dict[str, Any]:
    """What makes two runs the same: the settings, and what is in the files that training reads."""
    sources = {
        "teacher": config.teacher,
        "student": config.student.path,
        "tokenizer": config.tokenizer,
        "train": config.data.train,
        "eval": config.data.eval,
    }
    found = {name: _sha256(Path(path)) for name, path in sources.items() if path is not None}
    return json.loads(json.dumps({**config.to_dict(), "content of": found}, default=str))


def _sha256(path: Path) -> str:
    """Of a file, or of the files of a model directory."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping) or (not values and prefix):
        return {prefix: values} if values not in (None, {}) else {}
    return {
        k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}.{key}".strip(".")).items()
    }


def _check_files(config: DistillConfig) -> None:
    """Everything named on disk is there, before anything large is read."""
    from .features import model_folder

    for key, path in (("teacher", config.teacher), ("student.path", config.student.path)):
        if path is not None:
            with _user_input(config.where(key)):
                model_folder(path, key.partition(".")[0])
    for key in ("train", "eval", "test"):
        path = getattr(config.data, key)
        if path is not None and not Path(path).is_file():
            raise InputError(f"{config.where(f'data.{key}')}: no such file: {path}")


def _tokenizer(config: DistillConfig) -> Any:
    """The tokenizer, after checking that teacher and student mean the same tokens by the same ids."""
    from .distiller import check_tokenizers
    from .features import has_tokenizer, load_tokenizer

    key = "tokenizer" if config.tokenizer is not None else "teacher"
    with _user_input(config.where(key)):
        tokenizer = load_tokenizer(config.tokenizer or config.teacher)
    others = {"teacher": config.teacher if config.tokenizer else None, "student.path": config.student.path}
    for name, folder in others.items():
        if folder is not None and has_tokenizer(folder):
            with _user_input(config.where(name)):
                other = load_tokenizer(folder)
                pair = (other, tokenizer) if name == "teacher" else (tokenizer, other)
                check_tokenizers(*pair)
    return tokenizer


def _teacher(config: DistillConfig) -> tuple[Any, str]:
    """The teacher with the head the task needs, and the task (the teacher's own where none was given)."""
    from transformers import AutoConfig

    where = config.where("teacher")
    with _user_input(where):
        facts = AutoConfig.from_pretrained(config.teacher, local_files_only=True)
        task = config.task or _own_task(facts)
        if "regression" in (task, _own_task(facts)) and task != _own_task(facts) != "none":
            raise InputError(
                f"{config.where('task')}: task is {task!r}, the teacher's head does {_own_task(facts)!r}"
            )
        teacher, missing = _load_model(config.teacher, task)
    head = [name for name in missing if "position_ids" not in name]
    if head:
        raise InputError(
            f"{where}: the teacher has no trained weights for task {task!r} ({', '.join(sorted(head)[:3])} missing); "
            "fine-tune it first, or set task: none"
        )
    return teacher, task


def _own_task(facts: Any) -> str:
    """What the head does that a model was saved with."""
    name = (getattr(facts, "architectures", None) or [""])[0]
    if name.endswith("ForTokenClassification"):
        return "token-classification"
    if name.endswith("ForSequenceClassification"):
        regression = facts.problem_type == "regression" or facts.num_labels == 1
        return "regression" if regression else "sequence-classification"
    return "none"


def _load_model(folder: str | Path, task: str) -> tuple[Any, list[str]]:
    """A model in float32 and the names of its weights that the folder does not have."""
    import torch
    import transformers
    from safetensors import SafetensorError

    auto = {"none": "AutoModel", "token-classification": "AutoModelForTokenClassification"}
    cls = getattr(transformers, auto.get(task, "AutoModelForSequenceClassification"))
    try:
        model, notes = cls.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder}: its weights cannot be read: {error}") from error
    # A bare encoder's pooler is not part of what a task without head distils.
    missing = [] if task == "none" else sorted(notes["missing_keys"])
    if notes.get("mismatched_keys"):
        raise ValueError(
            f"{folder}: weights and config.json disagree on {sorted(notes['mismatched_keys'])[0]}"
        )
    return model, missing


def _check_vocabulary(config: DistillConfig, teacher: Any, tokenizer: Any) -> None:
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= teacher.config.vocab_size:
        raise InputError(
            f"{config.where('tokenizer')}: the tokenizer gives ids up to {highest}, the teacher's vocabulary has "
            f"{teacher.config.vocab_size}; is it another model's tokenizer?"
        )


def _student(config: DistillConfig, teacher: Any, task: str) -> Any:
    from transformers import set_seed

    from . import students

    set_seed(config.seed)  # new weights depend on the seed alone
    wanted = config.student
    if wanted.path is not None:
        with _user_input(config.where("student.path")):
            return _load_model(wanted.path, task)[0]
    assert wanted.num_hidden_layers is not None
    with _user_input(config.where("student")):
        return students.smaller(
            teacher,
            num_hidden_layers=wanted.num_hidden_layers,
            hidden_size=wanted.hidden_size,
            num_attention_heads=wanted.num_attention_heads,
            intermediate_size=wanted.intermediate_size,
            init=wanted.init,
            layers=wanted.layers,
        )


def _data(run: _Run) -> dict[str, Any]:
    """Token features of every split, with labels where the recipe file names their column."""
    from . import data
    from .encoder import PackedModel
    from .evaluate import MULTI_LABEL, REGRESSION, metric_kind

    config = run.config
    label = config.data.label
    kinds: dict[str | None, Literal["class", "multi", "float"]] = {REGRESSION: "float", MULTI_LABEL: "multi"}
    kind = kinds.get(metric_kind(PackedModel(run.student).facts), "class")
    if label is not None and run.task in ("none", "token-classification"):
        raise InputError(
            f"{config.where('data.label')}: labels cannot be read from a file for task {run.task!r}; leave it out"
        )
    label2id = None
    if label is not None and kind != "float":
        with _user_input(config.where("data.label")):
            label2id = _label_map(run, label)
    splits = {}
    longest = config.data.max_length or _longest(run)
    for split in ("train", "eval", "test"):
        path = getattr(config.data, split)
        if path is None:
            continue
        with _user_input(f"{config.where(f'data.{split}')}: {Path(path).name}"):
            splits[split] = data.encode(
                path,
                run.tokenizer,
                text=config.data.text,
                text_pair=config.data.text_pair,
                label=label,
                label_kind=kind,
                label2id=label2id,
                max_length=longest,
            )
    _check_lengths(run, splits)
    return splits


def _longest(run: _Run) -> int | None:
    """Tokens that tokenizer, teacher and student can all take; None if none of them knows a limit."""
    from .encoder import PackedModel

    positions = [PackedModel(model).facts.max_positions for model in (run.teacher, run.student)]
    limits = [limit for limit in (*positions, run.tokenizer.model_max_length) if limit is not None]
    return min(limits) if min(limits) < 10**6 else None  # tokenizers state a huge number for "no limit"


def _check_lengths(run: _Run, splits: Mapping[str, Any]) -> None:
    """No sequence is longer than a model has positions or a batch has room."""
    from .data import sequence_lengths
    from .encoder import PackedModel

    for split, rows in splits.items():
        longest = int(sequence_lengths(rows).max())
        for name, model in (("teacher", run.teacher), ("student", run.student)):
            positions = PackedModel(model).facts.max_positions
            if positions is not None and longest > positions:
                raise InputError(
                    f"{run.config.where('data.max_length')}: {split} has a sequence of {longest} tokens, the {name} "
                    f"{positions} positions; set data.max_length to {positions} or less"
                )
        for stage, arguments in run.arguments.items():
            budget = arguments.tokens_per_batch
            if split == "train" and budget is not None and longest > budget:
                raise InputError(
                    f"stage {stage}: tokens_per_batch is {budget}, {split} has a sequence of {longest} tokens"
                )


def _label_map(run: _Run, label: str) -> dict[str, int]:
    """Names of the classes -> ids: the teacher's own where it has names, else from the training file."""
    from . import data

    assert run.config.data.train is not None
    teacher, student = run.teacher.config, run.student.config
    if student.num_labels != teacher.num_labels:
        raise InputError(f"the teacher has {teacher.num_labels} classes, the student {student.num_labels}")
    names = {str(name): int(i) for name, i in (teacher.label2id or {}).items()}
    if all(name.startswith("LABEL_") for name in names):
        names = data.label_map(run.config.data.train, label)
        if len(names) != teacher.num_labels:
            shown = ", ".join(list(names)[:5])
            raise InputError(
                f"column {label!r} has {len(names)} classes ({shown}), the teacher {teacher.num_labels}"
            )
    student.label2id, student.id2label = names, {i: name for name, i in names.items()}
    return names


def _check_best_metric(run: _Run, stage: str, distiller: Distiller) -> None:
    """A metric that will never be measured is an error now, not after the first epoch."""
    from .encoder import PackedModel
    from .evaluate import CLASSIFICATION, MULTI_LABEL, REGRESSION, TOKEN, labelled, metric_kind

    wanted = run.arguments[stage].metric_for_best_model
    if wanted is None or "eval" not in run.data:
        return
    known = ["loss", *(f"loss/{objective.name}" for objective in distiller.objectives)]
    if labelled(run.data["eval"]):
        names = {CLASSIFICATION: ["accuracy"], MULTI_LABEL: ["accuracy"], REGRESSION: ["mse", "pearson"]}
        names[TOKEN] = ["token_accuracy"]
        known += names.get(metric_kind(PackedModel(run.student).facts) or "", [])
    if wanted.removeprefix("eval_") not in known:
        raise InputError(
            f"stage {stage}: metric_for_best_model: {wanted!r} is not measured here; known: {', '.join(known)}"
        )


def _start(run: _Run) -> None:
    """First write of a run: its settings, which a continuation is compared with."""
    with _user_input(run.config.where("output_dir")):
        run.folder.mkdir(parents=True, exist_ok=True)
        _write(run.folder / RUN_FILE, json.dumps(_identity(run.config), indent=1))
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in run.data.items())
    _say(f"{run.recipe.name}: {' -> '.join(stage.name for stage in run.recipe.stages)}; {sizes} sequences")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _run_stage(run: _Run, stage: Stage) -> dict[str, Any]:
    """Train a stage, or continue it, or take what it left when it is finished. The student is left trained."""
    from transformers import set_seed

    from .trainer import DistillationTrainer, last_complete_checkpoint

    folder = run.folder / stage.name
    done = folder / STAGE_FILE
    if done.is_file():
        _say(f"stage {stage.name}: finished before, skipped")
        saved, _ = _load_model(folder, run.task)
        run.student.load_state_dict(saved.state_dict())
        return json.loads(done.read_text(encoding="utf-8"))
    checkpoint = last_complete_checkpoint(folder)
    note = f"goes on from {Path(checkpoint).name}" if checkpoint else "starts"
    _say(f"stage {stage.name}: {note}")
    set_seed(run.config.seed)  # the projections' first weights depend on the seed alone
    trainer = DistillationTrainer(
        run.distiller(stage),
        run.arguments[stage.name],
        train_dataset=run.data["train"],
        eval_dataset=run.data.get("eval"),
        processing_class=run.tokenizer,
        model_card=_card(run),
    )
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    summary = _stage_summary(trainer, stage, result, seconds)
    trainer.save_model()
    record = {"stage": stage.name, "summary": summary, "log_history": trainer.state.log_history}
    _write(done, json.dumps(record, indent=1))
    return record


def _stage_summary(trainer: DistillationTrainer, stage: Stage, result: Any, seconds: float) -> dict[str, Any]:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    row: dict[str, Any] = {"stage": stage.name, "steps": result.global_step, "seconds": seconds}
    if losses:
        row.update({"first loss": losses[0], "last loss": losses[-1]})
    if trainer.eval_dataset is not None:
        last = trainer.state.log_history[-2] if len(trainer.state.log_history) > 1 else {}
        fresh = "eval_loss" in last and not trainer.args.load_best_model_at_end
        metrics = last if fresh else trainer.evaluate()
        row["dev loss"] = metrics["eval_loss"]
        for name in ("accuracy", "token_accuracy", "mse", "pearson"):
            if f"eval_{name}" in metrics:
                row[f"dev {name}"] = metrics[f"eval_{name}"]
    return row


def _card(run: _Run, **measured: Any) -> Any:
    from .report import ModelCard

    return ModelCard(
        recipe=run.recipe.name,
        teacher=run.config.teacher,
        data={split: len(rows) for split, rows in run.data.items()},
        task="" if run.task == "none" else run.task,
        **measured,
    )


def _finish(run: _Run, histories: Mapping[str, list[dict[str, Any]]], stages: list[dict[str, Any]]) -> None:
    """Measure teacher and student, then leave the student, its card, the curves and the table in output_dir."""
    from . import report
    from .trainer import auto_class, student_facts

    split = next((name for name in ("test", "eval") if name in run.data), None)
    rows = _measure(run, split)
    folder = run.folder
    run.student.eval()
    run.student.save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    card = _card(
        run,
        student=student_facts(run.student),
        stages=stages,
        metrics=rows,
        auto_class=auto_class(run.student),
    )
    card.write(folder)
    if any("loss" in entry for history in histories.values() for entry in history):
        report.loss_curves(histories, folder / PLOT_FILE, title=run.recipe.name)
    measured_on = {"test": "the test file", "eval": "the dev file"}.get(split or "", "")
    heading = f"## Measured on {measured_on}\n\n" if measured_on else "## Sizes\n\n"
    _write(folder / TABLE_FILE, f"## Stages\n\n{report.table(stages)}\n\n{heading}{report.table(rows)}\n")
    _say("\n" + report.table(stages, style="text"))
    _say("\n" + report.table(rows, style="text"))
    _say(f"\nstudent, README.md, {PLOT_FILE} and {TABLE_FILE} are in {folder}")


def _measure(run: _Run, split: str | None) -> list[dict[str, Any]]:
    """One row for the teacher and one for the student."""
    from .evaluate import summary

    rows = run.data.get(split) if split is not None else None
    models = {"teacher": run.teacher, "student": run.student}
    return [{"model": name, **summary(model, rows, repeats=3)} for name, model in models.items()]


# ---- extract ------------------------------------------------------------------------------------------------


def _extract(args: argparse.Namespace) -> int:
    _quiet_offline()
    from . import data
    from .features import OUTPUT_SUFFIXES, FeatureExtractor, save_features

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
    with _user_input():
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
    with _user_input("--output"):
        save_features(rows, output)
    _say(f"{rows.shape[0]:,} x {rows.shape[1]} features in {output}")
    return 0


# ---- info ---------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace) -> int:
    from .report import environment

    facts = environment()
    if args.json:
        _say(json.dumps(facts, indent=2, default=str))
        return 0
    for section in ("versions", "devices", "build"):
        _say(section)
        for key, value in facts[section].items():
            _say(f"  {key}: {value}")
    _say("ops")
    for op, devices in facts["ops"].items():
        for device, choice in devices.items():
            reasons = "; ".join(f"{name}: {why}" for name, why in choice["reasons"].items())
            _say(f"  {op} on {device}: {choice['implementation']}" + (f" (not {reasons})" if reasons else ""))
    return 0
