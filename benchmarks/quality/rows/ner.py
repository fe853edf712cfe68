"""Names in tweets.

Ten types of names in 2 309 tweets, as spans in BIO tags; 462 of the tweets test. The student has half of the
teacher's layers, starts as the encoder before fine-tuning and learns in TinyBERT's two stages from the training
tweets and 4 339 sentences of news, tweets and product reviews without labels. Its twin has the same start and as many
steps on the labels.
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

    def start() -> Any:
        encoder = problem.untrained(run.seed)
        return students.smaller(encoder, num_hidden_layers=encoder.config.num_hidden_layers // 2)

    def distil(student: Any, teacher: Any) -> int:
        everything = joined(problem.rows("train"), problem.unlabelled(run.place.sentences[::3]))
        layers = [objectives.AttentionScores(), objectives.HiddenStates()]
        predictions = [objectives.Logits(kind="soft_ce")]
        settings = {"teacher": teacher, "seed": run.seed}
        stages = [
            train(run.folder, student, layers, everything, epochs=1, learning_rate=3e-4, **settings),
            train(run.folder, student, predictions, everything, epochs=1, learning_rate=2e-4, **settings),
            train(
                run.folder,
                student,
                predictions,
                problem.rows("train"),
                epochs=4,
                learning_rate=2e-4,
                **settings,
            ),
        ]
        return sum(stage["steps"] for stage in stages)

    against_twin(run, problem, start, distil, learning_rate=2e-4)


ROW = Row(
    "ner",
    measure,
    (
        Claim("student keeps of the teacher's span F1", "student", "span_f1", "teacher", "share", least=0.97),
        Claim("student over its twin", "student", "span_f1", "twin", "gain", beyond_error=True),
    ),
    minutes=10,
    needs=("entities", "reviews"),
)
