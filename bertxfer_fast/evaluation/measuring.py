"""How good a model is, measured on packed batches, and one row of all that is told about it.

`evaluate` and `summary` take any transformers encoder with a head, teacher, student or one trained elsewhere.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .. import tasks
from ..data.collators import Features
from ..models.spec import EncoderSpec
from .metrics import task_of_model
from .predictions import predict
from .speed import parameter_count, size_mb, throughput

__all__ = ["evaluate", "has_labels", "summary"]

SPEED_SEQUENCES = 2000


def evaluate(
    model: PreTrainedModel,
    dataset: Features,
    *,
    task: str | tasks.Task | None = None,
    tokens_per_batch: int = 8192,
    bf16: bool = False,
) -> dict[str, float]:
    """Metrics of a model on labelled features, run where the model is.

    Args:
        model: a transformers encoder with a head; of an embedding task one without, whose tokens are averaged.
        dataset: features (``input_ids``, ``labels``).
        task: which metrics; by default those of the task that the model's head is for.
        tokens_per_batch: tokens in a packed batch.
        bf16: run under bf16 autocast.

    Raises:
        ValueError: an empty data set, features without labels, or a model without a head.
    """
    return predict(model, dataset, task=task, tokens_per_batch=tokens_per_batch, bf16=bf16).metrics()


def summary(
    model: PreTrainedModel,
    dataset: Features | None,
    *,
    task: str | tasks.Task | None = None,
    tokens_per_batch: int = 8192,
    bf16: bool = False,
    repeats: int = 5,
) -> dict[str, float | int]:
    """One row of a comparison: the metrics (where there are labels), parameters, MB, sentences/s.

    Without a data set there are only the sizes. Sentences/s is timed on the first `SPEED_SEQUENCES` at most. The
    arguments are those of `evaluate` and `throughput`.
    """
    row: dict[str, float | int] = {}
    settings: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "bf16": bf16}
    task = task_of_model(EncoderSpec.of(model)) if task is None else tasks.get(task)
    if dataset is not None and task.labels is not None and has_labels(dataset):
        row.update(evaluate(model, dataset, task=task, **settings))
    row["parameters"], row["MB"] = parameter_count(model), size_mb(model)
    if dataset is not None:
        some = [dataset[i] for i in range(min(SPEED_SEQUENCES, len(dataset)))]
        row["sentences/s"] = throughput(model, some, repeats=repeats, **settings)
    return row


def has_labels(dataset: Features) -> bool:
    """Whether the features of a non-empty data set carry labels."""
    first = dataset[0]
    return first.get("labels") is not None or first.get("label") is not None
