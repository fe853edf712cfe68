"""Sentiment: three teachers averaged.

The half-depth student again, but what it learns in the second stage are the averaged probabilities of three teachers,
fine-tuned with a seed each. It is compared with one of them, that of its own seed. (All seeds share the three.)
"""

from __future__ import annotations

from bertxfer_fast import teachers

from ..row import SEEDS, Claim, Row, Run
from . import half_depth


def measure(run: Run) -> None:
    problem = run.sentiment
    each = [run.place.problem(problem.name, seed) for seed in SEEDS]
    for one in each:
        one.fine_tune()  # where a seed is measured alone, the others' teachers may be missing

    def student() -> dict[str, float]:
        model = half_depth.start(problem, run.seed)
        mean = teachers.AveragedTeachers(run.stored(one) for one in each)
        steps = half_depth.distil(run, problem, model, problem.teacher(), mean)
        return {**problem.score(model), "steps": steps}

    run.measure("teacher", lambda: problem.score(problem.teacher()))
    run.measure("student", student)


ROW = Row(
    "three_teachers",
    measure,
    (
        Claim(
            "student keeps of one teacher's accuracy", "student", "accuracy", "teacher", "share", least=0.995
        ),
    ),
    minutes=15,
)
