"""Sentiment: a BiLSTM.

A bidirectional LSTM over the encoder's own word embeddings learns the teacher's logits (Tang et al., 2019) on the
training texts, four changed copies of each (words masked, n-grams cut out) and 13 016 sentences without labels. Its
twin has the same start and as many steps on the labels of the training texts.
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
            "bilstm",
            encoder,
            tokenizer=problem.tokenizer,
            embedding_size=width,
            hidden_size=width // 2,
            dropout=0.2,
        )

    def distil(student: Any, teacher: Any) -> int:
        return from_predictions(run, problem, student, epochs=1, learning_rate=1e-3)

    against_twin(run, problem, start, distil, learning_rate=1e-3, tokens=2048)


ROW = Row(
    "bilstm",
    measure,
    (
        Claim("student over its twin", "student", "accuracy", "twin", "gain", least=0.02, beyond_error=True),
        Claim("student keeps of the teacher's accuracy", "student", "accuracy", "teacher", "share"),
    ),
    minutes=9,
)
