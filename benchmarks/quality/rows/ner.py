"""Names in tweets.

Ten types of names in 2 309 tweets, as spans in BIO tags; 462 of the tweets test. The student starts as every second
layer of the teacher and learns in TinyBERT's two stages without dropout, from the training tweets and the 13 016
sentences of news, tweets and product reviews without labels: half a pass for layers, four for predictions. Its twin has
the same start and as many steps on the labels, with the encoder's dropout.
"""

from __future__ import annotations

from typing import Any

from bertxfer_fast import objectives, students

from ..place import joined
from ..row import Claim, Row, Run
from ..training import train
from ..twins import against_twin


def measure(run: Run) -> None:
    problem = run.entities

    def start(dropout: float | None = None) -> Any:
        teacher = problem.teacher()
        depth = teacher.config.num_hidden_layers // 2
        return students.smaller(teacher, num_hidden_layers=depth, dropout=dropout)

    def distil(student: Any, teacher: Any) -> int:
        texts = joined(problem.rows("train"), problem.unlabelled(run.place.sentences))
        layers = [objectives.AttentionScores(), objectives.HiddenStates()]
        first = train(
            run.folder, student, layers, texts, teacher=teacher, seed=run.seed, epochs=0.5, learning_rate=2e-4
        )
        second = train(
            run.folder,
            student,
            [objectives.Logits(kind="soft_ce")],
            texts,
            teacher=run.stored(problem),
            seed=run.seed,
            epochs=4,
            learning_rate=2e-4,
        )
        return first["steps"] + second["steps"]

    against_twin(run, problem, start, distil, learning_rate=2e-4, dropout=0.0)


ROW = Row(
    "ner",
    measure,
    (
        Claim("student keeps of the teacher's span F1", "student", "span_f1", "teacher", "share", least=0.97),
        Claim("student over its twin", "student", "span_f1", "twin", "gain", beyond_error=True),
    ),
    minutes=20,
    needs=("entities", "reviews"),
)
