"""What a data set asks for: one record per task, and the registry that everything else is derived from.

A task says which transformers class a model is loaded with, what its logits are rows of, how a column of labels is
encoded and collated, what is measured, and how that is told. Recipe files, encoding, collators, evaluation, the trainer
and the model card read it; none of them knows a task by name.

A new task is one record and one call:

    register(Task("rating", "a grade from 1 to 5 a text", "AutoModelForSequenceClassification", "sequence", "class",
                  metrics={"off_by": lambda logits, labels: abs(logits.argmax(-1) - labels).mean()}))

Only the standard library is imported here: metrics work on the arrays and names they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import did_you_mean
from . import entities, metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Head",
    "Labels",
    "Metric",
    "NameMetric",
    "Task",
    "auto_class",
    "get",
    "head_of",
    "names",
    "register",
    "task_of",
]

#: What the logits of a model are rows of: a sequence, a token, or a token of which a sequence's first and last are
#: looked for (two logits each, a softmax over the tokens of the sequence).
Head = Literal["sequence", "token", "span"]
#: What a label is: a class id, a 0/1 float for every class, a float, the first and the last token of a span, or how
#: alike the two texts of a pair are.
Labels = Literal["class", "multi-hot", "float", "span", "similarity"]
#: (logits, or what is predicted, and labels), only rows that count -> a number; NaN where it is undefined.
Metric = Callable[["NDArray[Any]", "NDArray[Any]"], float]
#: (predicted, right) names of labels, a list for every sequence, only of tokens that count -> a number, or NaN.
NameMetric = Callable[[Sequence[Sequence[str]], Sequence[Sequence[str]]], float]


@dataclass(frozen=True)
class Task:
    """What a data set asks of a model and of everything around it.

    Attributes:
        name: under which recipe files and calls name it.
        description: what its labels say, in a few words, for help.
        auto_class: the transformers class that loads a model with its head.
        head: what the logits are rows of; None: the model has no logits.
        labels: what a label is, see `Labels`. With a ``"token"`` head there is one for every token.
        metrics: name -> function. Classes are measured on logits ``[N, C]``, or on predicted ids ``[T]`` where every
            token has a label; floats and multi-hot rows on logits of the labels' shape; spans on predicted ones
            ``[N, 2]``; similarities on the cosines of pairs ``[N]``.
        name_metrics: name -> function of label names, for metrics that look at a sequence as a whole (entities).
        names_fit: whether `name_metrics` mean something for labels of these names.
        problem_type: transformers' word for it, which tells apart tasks that share `auto_class`.
        label_column: whether the labels can come from a column of the data.

    Raises:
        ValueError: a head without labels, or labels that such a head has not.
    """

    name: str
    description: str
    auto_class: str
    head: Head | None
    labels: Labels | None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    name_metrics: Mapping[str, NameMetric] = field(default_factory=dict)
    names_fit: Callable[[Sequence[str]], bool] = bool
    problem_type: str | None = None
    label_column: bool = True

    def __post_init__(self) -> None:
        similarity = self.labels == "similarity"
        if (self.head is None) != (self.labels is None) and not (similarity and self.head is None):
            raise ValueError(f"labels: got {self.labels!r} beside head {self.head!r}, want both or neither")
        if self.head == "token" and self.labels != "class":
            raise ValueError(f"labels: got {self.labels!r} beside a token head, want 'class'")
        if (self.head == "span") != (self.labels == "span") or (similarity and self.head is not None):
            raise ValueError(f"labels: got {self.labels!r} beside head {self.head!r}, want what it predicts")

    @property
    def predicts_ids(self) -> bool:
        """Whether predicted ids are kept instead of logits: a token head can be as wide as a vocabulary."""
        return self.head == "token"

    @property
    def has_classes(self) -> bool:
        """Whether its labels are names that ids stand for."""
        return self.labels in ("class", "multi-hot")

    def measured(self, label_names: Sequence[str] = ()) -> list[str]:
        """The names of the metrics, for labels of these names."""
        return [*self.metrics, *(self.name_metrics if self.names_fit(label_names) else ())]

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


# ---- the tasks ----------------------------------------------------------------------------------------------

SEQUENCE_CLASSIFICATION = register(
    Task(
        "sequence-classification",
        "one class a text",
        "AutoModelForSequenceClassification",
        "sequence",
        "class",
        metrics={"accuracy": metrics.accuracy},
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
        metrics={"accuracy": metrics.decision_accuracy, "f1": metrics.decision_f1},
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
        metrics={"mse": metrics.mse, "pearson": metrics.pearson},
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
        metrics={"token_accuracy": metrics.accuracy},
        name_metrics={
            "span_precision": entities.span_precision,
            "span_recall": entities.span_recall,
            "span_f1": entities.span_f1,
        },
        names_fit=entities.has_scheme,
    )
)
QUESTION_ANSWERING = register(
    Task(
        "question-answering",
        "the span of the second text (context) that answers the first (question)",
        "AutoModelForQuestionAnswering",
        "span",
        "span",
        metrics={"exact_match": metrics.span_exact, "overlap_f1": metrics.span_overlap},
    )
)
MASKED_LM = register(
    Task(
        "masked-lm",
        "the vocabulary's logits of every token; no column of labels",
        "AutoModelForMaskedLM",
        "token",
        "class",
        metrics={"token_accuracy": metrics.accuracy},
        label_column=False,
    )
)
NONE = register(Task("none", "no head, no labels", "AutoModel", head=None, labels=None, label_column=False))
EMBEDDING = register(
    Task(
        "embedding",
        "a vector a text, no head; may be labelled with how alike the texts of a pair are",
        "AutoModel",
        head=None,
        labels="similarity",
        metrics={"spearman": metrics.spearman, "pearson": metrics.pearson},
    )
)
