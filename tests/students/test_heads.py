"""A student's classes stand where its teacher's stand, under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import HiddenStates, Logits
from bertxfer_fast.models.spec import EncoderSpec
from bertxfer_fast.students.heads import follow_labels
from tests.tiny import packed_batch, padded_batch, tiny_bert

NAMES = ["negative", "neutral", "positive"]


def named(names: list[str] | None, *, seed: int = 1, head: str = "ForSequenceClassification", **settings):
    if names is not None:
        settings |= {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            "num_labels": len(names),
        }
    return tiny_bert(head=head, seed=seed, **settings)


def follow(student, teacher) -> None:
    follow_labels(student, EncoderSpec.of(student), EncoderSpec.of(teacher))


def said(model) -> list[str]:
    """The names of the classes of every text, or of every token."""
    with torch.no_grad():
        classes = model(**padded_batch(token_types=False)).logits.argmax(-1).flatten()
    return [model.config.id2label[i].lower() for i in classes.tolist()]


def by_name(model) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        columns = model(**padded_batch(token_types=False)).logits.unbind(-1)
    return {model.config.id2label[i].lower(): column for i, column in enumerate(columns)}


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("Bert", "ForSequenceClassification"),
        ("Bert", "ForTokenClassification"),
        ("Roberta", "ForSequenceClassification"),
        ("DistilBert", "ForSequenceClassification"),
    ],
)
@pytest.mark.parametrize("names", [["positive", "negative", "neutral"], ["Neutral", "POSITIVE", "negative"]])
def test_rows_of_the_head_follow_their_names(family, head, names):
    student = named(names, family=family, head=head)
    before = by_name(student)
    follow(student, named(NAMES, seed=2, head=head))
    for name, logits in by_name(student).items():
        torch.testing.assert_close(logits, before[name])
    assert list(student.config.id2label.values()) == NAMES
    assert student.config.label2id == {name: i for i, name in enumerate(NAMES)}


def test_names_and_problem_type_are_taken_from_the_teacher():
    student = named(None)
    weights = student.classifier.weight.clone()
    follow(student, named(NAMES, problem_type="multi_label_classification"))
    assert list(student.config.id2label.values()) == NAMES
    assert student.config.problem_type == "multi_label_classification"
    assert torch.equal(student.classifier.weight, weights)
    follow(student, named(None))  # it has no names to give
    assert list(student.config.id2label.values()) == NAMES


def test_a_head_for_other_classes_learns_the_teachers(caplog):
    student = named(["entailment", "neutral", "contradiction"])
    weights = student.classifier.weight.clone()
    with caplog.at_level("WARNING"):
        follow(student, named(NAMES))
    assert "the student's head was for ['entailment', 'neutral', 'contradiction']" in caplog.text
    assert list(student.config.id2label.values()) == NAMES
    assert torch.equal(student.classifier.weight, weights)


def test_a_head_whose_rows_cannot_be_moved_is_refused():
    odd = named(NAMES[::-1])
    odd.classifier = nn.Sequential(odd.classifier, nn.Tanh(), nn.Linear(3, 7))
    with pytest.raises(ValueError, match="its head does not end in one linear map"):
        follow(odd, named(NAMES))
    assert list(odd.config.id2label.values()) == NAMES[::-1]


def test_distilled_logits_come_under_the_right_names():
    teacher, student = named(NAMES), named(NAMES[::-1], seed=2)
    Distiller(teacher, student, [HiddenStates(projection="none")])
    assert list(student.config.id2label.values()) == NAMES[::-1]  # its head learns nothing of the teacher
    distiller = Distiller(teacher, student, [Logits()])
    assert list(student.config.id2label.values()) == NAMES
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=0.01)
    batch = packed_batch(token_types=False)
    for _ in range(60):
        optimizer.zero_grad()
        distiller(**batch).loss.backward()
        optimizer.step()
    assert said(student) == said(teacher)


def test_a_network_of_the_users_making_is_checked():
    class Network(nn.Module):
        spec = EncoderSpec("Network", 1, 8, head="sequence", num_labels=3, labels=tuple(NAMES[::-1]))

        def run(self, batch, tap=None):
            raise AssertionError("it does not come to that")

    with pytest.raises(
        ValueError, match=r"student: got labels \['positive', .*want the teacher's, .*in this order"
    ):
        Distiller(named(NAMES, vocab=50), Network(), [Logits()])
