"""One training, as a user would write it: a Distiller in a DistillationTrainer."""

from __future__ import annotations

import copy
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from bertxfer_fast import DistillationArguments, DistillationTrainer, Distiller
from bertxfer_fast.evaluation.precision import bf16_is_faster


@functools.cache
def quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


def train(
    folder: Path,
    student: Any,
    objectives: Sequence[Any],
    rows: Any,
    *,
    teacher: Any = None,
    seed: int,
    learning_rate: float,
    epochs: float | None = None,
    steps: int | None = None,
    tokens: int = 1024,
    warmup: float = 0.1,
    measure_every: int | None = None,
    measure: Callable[[], float] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train ``student`` in place.

    Args:
        folder: for the trainer; nothing is kept there.
        student, objectives, teacher: of the `Distiller`.
        rows: token features.
        seed: of order, dropout and projections.
        learning_rate: at its highest; it grows over the share ``warmup`` of the steps and falls to 0 linearly.
        epochs, steps: one of the two.
        tokens: in a batch.
        measure_every, measure: after so many steps the student is measured; the results come back as a curve.
        **arguments: further `DistillationArguments`.

    Returns:
        ``steps``, ``seconds`` (without measuring), ``epoch_seconds``, ``step_seconds``, ``losses`` (as logged) and, if
        it was measured, ``curve_steps`` and ``curve``.
    """
    quiet()
    length = {"max_steps": steps} if steps is not None else {"num_train_epochs": epochs}
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": seed,
        "learning_rate": learning_rate,
        "tokens_per_batch": tokens,
        "warmup_steps": warmup,
        "bf16": bf16_is_faster(),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **length,
        **arguments,
    }
    set_seed(seed)
    distiller = Distiller(teacher, student, list(objectives))
    trainer = DistillationTrainer(distiller, DistillationArguments(**settings), train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    curve, clock = _Curve(measure_every, measure), _Clock()
    trainer.add_callback(clock)
    if measure is not None:
        trainer.add_callback(curve)
    started = time.perf_counter()
    done = trainer.train().global_step
    seconds = time.perf_counter() - started - curve.seconds
    distiller.release()
    student.eval()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "steps": done,
        "seconds": seconds,
        "epoch_seconds": clock.seconds,
        "losses": losses,
        "step_seconds": clock.steps,
    }
    return result if measure is None else {**result, "curve_steps": curve.steps, "curve": curve.values}


def steps_in(
    seconds: float, student: Any, objectives: Sequence[Any], rows: Any, *, teacher: Any, tokens: int = 1024
) -> int:
    """How many steps of a training fit into a budget: a few are timed on a copy of the student."""
    some = rows.select(range(min(len(rows), 8 * tokens // 16)))
    settings = {"teacher": teacher, "seed": 1, "learning_rate": 0.0, "tokens": tokens}
    with tempfile.TemporaryDirectory() as folder:
        timed = train(Path(folder), copy.deepcopy(student), objectives, some, steps=8, **settings)
    return max(1, round(seconds / statistics.median(timed["step_seconds"])))


class _Clock(TrainerCallback):
    """Seconds of epochs and steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.steps: list[float] = []

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._step = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self._step)


class _Curve(TrainerCallback):
    """Measures while training."""

    def __init__(self, every: int | None, measure: Callable[[], float] | None) -> None:
        self.every, self.measure = every, measure
        self.steps: list[int] = []
        self.values: list[float] = []
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is not None and self.measure is not None and state.global_step % self.every == 0:
            started = time.perf_counter()
            self.steps.append(state.global_step)
            self.values.append(self.measure())
            self.seconds += time.perf_counter() - started
