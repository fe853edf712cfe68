"""All that is told about one model: metrics with their intervals, tables by class, size and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import tasks
from ..data.collators import Features
from ..models.spec import EncoderSpec
from .classes import class_table, confusion_matrix
from .intervals import Estimate, Replicates, estimates, replicates
from .measuring import SPEED_SEQUENCES, has_labels
from .metrics import task_of_model
from .predictions import Predictions, predict
from .speed import parameter_count, size_mb, throughput

__all__ = ["Assessment", "Resampling", "assess", "difference"]


@dataclass(frozen=True)
class Resampling:
    """How confidence intervals are made, see `intervals.replicates`."""

    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Assessment:
    """What was measured of a model.

    Attributes:
        model: what it is called in tables.
        parameters: their number.
        megabytes: of 1e6 bytes.
        sentences_per_second: None where it was not timed.
        metrics: with their intervals; empty without labels.
        classes: see `class_table`.
        confusion: see `confusion_matrix`.
        draws: the metrics on each resample.
        predictions: what all of it comes from; None without labels.
    """

    model: str
    parameters: int
    megabytes: float
    sentences_per_second: float | None = None
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, Any] | None = None
    draws: Replicates = field(default_factory=dict, repr=False)
    predictions: Predictions | None = field(default=None, repr=False)

    def row(self) -> dict[str, Any]:
        """A line of a table."""
        row: dict[str, Any] = {"model": self.model}
        for name, estimate in self.metrics.items():
            row |= {name: estimate.value, f"{name}, interval": estimate.interval}
        row |= {"parameters": self.parameters, "MB": self.megabytes}
        return row if self.sentences_per_second is None else {**row, "sentences/s": self.sentences_per_second}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, see `results`."""
        return {
            "model": self.model,
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "parameters": self.parameters,
            "MB": self.megabytes,
            "sentences/s": self.sentences_per_second,
            "classes": self.classes,
            "confusion": self.confusion,
        }


def assess(
    name: str,
    model: Any,
    dataset: Features | None,
    *,
    task: str | tasks.Task | None = None,
    tokens_per_batch: int = 8192,
    bf16: bool = False,
    repeats: int = 3,
    names: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Assessment:
    """Measure a model.

    Args:
        name: what it is called.
        model: a transformers encoder or another `Encoder` that is a module.
        dataset: features; without labels there are size and speed alone, without any the size.
        task: what is measured; by default what the model's head is for.
        tokens_per_batch, bf16, repeats: as `throughput`, which is timed on the first `SPEED_SEQUENCES` at most.
        names: of the classes; by default those that the model knows.
        resampling: of the intervals.
    """
    chosen = resampling or Resampling()
    task = task_of_model(EncoderSpec.of(model)) if task is None else tasks.get(task)
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "bf16": bf16}
    if dataset is not None and task.labels is not None and has_labels(dataset):
        predictions = predict(model, dataset, task=task, names=names, **settings)
        values = predictions.metrics()
        draws = replicates(predictions, resamples=chosen.resamples, seed=chosen.seed)
        found = {
            "metrics": estimates(values, draws, chosen.confidence),
            "classes": class_table(predictions),
            "confusion": confusion_matrix(predictions),
            "draws": draws,
            "predictions": predictions,
        }
    if dataset is not None:
        some = [dataset[i] for i in range(min(SPEED_SEQUENCES, len(dataset)))]
        found["sentences_per_second"] = throughput(model, some, repeats=repeats, **settings)
    return Assessment(name, parameter_count(model), size_mb(model), **found)


def difference(one: Assessment, other: Assessment, confidence: float = 0.95) -> dict[str, Estimate]:
    """By how much the metrics of one model lie above another's, measured on the same data with the same resampling.

    Both are resampled alike, so what makes a text hard for both of them cancels.
    """
    names = [name for name in one.metrics if name in other.metrics]
    values = {name: one.metrics[name].value - other.metrics[name].value for name in names}
    draws = {name: one.draws[name] - other.draws[name] for name in names if name in one.draws}
    return estimates(values, draws, confidence)
