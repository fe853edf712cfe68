"""What is measured equals what transformers computes from one sequence at a time."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from bertxfer_fast import evaluation, tasks
from bertxfer_fast.evaluation import evaluate, summary
from bertxfer_fast.evaluation.metrics import TaskMetrics, metrics_of, task_of_model
from bertxfer_fast.evaluation.speed import parameter_count, size_mb, throughput
from bertxfer_fast.models.spec import EncoderSpec

from ..tiny import tiny_bert


def rows(count: int = 9) -> list[dict[str, Any]]:
    return [{"input_ids": [2, *range(5, 6 + i % 5), 3], "labels": i % 3} for i in range(count)]


def test_public_names_are_what_they_say_whatever_was_imported() -> None:
    """A module of the same name would take a function's place."""
    for module in pkgutil.iter_modules(evaluation.__path__):
        importlib.import_module(f"{evaluation.__name__}.{module.name}")
    for name in evaluation.__all__:
        assert callable(getattr(evaluation, name)) and getattr(evaluation, name).__name__ == name


def test_evaluate_equals_padded_inference() -> None:
    model = tiny_bert(2, 16, 4, head="ForSequenceClassification", dropout=0.5).train()
    got = evaluate(model, rows(), tokens_per_batch=10)
    assert model.training
    model.eval()
    with torch.no_grad():
        right = [int(model(torch.tensor([r["input_ids"]])).logits.argmax()) == r["labels"] for r in rows()]
    assert got == {"accuracy": pytest.approx(sum(right) / len(right))}
    with pytest.raises(ValueError, match="without labels"):
        evaluate(model, [{"input_ids": [2, 3]}])
    with pytest.raises(ValueError, match="with a head"):
        evaluate(tiny_bert(2, 16, 4), rows())
    with pytest.raises(ValueError, match="no rows"):
        evaluate(model, [])


def test_summary_counts_tied_weights_once() -> None:
    model = tiny_bert(2, 16, 4, head="ForMaskedLM")
    unique = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert parameter_count(model) == sum(unique.values())
    assert size_mb(model) == pytest.approx(4 * sum(unique.values()) / 1e6)
    row = summary(tiny_bert(2, 16, 4, head="ForSequenceClassification"), rows(), repeats=1)
    assert set(row) == {"accuracy", "parameters", "MB", "sentences/s"} and row["sentences/s"] > 0
    assert set(summary(model, None)) == {"parameters", "MB"}
    with pytest.raises(ValueError, match="repeats"):
        throughput(model, rows(), repeats=0)


@pytest.mark.parametrize("warmup", [1, 2])
def test_speed_is_that_of_the_passes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch, warmup: int) -> None:
    """On a clock that the model itself moves: 100 seconds for a pass while it is cold, then 3."""
    model, passes, now = tiny_bert(1, 16, 4), iter([100.0] * warmup + [3.0, 3.0]), [0.0]

    def work(*_: Any) -> None:
        now[0] += next(passes)

    model.embeddings.register_forward_hook(work)
    monkeypatch.setattr("bertxfer_fast.evaluation.speed.time.perf_counter", lambda: now[0])
    assert throughput(model, rows(), repeats=2, warmup=warmup) == pytest.approx(9 / 3.0)


@pytest.mark.parametrize(
    ("task", "logits", "labels", "expected"),
    [
        ("sequence-classification", [[1, 2], [3, 1], [0, 5]], [1, 0, -100], {"accuracy": 1.0}),
        ("sequence-classification", [[1, 2], [3, 1]], [0, 0], {"accuracy": 0.5}),
        (
            "multi-label-classification",
            [[1, -1], [1, 1]],
            [[1.0, 0.0], [0.0, 1.0]],
            {"accuracy": 0.75, "f1": 0.8},
        ),
        (
            "multi-label-classification",
            [[0.2, -0.2], [-0.2, 0.2]],
            [[1, 0], [0, 1]],
            {"accuracy": 1.0, "f1": 1.0},
        ),
        # A row with a label that is not known does not count, whatever its other labels are.
        (
            "multi-label-classification",
            [[1, -1], [1, 1]],
            [[1.0, 0.0], [0.0, float("nan")]],
            {"accuracy": 1.0, "f1": 1.0},
        ),
        ("token-classification", [1, 2, 0], [[1, -100, 1]], {"token_accuracy": 0.5}),
        ("regression", [[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0], {"mse": 1 / 3, "pearson": 0.98198}),
        ("regression", [[1.0], [1.0]], [1.0, 2.0], {"mse": 0.5}),
        ("regression", [[1.0], [9.0]], [1.0, float("nan")], {"mse": 0.0}),
    ],
)
def test_metrics(task: str, logits: Any, labels: Any, expected: dict[str, float]) -> None:
    assert metrics_of(np.array(logits), np.array(labels), task) == pytest.approx(expected, rel=1e-4)


def test_metrics_for_a_trainer_count_everything_once() -> None:
    metrics = TaskMetrics(tasks.get("sequence-classification"))

    def given(right: list[bool]) -> EvalPrediction:
        labels = np.arange(len(right)) % 2
        return EvalPrediction(np.eye(2)[np.where(right, labels, 1 - labels)], labels)

    first, second = given([True, True, False]), given([False])
    assert metrics(first, compute_result=False) == {}
    tensors = EvalPrediction(torch.tensor(second.predictions), torch.tensor(second.label_ids))
    assert metrics(tensors, compute_result=True) == {"accuracy": 0.5}
    lists = EvalPrediction([first.predictions, second.predictions], [first.label_ids, second.label_ids])
    assert metrics(lists) == {"accuracy": 0.5}
    assert metrics(second) == {"accuracy": 0.0}
    metrics(first, compute_result=False)
    metrics.clear()
    assert metrics(second) == {"accuracy": 0.0}


def test_metrics_of_bad_input() -> None:
    with pytest.raises(ValueError, match="task: got 'rank'"):
        metrics_of(np.zeros((1, 2)), np.zeros(1), "rank")
    with pytest.raises(ValueError, match="labels: got 2 of them, want one for each of 1"):
        metrics_of(np.zeros((1, 2)), np.zeros(2), "sequence-classification")
    with pytest.raises(ValueError, match="labels: got none"):
        metrics_of(np.zeros((1, 2)), np.array([-100]), "sequence-classification")


def test_the_task_of_a_model() -> None:
    def task(**settings: Any) -> str:
        return task_of_model(EncoderSpec.of(tiny_bert(1, 16, 4, **settings))).name

    assert task() == "none"
    assert task(head="ForTokenClassification") == "token-classification"
    assert task(head="ForTokenClassification", num_labels=1) == "token-classification"
    assert task(head="ForMaskedLM") == "masked-lm"
    assert task(head="ForSequenceClassification") == "sequence-classification"
    assert task(head="ForSequenceClassification", num_labels=1) == "regression"
    for labels in (1, 3):
        multi = {"problem_type": "multi_label_classification", "num_labels": labels}
        assert task(head="ForSequenceClassification", **multi) == "multi-label-classification"
    # A head that no task names counts by what its logits are rows of.
    assert task(head="ForNextSentencePrediction", num_labels=2) == "sequence-classification"
