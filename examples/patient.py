"""Patient knowledge distillation: the [CLS] states of intermediate layers, beside labels and soft labels.

    python examples/patient.py

Of each matched layer only the first token's state is compared, by its direction, so that the student may go its own
way for all other tokens (Sun et al., 2019). Weights may follow a schedule: here the states count for less and less.

Prints the accuracy of the teacher, and of students with states of a constant weight and of one that falls to 0.
"""

from __future__ import annotations

import common

from bertxfer_fast import Distiller, recipes, students


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)
    print("teacher", common.accuracy(teacher, splits["test"]))

    for name, beta in {"constant": 100.0, "falling": "linear_decay"}.items():
        student = students.smaller(teacher, num_hidden_layers=teacher.config.num_hidden_layers // 2)
        (stage,) = recipes.get("pkd", alpha=0.7, temperature=5.0, beta=beta).stages
        common.train(
            Distiller(teacher, student, stage.build_objectives()), splits["train"], args, learning_rate=1e-4
        )
        print(f"student, states {name}", common.accuracy(student, splits["test"]))


if __name__ == "__main__":
    main()
