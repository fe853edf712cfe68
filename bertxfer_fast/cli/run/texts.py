"""The texts of a run as token features, with labels, none longer than the models take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import data
from ...errors import InputError, user_input
from ...models.spec import EncoderSpec
from ...students.heads import follow_labels, has_names
from ..config.schema import DistillConfig

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["check_lengths", "encode_splits", "named_splits"]


def named_splits(config: DistillConfig) -> dict[str, str]:
    files = {"train": config.data.train, "eval": config.data.eval, "test": config.data.test}
    return {split: path for split, path in files.items() if path is not None}


def encode_splits(plan: Plan, *, align: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Token features of every split, with labels where the recipe file names their column.

    Args:
        plan: of the run.
        align: whether tokens of a student are compared with those of a teacher that reads others.

    Returns:
        What the student reads; of a teacher with another tokenizer that, too, is beside it, and returned alone.
    """
    config, task, label = plan.config, plan.task, plan.config.data.label
    if label is not None and not task.label_column:
        raise InputError(
            f"{config.where('data.label')}: label: got {label!r} for task {task.name!r}, want it left out: its labels "
            "come from no column"
        )
    label2id = None
    if label is not None and task.has_classes:
        with user_input(config.where("data.label")):
            label2id = _label_map(plan, label)
    features, of_teacher = {}, {}
    for split, path in named_splits(config).items():
        with user_input(f"{config.where(f'data.{split}')}: {Path(path).name}"):
            encode = partial(
                data.encode,
                path,
                text=config.data.text,
                text_pair=config.data.text_pair,
                label=label,
                task=task,
                label2id=label2id,
                stride=config.data.stride,
                empty_rows=config.data.empty_rows,
                offsets=align,
            )
            theirs, longest = plan.teacher_tokenizer, config.data.max_length
            features[split] = encode(plan.tokenizer, max_length=longest or _longest(plan, "student"))
            if theirs is not None:
                of_teacher[split] = encode(theirs, max_length=longest or _longest(plan, "teacher"))
                features[split] = data.side_by_side(features[split], of_teacher[split])
    return features, of_teacher


def _label_map(plan: Plan, label: str) -> Mapping[str, int]:
    """Names of the classes -> ids: the teacher's own where it has names (without one the student's), else from the
    training file, which may lack a class where it has numbers: those are ids.

    The student keeps it in its configuration, so that whoever loads it knows the names too.
    """
    assert plan.config.data.train is not None
    student = EncoderSpec.of(plan.student)
    facts = student if plan.teacher is None else EncoderSpec.of(plan.teacher)
    if student.num_labels != facts.num_labels:
        raise InputError(f"the teacher has {facts.num_labels} classes, the student {student.num_labels}")
    label2id = {str(name): i for i, name in enumerate(facts.labels)}
    if not has_names(facts.labels):
        found = dict(data.label_map(plan.config.data.train, label))
        ids = {str(i): i for i in range(facts.num_labels)}
        # The column may say LABEL_10 itself, which stands before LABEL_2 as text.
        label2id = next((own for own in (label2id, ids) if found.keys() <= own.keys()), found)
        if len(label2id) != facts.num_labels:
            shown = ", ".join(list(label2id)[:5])
            raise InputError(
                f"column {label!r} has {len(label2id)} classes ({shown}), the "
                f"{'student' if plan.teacher is None else 'teacher'} {facts.num_labels}"
            )
    names = tuple(sorted(label2id, key=lambda name: label2id[name]))
    follow_labels(plan.student, student, replace(facts, labels=names))
    return label2id


def _longest(plan: Plan, role: str) -> int | None:
    """Tokens that a model, its tokenizer and all others that read the same can take; None if none knows a limit."""
    apart = plan.teacher_tokenizer is not None
    tokenizer = plan.teacher_tokenizer if apart and role == "teacher" else plan.tokenizer
    limits = [limit for name, limit in plan.positions.items() if name == role or not apart]
    limit = min([*limits, tokenizer.model_max_length])
    return limit if limit <= data.NO_LIMIT else None


def check_lengths(plan: Plan) -> None:
    """No sequence is longer than a model has positions, its layers look, or a batch has room."""
    longest, of_teacher = (
        {split: int(data.sequence_lengths(rows).max()) for split, rows in features.items()}
        for features in (plan.data, plan.teacher_data)
    )
    for split, of_student in longest.items():
        read = {"student": of_student, "teacher": of_teacher.get(split, of_student)}
        for name, positions in plan.positions.items():
            if (tokens := read[name]) > positions:
                raise InputError(
                    f"{plan.config.where('data.max_length')}: {split} has a sequence of {tokens} tokens, the {name} "
                    f"{positions} positions; set data.max_length to {positions} or less"
                )
        for name, window in plan.windows.items():
            if (tokens := read[name]) > window:
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
