"""From a configuration to a distillation that can start: everything loaded, everything checked, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from ... import data, students, tasks
from ...distillation import recipes
from ...distillation.distiller import Distiller, check_tokenizers
from ...errors import InputError, user_input
from ...evaluation.card import ModelCard
from ...evaluation.evaluate import has_labels
from ...models.hf.loading import has_tokenizer, load_model, load_tokenizer, model_folder
from ...models.spec import EncoderSpec
from ...students.heads import follow_labels
from ...training.arguments import DistillationArguments
from ..config.schema import DistillConfig, check_stages
from .resume import check_output
from .trial import try_stage


@dataclass
class Plan:
    """A distillation with everything at hand.

    Attributes:
        config: what the user wrote.
        recipe: its stages.
        arguments: training arguments by stage.
        tokenizer: of teacher and student.
        task: what the teacher's head does, which the student learns.
        teacher, student: the models.
        data: token features by split.
    """

    config: DistillConfig
    recipe: recipes.Recipe
    arguments: dict[str, DistillationArguments]
    tokenizer: Any
    task: tasks.Task
    teacher: Any
    student: Any
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def positions(self) -> dict[str, int]:
        """The longest sequence each model can take, where it has a limit."""
        return self._facts("max_positions")

    @property
    def windows(self) -> dict[str, int]:
        """The longest sequence of which every layer of a model sees the whole, where it has such a limit."""
        return self._facts("window")

    def _facts(self, name: str) -> dict[str, int]:
        models = {"teacher": self.teacher, "student": self.student}
        facts = {role: getattr(EncoderSpec.of(model), name) for role, model in models.items()}
        return {role: fact for role, fact in facts.items() if fact is not None}

    @property
    def card(self) -> ModelCard:
        """The student's card as far as it is known before any work."""
        return ModelCard(
            recipe=self.recipe.name,
            teacher=self.config.teacher,
            data={split: len(rows) for split, rows in self.data.items()},
            task="" if self.task.head is None else self.task.name,
        )

    def distiller(self, stage: recipes.Stage) -> Distiller:
        return Distiller(self.teacher, self.student, stage.build_objectives())


def make_plan(config: DistillConfig) -> Plan:
    """Load and check everything that a run needs, cheap things first.

    Raises:
        InputError: something does not exist, cannot be read, or does not fit.
    """
    recipe = _recipe(config)
    arguments = {stage.name: _arguments(config, stage) for stage in recipe.stages}
    _check_files(config)
    check_output(config, list(arguments))
    tokenizer = _tokenizer(config)
    teacher, task = _teacher(config)
    student = _student(config, teacher, task)
    _check_vocabulary(config, {"teacher": teacher, "student": student}, tokenizer)
    plan = Plan(config, recipe, arguments, tokenizer, task, teacher, student)
    for stage in recipe.stages:  # what the models alone tell is said before a large file is read
        with user_input(f"stage {stage.name}"):
            plan.distiller(stage)
    plan.data = _data(plan)
    _check_lengths(plan)
    for stage in recipe.stages:
        _check_best_metric(plan, stage)
        try_stage(stage.name, plan.distiller(stage), task, plan.data)
    return plan


# ---- settings -----------------------------------------------------------------------------------------------


def _recipe(config: DistillConfig) -> recipes.Recipe:
    with user_input(config.where("recipe")):
        recipes.options(config.recipe)  # an unknown recipe is a mistake in this key, whatever the options are
    with user_input(config.where("options")):
        recipe = recipes.get(config.recipe, **config.options)
    check_stages(config, [stage.name for stage in recipe.stages])
    return recipe


def _arguments(config: DistillConfig, stage: recipes.Stage) -> DistillationArguments:
    """The stage's training arguments: the command's defaults, the recipe's, the user's."""
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
    with user_input(f"stage {stage.name}"):
        arguments = DistillationArguments(
            output_dir=str(Path(config.output_dir) / stage.name), seed=config.seed, **chosen
        )
        get_reporting_integration_callbacks(arguments.report_to)  # an unknown one is an error now
        if arguments.eval_strategy != "no" and not has_dev:
            raise ValueError(
                f"eval_strategy: got {chosen['eval_strategy']!r} without data.eval, want a dev file or 'no'"
            )
    return arguments


