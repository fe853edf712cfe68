"""Sentiment: a table of token vectors.

model2vec's kind of student: a vector for each token, what the encoder says of it alone, and a text is their mean. It
learns the teacher's soft labels on the texts of the BiLSTM, three times each. The twin has the same start and as many
steps on the labels of the training texts.
"""

from __future__ import annotations

from typing import Any

from bertxfer_fast import students

from ..row import Claim, Row, Run
from ..twins import against_twin, from_predictions


def measure(run: Run) -> None:
    problem = run.sentiment

    def start() -> Any:
        encoder = problem.untrained(run.seed)
        return students.build("static", encoder, tokenizer=problem.tokenizer)

    def distil(student: Any, teacher: Any) -> int:
        return from_predictions(run, problem, student, epochs=3, learning_rate=2e-3, kind="soft_ce")

    against_twin(run, problem, start, distil, learning_rate=2e-3, tokens=2048)


ROW = Row(
    "static",
    measure,
    (
        Claim(
            "student keeps of the teacher's accuracy", "student", "accuracy", "teacher", "share", least=0.9
        ),
        Claim("student over its twin", "student", "accuracy", "twin", "gain", beyond_error=True),
    ),
    minutes=5,
)
