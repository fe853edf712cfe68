"""Correlations and overlaps, worked out by hand or against scipy where it is there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bertxfer_fast.evaluation.metrics import SEQUENCE_END, metrics_of
from bertxfer_fast.tasks import metrics


def test_spearman_is_of_ranks_with_ties_shared() -> None:
    # Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3: covariance 4.5, variances 4.5 and 5.
    assert metrics.spearman(np.array([1.0, 2.0, 2.0, 90.0]), np.arange(4.0)) == pytest.approx(
        4.5 / math.sqrt(22.5)
    )
    assert metrics.spearman(np.array([3.0, 2.0, 1.0]), np.array([1.0, 5.0, 6.0])) == pytest.approx(-1)
    assert math.isnan(metrics.spearman(np.ones(3), np.arange(3.0)))
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 9, 50).astype(float), draw.normal(size=50)
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_spans_count_by_their_tokens() -> None:
    predicted = np.array([[2, 4], [0, 0], [5, 6], [3, 3]])
    right = np.array([[3, 5], [0, 0], [7, 9], [3, 6]])
    assert metrics.span_exact(predicted, right) == 0.25
    # 2 of 3 and 3; all; none; 1 of 1 and 4.
    assert metrics.span_overlap(predicted, right) == pytest.approx((2 / 3 + 1 + 0 + 2 / 5) / 4)


def test_similarities_are_cosines_of_neighbours() -> None:
    vectors = np.array([[1, 0], [2, 0], [1, 0], [0, 3], [1, 1], [1, 0]], np.float32)  # 1, 0, 0.7071
    labels = np.repeat([5.0, 1.0, 2.0], 2)
    found = metrics_of(vectors, labels, "embedding")
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 0, math.sqrt(0.5)], [5, 1, 2])[0, 1])
    with pytest.raises(ValueError, match="labels: got some that differ within a pair"):
        metrics_of(vectors[:2], np.array([1.0, 2.0]), "embedding")


def test_entities_of_rows_laid_end_to_end() -> None:
    names = ("O", "B-x", "I-x")
    end = SEQUENCE_END
    labels = np.array([-100, 0, 1, -100, end, -100, 2, 0, end])
    guess = np.array([2, 0, 1, 1, 0, 0, 0, 1, 0])
    # Right: [1, 1] of the first and [0, 0] of the second; guessed: [1, 1] and [1, 1].
    assert metrics_of(guess, labels, "token-classification", names) == {
        "token_accuracy": 0.5,
        "span_precision": 0.5,
        "span_recall": 0.5,
        "span_f1": 0.5,
    }
    assert set(metrics_of(guess, labels, "token-classification", ("A", "B", "C"))) == {"token_accuracy"}