def _check_files(config: DistillConfig) -> None:
    """Everything named on disk is there, before anything large is read."""
    for key, path in (("teacher", config.teacher), ("student.path", config.student.path)):
        if path is not None:
            with user_input(config.where(key)):
                model_folder(path, key.partition(".")[0])
    for split, path in _splits(config).items():
        if not Path(path).is_file():
            raise InputError(f"{config.where(f'data.{split}')}: no such file: {path}")


def _splits(config: DistillConfig) -> dict[str, str]:
    files = {"train": config.data.train, "eval": config.data.eval, "test": config.data.test}
    return {split: path for split, path in files.items() if path is not None}


# ---- models -------------------------------------------------------------------------------------------------


def _tokenizer(config: DistillConfig) -> Any:
    """The tokenizer, after checking that teacher and student mean the same tokens by the same ids."""
    key = "tokenizer" if config.tokenizer is not None else "teacher"
    with user_input(config.where(key)):
        tokenizer = load_tokenizer(config.tokenizer or config.teacher)
    if config.tokenizer is not None and has_tokenizer(config.teacher):
        with user_input(config.where("teacher")):
            check_tokenizers(load_tokenizer(config.teacher), tokenizer)
    if config.student.path is not None and has_tokenizer(config.student.path):
        with user_input(config.where("student.path")):
            check_tokenizers(tokenizer, load_tokenizer(config.student.path))
    return tokenizer


def _teacher(config: DistillConfig) -> tuple[Any, tasks.Task]:
    """The teacher with the head the task needs, and the task (the teacher's own where none was given)."""
    where = config.where("teacher")
    with user_input(where):
        own = _own_task(AutoConfig.from_pretrained(config.teacher, local_files_only=True))
        task = own if config.task is None else tasks.get(config.task)
        # One class can serve several tasks: its weights would load and mean something else.
        if task.auto_class == own.auto_class and task.labels != own.labels:
            raise InputError(
                f"{config.where('task')}: task: got {task.name!r}, want {own.name!r}: the teacher's head does that"
            )
        teacher, untrained = load_model(config.teacher, task.auto_class)
    head = [name for name in untrained if "position_ids" not in name]
    if head:
        raise InputError(
            f"{where}: the teacher has no trained weights for task {task.name!r} ({', '.join(head[:3])} missing); "
            "fine-tune it first, or set task: none"
        )
    return teacher, task


def _own_task(config: Any) -> tasks.Task:
    """The task of the head that a model was saved with."""
    saved_class = (config.architectures or [""])[0]
    return tasks.task_of(saved_class, config.num_labels, config.problem_type)


def _check_vocabulary(config: DistillConfig, models: Mapping[str, Any], tokenizer: Any) -> None:
    highest = max(tokenizer.get_vocab().values(), default=0)
    for role, model in models.items():
        if highest >= model.config.vocab_size:
            raise InputError(
                f"{config.where('tokenizer')}: the tokenizer gives ids up to {highest}, the {role}'s vocabulary has "
                f"{model.config.vocab_size}; is it another model's tokenizer?"
            )


def _student(config: DistillConfig, teacher: Any, task: tasks.Task) -> Any:
    set_seed(config.seed)  # new weights depend on the seed alone
    wanted = config.student
    if wanted.path is not None:
        with user_input(config.where("student.path")):
            student = load_model(wanted.path, task.auto_class)[0]
            follow_labels(student, EncoderSpec.of(student), EncoderSpec.of(teacher))
        return student
    assert wanted.num_hidden_layers is not None
    with user_input(config.where("student")):
        return students.smaller(
            teacher,
            num_hidden_layers=wanted.num_hidden_layers,
            hidden_size=wanted.hidden_size,
            num_attention_heads=wanted.num_attention_heads,
            intermediate_size=wanted.intermediate_size,
            init=wanted.init,
            layers=wanted.layers,
        )


# ---- data ---------------------------------------------------------------------------------------------------


