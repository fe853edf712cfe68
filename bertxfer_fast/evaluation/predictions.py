"""What a model says of labelled sequences, beside what is right: metrics, intervals and tables come from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import tasks
from ..data.collators import Features, collator_for
from ..data.loaders import packed_batches
from ..models.encoder import Encoder, reads
from ..models.loans import device_of, inference
from ..models.stream import as_encoder
from ..models.token_ids import ids_of_labelled
from .metrics import cosines, measurable, metrics_of, rows_of_sequences, task_of_model, vectors_of

__all__ = ["Predictions", "predict", "prediction_rows"]


@dataclass(frozen=True)
class Predictions:
    """Predictions and labels of N sequences, laid end to end where a sequence has several.

    Attributes:
        task: what is predicted.
        outputs: logits ``[N, C]``; of a task with a label for every token predicted ids ``[T]`` (of a masked LM those
            of the labelled tokens, 0 elsewhere); else see `measurable`.
        labels: as `metrics_of` takes them.
        lengths: int64 ``[N]``, how many of ``outputs`` belong to each sequence, or to each pair of an embedding task.
        names: of the classes, in the order of the logits; empty without classes.
    """

    task: tasks.Task
    outputs: NDArray[Any]
    labels: NDArray[Any]
    lengths: NDArray[np.int64]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    def metrics(self) -> dict[str, float]:
        """The task's metrics by name, see `metrics_of`."""
        return metrics_of(self.outputs, self.labels, self.task, self.names)

    def take(self, sequences: NDArray[np.int64]) -> Predictions:
        """Those of the sequences of these numbers, in this order; a number may come more than once."""
        lengths = self.lengths[sequences]
        rows = sequences
        if len(self.outputs) != len(self.lengths):
            starts = np.cumsum(self.lengths) - self.lengths
            into = np.cumsum(lengths) - lengths
            rows = np.arange(lengths.sum()) + np.repeat(starts[sequences] - into, lengths)
        return Predictions(self.task, self.outputs[rows], self.labels[rows], lengths, self.names)


def predict(
    model: Any,
    dataset: Features,
    *,
    task: str | tasks.Task | None = None,
    names: Sequence[str] | None = None,
    tokens_per_batch: int = 8192,
    bf16: bool = False,
) -> Predictions:
    """Run a model over labelled features, where it is.

    Args:
        model: a transformers encoder with a head, or another `Encoder` with one; of an embedding task one without, the
            mean of whose tokens is taken.
        dataset: features (``input_ids``, ``labels``).
        task: what is predicted; by default what the model's head is for.
        names: of the classes; by default those that the model knows.
        tokens_per_batch: tokens in a packed batch.
        bf16: run under bf16 autocast.

    Raises:
        ValueError: an empty data set, features without labels, or a model without a head.
    """
    encoder = as_encoder(model)
    task = task_of_model(encoder.spec) if task is None else tasks.get(task)
    if task.labels is None:
        raise ValueError(f"model: got {encoder.spec.name}, want one with a head to evaluate")
    if not len(dataset):
        raise ValueError("dataset: got no rows, want at least one")
    outputs, labels, lengths = [], [], []
    collate = collator_for(task, **reads(encoder))
    with inference(model, bf16):
        for _, batch in packed_batches(dataset, tokens_per_batch, device_of(model), collate):
            if "labels" not in batch:
                raise ValueError("dataset: got features without labels, want labels to measure against")
            predicted = _predicted(encoder, task, batch)
            rows, right = measurable(task, predicted, batch["labels"], batch)
            assert right is not None
            outputs.append((rows.float() if rows.is_floating_point() else rows).cpu())
            labels.append(right.cpu())
            lengths.append(rows_of_sequences(task, batch["cu_seq_lens_q"]).cpu())
    sizes = torch.cat(lengths)
    if task.labels == "similarity":  # what is measured, and drawn together, is a pair
        sizes = torch.full((len(sizes) // 2,), 2)
    known: Sequence[str] = encoder.spec.labels if names is None else names
    return Predictions(
        task,
        torch.cat(outputs).numpy(),
        torch.cat(labels).numpy(),
        sizes.numpy(),
        tuple(known) if task.has_classes else (),
    )


def _predicted(encoder: Encoder, task: tasks.Task, batch: dict[str, Any]) -> Tensor:
    if task.predicts_ids:
        return ids_of_labelled(encoder, batch)
    output = encoder.run(batch)
    predicted = output.logits if task.head is not None else vectors_of(output, batch)
    assert predicted is not None
    return predicted


def prediction_rows(predictions: Predictions, numbers: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """One row a sequence: its number, ``label``, ``predicted``, and of one class ``probability``.

    Of labels for every token they are lists over the tokens that have a label, of several classes a text lists of the
    names of those that hold, of numbers the numbers, of spans their first and last token, of pairs how alike they are.

    Args:
        predictions: of N sequences.
        numbers: N, of the rows that they are in their file; by default from 1.
    """
    rows: list[dict[str, Any]] = []
    task, names = predictions.task, predictions.names

    def name(value: Any) -> str:
        return names[int(value)] if 0 <= int(value) < len(names) else str(int(value))

    for i in range(len(predictions)):
        one = predictions.take(np.array([i]))
        outputs, labels = one.outputs, one.labels
        row: dict[str, Any] = {"row": i + 1 if numbers is None else numbers[i]}
        if task.head == "token":
            counted = labels >= 0
            row["label"], row["predicted"] = (
                [name(v) for v in values[counted]] for values in (labels, outputs)
            )
        elif task.labels == "class":
            shares = np.exp(outputs[0] - outputs[0].max())
            best = int(shares.argmax())
            row |= {"label": name(labels[0]), "predicted": name(best)}
            row["probability"] = float(shares[best] / shares.sum())
        elif task.labels == "multi-hot":
            for key, hot in (("label", labels[0] > 0.5), ("predicted", outputs[0] > 0)):
                row[key] = [name(c) for c in np.flatnonzero(hot)]
        elif task.labels == "span":
            for key, span in (("label", labels[0]), ("predicted", outputs[0])):
                row |= {f"{key} first": int(span[0]), f"{key} last": int(span[1])}
        elif task.labels == "similarity":
            row |= {"label": float(labels[0]), "predicted": float(cosines(outputs, labels)[0])}
        else:
            row |= {"label": float(np.ravel(labels)[0]), "predicted": float(np.ravel(outputs)[0])}
        rows.append(row)
    return rows
