"""A student, its teacher, and its twin: the same network from the same start, trained as long on the labels alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bertxfer_fast import objectives

from .place import Problem, joined
from .row import Run
from .training import train


def against_twin(
    run: Run,
    problem: Problem,
    start: Callable[..., Any],
    distil: Callable[[Any, Any], int],
    *,
    learning_rate: float,
    tokens: int = 1024,
    **settings: Any,
) -> None:
    """Measure the variants ``teacher``, ``student`` and ``twin`` on the test split.

    Args:
        run: of the row.
        problem: whose labels and teacher.
        start: makes the student as it is before training; the same weights at each call.
        distil: trains a student, first argument, with a teacher, second; returns the steps that it took.
        learning_rate, tokens: of the twin, see `train`.
        **settings: of ``start``, for the student and not for the twin: such as the dropout that soft labels of much
            text can do without, and a few labels cannot.
    """
    run.measure("teacher", lambda: problem.score(problem.teacher()))

    def student() -> dict[str, float]:
        model = start(**settings)
        steps = distil(model, problem.teacher())
        return {**problem.score(model), "steps": steps}

    steps = run.measure("student", student)["steps"]

    def twin() -> dict[str, float]:
        model = start()
        train(
            run.folder,
            model,
            [objectives.Labels()],
            problem.rows("train"),
            seed=run.seed,
            steps=steps,
            learning_rate=learning_rate,
            tokens=tokens,
        )
        return {**problem.score(model), "steps": steps}

    run.measure("twin", twin)


def from_predictions(
    run: Run,
    problem: Problem,
    student: Any,
    *,
    teacher: Any = None,
    learning_rate: float,
    epochs: float | None = None,
    steps: int | None = None,
    kind: str = "mse",
    more: Sequence[str] = ("sentences", "changed"),
    tokens: int = 2048,
) -> int:
    """Let a student learn a teacher's logits of the training texts and more; returns the steps.

    Args:
        teacher: None: what is stored of the problem's own.
        kind: of `objectives.Logits`.
        more: which other texts, see `Place.more`.
        learning_rate, epochs, steps, tokens: see `train`.
    """
    others = [problem.unlabelled(run.place.more(name)) for name in more]
    done = train(
        run.folder,
        student,
        [objectives.Logits(kind=kind)],
        joined(problem.rows("train"), *others),
        teacher=run.stored(problem) if teacher is None else teacher,
        seed=run.seed,
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        tokens=tokens,
    )
    return int(done["steps"])
