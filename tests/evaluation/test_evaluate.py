"""What is measured equals what transformers computes from one sequence at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.models.spec import EncoderSpec

from ..tiny import tiny_bert


def rows(count: int = 9) -> list[dict[str, Any]]:
    return [{"input_ids": [2, *range(5, 6 + i % 5), 3], "labels": i % 3} for i in range(count)]


def test_evaluate_equals_padded_inference() -> None:
    model = tiny_bert(2, 16, 4, head="ForSequenceClassification", dropout=0.5).train()
    got = evaluate.evaluate(model, rows(), tokens_per_batch=10)
    assert model.training
    model.eval()
    with torch.no_grad():
        right = [int(model(torch.tensor([r["input_ids"]])).logits.argmax()) == r["labels"] for r in rows()]
    assert got == {"accuracy": pytest.approx(sum(right) / len(right))}
    with pytest.raises(ValueError, match="no labels"):
        evaluate.evaluate(model, [{"input_ids": [2, 3]}])
    with pytest.raises(ValueError, match="no head"):
        evaluate.evaluate(tiny_bert(2, 16, 4), rows())
    with pytest.raises(ValueError, match="empty"):
        evaluate.evaluate(model, [])


def test_summary_counts_tied_weights_once() -> None:
    model = tiny_bert(2, 16, 4, head="ForMaskedLM")
    unique = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert evaluate.parameter_count(model) == sum(unique.values())
    assert evaluate.size_mb(model) == pytest.approx(4 * sum(unique.values()) / 1e6)
    row = evaluate.summary(tiny_bert(2, 16, 4, head="ForSequenceClassification"), rows(), repeats=1)
    assert set(row) == {"accuracy", "parameters", "MB", "sentences/s"} and row["sentences/s"] > 0
    assert set(evaluate.summary(model, None)) == {"parameters", "MB"}
    with pytest.raises(ValueError, match="repeats"):
        evaluate.throughput(model, rows(), repeats=0)


@pytest.mark.parametrize(
    ("kind", "logits", "labels", "expected"),
    [
        ("classification", [[1, 2], [3, 1], [0, 5]], [1, 0, -100], {"accuracy": 1.0}),
        ("classification", [[1, 2], [3, 1]], [0, 0], {"accuracy": 0.5}),
        ("multi-label", [[1, -1], [1, 1]], [[1.0, 0.0], [0.0, 1.0]], {"accuracy": 0.75}),
        ("token", [1, 2, 0], [[1, -100, 1]], {"token_accuracy": 0.5}),
        ("regression", [[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0], {"mse": 1 / 3, "pearson": 0.98198}),
        ("regression", [[1.0], [1.0]], [1.0, 2.0], {"mse": 0.5}),
        ("regression", [[1.0], [9.0]], [1.0, float("nan")], {"mse": 0.0}),
    ],
)
def test_metrics(kind: str, logits: Any, labels: Any, expected: dict[str, float]) -> None:
    assert evaluate.metrics_of(np.array(logits), np.array(labels), kind) == pytest.approx(expected, rel=1e-4)


def test_metrics_of_bad_input() -> None:
    with pytest.raises(ValueError, match="kind"):
        evaluate.metrics_of(np.zeros((1, 2)), np.zeros(1), "rank")
    with pytest.raises(ValueError, match="2 of them for 1"):
        evaluate.metrics_of(np.zeros((1, 2)), np.zeros(2), "classification")
    with pytest.raises(ValueError, match="none to measure"):
        evaluate.metrics_of(np.zeros((1, 2)), np.array([-100]), "classification")


def test_metric_kind() -> None:
    def kind(**settings: Any) -> str | None:
        return evaluate.metric_kind(EncoderSpec.of(tiny_bert(1, 16, 4, **settings)))

    assert kind() is None
    assert kind(head="ForTokenClassification") == "token"
    assert kind(head="ForSequenceClassification") == "classification"
    assert kind(head="ForSequenceClassification", num_labels=1) == "regression"
    multi = {"problem_type": "multi_label_classification"}
    assert kind(head="ForSequenceClassification", **multi) == "multi-label"
