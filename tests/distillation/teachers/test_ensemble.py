"""The mean of several teachers is that of their definition, and teachers that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import Distiller, objectives
from bertxfer_fast.distillation import teachers
from bertxfer_fast.models.stream import TeacherStream
from tests.tiny import tiny_bert, tiny_pair

from .rows import features, pack, streamed

LOGITS = (("logits", 0), None)
WEIGHTS = (3.0, 1.0)


def model(seed: int, labels: tuple[str, ...] = (), **settings: Any) -> Any:
    made = tiny_bert(4, 16, 4, seed=seed, **{"head": "ForSequenceClassification", **settings})
    if labels:
        made.config.id2label, made.config.label2id = (
            dict(enumerate(labels)),
            {x: i for i, x in enumerate(labels)},
        )
    return made


def logits(models: list[Any], batch: dict[str, Any]) -> list[Tensor]:
    return [streamed(TeacherStream(m, logits=True), batch)["logits", 0].double() for m in models]


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("mean_of", ["probabilities", "logits"])
def test_the_mean_of_one_class_a_row(mean_of: str, head: str) -> None:
    models, batch = [model(1, head=head), model(5, head=head)], pack(features(5))
    got = streamed(teachers.AveragedTeachers(models, WEIGHTS, mean_of=mean_of).select([LOGITS]), batch)[
        "logits", 0
    ].double()
    a, b = logits(models, batch)
    if mean_of == "logits":
        torch.testing.assert_close(got, 0.75 * a + 0.25 * b, rtol=1e-5, atol=1e-6)
    else:
        torch.testing.assert_close(
            got.softmax(-1), 0.75 * a.softmax(-1) + 0.25 * b.softmax(-1), rtol=1e-5, atol=1e-6
        )


def test_the_mean_of_several_labels_and_of_numbers() -> None:
    batch = pack(features(5))
    several = [model(seed, problem_type="multi_label_classification") for seed in (1, 5)]
    got = streamed(teachers.AveragedTeachers(several).select([LOGITS]), batch)["logits", 0].double()
    a, b = logits(several, batch)
    torch.testing.assert_close(got.sigmoid(), (a.sigmoid() + b.sigmoid()) / 2, rtol=1e-5, atol=1e-6)
    numbers = [model(seed, num_labels=1, problem_type="regression") for seed in (1, 5)]
    got = streamed(teachers.AveragedTeachers(numbers, WEIGHTS).select([LOGITS]), batch)["logits", 0].double()
    a, b = logits(numbers, batch)
    torch.testing.assert_close(got, 0.75 * a + 0.25 * b, rtol=1e-5, atol=1e-6)


def test_the_mean_of_spans_is_over_the_tokens_of_a_sequence() -> None:
    settings: dict[str, Any] = {"head": "ForQuestionAnswering", "num_labels": 2}
    models, batch = [model(1, **settings), model(5, **settings)], pack(features(5))
    got = streamed(teachers.AveragedTeachers(models, WEIGHTS).select([LOGITS]), batch)["logits", 0].double()
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    for mean, a, b in zip(*(x.split(lengths) for x in (got, *logits(models, batch))), strict=True):
        torch.testing.assert_close(
            mean.softmax(0), 0.75 * a.softmax(0) + 0.25 * b.softmax(0), rtol=1e-5, atol=1e-6
        )
    student = tiny_bert(2, 12, 4, seed=2, **settings)
    alone, twice = (
        Distiller(teacher, student, [objectives.Logits()])(**batch).loss
        for teacher in (models[0], teachers.AveragedTeachers([models[0], models[0]]))
    )
    torch.testing.assert_close(twice, alone)


def test_probabilities_far_below_float32_stay_finite() -> None:
    models = [model(1), model(5)]
    for each in models:
        with torch.no_grad():
            each.classifier.weight.mul_(1e4)
    got = streamed(teachers.AveragedTeachers(models).select([LOGITS]), pack(features(4)))["logits", 0]
    assert torch.isfinite(got).all() and got.min() < -200


def test_hidden_states_are_averaged_where_sizes_agree() -> None:
    """What is looked at pooled alone, after it is pooled: the mean of maxima is not the maximum of means."""
    models, batch = [model(1), model(5)], pack(features(5))
    wants = [(("hidden", 2), None), (("hidden", 4), "max")]
    got = streamed(teachers.AveragedTeachers(models, WEIGHTS).select(wants), batch)
    each = [streamed(TeacherStream(m, hidden=[2, 4]), batch) for m in models]
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    for seen in each:
        seen["hidden", 4] = torch.stack([part.amax(0) for part in seen["hidden", 4].split(lengths)])
    for spot in (("hidden", 2), ("hidden", 4)):
        torch.testing.assert_close(
            got[spot], 0.75 * each[0][spot] + 0.25 * each[1][spot], rtol=1e-5, atol=1e-6
        )


def test_classes_in_another_order_are_read_in_the_first_ones() -> None:
    names = ("neg", "neutral", "pos")
    first, batch = model(1, names), pack(features(5))
    same = streamed(teachers.AveragedTeachers([first, first]).select([LOGITS]), batch)["logits", 0]
    turned = model(1, ("POS", "neg", "neutral"))
    with torch.no_grad():
        for rows in (turned.classifier.weight, turned.classifier.bias):
            rows.copy_(rows[[2, 0, 1]])
    got = streamed(teachers.AveragedTeachers([first, turned]).select([LOGITS]), batch)["logits", 0]
    torch.testing.assert_close(got, same)
    with pytest.raises(
        ValueError, match=r"got labels \['neg', 'neutral', 'pos'\] and \['a', 'b', 'c'\], want teachers of"
    ):
        teachers.AveragedTeachers([first, model(2, ("a", "b", "c"))])


def test_a_student_learns_of_the_mean_and_of_a_store_of_it(tmp_path: Path) -> None:
    models, batch = [model(1), model(5)], pack(features(6))
    mean = teachers.AveragedTeachers(models, WEIGHTS)
    a, b = logits(models, batch)
    wanted = 0.75 * a.softmax(-1) + 0.25 * b.softmax(-1)
    store = teachers.Store.at(tmp_path, teachers.About.of(mean))
    values = []
    for taught_by in (mean, teachers.StoredTeacher(store, mean), teachers.StoredTeacher(store)):
        distiller = Distiller(taught_by, tiny_pair()[1], [objectives.Logits(kind="kl")])
        values.append(distiller(**batch).loss.item())
    own = distiller.eval()(**batch).logits.double()
    expected = torch.nn.functional.kl_div(own.log_softmax(-1), wanted, reduction="batchmean").item()
    assert values[0] == pytest.approx(expected, rel=1e-5) and values[1] == values[2] == values[0]
    assert mean.fingerprint != teachers.AveragedTeachers(models).fingerprint
    with pytest.raises(ValueError, match="made with weights or configuration"):
        teachers.Store.at(tmp_path, teachers.About.of(teachers.AveragedTeachers(models)))


@pytest.mark.parametrize("first", [True, False])
def test_a_black_box_may_stand_beside_a_model(first: bool) -> None:
    """Of rows alone the vocabulary is not known: it is the others'."""
    rows, numbers = features(6), torch.randn(6, 3)
    box = teachers.StoredTeacher(teachers.BlackBox({"train": numbers}, {"train": rows}))
    beside, batch = model(1), pack(rows)
    both = [box, beside] if first else [beside, box]
    mean = teachers.AveragedTeachers(both)
    assert mean.spec.vocab_size == beside.config.vocab_size
    got = streamed(mean.select([LOGITS]), batch)["logits", 0].double()
    [theirs] = logits([beside], batch)
    wanted = (numbers.double().softmax(-1) + theirs.softmax(-1)) / 2
    torch.testing.assert_close(got.softmax(-1), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="got vocabularies of 50 and 60 tokens"):
        teachers.AveragedTeachers([*both, model(2, vocab=60)])


