"""How good a model is, measured on packed batches, and one row of all that is told about it.

`evaluate` and `summary` take any transformers encoder with a head, teacher, student or one trained elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import tasks
from ..data.collators import Features, collator_for
from ..data.loaders import packed_batches
from ..models.encoder import reads
from ..models.loans import device_of, inference
from ..models.spec import EncoderSpec
from ..models.stream import as_encoder
from .metrics import metrics_of, task_of_model
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
        model: a transformers encoder with a head.
        dataset: features (``input_ids``, ``labels``).
        task: which metrics; by default those of the task that the model's head is for.
        tokens_per_batch: tokens in a packed batch.
        bf16: run under bf16 autocast.

    Raises:
        ValueError: an empty data set, features without labels, or a model without a head.
    """
    encoder = as_encoder(model)
    task = task_of_model(encoder.spec) if task is None else tasks.get(task)
    if task.head is None:
        raise ValueError(f"model: got {encoder.spec.name}, want one with a head to evaluate")
    if not len(dataset):
        raise ValueError("dataset: got no rows, want at least one")
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with inference(model, bf16):
        collate = collator_for(task, **reads(encoder))
        for _, batch in packed_batches(dataset, tokens_per_batch, device_of(model), collate):
            if "labels" not in batch:
                raise ValueError("dataset: got features without labels, want labels to measure against")
            output = encoder.run(batch).logits
            assert output is not None
            logits.append((output.argmax(-1) if task.predicts_ids else output.float()).cpu())
            labels.append(batch["labels"].reshape(-1).cpu() if task.predicts_ids else batch["labels"].cpu())
    return metrics_of(torch.cat(logits).numpy(), torch.cat(labels).numpy(), task)


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
    if dataset is not None and task.head is not None and has_labels(dataset):
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
