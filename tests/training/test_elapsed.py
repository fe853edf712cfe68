"""A training that goes on counts the seconds that its checkpoint had, whoever restores callbacks."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerState

from bertxfer_fast.training.elapsed import Elapsed


@pytest.mark.parametrize(
    ("saved", "before"),
    [({"Elapsed": {"args": {"before": 1e6}, "attributes": {}}}, 1e6), ({}, 0.0)],
)
def test_seconds_begin_with_those_of_the_checkpoint(saved: dict[str, Any], before: float) -> None:
    state, elapsed = TrainerState(stateful_callbacks=saved), Elapsed()
    elapsed.on_train_begin(None, state, None)
    assert before < elapsed.seconds < before + 1e3
    assert "Elapsed" in state.stateful_callbacks
    restored = Elapsed(**elapsed.state()["args"])  # as Trainer does where its arguments ask for it
    restored.on_train_begin(None, TrainerState(stateful_callbacks=[restored]), None)
    assert restored.seconds > before
