"""`bertxfer store`: let a teacher say all that a training will ask, and keep it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, user_input
from .console import quiet, say

if TYPE_CHECKING:
    from .run.plan import Plan

_RECIPES = (".yaml", ".yml")


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "store",
        help="keep what a teacher says of texts, for `distill` elsewhere or later",
        description="Run a teacher over texts and keep what it says in a folder. With a recipe file: what its stages "
        "look at, of its training and dev files, in the folder that its key `store` names. With the directory of a "
        "teacher: what --what names. Running the same command again goes on with what is missing.",
        usage="bertxfer store RECIPE.yaml [--key value ...]\n       "
        "bertxfer store TEACHER --data FILE [FILE ...] --output DIR [--text COLUMN ...]",
        epilog=_options().format_help().partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RECIPE.yaml | TEACHER")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, parser=parser, resumable=True)
    return parser


def _options() -> argparse.ArgumentParser:
    """What may stand behind the directory of a teacher."""
    parser = argparse.ArgumentParser(prog="bertxfer store TEACHER", add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("with the directory of a teacher")
    group.add_argument(
        "--data", required=True, nargs="+", metavar="FILE", help="csv, tsv, jsonl, parquet or txt"
    )
    group.add_argument("--output", required=True, metavar="DIR", help="the store, made where it is not there")
    group.add_argument("--text", default="text", help="column with the text (default: text)")
    group.add_argument("--text-pair", help="column with the second text of a pair")
    group.add_argument("--max-length", type=int, help="in tokens (default: what model and tokenizer take)")
    group.add_argument(
        "--stride",
        type=int,
        help="question answering: tokens that windows of a long context share (default: cut it)",
    )
    group.add_argument(
        "--empty-rows",
        choices=("error", "skip", "keep"),
        default="error",
        help="rows without text: refuse the file (default), leave them out, or encode the empty text",
    )
    group.add_argument("--tokenizer", metavar="DIR", help="its tokenizer (default: the teacher's)")
    group.add_argument("--task", help="what the head does (default: the teacher's own head)")
    group.add_argument(
        "--what",
        nargs="+",
        default=["logits"],
        metavar="PLACE",
        help="logits (default), hidden:6 (every token's; -1: the last layer), hidden:-1:mean (or cls, max, mean_sqrt)",
    )
    group.add_argument("--dtype", help="float32 (default), float16 or int8")
    group.add_argument("--top-k", type=int, help="largest logits kept of a token (default: all)")
    group.add_argument("--tokens-per-batch", type=int, default=8192)
    return parser


def run(args: argparse.Namespace) -> None:
    """Plan, ask, keep.

    Raises:
        InputError: something given cannot be used; nothing was written.
    """
    flags = [word for word in args.flags if word != "--debug"]
    if "--help" in flags or "-h" in flags:
        args.parser.parse_args(["--help"])
    with quiet():
        if Path(args.source).suffix in _RECIPES:
            _of_recipe(args.source, flags)
        else:
            _of_folder(args.source, _options().parse_args(flags))


def _of_recipe(path: str, flags: list[str]) -> None:
    """Fill the store of a recipe; of several tasks, each task's that names one."""
    from .config.schema import load
    from .config.several import load_several

    several = load_several(path, flags)
    configs = [load(path, flags)] if several is None else list(several.tasks.values())
    if all(config.store.path is None for config in configs):
        raise InputError(
            f"{configs[0].where('recipe')}: required key 'store' is missing: the folder to keep what the teacher says"
        )
    from .run.plan import make_plan
    from .run.several import make_plans

    plans = [make_plan(configs[0])] if several is None else list(make_plans(several).values())
    kept = [(plan, _wants_of(plan)) for plan in plans if plan.config.store.path is not None]
    for plan, wants in kept:
        data = {split: rows for split, rows in (plan.teacher_data or plan.data).items() if split != "test"}
        tokenizer = plan.tokenizer if plan.teacher_tokenizer is None else plan.teacher_tokenizer
        _fill(plan.teacher.shelf, plan.teacher.live, tokenizer, data, wants)


