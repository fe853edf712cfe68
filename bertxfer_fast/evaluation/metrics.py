"""Predictions against labels, as the numbers that a task asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .. import tasks
from ..models.spec import EncoderSpec

__all__ = ["TaskMetrics", "metrics_of", "task_of_model"]


def task_of_model(spec: EncoderSpec) -> tasks.Task:
    """The task that a model's head is for, see `tasks.task_of`."""
    return tasks.task_of(spec.name, spec.num_labels, spec.problem_type, spec.head)


class TaskMetrics:
    """The metrics of a task as ``compute_metrics`` of transformers' Trainer, however it hands predictions over.

    In one array, in a list with an array for every batch (``eval_do_concat_batches=False``), or batch by batch
    (``batch_eval_metrics=True``).

    Args:
        task: what is measured.
    """

    def __init__(self, task: tasks.Task) -> None:
        self.task = task
        self._seen: list[tuple[NDArray[Any], NDArray[Any]]]
        self.clear()

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """The metrics of all that was handed over since the last result.

        Args:
            prediction: an ``EvalPrediction``.
            compute_result: False: keep this batch, more will come; nothing is measured yet.
        """
        self._seen.append((_joined(prediction.predictions), _joined(prediction.label_ids)))
        if not compute_result:
            return {}
        logits, labels = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
        self.clear()
        return metrics_of(logits, labels, self.task)

    def clear(self) -> None:
        """Forget what was handed over."""
        self._seen = []


def _joined(values: Any) -> NDArray[Any]:
    """One array of an array or tensor, or of a list with one for every batch."""
    parts = values if isinstance(values, list) else [values]
    return np.concatenate([p.numpy(force=True) if isinstance(p, Tensor) else np.asarray(p) for p in parts])


def metrics_of(logits: NDArray[Any], labels: NDArray[Any], task: str | tasks.Task) -> dict[str, float]:
    """The metrics of a task.

    Args:
        logits: ``[N, C]``; of a task with labels for every token ``[T, C]``, or predicted ids ``[T]``.
        labels: ``[N]`` class ids, ``[N]`` or ``[N, C]`` floats, or ``[T]`` token ids. Negative ids and NaN targets do
            not count.
        task: the task or its name.

    Returns:
        Metric by name, without those that are undefined here.

    Raises:
        ValueError: an unknown task or one without labels, shapes that do not fit, or nothing to count.
    """
    task = tasks.get(task)
    logits, labels = np.asarray(logits), np.asarray(labels)
    if task.labels is None:
        raise ValueError(f"task: got {task.name!r}, want one that has labels")
    if task.labels == "class":
        labels = labels.reshape(-1)
        counted = labels >= 0
    else:
        counted = np.isfinite(labels) if labels.ndim == 1 else np.isfinite(labels).all(-1)
    if logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"labels: got {labels.shape[0]} of them, want one for each of {logits.shape[0]} predictions"
        )
    if not counted.any():
        raise ValueError("labels: got none that count, want at least one")
    if task.labels == "float":
        logits, labels = logits.reshape(labels.shape).astype(np.float64), labels.astype(np.float64)
    logits, labels = logits[counted], labels[counted]
    found = {name: float(metric(logits, labels)) for name, metric in task.metrics.items()}
    return {name: value for name, value in found.items() if not np.isnan(value)}
