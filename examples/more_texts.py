"""More texts for a student, made of those that there are.

    python examples/more_texts.py

A student can learn from any text that its teacher has an opinion of. `bertxfer augment` writes changed copies of each
row: here words give way to their nearest neighbours in the embedding table, as in TinyBERT.

Prints a text and one of its copies, and the accuracy of a CNN that learnt from the texts alone, and with their
copies.
"""

from __future__ import annotations

import common
from transformers import set_seed

from bertxfer_fast import Distiller, cli, data, objectives, students


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    file = args.output / "more.tsv"
    file.unlink(missing_ok=True)
    command = f"augment {args.data}/train.tsv --model {args.data}/teacher --method tinybert --copies 2 --output {file}"
    if cli.main(command.split()):
        raise SystemExit(1)
    texts = list(data.load(file)["text"])
    print("a text:", texts[0])
    print("a copy:", texts[1])

    more = data.encode(file, common.tokenizer(args), max_length=64)
    for name, rows in {"texts": splits["train"], "texts and copies": more}.items():
        set_seed(1)
        student = students.build("textcnn", teacher, embedding_size=teacher.config.hidden_size, filters=64)
        common.train(Distiller(teacher, student, [objectives.Logits()]), rows, args, learning_rate=1e-3)
        print(f"learnt from {len(rows)} {name}: {common.accuracy(student, splits['test'])}")


if __name__ == "__main__":
    main()
