"""How good, how large and how fast a model is, measured on packed batches.

`metrics_of` turns logits and labels into numbers and serves the trainer as well; `evaluate`, `throughput` and
`summary` take any transformers encoder with a head, teacher, student or one trained elsewhere.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..data.batches import Features, device_of, inference, packed_batches
from ..data.packing import PackingCollator
from ..models.hf.encoder import PackedModel
from ..models.spec import EncoderSpec

SPEED_SEQUENCES = 2000

CLASSIFICATION, MULTI_LABEL, REGRESSION, TOKEN = "classification", "multi-label", "regression", "token"
# The metrics of each kind; where a model has none of these heads there are none.
METRICS = {
    CLASSIFICATION: ("accuracy",),
    MULTI_LABEL: ("accuracy",),
    REGRESSION: ("mse", "pearson"),
    TOKEN: ("token_accuracy",),
}


# ---- metrics ------------------------------------------------------------------------------------------------


def metric_kind(facts: EncoderSpec) -> str | None:
    """Which metrics fit a model: `"classification"`, `"multi-label"`, `"regression"`, `"token"`; None: no head."""
    if facts.head is None:
        return None
    if facts.head == "token":
        return TOKEN
    if facts.problem_type == "multi_label_classification":
        return MULTI_LABEL
    return REGRESSION if facts.problem_type == "regression" or facts.num_labels == 1 else CLASSIFICATION


def metrics_of(logits: NDArray[Any], labels: NDArray[Any], kind: str) -> dict[str, float]:
    """Metrics of predictions.

    Args:
        logits: `[N, C]`; of kind `"token"` `[T, C]` or already predicted ids `[T]`.
        labels: `[N]` class ids, `[N]` or `[N, C]` floats, or `[T]` token ids. Negative ids and NaN targets do
            not count.
        kind: as `metric_kind`.

    Returns:
        `accuracy` (classification; multi-label: share of right yes/no decisions), `mse` and `pearson`
        (regression; pearson is left out where it is undefined), or `token_accuracy`.

    Raises:
        ValueError: unknown kind, shapes that do not fit, or nothing to count.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if kind in (CLASSIFICATION, TOKEN):
        labels = labels.reshape(-1)
        predicted = logits.argmax(-1) if logits.ndim == 2 else logits
        counted = labels >= 0
        _check_rows(predicted, labels, counted)
        right = predicted[counted] == labels[counted]
        return {"token_accuracy" if kind == TOKEN else "accuracy": float(right.mean())}
    if kind == MULTI_LABEL:
        counted = np.isfinite(labels).all(-1)
        _check_rows(logits, labels, counted)
        return {"accuracy": float(((logits > 0) == (labels > 0.5))[counted].mean())}
    if kind == REGRESSION:
        logits = logits.reshape(labels.shape).astype(np.float64)
        counted = np.isfinite(labels) if labels.ndim == 1 else np.isfinite(labels).all(-1)
        _check_rows(logits, labels, counted)
        return _regression(logits[counted], labels[counted].astype(np.float64))
    raise ValueError(f"kind: wants classification, multi-label, regression or token, got {kind!r}")


def _check_rows(predicted: NDArray[Any], labels: NDArray[Any], counted: NDArray[Any]) -> None:
    if predicted.shape[0] != labels.shape[0]:
        raise ValueError(f"labels: {labels.shape[0]} of them for {predicted.shape[0]} predictions")
    if not counted.any():
        raise ValueError("labels: none to measure against")


