"""How long a training took, over all its starts."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

__all__ = ["Elapsed", "elapsed_of"]


class Elapsed(TrainerCallback, ExportableState):
    """Counts the seconds of a training; what a checkpoint has of them is where one that goes on from it begins.

    Args:
        before: seconds to begin with.
    """

    def __init__(self, before: float = 0.0) -> None:
        self.before = before
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self.before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def state(self) -> dict[str, Any]:
        """What `Trainer` puts into a checkpoint."""
        return {"args": {"before": self.seconds}, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin where the checkpoint ended: `Trainer` restores callbacks only where its arguments ask for that."""
        # A checkpoint of an earlier version has no entry, which Trainer looks for when it writes the next one.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.before, self._started = saved["args"]["before"], time.perf_counter()


def elapsed_of(trainer: Any) -> float:
    """The seconds that the `Elapsed` of a trainer has counted."""
    return next(found.seconds for found in trainer.callback_handler.callbacks if isinstance(found, Elapsed))
