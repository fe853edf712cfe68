"""A teacher that is asked once.

The `logits` objective on 2 000 training texts for three epochs, from the teacher as it runs and from an empty store
that it fills in the first epoch and that answers in its place from the second on. Seconds are those of an epoch: of
the first, and the mean of the later ones. Losses are compared step by step.
"""

from __future__ import annotations

import shutil
import statistics
from typing import Any

from transformers import set_seed

from bertxfer_fast import objectives, students, teachers

from ..row import Claim, Row, Run
from ..training import train

ROWS, EPOCHS = 2000, 3


def measure(run: Run) -> None:
    problem = run.sentiment
    labelled = problem.rows("train")
    rows = labelled.select(range(min(ROWS, len(labelled))))

    def small() -> Any:
        teacher = problem.teacher()
        size = students.parse_size(f"3x{teacher.config.hidden_size // 2}", teacher.config)
        return students.smaller(teacher, init="random", **size)

    def bilstm() -> Any:
        teacher = problem.teacher()
        width = teacher.config.hidden_size // 2
        return students.build("bilstm", teacher, tokenizer=problem.tokenizer, hidden_size=width)

    for name, make in {"BiLSTM": bilstm, "3 x 192": small}.items():

        def both(make: Any = make) -> dict[str, float]:
            folder = run.folder / "store"
            shutil.rmtree(folder, ignore_errors=True)
            store = teachers.Store.at(folder, teachers.About.of(problem.teacher(), problem.tokenizer))
            done = {}
            for how, teacher in {
                "live": problem.teacher(),
                "stored": teachers.StoredTeacher(store, problem.teacher()),
            }.items():
                set_seed(run.seed)
                done[how] = train(
                    run.folder,
                    make(),
                    [objectives.Logits(kind="mse")],
                    rows,
                    teacher=teacher,
                    seed=run.seed,
                    epochs=EPOCHS,
                    learning_rate=5e-4,
                    logging_steps=1,
                )
            live, stored = (result["epoch_seconds"] for result in done.values())
            losses = zip(done["live"]["losses"], done["stored"]["losses"], strict=True)
            later = statistics.mean(live[1:]), statistics.mean(stored[1:])
            return {
                "live s": later[0],
                "stored s, first epoch": stored[0],
                "stored s, later": later[1],
                "times faster": later[0] / later[1],
                "largest difference of a loss": max(abs(a - b) for a, b in losses),
            }

        run.measure(name, both)


ROW = Row(
    "store",
    measure,
    (
        Claim("BiLSTM: later epochs, times faster", "BiLSTM", "times faster", least=2.0, digits=2),
        Claim(
            "BiLSTM: largest difference of a loss",
            "BiLSTM",
            "largest difference of a loss",
            most=0.0,
            digits=9,
        ),
        Claim("3 x 192: later epochs, times faster", "3 x 192", "times faster", digits=2),
        Claim(
            "3 x 192: largest difference of a loss",
            "3 x 192",
            "largest difference of a loss",
            most=0.0,
            digits=9,
        ),
    ),
    minutes=6,
    seeds=(1,),
)
