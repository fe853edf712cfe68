"""What a data set asks for: one record per task, and the registry that everything else is derived from.

A task says which transformers class a model is loaded with, what its logits are rows of, how a column of labels is
encoded and collated, what is measured, and how that is told. Recipe files, encoding, collators, evaluation, the trainer
and the model card read it; none of them knows a task by name.

A new task is one record and one call:

    register(Task("rating", "a grade from 1 to 5 a text", "AutoModelForSequenceClassification", "sequence", "class",
                  metrics={"off_by": lambda logits, labels: abs(logits.argmax(-1) - labels).mean()}))

Only the standard library is imported here: metrics work on the arrays they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Head", "Metric", "Task", "auto_class", "get", "head_of", "names", "register", "task_of"]

#: What the logits of a model are rows of.
Head = Literal["sequence", "token"]
#: (logits or predicted ids, labels), only rows that count -> a number; NaN where it is undefined.
Metric = Callable[["NDArray[Any]", "NDArray[Any]"], float]


@dataclass(frozen=True)
class Task:
    """What a data set asks of a model and of everything around it.

    Attributes:
        name: under which recipe files and calls name it.
        description: what its labels say, in a few words, for help.
        auto_class: the transformers class that loads a model with its head.
        head: what the logits are rows of; None: the model has no logits.
        labels: what a label is: a class id, a 0/1 float for every class, or a float. With a ``"token"`` head there is
            one for every token.
        metrics: name -> function. Classes are measured on logits ``[N, C]``, or on predicted ids ``[T]`` where every
            token has a label; floats and multi-hot rows on logits of the labels' shape.
        problem_type: transformers' word for it, which tells apart tasks that share `auto_class`.
        label_column: whether the labels can come from a column of the data.

    Raises:
        ValueError: a head without labels or labels without a head, or token labels that are not classes.
    """

    name: str
    description: str
    auto_class: str
    head: Head | None
    labels: Literal["class", "multi-hot", "float"] | None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    problem_type: str | None = None
    label_column: bool = True

    def __post_init__(self) -> None:
        if (self.head is None) != (self.labels is None):
            raise ValueError(f"labels: got {self.labels!r} beside head {self.head!r}, want both or neither")
        if self.head == "token" and self.labels != "class":
            raise ValueError(f"labels: got {self.labels!r} beside a token head, want 'class'")

    @property
    def predicts_ids(self) -> bool:
        """Whether predicted ids are kept instead of logits: a token head can be as wide as a vocabulary."""
        return self.head == "token"

    def is_head_of(self, model_class: str) -> bool:
        """Whether a transformers class of that name carries this task's head."""
        suffix = self.auto_class.removeprefix("AutoModel")
        return bool(suffix) and model_class.endswith(suffix)


# ---- registry -----------------------------------------------------------------------------------------------

_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make a task known under its name, and return it.

    Raises:
        ValueError: another task has that name.
    """
    if task.name in _TASKS:
        raise ValueError(f"task: got {task.name!r} again, want a name that no other task has")
    _TASKS[task.name] = task
    return task


def names() -> list[str]:
    """The names that `get` knows, in the order of registration."""
    return list(_TASKS)


def get(task: str | Task) -> Task:
    """The task of that name; a task is returned as it is.

    Raises:
        ValueError: an unknown name (the message names the nearest known one).
    """
    if isinstance(task, Task):
        return task
    if task not in _TASKS:
        raise ValueError(
            f"task: got {task!r}, want one of {', '.join(_TASKS)}{did_you_mean(task, _TASKS, listing=False)}"
        )
    return _TASKS[task]


# ---- what a model was made for ------------------------------------------------------------------------------


def task_of(
    model_class: str, num_labels: int, problem_type: str | None = None, head: str | None = None
) -> Task:
    """The task that the head of a model is for: the only place that decides it.

    Of tasks that share a class, ``problem_type`` tells which it is; without one, a single label is regression, as in
    transformers. A head of a class that no task names counts by what its logits are rows of.

    Args:
        model_class: name of the model's class.
        num_labels: width of the logits.
        problem_type: from the model's configuration.
        head: what the logits are rows of, where that is known.
    """
    if num_labels == 1 and problem_type != MULTI_LABEL_CLASSIFICATION.problem_type:
        problem_type = REGRESSION.problem_type
    candidates = [task for task in _TASKS.values() if task.is_head_of(model_class)]
    candidates = candidates or [task for task in _TASKS.values() if head is not None and task.head == head]
    if not candidates:
        return NONE
    told = (task for task in candidates if problem_type is not None and task.problem_type == problem_type)
    return next(told, candidates[0])


def auto_class(model_class: str) -> str:
    """Name of the transformers class that loads a model of a given class without knowing its family."""
    return next(
        (task.auto_class for task in _TASKS.values() if task.is_head_of(model_class)), NONE.auto_class
    )


def head_of(model_class: str) -> Head | None:
    """What the logits of a transformers class are rows of; None where no task has its head."""
    return next((task.head for task in _TASKS.values() if task.is_head_of(model_class)), None)


# ---- metrics ------------------------------------------------------------------------------------------------


def _accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of right classes."""
    predicted = logits.argmax(-1) if logits.ndim == 2 else logits
    return float((predicted == labels).mean())


def _decision_accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of right yes/no decisions, one for every class."""
    return float(((logits > 0) == (labels > 0.5)).mean())


def _mse(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(((predicted - labels) ** 2).mean())


def _pearson(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Pearson correlation; NaN where one side is constant."""
    a, b = predicted.ravel() - predicted.mean(), labels.ravel() - labels.mean()
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


# ---- the tasks ----------------------------------------------------------------------------------------------

SEQUENCE_CLASSIFICATION = register(
    Task(
        "sequence-classification",
        "one class a text",
        "AutoModelForSequenceClassification",
        "sequence",
        "class",
        metrics={"accuracy": _accuracy},
        problem_type="single_label_classification",
    )
)
MULTI_LABEL_CLASSIFICATION = register(
    Task(
        "multi-label-classification",
        "any number of classes a text, as a list",
        "AutoModelForSequenceClassification",
        "sequence",
        "multi-hot",
        metrics={"accuracy": _decision_accuracy},
        problem_type="multi_label_classification",
    )
)
REGRESSION = register(
    Task(
        "regression",
        "a number a text",
        "AutoModelForSequenceClassification",
        "sequence",
        "float",
        metrics={"mse": _mse, "pearson": _pearson},
        problem_type="regression",
    )
)
TOKEN_CLASSIFICATION = register(
    Task(
        "token-classification",
        "one class a word, as a list",
        "AutoModelForTokenClassification",
        "token",
        "class",
        metrics={"token_accuracy": _accuracy},
    )
)
MASKED_LM = register(
    Task(
        "masked-lm",
        "the vocabulary's logits of every token; no column of labels",
        "AutoModelForMaskedLM",
        "token",
        "class",
        metrics={"token_accuracy": _accuracy},
        label_column=False,
    )
)
NONE = register(Task("none", "no head, no labels", "AutoModel", head=None, labels=None, label_column=False))
