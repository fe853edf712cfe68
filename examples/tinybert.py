"""TinyBERT in two stages: first how the teacher looks at text, then what it says about it.

    python examples/tinybert.py

The student has half of the teacher's layers. In the first stage its attention scores and hidden states follow those of
every second layer of the teacher; in the second its predictions follow the teacher's. Two stages are better than one
with everything in it (Jiao et al., 2020), because predictions are cheap to learn once the layers agree.

Prints the accuracy on the test split: of the teacher, of the student after each stage (after the first its head is
as new, so that is a guess), and of the same student trained on the labels alone.
"""

from __future__ import annotations

import copy

import common

from bertxfer_fast import Distiller, objectives, recipes, students


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)
    print("teacher", common.accuracy(teacher, splits["test"]))

    # The student starts as every second layer of its teacher.
    student = students.smaller(teacher, num_hidden_layers=teacher.config.num_hidden_layers // 2)
    alone = copy.deepcopy(student)

    # The recipe says which objectives each stage has. They are ordinary modules: a list of your own does as well.
    for stage in recipes.get("tinybert").stages:
        wanted = stage.build_objectives()
        common.train(Distiller(teacher, student, wanted), splits["train"], args, learning_rate=2e-4)
        names = " and ".join(objective.name for objective in wanted)
        print(f"student after {stage.name} ({names})", common.accuracy(student, splits["test"]))

    # The same steps without a teacher: what the distillation was worth.
    common.train(
        Distiller(None, alone, [objectives.Labels()]),
        splits["train"],
        args,
        learning_rate=1e-4,
        num_train_epochs=2 * args.epochs,
    )
    print("student without teacher", common.accuracy(alone, splits["test"]))


if __name__ == "__main__":
    main()
