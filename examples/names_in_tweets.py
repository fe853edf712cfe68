"""A label for every word: names in tweets, found by a student half as deep.

    python examples/names_in_tweets.py

Words have labels (B-person, I-person, O, ...), models read pieces of words: a word's label is that of its first
piece. What counts is whole names, as span F1. A student learns from the teacher's layers first and from its
predictions for every token then, also of texts that nobody labelled.

Prints span F1 of teacher and student on the test split.
"""

from __future__ import annotations

import common
from transformers import AutoModelForTokenClassification, set_seed

from bertxfer_fast import Distiller, objectives, recipes, students
from bertxfer_fast.evaluation import evaluate


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv, epochs=6, needs=("encoder", "reviews", "entities"))
    splits, label2id = common.names(args)

    set_seed(1)
    names = {"label2id": label2id, "id2label": {i: name for name, i in label2id.items()}}
    teacher = AutoModelForTokenClassification.from_pretrained(args.data / "teacher", **names)
    student = students.smaller(teacher, num_hidden_layers=teacher.config.num_hidden_layers // 2)
    common.train(Distiller(None, teacher, [objectives.Labels()]), splits["train"], args, learning_rate=2e-4)

    # The recipe is the one for whole texts: the objectives see that the head is a token's.
    for stage in recipes.get("tinybert").stages:
        common.train(
            Distiller(teacher, student, stage.build_objectives()), splits["train"], args, learning_rate=2e-4
        )
    for name, model in {"teacher": teacher, "student": student}.items():
        print(f"{name}: span F1 {evaluate(model, splits['test'])['span_f1']:.3f}")


if __name__ == "__main__":
    main()
