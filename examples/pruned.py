"""A student that starts as its teacher and is narrowed while it learns (HomoDistil, Liang et al., 2023).

    python examples/pruned.py

Student and teacher never lie far apart: what matters least to the loss goes, a little at each step, and the rest
learns to make up for it. At the end nothing is masked: the student is an ordinary model with fewer layers and
narrower feed-forward parts.

Prints accuracy and size of the teacher and of the pruned student.
"""

from __future__ import annotations

import copy

import common

from bertxfer_fast import Distiller, objectives
from bertxfer_fast.evaluation.speed import parameter_count


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    # Shares of what goes: half of every layer's feed-forward columns, a third of the layers.
    distiller = Distiller(teacher, copy.deepcopy(teacher), [objectives.Logits(temperature=2.0)])
    shares = {"prune_columns": 0.5, "prune_layers": 1 / 3}
    student = common.train(distiller, splits["train"], args, learning_rate=1e-4, **shares)

    for name, model in {"teacher": teacher, "student": student}.items():
        print(f"{name}: {common.accuracy(model, splits['test'])}, {parameter_count(model):,} parameters")


if __name__ == "__main__":
    main()
