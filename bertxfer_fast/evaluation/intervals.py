"""How far a metric would move on other texts of the same kind: percentile bootstrap over sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .predictions import Predictions

__all__ = ["Estimate", "Replicates", "estimates", "replicates"]

#: Metric -> its value on each resample, ``[resamples]``; NaN where it is undefined there.
Replicates = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        """In words."""
        return f"[{self.low:.4f}, {self.high:.4f}]"

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.4f} {self.interval}"


def replicates(predictions: Predictions, *, resamples: int = 1000, seed: int = 0) -> Replicates:
    """The metrics on resamples: as many sequences as there are, drawn with replacement.

    Which sequences are drawn depends on their number, ``resamples`` and ``seed`` alone, so that models measured on the
    same data are compared on the same draws. Tokens of a sequence are drawn together, as they are not independent.

    Args:
        predictions: of N sequences.
        resamples: how many.
        seed: of the draws.

    Raises:
        ValueError: fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, want 1 or more")
    draw, count = np.random.default_rng(seed), len(predictions)
    found: list[dict[str, float]] = []
    for _ in range(resamples):
        try:
            found.append(predictions.take(draw.integers(0, count, count)).metrics())
        except ValueError:  # of a resample none of whose labels count
            found.append({})
    names = dict.fromkeys(name for metrics in found for name in metrics)
    return {name: np.array([metrics.get(name, np.nan) for metrics in found]) for name in names}


def estimates(
    values: Mapping[str, float], draws: Replicates, confidence: float = 0.95
) -> dict[str, Estimate]:
    """Each value with the interval between the percentiles that leave ``1 - confidence`` out, half at either end.

    Efron, "Bootstrap Methods", 1979 (the percentile interval).

    Raises:
        ValueError: a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, want a number between 0 and 1")
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    found = {}
    for name, value in values.items():
        drawn: Any = draws.get(name, np.array([np.nan]))
        low, high = (np.nan, np.nan) if np.isnan(drawn).all() else np.nanquantile(drawn, ends)
        found[name] = Estimate(float(value), float(low), float(high))
    return found
