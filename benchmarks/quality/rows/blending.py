"""Weights: a start between the teacher's layers and random ones.

Three layers start as beta times every second layer of the teacher and (1 - beta) times random weights, head and
embeddings too, and learn its predictions on the training texts with as many steps each. The dev split is measured
while they learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from bertxfer_fast import objectives, students, transfer_weights

from ..row import Claim, Measured, Row, Run, mean_and_error
from ..training import train

BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS, EVERY = 180, 20
SHARES = "share of the steps to scratch's best"


def measure(run: Run) -> None:
    problem = run.sentiment
    stored = run.stored(problem)

    def trained(beta: float) -> dict[str, Any]:
        teacher = problem.teacher()
        set_seed(run.seed)
        layers = teacher.config.num_hidden_layers // 2
        student = students.smaller(teacher, num_hidden_layers=layers, init="random")
        transfer_weights(teacher, student, beta)

        def dev() -> float:
            return problem.score(student, "dev")["accuracy"]

        start = dev()
        done = train(
            run.folder,
            student,
            [objectives.Logits(kind="soft_ce")],
            problem.rows("train"),
            teacher=stored,
            seed=run.seed,
            steps=STEPS,
            learning_rate=2e-4,
            measure_every=EVERY,
            measure=dev,
        )
        curve = [start, *done["curve"]]
        return {
            "best dev accuracy": max(curve),
            "accuracy": problem.score(student)["accuracy"],
            "curve steps": [0, *done["curve_steps"]],
            "curve": curve,
        }

    for beta in BETAS:
        run.measure(_name(beta), lambda beta=beta: trained(beta))

    def steps_to_accuracy() -> dict[str, float]:
        """Where a curve first has the best of the one from scratch (never: its end), by where that has it."""
        scratch = run.measured[_name(0.0)]
        best = scratch["best dev accuracy"]
        needed = max(_first(scratch, best), EVERY)
        return {f"beta {beta:g}": _first(run.measured[_name(beta)], best) / needed for beta in BETAS[1:]}

    run.measure(SHARES, steps_to_accuracy)


def _name(beta: float) -> str:
    return "from scratch" if beta == 0 else f"beta {beta:g}"


def _first(numbers: Any, accuracy: float) -> int:
    pairs = zip(numbers["curve steps"], numbers["curve"], strict=True)
    return next((step for step, value in pairs if value >= accuracy), STEPS)


def figure(seeds: Sequence[Measured], path: Path) -> None:
    """Dev accuracy over steps, a line for each beta: mean over seeds, with the standard error as a band."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.4, 3.6))
    FigureCanvasSVG(picture)
    axis = picture.subplots()
    for beta in BETAS:
        steps = seeds[0][_name(beta)]["curve steps"]
        columns = zip(*(measured[_name(beta)]["curve"] for measured in seeds), strict=True)
        means, errors = (np.nan_to_num(x) for x in zip(*map(mean_and_error, columns), strict=True))
        axis.plot(steps, means, label=_name(beta), linewidth=1.4)
        axis.fill_between(steps, means - errors, means + errors, alpha=0.15, linewidth=0)
    axis.set_xlabel("steps")
    axis.set_ylabel("dev accuracy")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    picture.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "blending"}):  # the same numbers give the same file
        picture.savefig(path, format="svg", metadata={"Date": None})


ROW = Row(
    "blending",
    measure,
    tuple(
        Claim(
            f"share of the steps to scratch's best dev accuracy, beta {beta:g}",
            SHARES,
            f"beta {beta:g}",
            most=0.5,
        )
        for beta in BETAS[1:]
    ),
    minutes=14,
    figure=figure,
)
