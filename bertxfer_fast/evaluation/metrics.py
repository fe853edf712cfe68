"""Predictions against labels, as the numbers that a task asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import tasks
from ..data.packing import positions_of
from ..models.activations import PackedOutput
from ..models.spec import EncoderSpec
from ..models.stream import as_encoder
from ..ops import pool_features

__all__ = [
    "SEQUENCE_END",
    "TaskMetrics",
    "best_spans",
    "cosines",
    "measurable",
    "metrics_of",
    "rows_of_sequences",
    "task_of_model",
    "text_vectors",
    "vectors_of",
]

#: Label of a row that is no token but marks where a sequence ends, for metrics that look at sequences.
SEQUENCE_END = -101

_LONGEST_SPAN = 30  # tokens of an answer, as in SQuAD's usual evaluation


def task_of_model(model: Any) -> tasks.Task:
    """The task that the head of a model, or of the model of an `EncoderSpec`, is for, see `tasks.task_of`."""
    spec = model if isinstance(model, EncoderSpec) else EncoderSpec.of(model)
    return tasks.task_of(spec.name, spec.num_labels, spec.problem_type, spec.head)


class TaskMetrics:
    """The metrics of a task as ``compute_metrics`` of transformers' Trainer, however it hands predictions over.

    In one array, in a list with an array for every batch (``eval_do_concat_batches=False``), or batch by batch
    (``batch_eval_metrics=True``).

    Args:
        task: what is measured.
        names: of the classes.
    """

    def __init__(self, task: tasks.Task, names: Sequence[str] = ()) -> None:
        self.task, self.names = task, tuple(names)
        self._seen: list[tuple[NDArray[Any], NDArray[Any]]]
        self.clear()

    @classmethod
    def of(cls, task: tasks.Task, model: Any) -> TaskMetrics:
        """Of a task, with the names that a model's classes have."""
        return cls(task, EncoderSpec.of(model).labels)

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
        return metrics_of(logits, labels, self.task, self.names)

    def clear(self) -> None:
        """Forget what was handed over."""
        self._seen = []


def _joined(values: Any) -> NDArray[Any]:
    """One array of an array or tensor, or of a list with one for every batch."""
    parts = values if isinstance(values, list) else [values]
    return np.concatenate([p.numpy(force=True) if isinstance(p, Tensor) else np.asarray(p) for p in parts])


