"""Sentiment: half the depth.

Movie-review snippets, two classes. The student starts as every second layer of the encoder as it was before
fine-tuning, and learns in TinyBERT's two stages from the training texts and 13 016 sentences of news, tweets and
product reviews without labels. Its twin has the same start and as many steps on the labels.
"""

from __future__ import annotations

from typing import Any

from bertxfer_fast import objectives, students

from ..place import Problem, joined
from ..row import Claim, Row, Run
from ..training import train
from ..twins import against_twin, from_predictions


def start(problem: Problem, seed: int) -> Any:
    """The student before training."""
    encoder = problem.untrained(seed)
    return students.smaller(encoder, num_hidden_layers=encoder.config.num_hidden_layers // 2)


def distil(run: Run, problem: Problem, student: Any, teacher: Any, predictions: Any) -> int:
    """Both stages: layers of ``teacher``, then what ``predictions`` says; returns the steps."""
    layers = [objectives.AttentionScores(), objectives.HiddenStates()]
    texts = joined(problem.rows("train"), problem.unlabelled(run.place.sentences))
    first = train(
        run.folder, student, layers, texts, teacher=teacher, seed=run.seed, epochs=1, learning_rate=2e-4
    )
    second = from_predictions(
        run,
        problem,
        student,
        teacher=predictions,
        kind="soft_ce",
        more=("sentences",),
        epochs=2,
        learning_rate=1e-4,
        tokens=1024,
    )
    return int(first["steps"]) + second


def measure(run: Run) -> None:
    problem = run.sentiment
    against_twin(
        run,
        problem,
        lambda: start(problem, run.seed),
        lambda student, teacher: distil(run, problem, student, teacher, run.stored(problem)),
        learning_rate=1e-4,
    )


ROW = Row(
    "half_depth",
    measure,
    (
        Claim(
            "student keeps of the teacher's accuracy", "student", "accuracy", "teacher", "share", least=0.995
        ),
        Claim("student over its twin", "student", "accuracy", "twin", "gain", beyond_error=True),
    ),
    minutes=22,
)
