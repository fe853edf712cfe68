"""How far a training is, for what changes over it, and a warning where nobody says so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from .objectives import Objective
from .objectives.temperature import Temperature

__all__ = ["Progressing"]


class Progressing:
    """What has a ``progress``, 0..1, that whoever trains sets."""

    _progress: float = 0.0
    #: Training batches so far; None: somebody sets progress, or was warned.
    _unmoved: int | None = 0

    @property
    def progress(self) -> float:
        """Training progress 0..1, see the class."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress, self._unmoved = value, None

    def warn_unmoved(self, objectives: Iterable[Objective]) -> None:
        """Warn, at the second batch, of schedules that stay where they begin because nobody sets `progress`."""
        if self._unmoved is None:
            return
        self._unmoved += 1
        if self._unmoved < 2:
            return
        self._unmoved = None
        scheduled = [objective.name for objective in objectives if _changes(objective)]
        if scheduled:
            warnings.warn(
                "progress: got 0 in every batch, want it set before each, to the share of the training that is done: "
                f"the schedules of {', '.join(scheduled)} stay at their start",
                stacklevel=5,
            )


def _changes(objective: Objective) -> bool:
    """Whether its weight or its temperature changes over a training."""
    temperature = getattr(objective, "temperature", None)
    ends = [objective.weight_at(progress) for progress in (0.0, 1.0)]
    if isinstance(temperature, Temperature):
        ends += [temperature.at(progress) for progress in (0.0, 1.0)]
    return ends[::2] != ends[1::2]
