"""Where a classifier is right and what it takes for what: a table by class, and the confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .predictions import Predictions

__all__ = ["class_table", "confusion_matrix"]

MOST_CLASSES = 100  # more are no table that anyone reads: a masked LM's vocabulary


def class_table(predictions: Predictions) -> list[dict[str, Any]]:
    """One row a class: ``precision``, ``recall``, ``f1`` and ``support``, how often it is right; None where undefined.

    Of multi-label tasks every class is a yes or no of its own. Empty for tasks that have no classes, or very many.
    """
    chosen = _chosen(predictions)
    if chosen is None:
        return []
    predicted, right = chosen
    hits, said, support = (hot.sum(0) for hot in (predicted & right, predicted, right))
    rows = []
    for i, name in enumerate(_names(predictions, right.shape[1])):
        rows.append(
            {
                "class": name,
                "precision": _share(hits[i], said[i]),
                "recall": _share(hits[i], support[i]),
                "f1": _share(2 * hits[i], said[i] + support[i]),
                "support": int(support[i]),
            }
        )
    return rows


def confusion_matrix(predictions: Predictions) -> dict[str, Any] | None:
    """``classes`` and ``counts``: how often each class (row) was taken for each (column).

    None for tasks without classes of which one is right, or with very many.
    """
    chosen = _chosen(predictions)
    if chosen is None or predictions.task.labels != "class":
        return None
    predicted, right = chosen
    counts = right.astype(np.int64).T @ predicted.astype(np.int64)
    return {"classes": _names(predictions, right.shape[1]), "counts": counts.tolist()}


def _chosen(predictions: Predictions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Predicted and right classes ``[N, C]`` of the rows that count."""
    task, outputs, labels = predictions.task, predictions.outputs, predictions.labels
    if task.labels == "multi-hot":
        counted = np.isfinite(labels).all(-1)
        return outputs[counted] > 0, labels[counted] > 0.5
    if task.labels != "class" or not task.label_column:
        return None
    ids = outputs.argmax(-1) if outputs.ndim == 2 else outputs
    counted = labels >= 0
    ids, labels = ids[counted], labels[counted]
    width = outputs.shape[1] if outputs.ndim == 2 else len(predictions.names)
    width = max([width, *(int(values.max()) + 1 for values in (ids, labels) if len(values))])
    if width > MOST_CLASSES:
        return None
    hot = np.eye(width, dtype=bool)
    return hot[ids], hot[labels]


def _names(predictions: Predictions, count: int) -> list[str]:
    return [*predictions.names, *map(str, range(len(predictions.names), count))]


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