def test_it_moves_with_the_distiller_and_is_not_trained() -> None:
    mean = teachers.AveragedTeachers([model(1), model(5)])
    student = tiny_pair()[1]
    distiller = Distiller(mean, student, [objectives.Logits()])
    assert len(list(distiller.parameters())) == len(list(student.parameters()))
    distiller.to(torch.float64)
    assert {p.dtype for each in mean.teachers for p in each.model.parameters()} == {torch.float64}


def two(**second: Any) -> Any:
    return [model(1), model(2, **second)]


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        ([model(1)], {}, "^teachers: got 1, want two or more"),
        (two(), {"weights": [1, 0]}, r"^weights: got \[1.0, 0.0\], want 2 positive numbers, one a teacher"),
        (two(), {"weights": [1]}, "want 2 positive numbers, one a teacher"),
        (two(), {"mean_of": "votes"}, "^mean_of: got 'votes', want one of"),
        (two(vocab=60), {}, "got vocabularies of 50 and 60 tokens, want teachers that read the same tokens"),
        (two(num_labels=2), {}, "want teachers with the same kind of head and as many labels"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(made: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        teachers.AveragedTeachers(made, **settings)


def test_what_has_no_mean_is_refused_before_training() -> None:
    student = tiny_pair()[1]
    with pytest.raises(
        ValueError, match="got attention to average over 2 teachers, want logits or hidden states"
    ):
        Distiller(teachers.AveragedTeachers(two()), student, [objectives.AttentionMaps()])
    shallow = tiny_bert(2, 16, 4, head="ForSequenceClassification")
    with pytest.raises(
        ValueError, match=r"\(layers, width\) \[\(4, 16\), \(2, 16\)\], want the same for all"
    ):
        Distiller(teachers.AveragedTeachers([model(1), shallow]), student, [objectives.HiddenStates()])
