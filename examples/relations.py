"""MiniLMv2: how queries, keys and values of the teacher's last layer relate to each other.

    python examples/relations.py

Relations are compared, not layers one by one, and heads are joined and split anew: the student may have any depth,
width and number of heads. Here it is half as deep and half as wide, and learns on plain text; a second stage then
teaches its head.

Prints the accuracy on the test split of the teacher and of the student after each stage.
"""

from __future__ import annotations

import common
from transformers import set_seed

from bertxfer_fast import Distiller, recipes, students


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)
    print("teacher", common.accuracy(teacher, splits["test"]))

    set_seed(1)
    width = teacher.config.hidden_size // 2
    student = students.smaller(teacher, size=f"3x{width}x6", init="random")

    # The number of relation heads divides both widths; it need not be that of either model.
    for stage in recipes.get("minilmv2", heads=12, prediction=True).stages:
        common.train(
            Distiller(teacher, student, stage.build_objectives()), splits["train"], args, learning_rate=5e-4
        )
        print(f"student after {stage.name}", common.accuracy(student, splits["test"]))


if __name__ == "__main__":
    main()
