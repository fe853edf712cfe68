"""A fine-tuned encoder into a table of token vectors: nothing is computed but a mean.

    python examples/into_a_table.py

model2vec's kind of student: the teacher reads every token of its vocabulary alone, and what it says is that token's
vector, weighted by how rare the token is. A text is the mean of its tokens. The table is then trained on the
teacher's predictions like any other student.

Prints the accuracy of the teacher and of the table on the test split, and how many sentences a second each reads.
"""

from __future__ import annotations

import common
from transformers import set_seed

from bertxfer_fast import Distiller, objectives, students
from bertxfer_fast.evaluation.speed import throughput


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv, epochs=4)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    set_seed(1)
    student = students.build("static", teacher, tokenizer=common.tokenizer(args))
    common.train(
        Distiller(teacher, student, [objectives.Logits()]), splits["train"], args, learning_rate=2e-3
    )

    for name, model in {"teacher": teacher, "table": student}.items():
        speed = throughput(model, splits["test"], repeats=1)
        print(f"{name}: {common.accuracy(model, splits['test'])}, {speed:,.0f} sentences/s")


if __name__ == "__main__":
    main()
