"""The models of a run and their tokenizer: loaded, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import set_seed

from ... import data, students, tasks
from ...distillation.distiller import check_tokenizers
from ...errors import InputError, user_input
from ...models.hf.loading import has_tokenizer, load_model, load_tokenizer, saved_task
from ...models.spec import EncoderSpec
from ...students.heads import follow_labels
from ..config.schema import DistillConfig
from ..console import say

__all__ = ["check_vocabulary", "load_teacher", "read_tokenizer", "saved_task", "start_student"]


def read_tokenizer(config: DistillConfig) -> Any:
    """The tokenizer, after checking that teacher and student mean the same tokens by the same ids."""
    sources = {"tokenizer": config.tokenizer, "teacher": config.teacher, "student.path": config.student.path}
    key, source = next((key, path) for key, path in sources.items() if path is not None)
    with user_input(config.where(key)):
        tokenizer = load_tokenizer(source)
    if config.tokenizer is not None and config.teacher is not None and has_tokenizer(config.teacher):
        with user_input(config.where("teacher")):
            check_tokenizers(load_tokenizer(config.teacher), tokenizer)
    if key != "student.path" and config.student.path is not None and has_tokenizer(config.student.path):
        with user_input(config.where("student.path")):
            check_tokenizers(tokenizer, load_tokenizer(config.student.path))
    return tokenizer


def load_teacher(config: DistillConfig) -> tuple[Any, tasks.Task]:
    """The teacher with the head the task needs, and the task (the teacher's own where none was given).

    Where there is no teacher, the task is the student's own, unless one was given.
    """
    if config.teacher is None:
        if config.task is not None:
            return None, tasks.get(config.task)
        assert config.student.path is not None
        with user_input(config.where("student.path")):
            return None, saved_task(config.student.path)
    where = config.where("teacher")
    with user_input(where):
        own = saved_task(config.teacher)
        task = own if config.task is None else tasks.get(config.task)
        # One class can serve several tasks: its weights would load and mean something else.
        if task.auto_class == own.auto_class and task.head is not None and task.labels != own.labels:
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


def check_vocabulary(config: DistillConfig, models: Mapping[str, Any], tokenizer: Any) -> None:
    highest = max(tokenizer.get_vocab().values(), default=0)
    for role, model in models.items():
        if highest >= model.config.vocab_size:
            raise InputError(
                f"{config.where('tokenizer')}: the tokenizer gives ids up to {highest}, the {role}'s vocabulary has "
                f"{model.config.vocab_size}; is it another model's tokenizer?"
            )


def start_student(config: DistillConfig, teacher: Any, task: tasks.Task, tokenizer: Any) -> Any:
    """The student as it is before the first step: opened, built, cut out of the teacher, or blended with it."""
    set_seed(config.seed)  # new weights depend on the seed alone
    wanted = config.student
    for key in ("beta", "width_rule"):
        if getattr(wanted, key) is not None and wanted.init != "blend":
            raise InputError(
                f"{config.where(f'student.{key}')}: {key}: got it without init: blend, want both"
            )
    student = _new_student(config, teacher, task, tokenizer)
    if wanted.init == "blend":
        with user_input(config.where("student")):
            record = students.transfer_weights(
                teacher,
                student,
                0.5 if wanted.beta is None else wanted.beta,
                layer_map=wanted.layers or "uniform",
                width_rule=wanted.width_rule or "error",
            )
        say(f"student: {record}")
    return student


def _new_student(config: DistillConfig, teacher: Any, task: tasks.Task, tokenizer: Any) -> Any:
    wanted, blend = config.student, config.student.init == "blend"
    if wanted.path is not None:
        with user_input(config.where("student.path")):
            if teacher is None:
                return load_model(wanted.path, task.auto_class, **_head_settings(config, task))[0]
            student = load_model(wanted.path, task.auto_class)[0]
            follow_labels(student, EncoderSpec.of(student), EncoderSpec.of(teacher))
        return student
    with user_input(config.where("student")):
        if wanted.kind is not None:
            return students.build(
                wanted.kind, teacher, tokenizer=tokenizer, init=wanted.init, **wanted.options
            )
        return students.smaller(
            teacher,
            size=wanted.size,
            num_hidden_layers=wanted.num_hidden_layers,
            hidden_size=wanted.hidden_size,
            num_attention_heads=wanted.num_attention_heads,
            intermediate_size=wanted.intermediate_size,
            init="random" if blend else wanted.init,  # type: ignore[arg-type]  # checked there
            layers=None if blend else wanted.layers,
        )


def _head_settings(config: DistillConfig, task: tasks.Task) -> dict[str, Any]:
    """What a student without a teacher has to say of its head, where it has another one: its classes."""
    label, train = config.data.label, config.data.train
    assert train is not None and config.student.path is not None
    if label is None or not task.label_column or saved_task(config.student.path) == task:
        return {}
    settings = {} if task.problem_type is None else {"problem_type": task.problem_type}
    if task.labels == "float":
        return {**settings, "num_labels": 1}
    if not task.has_classes:
        return settings
    with user_input(config.where("data.label")):
        label2id = data.label_map(train, label)
    return {**settings, "label2id": label2id, "id2label": {i: name for name, i in label2id.items()}}
