"""Recipes at one budget of seconds.

The half-depth student from the encoder's own layers. Each recipe has the same seconds for training and one learning
rate, and divides them evenly among its stages; `embedding`, which teaches no classes, leaves half of them to
`logits`. How many steps that is is found by timing some.
"""

from __future__ import annotations

from typing import Any

from bertxfer_fast import recipes, students

from ..row import Claim, Row, Run
from ..training import steps_in, train

SECONDS = 45.0
#: Variant -> the recipes that share its seconds, with their options.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "finetune": {"finetune": {}},
    "logits": {"logits": {}},
    "tinybert": {"tinybert": {}},
    "minilm": {"minilm": {"prediction": True}},
    "minilmv2": {"minilmv2": {"prediction": True}},
    "distilbert": {"distilbert": {"logits": "whole"}},
    "pkd": {"pkd": {}},
    "embedding, logits": {"embedding": {}, "logits": {}},
}


def measure(run: Run) -> None:
    problem = run.sentiment
    rows = problem.rows("train")

    def trained(chosen: dict[str, dict[str, Any]]) -> dict[str, float]:
        encoder = problem.untrained(run.seed)
        student = students.smaller(encoder, num_hidden_layers=encoder.config.num_hidden_layers // 2)
        stages = {name: recipes.get(name, **options).stages for name, options in chosen.items()}
        taken, seconds = 0, 0.0
        for parts in stages.values():
            for stage in parts:
                teacher = problem.teacher()
                budget = SECONDS / len(stages) / len(parts)
                steps = steps_in(budget, student, stage.build_objectives(), rows, teacher=teacher)
                done = train(
                    run.folder,
                    student,
                    stage.build_objectives(),
                    rows,
                    teacher=teacher,
                    seed=run.seed,
                    steps=steps,
                    learning_rate=2e-4,
                )
                taken, seconds = taken + done["steps"], seconds + done["seconds"]
        return {"accuracy": problem.score(student)["accuracy"], "steps": taken, "seconds": seconds}

    for name, chosen in VARIANTS.items():
        run.measure(name, lambda chosen=chosen: trained(chosen))


ROW = Row(
    "recipes",
    measure,
    tuple(
        Claim(f"{name} over finetune", name, "accuracy", "finetune", "gain")
        for name in VARIANTS
        if name != "finetune"
    ),
    minutes=24,
)
