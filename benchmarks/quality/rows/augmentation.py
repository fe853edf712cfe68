"""Ablation: more texts to learn from.

The CNN learns the teacher's logits with as many steps each time: from the training texts, with the 13 016 sentences
without labels, with four copies of each training text that have words masked or n-grams cut out, with four copies
that have words replaced as TinyBERT does (by neighbours in the embedding table: this encoder has no masked-LM head),
and with all of these.
"""

from __future__ import annotations

from bertxfer_fast import students

from ..row import Claim, Row, Run
from ..twins import from_predictions

#: Variant -> what is added to the training texts.
VARIANTS: dict[str, tuple[str, ...]] = {
    "training texts": (),
    "with sentences": ("sentences",),
    "with masks and n-grams": ("changed",),
    "with words replaced": ("replaced",),
    "with all of these": ("sentences", "changed", "replaced"),
}
STEPS = 500


def measure(run: Run) -> None:
    problem = run.sentiment

    def trained(more: tuple[str, ...]) -> dict[str, float]:
        encoder = problem.untrained(run.seed)
        width = encoder.config.hidden_size
        student = students.build(
            "textcnn", encoder, tokenizer=problem.tokenizer, filters=width // 3, dropout=0.2
        )
        from_predictions(run, problem, student, steps=STEPS, learning_rate=1e-3, more=more)
        return {"accuracy": problem.score(student)["accuracy"]}

    for name, more in VARIANTS.items():
        run.measure(name, lambda more=more: trained(more))


ROW = Row(
    "augmentation",
    measure,
    tuple(
        Claim(f"gain {name}", name, "accuracy", "training texts", "gain")
        for name in VARIANTS
        if VARIANTS[name]
    ),
    minutes=8,
)