def _data(plan: Plan) -> dict[str, Any]:
    """Token features of every split, with labels where the recipe file names their column."""
    config, task, label = plan.config, plan.task, plan.config.data.label
    if label is not None and not task.label_column:
        raise InputError(
            f"{config.where('data.label')}: label: got {label!r} for task {task.name!r}, want it left out: its labels "
            "come from no column"
        )
    label2id = None
    if label is not None and task.labels != "float":
        with user_input(config.where("data.label")):
            label2id = _label_map(plan, label)
    features = {}
    for split, path in _splits(config).items():
        with user_input(f"{config.where(f'data.{split}')}: {Path(path).name}"):
            features[split] = data.encode(
                path,
                plan.tokenizer,
                text=config.data.text,
                text_pair=config.data.text_pair,
                label=label,
                task=task,
                label2id=label2id,
                max_length=config.data.max_length or _longest(plan),
                empty_rows=config.data.empty_rows,
            )
    return features


def _label_map(plan: Plan, label: str) -> Mapping[str, int]:
    """Names of the classes -> ids: the teacher's own where it has names, else from the training file.

    The student keeps it in its configuration, so that whoever loads it knows the names too.
    """
    assert plan.config.data.train is not None
    teacher, student = plan.teacher.config, plan.student.config
    if student.num_labels != teacher.num_labels:
        raise InputError(f"the teacher has {teacher.num_labels} classes, the student {student.num_labels}")
    label2id = {str(name): int(i) for name, i in (teacher.label2id or {}).items()}
    if all(name.startswith("LABEL_") for name in label2id):
        label2id = data.label_map(plan.config.data.train, label)
        if len(label2id) != teacher.num_labels:
            shown = ", ".join(list(label2id)[:5])
            raise InputError(
                f"column {label!r} has {len(label2id)} classes ({shown}), the teacher {teacher.num_labels}"
            )
    names = tuple(sorted(label2id, key=lambda name: label2id[name]))
    facts = EncoderSpec.of(plan.teacher)
    follow_labels(plan.student, EncoderSpec.of(plan.student), replace(facts, labels=names))
    return label2id


def _longest(plan: Plan) -> int | None:
    """Tokens that tokenizer, teacher and student can all take; None if none of them knows a limit."""
    limit = min([*plan.positions.values(), plan.tokenizer.model_max_length])
    return limit if limit <= data.NO_LIMIT else None


def _check_lengths(plan: Plan) -> None:
    """No sequence is longer than a model has positions, its layers look, or a batch has room."""
    longest = {split: int(data.sequence_lengths(rows).max()) for split, rows in plan.data.items()}
    for split, tokens in longest.items():
        for name, positions in plan.positions.items():
            if tokens > positions:
                raise InputError(
                    f"{plan.config.where('data.max_length')}: {split} has a sequence of {tokens} tokens, the {name} "
                    f"{positions} positions; set data.max_length to {positions} or less"
                )
        for name, window in plan.windows.items():
            if tokens > window:
                raise InputError(
                    f"{plan.config.where('data.max_length')}: {split} has a sequence of {tokens} tokens, some layers "
                    f"of the {name} look no further than {window}, which cannot run packed yet; set data.max_length to "
                    f"{window} or less"
                )
    for stage, arguments in plan.arguments.items():
        budget = arguments.tokens_per_batch
        if budget is not None and longest["train"] > budget:
            raise InputError(
                f"stage {stage}: tokens_per_batch: got {budget}, want at least the {longest['train']} tokens of a "
                "sequence in train"
            )


def _check_best_metric(plan: Plan, stage: recipes.Stage) -> None:
    """A metric that will never be measured is an error now, not after the first epoch."""
    wanted = plan.arguments[stage.name].metric_for_best_model
    if wanted is None or "eval" not in plan.data:
        return
    known = [
        "loss",
        *(f"loss/{objective.name}" for objective in stage.build_objectives() if objective.weight),
    ]
    if has_labels(plan.data["eval"]):
        known += plan.task.metrics
    if wanted.removeprefix("eval_") not in known:
        raise InputError(
            f"stage {stage.name}: metric_for_best_model: got {wanted!r}, want one that is measured here: "
            f"{', '.join(known)}"
        )
