"""Numbers that tell how near predictions are to labels, on the arrays they are given: nothing is imported for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of right classes."""
    predicted = logits.argmax(-1) if logits.ndim == 2 else logits
    return float((predicted == labels).mean())


def decision_accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of right yes/no decisions, one for every class."""
    return float(((logits > 0) == (labels > 0.5)).mean())


def decision_f1(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Micro-averaged F1 of the decisions for a class: 2 TP / (2 TP + FP + FN); NaN where none is right or taken."""
    taken, right = logits > 0, labels > 0.5
    total = float(taken.sum() + right.sum())
    return 2 * float((taken & right).sum()) / total if total else math.nan


def mse(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean squared error."""
    return float(((predicted - labels) ** 2).mean())


def pearson(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Pearson correlation; NaN where one side is constant."""
    a, b = predicted.ravel() - predicted.mean(), labels.ravel() - labels.mean()
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def spearman(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Spearman correlation: Pearson's of the ranks, equal values sharing their mean rank; NaN where one is constant."""
    return pearson(_ranks(predicted.ravel()), _ranks(labels.ravel()))


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    order, ranks = values.argsort(kind="stable"), values.astype("float64")
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[order[end]] != values[order[start]]:
            ranks[order[start:end]] = (start + end - 1) / 2
            start = end
    return ranks


def span_exact(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of spans ``[N, 2]`` that begin and end at the right tokens."""
    return float((predicted == labels).all(-1).mean())


def span_overlap(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean over spans ``[N, 2]`` (first and last token) of the F1 of the tokens in both."""
    first = predicted[:, 0].clip(labels[:, 0])  # the later beginning
    shared = (-((-predicted[:, 1]).clip(-labels[:, 1])) - first + 1).clip(0)  # the earlier end
    total = (predicted[:, 1] - predicted[:, 0] + 1).clip(0) + (labels[:, 1] - labels[:, 0] + 1)
    return float((2 * shared / total).mean())
