"""Sentiment: a CNN.

Convolutions over the encoder's own word embeddings (Kim, 2014) learn the teacher's logits on the texts of the BiLSTM,
twice each. The twin has the same start and as many steps on the labels of the training texts.
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
        width = encoder.config.hidden_size
        return students.build(
            "textcnn", encoder, tokenizer=problem.tokenizer, filters=width // 3, dropout=0.2
        )

    def distil(student: Any, teacher: Any) -> int:
        return from_predictions(run, problem, student, epochs=2, learning_rate=1e-3)

    against_twin(run, problem, start, distil, learning_rate=1e-3, tokens=2048)


ROW = Row(
    "textcnn",
    measure,
    (
        Claim("student over its twin", "student", "accuracy", "twin", "gain", least=0.02, beyond_error=True),
        Claim("student keeps of the teacher's accuracy", "student", "accuracy", "teacher", "share"),
    ),
    minutes=6,
)
