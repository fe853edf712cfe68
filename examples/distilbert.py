"""DistilBERT's three losses at once: soft labels, labels, and the direction of the last hidden state.

    python examples/distilbert.py

The paper does it on plain text with a masked-LM teacher, whose logits are as wide as the vocabulary; the recipe then
never has them whole. The same three losses fit a task with labels of its own, as here.

Prints what the losses come to, weighted 5, 2 and 1, before and after, and the accuracy of teacher and student.
"""

from __future__ import annotations

import common
import torch

from bertxfer_fast import Distiller, recipes, students
from bertxfer_fast.packing import PackingCollator


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)
    # The paper's student takes every second layer of its teacher.
    student = students.smaller(teacher, num_hidden_layers=teacher.config.num_hidden_layers // 2)

    (stage,) = recipes.get("distilbert", logits="whole").stages
    distiller = Distiller(teacher, student, stage.build_objectives())
    batch = PackingCollator()([splits["dev"][i] for i in range(8)])

    def show(when: str) -> None:
        distiller.cpu().eval()  # back from the GPU that the trainer took it to
        with torch.no_grad():
            parts = distiller(**batch).parts
        print(when, ", ".join(f"{name} {value:.3f}" for name, value in parts.items()))

    show("before:")
    common.train(distiller, splits["train"], args, learning_rate=2e-4)
    show("after:")
    for name, model in {"teacher": teacher, "student": student}.items():
        print(name, common.accuracy(model, splits["test"]))


if __name__ == "__main__":
    main()
