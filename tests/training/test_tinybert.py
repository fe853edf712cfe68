"""TinyBERT's recipe from rows of data to a measured student, for every kind of task that it is used for."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import data, tasks
from bertxfer_fast.data.collators import collator_for
from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.training.arguments import DistillationArguments
from bertxfer_fast.training.trainer import DistillationTrainer

from ..folders import WORDS, tiny_tokenizer
from ..tiny import tiny_bert

CLASSES = {"neg": 0, "neutral": 1, "pos": 2}
MARKS = {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3, "I-LOC": 4}
HEAD = "ForSequenceClassification"


@dataclass(frozen=True)
class Case:
    """A task, its columns, and what its head is."""

    task: str
    columns: dict[str, str]
    label2id: dict[str, int] | None = None
    head: str = HEAD
    config: dict[str, Any] = field(default_factory=lambda: {"num_labels": 3})


CASES = {
    "single-label": Case("sequence-classification", {"label": "class"}, CLASSES),
    "pairs": Case("sequence-classification", {"text_pair": "second", "label": "class"}, CLASSES),
    "regression": Case("regression", {"label": "grade"}, config={"num_labels": 1}),
    "multi-label": Case(
        "multi-label-classification",
        {"label": "classes"},
        CLASSES,
        config={"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "entities": Case(
        "token-classification",
        {"text": "words", "label": "marks"},
        MARKS,
        "ForTokenClassification",
        {"num_labels": len(MARKS), "id2label": {i: name for name, i in MARKS.items()}},
    ),
}


def rows() -> list[dict[str, Any]]:
    draw = random.Random(0)
    found = []
    for _ in range(12):
        words = draw.choices(WORDS[:30], k=draw.randint(2, 7))
        found.append(
            {
                "text": " ".join(words),
                "second": " ".join(draw.choices(WORDS[:30], k=3)),
                "class": draw.choice(list(CLASSES)),
                "classes": draw.sample(list(CLASSES), draw.randint(0, 3)),
                "grade": draw.uniform(-1, 1),
                "words": words,
                "marks": [draw.choice(list(MARKS)) for _ in words],
            }
        )
    return found


def of_the_paper(task: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The soft cross-entropy at temperature 1; of labels of their own each, that of yes and no; of a number the MSE."""
    if task == "regression":
        return (student - teacher).square().mean()
    if task == "multi-label-classification":
        p, q = teacher.sigmoid(), student.sigmoid()
        return -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize("name", CASES)
def test_both_stages_on_every_kind_of_task(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    task, tokenizer = tasks.get(case.task), tiny_tokenizer(tmp_path / "tokenizer")
    features = data.encode(
        rows(), tokenizer, task=task, label2id=case.label2id, max_length=16, **case.columns
    )
    teacher = tiny_bert(4, 16, 4, head=case.head, seed=1, **case.config)
    student = tiny_bert(2, 12, 4, head=case.head, seed=2, **case.config)
    taught = {key: value.clone() for key, value in teacher.state_dict().items()}
    heads, layers = [student.classifier.weight.detach().clone()], [student.base_model.encoder.layer[0]]
    first = [layers[0].output.dense.weight.detach().clone()]
    for stage in recipes.get("tinybert").stages:
        distiller = Distiller(teacher, student, stage.build_objectives())
        arguments = DistillationArguments(
            str(tmp_path / stage.name),
            **{**stage.training, "max_steps": 2, "per_device_train_batch_size": 6, "learning_rate": 1e-2},
            report_to=[],
            disable_tqdm=True,
        )
        trainer = DistillationTrainer(distiller, arguments, None, features, features)
        assert trainer.task is task
        assert trainer.train().global_step == 2
        heads.append(student.classifier.weight.detach().clone())
        first.append(layers[0].output.dense.weight.detach().clone())
    # Layers alone, then all of it; the teacher never.
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert all(torch.equal(value, taught[key]) for key, value in teacher.state_dict().items())

    measured = trainer.evaluate()
    names = tuple(case.label2id or ())
    assert {f"eval_{metric}" for metric in task.measured(names)} <= measured.keys()
    batch = collator_for(task)(list(features))
    with torch.no_grad():
        found = distiller.eval()(**batch).parts["logits"]
        plain: list[list[Tensor]] = [[], []]
        for row in features:
            read = {key: torch.tensor([row[key]]) for key in ("input_ids", "token_type_ids")}
            for model, logits in zip((student, teacher), plain, strict=True):
                logits.append(model.eval()(**read).logits.double().flatten(0, -2))
    wanted = of_the_paper(case.task, *(torch.cat(logits) for logits in plain))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