def _wants_of(plan: Plan) -> set[Any]:
    """What the stages of a plan look at and a store can keep."""
    from ..distillation import teachers

    wants = set()
    for stage in plan.recipe.stages:
        source: Any = plan.distiller(stage).source
        if isinstance(source, teachers.OtherTokens):
            source = source.teacher
        if isinstance(source, teachers.StoredTeacher):
            wants |= set(source.wants)
        else:
            say(f"stage {stage.name}: the teacher itself has to run there, nothing is kept for it")
    if not wants:
        config = plan.config
        raise InputError(
            f"{config.where('recipe')}: recipe: got {config.recipe!r}, of which nothing can be kept"
        )
    return wants


def _of_folder(path: str, args: argparse.Namespace) -> None:
    with user_input():  # the operators read the environment when they are imported
        from .. import data, tasks
        from ..data.encoding import checked_max_length
        from ..distillation import teachers
        from ..models.hf.loading import load_model, load_tokenizer, model_folder, saved_task
        from ..models.spec import EncoderSpec

        folder = model_folder(path, "TEACHER")
        tokenizer = load_tokenizer(args.tokenizer or path)
        own = saved_task(folder)
        task = own if args.task is None else tasks.get(args.task)
        model, missing = load_model(folder, task.auto_class)
        head = [name for name in missing if "position_ids" not in name]
        if head:
            raise ValueError(f"{path}: got no trained weights for task {task.name!r} ({head[0]} missing)")
        model.eval()
        spec = EncoderSpec.of(model)
        wants = [_want(word, spec.num_layers) for word in args.what]
        joined = args.text_pair is not None and task.labels != "similarity"
        longest = checked_max_length(tokenizer, args.max_length, pair=joined, positions=spec.max_positions)
        about = teachers.About.of(model, tokenizer, folder=folder, loaded_as=task.auto_class)
        store = teachers.Store.at(args.output, about, create=False, dtype=args.dtype, top_k=args.top_k)
        for want in wants:
            [(place, index), _] = want
            spec.check_wanted(set(), {index} if place == "hidden" else set(), place == "logits")
            store.new_column(want)
        splits = {
            str(file): data.encode(
                file,
                tokenizer,
                text=args.text,
                text_pair=args.text_pair,
                task=task,
                max_length=longest,
                stride=args.stride,
                empty_rows=args.empty_rows,
            )
            for file in args.data
        }
    _fill(store, model, tokenizer, splits, wants, tokens_per_batch=args.tokens_per_batch)


def _want(word: str, layers: int) -> Any:
    """A spot and a pooling, of how it is written on the command line."""
    match word.split(":"):
        case ["logits"]:
            return ("logits", 0), None
        case ["hidden", index, *pooling] if index.lstrip("-").isdigit() and len(pooling) < 2:
            known = ("mean", "cls", "max", "mean_sqrt")
            if pooling and pooling[0] not in known:
                raise ValueError(f"--what: got {word!r}, want one of {', '.join(known)} behind the layer")
            number = int(index)
            return ("hidden", number if number >= 0 else layers + 1 + number), (
                pooling[0] if pooling else None
            )
    raise ValueError(f"--what: got {word!r}, want logits, hidden:LAYER or hidden:LAYER:POOLING")


def _fill(
    store: Any, teacher: Any, tokenizer: Any, data: Mapping[str, Any], wants: Any, **settings: Any
) -> None:
    from ..distillation import teachers
    from ..models.loans import default_device

    with user_input(str(store.path)):
        store.flush()  # says whose the folder is before anything else is in it
        tokenizer.save_pretrained(store.path)
        asked = teachers.fill(store, teacher, data, wants, device=default_device(), **settings)
    kept = ", ".join(f"{name} ({len(rows):,} rows)" for name, rows in sorted(store.columns.items()))
    texts = sum(map(len, data.values()))
    say(
        f"{asked:,} of {texts:,} texts asked; {store.path} has {kept}, {store.bytes_per_token:.1f} bytes a token"
    )
