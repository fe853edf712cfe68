"""The teacher of a run: a model, several of them, one whose answers are kept, or answers alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import tasks
from ...distillation import teachers
from ...distillation.distiller import Distiller
from ...errors import InputError, user_input
from ...models.hf.loading import load_model, model_folder, saved_task
from ..config.schema import DistillConfig
from .texts import named_splits

if TYPE_CHECKING:
    from .plan import Plan

__all__ = [
    "bind_rows",
    "check_answers",
    "check_other_tokens",
    "check_teachers",
    "load_teacher",
    "models_of",
    "with_model",
    "without_store",
]


def check_teachers(config: DistillConfig) -> None:
    """Every teacher is there, and of a kind that goes with what else is asked for; nothing is read.

    Raises:
        InputError: it is not.
    """
    where, several = config.where("teacher"), len(config.teachers) > 1
    for path in config.teachers:
        name, rows = Path(path).name, _rows_of(path)
        if several and rows:
            raise InputError(f"{where}: teacher: got {name} among several, want models or stores to average")
        if (rows or teachers.is_store(path)) and config.store.path is not None and not several:
            raise InputError(
                f"{config.where('store')}: store: got one beside {name}, want it left out: there is nobody to ask"
            )
        if not rows and Path(path).suffix in teachers.BLACK_BOX_SUFFIXES and not Path(path).is_dir():
            raise InputError(f"{where}: teacher: no such file: {path}")
        if not rows and not teachers.is_store(path):
            with user_input(where):
                model_folder(path, "teacher")
    own, place = config.student.tokenizer, config.where("student.tokenizer")
    if own is not None and (not config.teachers or any(map(_rows_of, config.teachers))):
        whose = "rows, which have none" if config.teachers else "no teacher"
        raise InputError(
            f"{place}: student.tokenizer: got one beside {whose}, want tokenizer: no other model reads here"
        )
    if own is not None and config.student.init == "blend":
        raise InputError(
            f"{place}: student.tokenizer: got one with init: blend, want init: teacher or random: a blend is of models "
            "with one vocabulary"
        )
    for key in ("weights", "mean_of"):
        if f"ensemble.{key}" in config.sources and not several:
            place = config.where(f"ensemble.{key}")
            raise InputError(f"{place}: ensemble: got {key} for one teacher, want a list of teachers")
    for key in ("dtype", "top_k"):
        if f"store.{key}" in config.sources and config.store.path is None:
            raise InputError(
                f"{config.where(f'store.{key}')}: store: got {key} without a path, want store.path"
            )


def load_teacher(config: DistillConfig, tokenizer: Any) -> tuple[Any, tasks.Task]:
    """What teaches, and the task that it teaches (the teacher's own where none was given).

    A transformers model; or an `ActivationSource` over a store, several teachers, or rows, see
    `bertxfer_fast.teachers`; or None where there is no teacher, and then the task is the student's own.

    Raises:
        InputError: it cannot be read, is not for that task, or a store is another teacher's.
    """
    if not config.teachers:
        if config.task is not None:
            return None, tasks.get(config.task)
        assert config.student.path is not None
        with user_input(config.where("student.path")):
            return None, saved_task(config.student.path)
    if _rows_of(config.teachers[0]):
        return _black_box(config)
    found = [_open(config, path, tokenizer) for path in config.teachers]
    teacher, task = found[0]
    if len(found) > 1:
        with user_input(config.where("teacher")):
            each = [source if _is_source(source) else source() for source, _ in found]
            teacher = teachers.AveragedTeachers(
                each, config.ensemble.weights, mean_of=config.ensemble.mean_of
            )
    if config.store.path is not None:
        return _kept(config, teacher, tokenizer, task), task
    return teacher if _is_source(teacher) else teacher(), task


def check_other_tokens(config: DistillConfig, task: tasks.Task) -> None:
    """Whether a task goes with a student that has a tokenizer of its own, where it has one.

    Raises:
        InputError: its labels are tokens.
    """
    if config.student.tokenizer is not None and (
        task.labels == "span" or not (task.label_column or task.labels is None)
    ):
        raise InputError(
            f"{config.where('student.tokenizer')}: student.tokenizer: got one for task {task.name!r}, want none: the "
            "labels of that task are tokens"
        )


def models_of(teacher: Any) -> list[Any]:
    """The transformers models that teach, loaded if need be; none where there are only answers."""
    if teacher is None:
        return []
    if isinstance(teacher, teachers.StoredTeacher):
        return models_of(teacher.live)
    if isinstance(teacher, teachers.AveragedTeachers):
        found = (models_of(getattr(each, "model", each)) for each in teacher.teachers)
        return [model for models in found for model in models]
    return [teacher]


def with_model(teacher: Any) -> bool:
    """Whether there is a teacher to ask, not only what it said."""
    if isinstance(teacher, teachers.AveragedTeachers):
        return all(with_model(each) for each in teacher.teachers)
    return teacher.can_ask if isinstance(teacher, teachers.StoredTeacher) else teacher is not None


def without_store(teacher: Any) -> Any:
    """Whoever is asked, past the store, if there is one."""
    return teacher.live if isinstance(teacher, teachers.StoredTeacher) and teacher.can_ask else teacher


def bind_rows(plan: Plan) -> None:
    """Say whose the rows of a black box are, now that the texts are encoded.

    Raises:
        InputError: a split without rows, or rows that do not fit it.
    """
    box = plan.teacher.shelf if isinstance(plan.teacher, teachers.StoredTeacher) else None
    if not isinstance(box, teachers.BlackBox):
        return
    where, there = plan.config.where("teacher"), _rows_of(plan.config.teachers[0])
    lacking = next((split for split in plan.taught if split not in there), None)
    if lacking is not None:
        names = " and ".join(f"{split}.npy" for split in plan.taught)
        raise InputError(f"{where}: teacher: got no rows for {lacking}, want a folder with {names}")
    with user_input(where):
        box.bind(plan.taught)


def check_answers(plan: Plan, distiller: Distiller) -> None:
    """Whether what is kept is whole, and has an answer for every text that is taught.

    Raises:
        InputError: it is not.
    """
    source: Any = distiller.source
    data = plan.taught
    if isinstance(source, teachers.OtherTokens):
        source, data = source.teacher, {split: plan.teacher_data[split] for split in data}
    if isinstance(source, teachers.StoredTeacher):
        with user_input(plan.config.where("store" if plan.config.store.path else "teacher")):
            source.shelf.verify()
            source.check(data)


def _is_source(teacher: Any) -> bool:
    """Whether it teaches as it is, and is not a function that loads who does."""
    return hasattr(teacher, "stream")


def _rows_of(path: str) -> dict[str, Path]:
    """By split, the files of rows that a path stands for; none where it is something else."""
    given = Path(path)
    if given.suffix in teachers.BLACK_BOX_SUFFIXES and given.is_file():
        return {"train": given}
    files = {
        split: [
            file for suffix in teachers.BLACK_BOX_SUFFIXES if (file := given / f"{split}{suffix}").is_file()
        ]
        for split in ("train", "eval")
    }
    return {split: found[0] for split, found in files.items() if found}


def _black_box(config: DistillConfig) -> tuple[Any, tasks.Task]:
    """Rows of logits or vectors: the task says which."""
    [path] = config.teachers
    with user_input(config.where("teacher")):
        if config.task is None and config.student.path is None:
            raise ValueError(
                "task: got none beside rows, want it said: are they logits of a task or vectors?"
            )
        task = tasks.get(config.task) if config.task is not None else saved_task(str(config.student.path))
        if task.head in ("token", "span"):
            raise ValueError(
                f"teacher: got {Path(path).name} for task {task.name!r}, want a task with a row a text"
            )
        kind = "logits" if task.head == "sequence" else "vectors"
        splits = {split: file for split, file in _rows_of(path).items() if split in named_splits(config)}
        box = teachers.BlackBox(splits, kind=kind, problem_type=task.problem_type)
    return teachers.StoredTeacher(box), task


def _open(config: DistillConfig, path: str, tokenizer: Any) -> tuple[Any, tasks.Task]:
    """A store as a teacher, or a function that loads a model; and the task."""
    where = config.where("teacher")
    store = None
    with user_input(where):
        if teachers.is_store(path):
            store = teachers.Store.open(path)
            spec, known = store.about.spec, store.about.tokenizer
            if known is not None and known != teachers.tokenizer_fingerprint(tokenizer):
                raise ValueError(f"teacher: got {path} of another tokenizer, want one of this run's")
            own = tasks.task_of(spec.name, spec.num_labels, spec.problem_type, spec.head)
        else:
            own = saved_task(path)
    task = own if config.task is None else tasks.get(config.task)
    # One class can serve several tasks: its weights would load and mean something else.
    if task.auto_class == own.auto_class and task.head is not None and task.labels != own.labels:
        raise InputError(
            f"{config.where('task')}: task: got {task.name!r}, want {own.name!r}: the teacher's head does that"
        )
    return (partial(_model, path, task, where) if store is None else teachers.StoredTeacher(store)), task


def _model(path: str, task: tasks.Task, where: str) -> Any:
    with user_input(where):
        model, untrained = load_model(path, task.auto_class)
    head = [name for name in untrained if "position_ids" not in name]
    if head:
        raise InputError(
            f"{where}: the teacher has no trained weights for task {task.name!r} ({', '.join(head[:3])} missing); "
            "fine-tune it first, or set task: none"
        )
    return model


def _kept(config: DistillConfig, teacher: Any, tokenizer: Any, task: tasks.Task) -> Any:
    """A teacher whose answers are kept. One that a function loads is only loaded when there is something to ask."""
    path = config.store.path
    assert path is not None
    live: Callable[[], Any] | Any = teacher
    about = None
    if not _is_source(teacher):
        with user_input(config.where("store")):
            about = teachers.known_about(path, config.teachers[0], tokenizer, loaded_as=task.auto_class)
        live = teacher if about is not None else teacher()
    with user_input(config.where("store")):
        if about is None:
            folder = None if _is_source(teacher) else config.teachers[0]
            name = ", ".join(config.teachers)
            about = teachers.About.of(live, tokenizer, folder=folder, loaded_as=task.auto_class, name=name)
        store = teachers.Store.at(
            path, about, create=False, dtype=config.store.dtype, top_k=config.store.top_k
        )
    return teachers.StoredTeacher(store, live)
