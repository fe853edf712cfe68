"""Several teachers averaged into one student.

    python examples/several_teachers.py

Teachers that were fine-tuned with other seeds make other mistakes; their mean makes fewer. The student costs what one
small model costs.

Prints the accuracy on the test split of each teacher and of the student.
"""

from __future__ import annotations

import common
from transformers import AutoModelForSequenceClassification, set_seed

from bertxfer_fast import Distiller, objectives, students, teachers


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    first = common.fine_tuned(args)
    names = {"label2id": first.config.label2id, "id2label": first.config.id2label}
    set_seed(2)
    second = AutoModelForSequenceClassification.from_pretrained(args.data / "teacher", **names)
    common.train(
        Distiller(None, second, [objectives.Labels()]), splits["train"], args, learning_rate=1e-4, seed=2
    )

    student = students.smaller(first, num_hidden_layers=first.config.num_hidden_layers // 2)
    # Weights say whom to believe more; here both alike. The average is of their probabilities.
    both = teachers.AveragedTeachers([first, second])
    common.train(Distiller(both, student, [objectives.Logits()]), splits["train"], args, learning_rate=1e-4)
    for name, model in {"first teacher": first, "second teacher": second, "student of both": student}.items():
        print(f"{name}: {common.accuracy(model, splits['test'])}")


if __name__ == "__main__":
    main()