def measurable(
    task: tasks.Task, predictions: Tensor, labels: Tensor | None, batch: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """What metrics need of one packed batch, so that batches can be laid end to end.

    Args:
        task: what is measured.
        predictions: the head's logits, of a token head also ids ``[T]``, of an embedding task vectors.
        labels: the batch's, if it has any.
        batch: has ``cu_seq_lens_q``.

    Returns:
        (predictions, labels): of a token head ids ``[T]`` and labels ``[T]``, with one more row behind each sequence,
        labelled `SEQUENCE_END`, where the task measures sequences; of a span head spans ``[N, 2]``; else as they are.
    """
    cu_seqlens = batch["cu_seq_lens_q"]
    if task.head == "span":
        return best_spans(predictions.flatten(0, -2), cu_seqlens), labels
    if task.head != "token":
        return predictions, labels
    ids = predictions.flatten(0, -2).argmax(-1) if predictions.is_floating_point() else predictions
    if labels is None or not task.name_metrics:
        return ids, None if labels is None else labels.reshape(-1)
    labels = labels.reshape(-1)
    return _with_ends(ids, cu_seqlens, 0), _with_ends(labels, cu_seqlens, SEQUENCE_END)


def rows_of_sequences(task: tasks.Task, cu_seqlens: Tensor) -> Tensor:
    """How many rows `measurable` gives of each sequence, int64 ``[N]``."""
    lengths = cu_seqlens.diff().long()
    if task.head != "token":
        return torch.ones_like(lengths)
    return lengths + bool(task.name_metrics)


def vectors_of(output: PackedOutput, batch: Mapping[str, Any]) -> Tensor:
    """The mean of every sequence's tokens, ``[N, D]``: the vector that a model without a head gives for a text.

    Raises:
        ValueError: the model hands out no hidden states of its tokens.
    """
    if output.last_hidden_state is None:
        raise ValueError("model: got no last_hidden_state from its run, want one to make vectors of")
    return pool_features(output.last_hidden_state, batch["cu_seq_lens_q"], mode="mean")


def text_vectors(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """`vectors_of` what a model makes of a packed batch."""
    return vectors_of(as_encoder(model).run(batch), batch)


def _with_ends(rows: Tensor, cu_seqlens: Tensor, end: int) -> Tensor:
    """``[T]`` -> ``[T + N]``, with an `end` behind each sequence."""
    lengths = cu_seqlens.diff().long()
    row = torch.repeat_interleave(lengths, output_size=len(rows))
    longer = rows.new_full((len(rows) + len(lengths),), end)
    longer[torch.arange(len(rows), device=rows.device) + row] = rows
    return longer


def best_spans(logits: Tensor, cu_seqlens: Tensor, longest: int = _LONGEST_SPAN) -> Tensor:
    """The likeliest span of every sequence: the highest sum of the logits of a first and a last token not before it.

    Args:
        logits: ``[T, 2]``, of being the first and the last token of the span.
        cu_seqlens: int32 ``[N + 1]``.
        longest: tokens of a span at most.

    Returns:
        int64 ``[N, 2]``, first and last token, counted from the sequence's own beginning.
    """
    logits = logits.float()
    tokens = len(logits)
    lengths = cu_seqlens.diff().long()
    row = torch.repeat_interleave(lengths, output_size=tokens)
    # The best end for every start: the last token may be up to `longest - 1` tokens further on, in the same sequence.
    best = torch.full((tokens,), -math.inf, device=logits.device)
    ends = torch.zeros(tokens, dtype=torch.int64, device=logits.device)
    for step in range(min(longest, tokens)):
        score = torch.full_like(best, -math.inf)
        score[: tokens - step] = torch.where(
            row[: tokens - step] == row[step:],
            logits[: tokens - step, 0] + logits[step:, 1],
            -math.inf,
        )
        better = score > best
        best = torch.where(better, score, best)
        ends = torch.where(better, step, ends)
    positions = positions_of(cu_seqlens, row)
    scores = best.new_full((len(lengths), int(lengths.max())), -math.inf)
    scores[row, positions] = best
    start = scores.argmax(-1)
    return torch.stack([start, start + ends[cu_seqlens[:-1].long() + start]], -1)


def metrics_of(
    logits: NDArray[Any], labels: NDArray[Any], task: str | tasks.Task, names: Sequence[str] = ()
) -> dict[str, float]:
    """The metrics of a task.

    Args:
        logits: ``[N, C]``; of a task with labels for every token ``[T, C]``, or predicted ids ``[T]``; of spans
            predicted ones ``[N, 2]``; of embeddings vectors ``[2P, D]``, those of a pair one after the other.
        labels: ``[N]`` class ids, ``[N]`` or ``[N, C]`` floats, ``[N, 2]`` spans, ``[2P]`` floats, or ids ``[T]``.
            Negative ids and NaN targets do not count; `SEQUENCE_END` tells sequences apart.
        task: the task or its name.
        names: of the classes, for metrics of names.

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
    if logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"labels: got {labels.shape[0]} of them, want one for each of {logits.shape[0]} predictions"
        )
    if task.labels == "similarity":
        logits, labels = cosines(logits, labels), labels[::2]
    if task.labels in ("class", "span"):
        counted = labels >= 0 if labels.ndim == 1 else (labels >= 0).all(-1)
    else:
        counted = np.isfinite(labels) if labels.ndim == 1 else np.isfinite(labels).all(-1)
    if not counted.any():
        raise ValueError("labels: got none that count, want at least one")
    found = {}
    if task.name_metrics and task.names_fit(names):
        lists = _named_sequences(logits, labels, names)
        found = {name: float(metric(*lists)) for name, metric in task.name_metrics.items()}
    if task.labels == "float":
        logits, labels = logits.reshape(labels.shape).astype(np.float64), labels.astype(np.float64)
    logits, labels = logits[counted], labels[counted]
    found = {name: float(metric(logits, labels)) for name, metric in task.metrics.items()} | found
    return {name: value for name, value in found.items() if not np.isnan(value)}


def cosines(vectors: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """``[2P, D]`` -> the cosine of each pair, float64 ``[P]``."""
    paired = len(labels) % 2 == 0 and np.array_equal(labels[::2], labels[1::2], equal_nan=True)
    if not paired:
        raise ValueError(
            "labels: got some that differ within a pair, want the two texts of a pair one after the other"
        )
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1)
    products = (vectors[::2] * vectors[1::2]).sum(-1)
    return products / np.maximum(lengths[::2] * lengths[1::2], np.finfo(np.float64).tiny)


def _named_sequences(
    logits: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Predicted and right names of the labelled tokens, a list for every sequence."""
    ids = logits.argmax(-1) if logits.ndim == 2 else logits
    predicted: list[list[str]] = [[]]
    right: list[list[str]] = [[]]
    for guess, label in zip(ids.tolist(), labels.tolist(), strict=True):
        if label == SEQUENCE_END:
            predicted.append([])
            right.append([])
        elif label >= 0:
            predicted[-1].append(names[guess])
            right[-1].append(names[label])
    return predicted, right
