"""Sentiment: three layers of width 192.

Half as deep and half as wide as the encoder, whose weights it starts from through the principal directions of its
hidden states. It learns in TinyBERT's two stages: layers on the training texts, the 13 016 sentences without labels
and 20 000 definitions of a dictionary, predictions on the texts of the BiLSTM. The twin has the same start and as
many steps on the labels of the training texts.
"""

from __future__ import annotations

from typing import Any

from bertxfer_fast import objectives, students, transfer_weights

from ..place import joined
from ..row import Claim, Row, Run
from ..training import train
from ..twins import against_twin, from_predictions

GLOSSES = 20_000


def measure(run: Run) -> None:
    place, problem = run.place, run.sentiment

    def start() -> Any:
        encoder = problem.untrained(run.seed)
        size = students.parse_size(f"3x{encoder.config.hidden_size // 2}", encoder.config)
        student = students.smaller(encoder, init="random", **size)
        transfer_weights(encoder, student, width_rule="svd")
        return student

    def distil(student: Any, teacher: Any) -> int:
        plain = joined(problem.rows("train"), problem.unlabelled([*place.sentences, *place.glosses(GLOSSES)]))
        layers = [objectives.AttentionScores(), objectives.HiddenStates()]
        first = train(
            run.folder, student, layers, plain, teacher=teacher, seed=run.seed, epochs=1, learning_rate=5e-4
        )
        return first["steps"] + from_predictions(
            run, problem, student, epochs=1, learning_rate=3e-4, kind="soft_ce", tokens=1024
        )

    against_twin(run, problem, start, distil, learning_rate=3e-4)
    whole, part = (_without_embeddings(model) for model in (problem.teacher(), start()))
    run.measure("sizes", lambda: {"parameters without embeddings": part / whole})


def _without_embeddings(model: Any) -> int:
    return sum(weight.numel() for name, weight in model.named_parameters() if "embeddings." not in name)


ROW = Row(
    "small",
    measure,
    (
        Claim(
            "student keeps of the teacher's accuracy", "student", "accuracy", "teacher", "share", least=0.96
        ),
        Claim("student over its twin", "student", "accuracy", "twin", "gain", beyond_error=True),
        Claim(
            "its share of parameters without embeddings", "sizes", "parameters without embeddings", most=0.25
        ),
    ),
    minutes=20,
    needs=("sentiment", "glosses"),
)
