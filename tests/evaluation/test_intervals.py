"""Confidence intervals against scikit-learn's neighbour scipy and against theory; tokens are drawn by sequence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bertxfer_fast import tasks
from bertxfer_fast.evaluation.intervals import Estimate, estimates, replicates
from bertxfer_fast.evaluation.predictions import Predictions, predict

from ..tiny import tiny_bert


def of_classes(right: np.ndarray) -> Predictions:
    labels = np.arange(len(right)) % 3
    outputs = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
    ones = np.ones(len(right), np.int64)
    return Predictions(tasks.get("sequence-classification"), outputs, labels, ones)


def test_an_interval_of_a_share_is_that_of_scipy_and_of_theory() -> None:
    right = np.random.default_rng(7).random(400) < 0.8
    predictions = of_classes(right)
    [(name, found)] = estimates(
        predictions.metrics(), replicates(predictions, resamples=4000, seed=1)
    ).items()
    assert name == "accuracy" and found.value == right.mean()
    other = stats.bootstrap(
        (right.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=2
    ).confidence_interval
    error = math.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert found.low == pytest.approx(other.low, abs=0.15 * error)
    assert found.high == pytest.approx(other.high, abs=0.15 * error)
    assert (found.low, found.high) == pytest.approx(
        (right.mean() - 1.96 * error, right.mean() + 1.96 * error), abs=0.15 * error
    )
    narrow = estimates(predictions.metrics(), replicates(predictions, resamples=4000, seed=1), 0.5)
    assert narrow["accuracy"].high - narrow["accuracy"].low == pytest.approx(2 * 0.674 * error, rel=0.15)


def test_a_seed_gives_the_same_draws_for_every_model() -> None:
    right = np.random.default_rng(0).random(50) < 0.6
    one, again, other = (replicates(of_classes(right), resamples=20, seed=s)["accuracy"] for s in (3, 3, 4))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    # Errors on the same sequences cancel in a difference.
    worse = replicates(of_classes(~right), resamples=20, seed=3)["accuracy"]
    assert np.allclose(one + worse, 1)


def test_tokens_are_drawn_by_sequence() -> None:
    """All tokens of a sequence are right or none is: the interval is that of so many sequences, not of tokens."""
    right = np.random.default_rng(1).random(60) < 0.5
    lengths = np.full(60, 20, np.int64)
    labels = np.ones(1200, np.int64)
    outputs = np.repeat(right.astype(np.int64), 20)
    predictions = Predictions(tasks.get("token-classification"), outputs, labels, lengths)
    found = estimates(predictions.metrics(), replicates(predictions, resamples=1000))["token_accuracy"]
    error = math.sqrt(right.mean() * (1 - right.mean()) / 60)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_sequences_are_taken_with_what_belongs_to_them() -> None:
    lengths = np.array([2, 0, 3], np.int64)
    predictions = Predictions(
        tasks.get("token-classification"), np.array([1, 2, 7, 8, 9]), np.array([1, 1, 7, 7, -100]), lengths
    )
    taken = predictions.take(np.array([2, 0, 1, 2]))
    assert taken.outputs.tolist() == [7, 8, 9, 1, 2, 7, 8, 9] and taken.lengths.tolist() == [3, 2, 0, 3]
    assert taken.labels.tolist() == [7, 7, -100, 1, 1, 7, 7, -100]
    assert taken.metrics() == {"token_accuracy": 0.5}


def test_undefined_in_a_resample_does_not_count() -> None:
    labels = np.array([0.0, 0.0, 1.0])
    predictions = Predictions(
        tasks.get("regression"), np.array([[0.0], [0.0], [1.0]]), labels, np.ones(3, np.int64)
    )
    draws = replicates(predictions, resamples=50)
    assert np.isnan(draws["pearson"]).any() and not np.isnan(draws["mse"]).any()
    found = estimates(predictions.metrics(), draws)["pearson"]
    assert found.low == pytest.approx(1) and found.high == pytest.approx(1)
    assert math.isnan(estimates({"none": 1.0}, draws)["none"].low)
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"


def test_bad_arguments() -> None:
    predictions = of_classes(np.array([True, False]))
    with pytest.raises(ValueError, match="resamples: got 0, want 1 or more"):
        replicates(predictions, resamples=0)
    with pytest.raises(ValueError, match="confidence: got 95, want a number between 0 and 1"):
        estimates(predictions.metrics(), replicates(predictions, resamples=1), 95)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_predictions_of_a_model_keep_sequences_apart(head: str) -> None:
    model = tiny_bert(1, 16, 4, head=head)
    rows = [{"input_ids": [2, *range(5, 6 + i % 4), 3], "labels": i % 3} for i in range(7)]
    if head == "ForTokenClassification":
        rows = [{**row, "labels": [1] * len(row["input_ids"])} for row in rows]
    whole = predict(model, rows, tokens_per_batch=9)
    alone = [predict(model, [row]) for row in rows]
    assert len(whole) == 7 and whole.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    for i, one in enumerate(alone):
        np.testing.assert_allclose(whole.take(np.array([i])).outputs, one.outputs, rtol=1e-4, atol=1e-5)
