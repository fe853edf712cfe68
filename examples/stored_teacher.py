"""A teacher that is asked once, and one that is somewhere else.

    python examples/stored_teacher.py

What a teacher says of a text does not change, so that it can be kept: a store answers in place of the teacher, which
runs only for texts that are new. The same store is all that is needed where the teacher is not: it may have been
filled elsewhere.

Prints how long the teacher took to fill the store, and the time and accuracy of a student that learned from the live
teacher and of one that learned from the store: the same accuracy, sooner.
"""

from __future__ import annotations

import time

import common
from transformers import set_seed

from bertxfer_fast import Distiller, objectives, students, teachers


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv, epochs=4)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    # A store belongs to one teacher and tokenizer: it refuses what another one says.
    about = teachers.About.of(teacher, common.tokenizer(args))
    store = teachers.Store.at(args.output / "store", about)
    started = time.perf_counter()
    asked = teachers.fill(store, teacher, {"train": splits["train"]}, [(("logits", 0), None)])
    print(f"asked about {asked} texts in {time.perf_counter() - started:.1f} s")

    # No teacher beside the store: a text that is not in it would be an error.
    for name, source in {"live": teacher, "stored": teachers.StoredTeacher(store)}.items():
        set_seed(1)
        student = students.build("textcnn", teacher, embedding_size=teacher.config.hidden_size, filters=64)
        started = time.perf_counter()
        common.train(
            Distiller(source, student, [objectives.Logits()]), splits["train"], args, learning_rate=1e-3
        )
        seconds = time.perf_counter() - started
        print(f"{name}: {common.accuracy(student, splits['test'])} in {seconds:.1f} s")


if __name__ == "__main__":
    main()
