"""A fine-tuned encoder's predictions into a bidirectional LSTM (Tang et al., 2019).

    python examples/into_an_lstm.py

The student starts from the teacher's word embeddings; no layer of the two has a counterpart, so what is moved beside
is what the teacher says: its logits, matched by mean squared error. Every text will do, labelled or not.

Prints accuracy and size of the teacher, of the LSTM after distillation, and of the same LSTM trained on the labels
alone.
"""

from __future__ import annotations

import copy

import common
from transformers import set_seed

from bertxfer_fast import Distiller, data, objectives, students
from bertxfer_fast.evaluation.speed import parameter_count


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    # Its embeddings start as the teacher's; the rest is random.
    set_seed(1)
    student = students.build("bilstm", teacher, embedding_size=teacher.config.hidden_size, hidden_size=128)
    alone = copy.deepcopy(student)

    # Sentences without labels, after the reviews.
    plain = data.encode(args.data / "unlabelled.tsv", common.tokenizer(args), max_length=64)
    texts = common.joined(splits["train"], plain)
    common.train(
        Distiller(teacher, student, [objectives.Logits(kind="mse")]), texts, args, learning_rate=1e-3
    )
    common.train(Distiller(None, alone, [objectives.Labels()]), splits["train"], args, learning_rate=1e-3)

    for name, model in {"teacher": teacher, "LSTM": student, "LSTM without teacher": alone}.items():
        print(f"{name}: {common.accuracy(model, splits['test'])}, {parameter_count(model):,} parameters")


if __name__ == "__main__":
    main()
