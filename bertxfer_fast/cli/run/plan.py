"""From a configuration to a distillation that can start: everything loaded, everything checked, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import get_reporting_integration_callbacks

from ... import tasks
from ...data.collators import Features, collator_for
from ...data.masking import MaskingCollator
from ...distillation import recipes
from ...distillation.distiller import Distiller
from ...distillation.teachers import OtherTokens, StoredTeacher
from ...errors import InputError, user_input
from ...evaluation.card import ModelCard
from ...evaluation.measuring import has_labels
from ...models.hf.loading import model_folder
from ...models.spec import EncoderSpec
from ...training.arguments import DistillationArguments
from ...training.policies import check_policies
from ..config.schema import DistillConfig, check_stages
from .resume import check_output
from .roles import check_vocabulary, read_tokenizers, start_student
from .teachers import (
    bind_rows,
    check_answers,
    check_other_tokens,
    check_teachers,
    load_teacher,
    models_of,
    without_store,
)
from .texts import check_lengths, encode_splits, named_splits
from .trial import try_stage


@dataclass
class Plan:
    """A distillation with everything at hand.

    Attributes:
        config: what the user wrote.
        recipe: its stages.
        arguments: training arguments by stage.
        tokenizer: of the student, and of the teacher where that has no other one.
        task: what the teacher's head does, which the student learns.
        teacher: what teaches, see `load_teacher`; None where the recipe needs none and none is given.
        student: the model.
        data: token features by split.
        teacher_tokenizer: the teacher's, where it is another one than the student's.
        teacher_data: what it then reads, by split; in `data` that stands beside what the student reads.
    """

    config: DistillConfig
    recipe: recipes.Recipe
    arguments: dict[str, DistillationArguments]
    tokenizer: Any
    task: tasks.Task
    teacher: Any
    student: Any
    data: dict[str, Any] = field(default_factory=dict)
    teacher_tokenizer: Any = None
    teacher_data: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def device(self) -> torch.device:
        """Where the last stage trains: models whose speeds are compared run there."""
        return list(self.arguments.values())[-1].device

    @property
    def roles(self) -> dict[str, Any]:
        """What teaches, and the student, or the student alone: whatever has an `EncoderSpec`."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher}
        return {**teacher, "student": self.student}

    @property
    def models(self) -> dict[str, Any]:
        """The models that can be run, by role: without a teacher of which there are only answers; several by number."""
        found = models_of(self.teacher)
        names = ["teacher"] if len(found) == 1 else [f"teacher {i + 1}" for i in range(len(found))]
        return {**dict(zip(names, found, strict=True)), "student": self.student}

    def rows_of(self, role: str, split: str | None) -> Any:
        """The features of a split in the tokens that a model reads; None without a split."""
        own = self.teacher_data if role.startswith("teacher") and self.teacher_data else self.data
        return None if split is None else own[split]

    @property
    def taught(self) -> dict[str, Any]:
        """The splits that meet the teacher: where its answers are kept not the test split."""
        kept = isinstance(self.teacher, StoredTeacher)
        return {split: rows for split, rows in self.data.items() if not (kept and split == "test")}

    @property
    def positions(self) -> dict[str, int]:
        """The longest sequence each model can take, where it has a limit."""
        return self._facts("max_positions")

    @property
    def windows(self) -> dict[str, int]:
        """The longest sequence of which every layer of a model sees the whole, where it has such a limit."""
        return self._facts("window")

    def _facts(self, name: str) -> dict[str, int]:
        facts = {role: getattr(EncoderSpec.of(model), name) for role, model in self.roles.items()}
        return {role: fact for role, fact in facts.items() if fact is not None}

    @property
    def card(self) -> ModelCard:
        """The student's card as far as it is known before any work."""
        return ModelCard(
            recipe=self.recipe.name,
            teacher=", ".join(self.config.teachers),
            data={split: len(rows) for split, rows in self.data.items()},
            files={split: Path(path).name for split, path in named_splits(self.config).items()},
            task="" if self.task.labels is None else self.task.name,
        )

    def distiller(self, stage: recipes.Stage, student: Any = None) -> Distiller:
        """That of a stage; of another ``student`` where an earlier stage will leave a smaller one."""
        # No two passes hide the same tokens: there is nothing to remember.
        teacher = without_store(self.teacher) if self.masks(stage) else self.teacher
        if self.teacher_tokenizer is not None:
            teacher = OtherTokens(teacher)
        return Distiller(teacher, self.student if student is None else student, stage.build_objectives())

    def masks(self, stage: recipes.Stage) -> bool:
        """Whether tokens are hidden in a stage: of a task whose labels they are, if the recipe says so."""
        return self.task.labels is not None and not self.task.label_column and stage.masking > 0

    def collator(self, stage: recipes.Stage, distiller: Distiller) -> Callable[[Features], dict[str, Any]]:
        """What makes a stage's batches."""
        inputs, limits = distiller.inputs, distiller.limits
        if self.masks(stage):
            share, seed = stage.masking, self.config.seed
            return MaskingCollator(self.tokenizer, share=share, seed=seed, inputs=inputs, limits=limits)
        return collator_for(self.task, inputs=inputs, limits=limits)


