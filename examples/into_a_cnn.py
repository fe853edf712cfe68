"""A fine-tuned encoder into a convolutional network: across architectures.

    python examples/into_a_cnn.py

Attention maps and layers have no counterpart in a CNN, but predictions do, and so do words: embeddings start as the
teacher's table, and the logits follow the teacher's, softened by a temperature, beside the labels.

Prints the accuracy of teacher and student on the test split, and how many sentences a second each reads.
"""

from __future__ import annotations

import common
from transformers import set_seed

from bertxfer_fast import Distiller, objectives, students
from bertxfer_fast.evaluation.speed import throughput


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    set_seed(1)
    student = students.build(
        "textcnn", teacher, embedding_size=teacher.config.hidden_size, filters=64, kernel_sizes=[2, 3, 4]
    )
    # Objectives compose: each has a weight, and a Distiller adds them up.
    wanted = [objectives.Logits(temperature=2.0), objectives.Labels(weight=0.5)]
    common.train(Distiller(teacher, student, wanted), splits["train"], args, learning_rate=1e-3)

    for name, model in {"teacher": teacher, "CNN": student}.items():
        speed = throughput(model, splits["test"], repeats=1)
        print(f"{name}: {common.accuracy(model, splits['test'])}, {speed:,.0f} sentences/s")


if __name__ == "__main__":
    main()
