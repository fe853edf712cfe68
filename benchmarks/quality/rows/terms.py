"""Ablation: the terms of TinyBERT.

The half-depth student with 1 000 training texts, one pass for layers and two for predictions. Without one term of the
first stage its pass goes to the other; with neither attention nor hidden states all passes are for predictions.
"""

from __future__ import annotations

from typing import Any

from bertxfer_fast import objectives, students

from ..row import Claim, Row, Run
from ..training import train

ROWS, EPOCHS = 1000, (1, 2)


def measure(run: Run) -> None:
    problem = run.sentiment
    labelled = problem.rows("train")
    rows = labelled.select(range(min(ROWS, len(labelled))))

    def trained(first: list[Any], second: list[Any]) -> dict[str, float]:
        encoder = problem.untrained(run.seed)
        student = students.smaller(encoder, num_hidden_layers=encoder.config.num_hidden_layers // 2)
        teacher = problem.teacher()
        for wanted, epochs in zip((first, second), EPOCHS, strict=True):
            train(
                run.folder,
                student,
                wanted,
                rows,
                teacher=teacher,
                seed=run.seed,
                epochs=epochs,
                learning_rate=2e-4,
            )
        return {"accuracy": problem.score(student)["accuracy"]}

    def attention() -> Any:
        return objectives.AttentionScores()

    def hidden() -> Any:
        return objectives.HiddenStates()

    def prediction() -> Any:
        return objectives.Logits(kind="soft_ce")

    variants = {
        "all terms": ([attention(), hidden()], [prediction()]),
        "without attention": ([hidden()], [prediction()]),
        "without hidden states": ([attention()], [prediction()]),
        "without either": ([prediction()], [prediction()]),
        "labels for predictions": ([attention(), hidden()], [objectives.Labels()]),
        "labels alone": ([objectives.Labels()], [objectives.Labels()]),
    }
    for name, (first, second) in variants.items():
        run.measure(name, lambda first=first, second=second: trained(first, second))


def _worth(what: str, variant: str) -> Claim:
    return Claim(what, "all terms", "accuracy", variant, "gain")


ROW = Row(
    "terms",
    measure,
    (
        _worth("attention scores are worth", "without attention"),
        _worth("hidden states are worth", "without hidden states"),
        _worth("both are worth", "without either"),
        _worth("soft predictions are worth", "labels for predictions"),
        _worth("all of it is worth", "labels alone"),
    ),
    minutes=14,
)
