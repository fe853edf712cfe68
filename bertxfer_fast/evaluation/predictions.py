"""What a model says of labelled sequences, beside what is right: metrics, intervals and tables come from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import tasks
from ..data.collators import Features, collator_for
from ..data.loaders import packed_batches
from ..models.encoder import reads
from ..models.loans import device_of, inference
from ..models.stream import as_encoder
from .metrics import measurable, metrics_of, rows_of_sequences, task_of_model, vectors_of

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True)
class Predictions:
    """Predictions and labels of N sequences, laid end to end where a sequence has several.

    Attributes:
        task: what is predicted.
        outputs: logits ``[N, C]``; of a task with a label for every token predicted ids ``[T]``; else see `measurable`.
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
    tokens_per_batch: int = 8192,
    bf16: bool = False,
) -> Predictions:
    """Run a model over labelled features, where it is.

    Args:
        model: a transformers encoder with a head, or another `Encoder` with one; of an embedding task one without, the
            mean of whose tokens is taken.
        dataset: features (``input_ids``, ``labels``).
        task: what is predicted; by default what the model's head is for.
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
            output = encoder.run(batch)
            predicted = output.logits if task.head is not None else vectors_of(output, batch)
            assert predicted is not None
            rows, right = measurable(task, predicted, batch["labels"], batch)
            assert right is not None
            outputs.append((rows.float() if rows.is_floating_point() else rows).cpu())
            labels.append(right.cpu())
            lengths.append(rows_of_sequences(task, batch["cu_seq_lens_q"]).cpu())
    sizes = torch.cat(lengths)
    if task.labels == "similarity":  # what is measured, and drawn together, is a pair
        sizes = torch.full((len(sizes) // 2,), 2)
    return Predictions(
        task,
        *(torch.cat(parts).numpy() for parts in (outputs, labels)),
        lengths=sizes.numpy(),
        names=encoder.spec.labels if task.has_classes else (),
    )
