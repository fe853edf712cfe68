"""A student whose weights are a blend of its teacher's and its own, W = beta * teacher + (1 - beta) * student.

    python examples/blended_weights.py

beta = 1 copies the teacher's layers, beta = 0 leaves the student as it was, here random. Each start is trained in the
same way, the dev split picks beta, and the best student is reported on all three splits.

Prints the accuracy on the dev split for each beta, then train, dev and test of the best.
"""

from __future__ import annotations

import common
from transformers import set_seed

from bertxfer_fast import Distiller, objectives, students, transfer_weights


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv, epochs=1)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    found = {}
    for beta in (0.0, 0.5, 1.0):
        set_seed(1)
        layers = teacher.config.num_hidden_layers // 2
        student = students.smaller(teacher, num_hidden_layers=layers, init="random")
        # Student layer i takes the last teacher layer of its block; what was blended and what was left is told.
        told = transfer_weights(teacher, student, beta=beta, layer_map="uniform")
        common.train(
            Distiller(teacher, student, [objectives.Logits()]), splits["train"], args, learning_rate=2e-4
        )
        found[beta] = student
        print(
            f"beta {beta}: {len(told.moved)} tensors blended, dev {common.accuracy(student, splits['dev'])}"
        )

    best = max(found, key=lambda beta: common.accuracy(found[beta], splits["dev"]))
    report = ", ".join(f"{split} {common.accuracy(found[best], rows)}" for split, rows in splits.items())
    print(f"best: beta {best}: {report}")


if __name__ == "__main__":
    main()
