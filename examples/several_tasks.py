"""Two tasks in one student: opinions of reviews and names in tweets.

    python examples/several_tasks.py

The two students share embeddings and layers, each has a head of its own, and each may have a teacher. Batches are of
one task; a temperature lets the smaller task come more often than its size says.

Prints what each task's student is worth on its test split, and how many parameters the two have together and apart.
"""

from __future__ import annotations

import common
from transformers import AutoModelForTokenClassification, set_seed

from bertxfer_fast import DistillationArguments, Distiller, MultiTask, MultiTaskTrainer, objectives, students
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.evaluation.speed import parameter_count


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv, epochs=3, needs=("encoder", "reviews", "entities"))
    reviews, (names, labels) = common.reviews(args), common.names(args)
    teacher = common.fine_tuned(args)

    set_seed(1)
    critic = students.smaller(teacher, num_hidden_layers=teacher.config.num_hidden_layers // 2)
    tagger = AutoModelForTokenClassification.from_config(common.with_labels(critic.config, labels))
    apart = parameter_count(critic) + parameter_count(tagger)
    students.share_encoder({"reviews": critic, "names": tagger})

    both = MultiTask(
        {
            "reviews": Distiller(teacher, critic, [objectives.Logits()]),
            "names": Distiller(None, tagger, [objectives.Labels()]),
        }
    )
    settings = DistillationArguments(
        output_dir=str(args.output / "training"),
        num_train_epochs=args.epochs,
        tokens_per_batch=1024,
        learning_rate=2e-4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )
    rows = {"reviews": reviews["train"], "names": names["train"]}
    trainer = MultiTaskTrainer(both, settings, train_dataset=rows, temperature=2.0)
    common.be_quiet(trainer)
    trainer.train()

    print(f"reviews: {common.accuracy(critic, reviews['test'])}")
    print(f"names: span F1 {evaluate(tagger, names['test'])['span_f1']:.3f}")
    together = parameter_count(both)
    print(f"{together:,} parameters together, {apart:,} apart")


if __name__ == "__main__":
    main()
