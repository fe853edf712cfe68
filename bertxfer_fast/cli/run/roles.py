"""The models of a run and their tokenizer: loaded, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import set_seed

from ... import data, students, tasks
from ...distillation.distiller import check_tokenizers
from ...errors import InputError, user_input
from ...models.hf.loading import has_tokenizer, is_model, load_model, load_tokenizer, saved_task
from ...models.spec import EncoderSpec
from ...students.heads import follow_labels
from ..config.schema import DistillConfig
from ..console import say
from .teachers import models_of, with_model

__all__ = ["check_vocabulary", "read_tokenizers", "start_student"]


def read_tokenizers(config: DistillConfig) -> tuple[Any, Any]:
    """The student's tokenizer, and the teacher's where that is another one, else None."""
    tokenizer = _common_tokenizer(config)
    if config.student.tokenizer is None:
        return tokenizer, None
    with user_input(config.where("student.tokenizer")):
        return load_tokenizer(config.student.tokenizer), tokenizer


def _common_tokenizer(config: DistillConfig) -> Any:
    """The tokenizer of all that read alike, after checking that they mean the same tokens by the same ids."""
    student = config.student.path if config.student.tokenizer is None else None
    # Rows have no tokenizer, and a store not always.
    taught_by = [path for path in config.teachers if has_tokenizer(path) or is_model(path)]
    sources = {"tokenizer": config.tokenizer, "teacher": next(iter(taught_by), None)}
    sources["student.path"] = student
    named = [(key, path) for key, path in sources.items() if path is not None]
    if not named:
        raise InputError(
            f"{config.where('recipe')}: required key 'tokenizer' is missing: the teacher brings none"
        )
    key, source = named[0]
    with user_input(config.where(key)):
        tokenizer = load_tokenizer(source)
    for path in taught_by:
        if path != source and has_tokenizer(path):
            with user_input(config.where("teacher")):
                check_tokenizers(load_tokenizer(path), tokenizer)
    if key != "student.path" and student is not None and has_tokenizer(student):
        with user_input(config.where("student.path")):
            try:
                check_tokenizers(tokenizer, load_tokenizer(student))
            except ValueError as error:
                raise ValueError(f"{error}; with student.tokenizer it reads tokens of its own") from error
    return tokenizer


def check_vocabulary(
    config: DistillConfig, models: Mapping[str, Any], tokenizer: Any, teacher_tokenizer: Any = None
) -> None:
    for role, model in models.items():
        own = teacher_tokenizer if role == "teacher" and teacher_tokenizer is not None else tokenizer
        key = "tokenizer" if own is teacher_tokenizer or teacher_tokenizer is None else "student.tokenizer"
        highest = max(own.get_vocab().values(), default=0)
        config_of = getattr(model, "config", None)  # an answer that is only kept has none
        size = EncoderSpec.of(model).vocab_size if config_of is None else config_of.vocab_size
        if size is not None and highest >= size:
            raise InputError(
                f"{config.where(key)}: the tokenizer gives ids up to {highest}, the {role}'s vocabulary has "
                f"{size}; is it another model's tokenizer?"
            )


def start_student(
    config: DistillConfig, teacher: Any, task: tasks.Task, tokenizer: Any, teacher_tokenizer: Any = None
) -> Any:
    """The student as it is before the first step: opened, built, cut out of the teacher, or blended with it."""
    set_seed(config.seed)  # new weights depend on the seed alone
    wanted = config.student
    for key in ("beta", "width_rule"):
        if getattr(wanted, key) is not None and wanted.init != "blend":
            raise InputError(
                f"{config.where(f'student.{key}')}: {key}: got it without init: blend, want both"
            )
    student = _new_student(config, teacher, task, tokenizer, teacher_tokenizer)
    if wanted.init == "blend":
        with user_input(config.where("student")):
            record = students.transfer_weights(
                _weights_of(teacher),
                student,
                0.5 if wanted.beta is None else wanted.beta,
                layer_map=wanted.layers or "uniform",
                width_rule=wanted.width_rule or "error",
            )
        say(f"student: {record}")
    return student


def _new_student(
    config: DistillConfig, teacher: Any, task: tasks.Task, tokenizer: Any, teacher_tokenizer: Any
) -> Any:
    wanted, blend = config.student, config.student.init == "blend"
    if wanted.path is not None:
        with user_input(config.where("student.path")):
            if teacher is None:
                return load_model(wanted.path, task.auto_class, **_head_settings(config, task))[0]
            head = {} if with_model(teacher) else _head_of_rows(wanted.path, task, EncoderSpec.of(teacher))
            student = load_model(wanted.path, task.auto_class, **head)[0]
            follow_labels(student, EncoderSpec.of(student), EncoderSpec.of(teacher))
        return student
    with user_input(config.where("student")):
        model = _weights_of(teacher)
        if wanted.kind is not None:
            both = {"tokenizer": tokenizer, "teacher_tokenizer": teacher_tokenizer}
            return students.build(wanted.kind, model, init=wanted.init, **both, **wanted.options)
        return students.smaller(
            model,
            size=wanted.size,
            num_hidden_layers=wanted.num_hidden_layers,
            hidden_size=wanted.hidden_size,
            num_attention_heads=wanted.num_attention_heads,
            intermediate_size=wanted.intermediate_size,
            init="random" if blend else wanted.init,  # type: ignore[arg-type]  # checked there
            layers=None if blend else wanted.layers,
            dropout=wanted.dropout,
            tokenizer=None if teacher_tokenizer is None else tokenizer,
            teacher_tokenizer=teacher_tokenizer,
        )


def _weights_of(teacher: Any) -> Any:
    """The model that a student is made of: the teacher, of several the first."""
    model = next(iter(models_of(teacher)), None)
    if model is None:
        raise ValueError("student: got a teacher without weights, want a student's directory, and no blend")
    return model


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


def _head_of_rows(path: str, task: tasks.Task, rows: EncoderSpec) -> dict[str, Any]:
    """What a student has to say of its head where it has another one, and only answers tell what it should have."""
    if task.head is None or saved_task(path) == task:
        return {}
    settings = {} if task.problem_type is None else {"problem_type": task.problem_type}
    return {**settings, "num_labels": rows.num_labels}