def _regression(predicted: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    metrics = {"mse": float(((predicted - wanted) ** 2).mean())}
    a, b = predicted.ravel() - predicted.mean(), wanted.ravel() - wanted.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if scale > 0:
        metrics["pearson"] = float(a @ b) / scale
    return metrics


# ---- a model on a data set ----------------------------------------------------------------------------------


def evaluate(
    model: PreTrainedModel, dataset: Features, *, tokens_per_batch: int = 8192, bf16: bool = False
) -> dict[str, float]:
    """Metrics of a model on labelled features (`input_ids`, `labels`), run where the model is.

    Raises:
        ValueError: an empty data set, features without labels, or a model without a head.
    """
    packed = PackedModel(model)
    kind = metric_kind(packed.spec)
    if kind is None:
        raise ValueError(f"model: {packed.spec.name} has no head to evaluate")
    if not len(dataset):
        raise ValueError("dataset: it is empty")
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with inference(model, bf16):
        batches = packed_batches(dataset, tokens_per_batch, device_of(model), collator_for(packed.spec))
        for _, batch in batches:
            if "labels" not in batch:
                raise ValueError("dataset: its features have no labels")
            output = packed(batch).logits
            assert output is not None
            # Token heads can be as wide as a vocabulary: keep what is predicted, not all of it.
            logits.append((output.argmax(-1) if kind == TOKEN else output.float()).cpu())
            labels.append(batch["labels"].reshape(-1).cpu() if kind == TOKEN else batch["labels"].cpu())
    return metrics_of(torch.cat(logits).numpy(), torch.cat(labels).numpy(), kind)


def throughput(
    model: PreTrainedModel,
    dataset: Features,
    *,
    tokens_per_batch: int = 8192,
    bf16: bool = False,
    repeats: int = 5,
    warmup: int = 1,
) -> float:
    """Sentences per second of packed inference: the median of `repeats` timed passes over `dataset`.

    Packing is not timed (every batch is made and moved before the clock starts), `warmup` passes are not counted,
    and on CUDA each pass ends with a synchronisation.

    Raises:
        ValueError: an empty data set, or `repeats` below 1.
    """
    if not len(dataset):
        raise ValueError("dataset: it is empty")
    if repeats < 1:
        raise ValueError(f"repeats: wants 1 or more, got {repeats}")
    packed, device = PackedModel(model), device_of(model)
    collate = collator_for(packed.spec)
    batches = [batch for _, batch in packed_batches(dataset, tokens_per_batch, device, collate)]
    seconds = []
    with inference(model, bf16):
        for turn in range(warmup + repeats):
            start = time.perf_counter()
            for batch in batches:
                packed(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= warmup:
                seconds.append(time.perf_counter() - start)
    return len(dataset) / statistics.median(seconds)


def parameter_count(model: torch.nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_mb(model: torch.nn.Module) -> float:
    """Megabytes (1e6 bytes) of the parameters in their present dtype; tied ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def student_facts(student: PreTrainedModel) -> dict[str, Any]:
    """A student's sizes, for its model card."""
    config = student.config
    return {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "parameters": parameter_count(student),
    }


def summary(
    model: PreTrainedModel,
    dataset: Features | None,
    *,
    tokens_per_batch: int = 8192,
    bf16: bool = False,
    repeats: int = 5,
) -> dict[str, float | int]:
    """One row of a comparison: the metrics (where there are labels), parameters, MB, sentences/s.

    Without a data set there are only the sizes. Sentences/s is timed on the first `SPEED_SEQUENCES` at most.
    """
    row: dict[str, float | int] = {}
    settings: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "bf16": bf16}
    if dataset is not None and metric_kind(EncoderSpec.of(model)) is not None and labelled(dataset):
        row.update(evaluate(model, dataset, **settings))
    row["parameters"], row["MB"] = parameter_count(model), size_mb(model)
    if dataset is not None:
        some = [dataset[i] for i in range(min(SPEED_SEQUENCES, len(dataset)))]
        row["sentences/s"] = throughput(model, some, repeats=repeats, **settings)
    return row


# ---- shared with the trainer --------------------------------------------------------------------------------


def labelled(dataset: Features) -> bool:
    """Whether the features of a non-empty data set carry labels."""
    first = dataset[0]
    return first.get("labels") is not None or first.get("label") is not None


def collator_for(facts: EncoderSpec) -> PackingCollator:
    """The collator whose labels a model's head understands."""
    floats = metric_kind(facts) in (REGRESSION, MULTI_LABEL)
    return PackingCollator(label_dtype=torch.float32 if floats else None, token_labels=facts.head == "token")