def make_plan(config: DistillConfig, stages: Sequence[str] | None = None) -> Plan:
    """Load and check everything that a run needs, cheap things first.

    Args:
        config: what the user wrote.
        stages: what the recipe's stages are called here, as many as it has; by default what the recipe calls them.

    Raises:
        InputError: something does not exist, cannot be read, or does not fit.
    """
    recipe = _checked_recipe(config, stages)
    arguments = {stage.name: stage_arguments(config, stage) for stage in recipe.stages}
    _check_files(config)
    check_output(config, list(arguments))
    tokenizer, theirs = read_tokenizers(config)
    teacher, task = load_teacher(config, tokenizer if theirs is None else theirs)
    check_other_tokens(config, task)
    student = start_student(config, teacher, task, tokenizer, theirs)
    plan = Plan(config, recipe, arguments, tokenizer, task, teacher, student, teacher_tokenizer=theirs)
    check_vocabulary(config, plan.roles, tokenizer, theirs)
    align = False
    for stage in recipe.stages:  # what the models alone tell is said before a large file is read
        with user_input(f"stage {stage.name}"):
            distiller = plan.distiller(stage, student)
            student = check_policies(distiller, arguments[stage.name])
        align |= isinstance(distiller.source, OtherTokens) and distiller.source.aligned
    plan.data, plan.teacher_data = encode_splits(plan, align=align)
    check_lengths(plan)
    bind_rows(plan)
    for stage in recipe.stages:
        _check_best_metric(plan, stage)
        distiller = plan.distiller(stage)
        with user_input(f"stage {stage.name}"):
            collate = plan.collator(stage, distiller)
        check_answers(plan, distiller)
        _check_labels(plan, stage, distiller)
        try_stage(stage.name, distiller, collate, plan.taught)
    if isinstance(teacher, StoredTeacher):
        teacher.shelf.discard()  # a batch of another size can differ in its last bits from the training's
    return plan


def recipe_of(config: DistillConfig) -> recipes.Recipe:
    """The recipe that is named, with its options.

    Raises:
        InputError: there is none of that name, or it takes other options.
    """
    with user_input(config.where("recipe")):
        recipes.options(config.recipe)  # an unknown recipe is a mistake in this key, whatever the options are
    with user_input(config.where("options")):
        return recipes.get(config.recipe, **config.options)


def _checked_recipe(config: DistillConfig, stages: Sequence[str] | None) -> recipes.Recipe:
    recipe = recipe_of(config)
    if stages is not None:
        called = zip(recipe.stages, stages, strict=True)
        recipe = replace(recipe, stages=[replace(stage, name=name) for stage, name in called])
    check_stages(config, [stage.name for stage in recipe.stages])
    if config.teacher is None and recipe.needs_teacher:
        raise InputError(
            f"{config.where('recipe')}: required key 'teacher' is missing: recipe {config.recipe!r} learns from one"
        )
    if config.teacher is None and config.student.path is None:
        raise InputError(
            f"{config.where('student')}: student: got sizes and no teacher, want a directory: there is nothing to make "
            "a smaller one of"
        )
    return recipe


def stage_arguments(config: DistillConfig, stage: recipes.Stage) -> DistillationArguments:
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
    check_teachers(config)
    if config.student.path is not None:
        with user_input(config.where("student.path")):
            model_folder(config.student.path, "student")
    for split, path in named_splits(config).items():
        if not Path(path).is_file():
            raise InputError(f"{config.where(f'data.{split}')}: no such file: {path}")


def _check_labels(plan: Plan, stage: recipes.Stage, distiller: Distiller) -> None:
    """An objective of labels needs a column of them."""
    objectives: Any = distiller.objectives
    learns = any(match.labels for o in objectives if o.weight > 0 for match in o.matches)
    if learns and plan.config.data.label is None and plan.task.label_column:
        raise InputError(
            f"stage {stage.name}: required key 'data.label' is missing: recipe {plan.recipe.name!r} learns from labels"
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
    if has_labels(plan.data["eval"]) or plan.masks(stage):
        known += plan.task.measured(EncoderSpec.of(plan.student).labels)
    if wanted.removeprefix("eval_") not in known:
        raise InputError(
            f"stage {stage.name}: metric_for_best_model: got {wanted!r}, want one that is measured here: "
            f"{', '.join(known)}"
        )
