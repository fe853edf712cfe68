"""A plan tries one batch through every stage: what cannot run is one line and code 2, and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bertxfer_fast.cli.config.schema import load
from bertxfer_fast.cli.run.plan import make_plan

from ..folders import change, contents, distill, make_place, one_logit, tiny_tokenizer, write_tsv
from ..tiny import tiny_bert

NAMES = ["neg", "neutral", "pos"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def pairs(place: Path) -> None:
    for split in ("train", "dev", "test"):
        (place / f"{split}.tsv").write_text(
            "sentence\tother\tlabel\ngood film\tthe plot\tpos\nbad\tplot\tneg\n"
        )
    change(place, data__text_pair="other", data__label=None)


def pairs_without_types(place: Path) -> None:
    pairs(place)
    tiny_bert(4, 16, 4, head="ForSequenceClassification", type_vocab_size=1).save_pretrained(
        place / "teacher"
    )


def pairs_for_another_student(place: Path) -> None:
    pairs(place)
    student = tiny_bert(2, 12, 4, head="ForSequenceClassification", family="Roberta", type_vocab_size=1)
    student.save_pretrained(place / "small")
    change(place, student="small")


def window(place: Path) -> None:
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    settings = {"family": "ModernBert", "head": "ForSequenceClassification", "local_attention": 8, **special}
    tiny_bert(4, 16, 4, **settings).save_pretrained(place / "teacher")


def broken_teacher(place: Path) -> None:
    teacher = tiny_bert(4, 16, 4, head="ForSequenceClassification")
    with torch.no_grad():
        teacher.bert.encoder.layer[3].output.dense.bias[0] = torch.nan
    teacher.save_pretrained(place / "teacher")


def smaller_vocabulary(place: Path) -> None:
    tiny_bert(4, 16, 4, vocab=56, head="ForSequenceClassification").save_pretrained(place / "teacher")
    tiny_bert(2, 12, 4, vocab=49, head="ForSequenceClassification").save_pretrained(place / "small")
    change(place, student="small")


def unmeasured(place: Path) -> None:
    metric = {"load_best_model_at_end": True, "metric_for_best_model": "loss/hidden_states"}
    change(place, options={"hidden_weight": 0}, stages={"intermediate": metric})


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "token types": (
        pairs_without_types,
        r"stage intermediate, tried with 4 sequences .*got 1 in token_type_ids, want ids 0..0",
    ),
    "token types of the student": (pairs_for_another_student, "got 1 in token_type_ids, want ids 0..0"),
    "window": (
        window,
        r"train has a sequence of \d+ tokens, some layers of the teacher look no further than 5",
    ),
    "not finite": (broken_teacher, "stage intermediate, .* hidden_states: got nan, want a finite loss"),
    "the metric of an objective that is left out": (
        unmeasured,
        "metric_for_best_model: got 'loss/hidden_states', want one that is measured here: loss, loss/attention_scores,",
    ),
    "student's vocabulary": (
        smaller_vocabulary,
        "the tokenizer gives ids up to 49, the student's vocabulary has 49",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_run_is_found_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    break_it, message = BAD[case]
    break_it(place)
    before = contents(place)
    capsys.readouterr()  # of saving models
    assert distill(place) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bertxfer: error: ") and captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert contents(place) == before and not (place / "out").exists()


def save_student(place: Path, names: list[str]) -> torch.Tensor:
    """A student whose head names its classes so; returns the rows of its head."""
    settings = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    student = tiny_bert(2, 12, 4, head="ForSequenceClassification", seed=5, **settings)
    student.save_pretrained(place / "small")
    change(
        place,
        student="small",
        training={"max_steps": 1, "learning_rate": 0.0},
        data__eval=None,
        data__test=None,
    )
    return student.classifier.weight.detach()


@pytest.mark.parametrize("label", ["label", None])
@pytest.mark.parametrize("teacher_is_named", [True, False])
def test_a_saved_students_rows_follow_their_names(
    place: Path, label: str | None, teacher_is_named: bool
) -> None:
    if teacher_is_named:
        settings = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
        tiny_bert(4, 16, 4, head="ForSequenceClassification", **settings).save_pretrained(place / "teacher")
        tiny_tokenizer(place / "teacher")
    names = ["pos", "neg", "neutral"]
    rows = save_student(place, names)
    change(place, data__label=label)
    assert distill(place) == 0
    saved = type(tiny_bert(head="ForSequenceClassification")).from_pretrained(place / "out")
    # With neither a named teacher nor a column of labels, nothing tells another order.
    order = NAMES if teacher_is_named or label else names
    assert list(json.loads((place / "out" / "config.json").read_text())["id2label"].values()) == order
    torch.testing.assert_close(saved.classifier.weight, rows[[names.index(name) for name in order]])


def test_every_stage_runs_on_a_regression_teacher(place: Path) -> None:
    one_logit(place)
    change(place, training={"max_steps": 1}, stages={})
    assert distill(place) == 0
    stages = [
        json.loads((place / "out" / s / "stage.json").read_text()) for s in ("intermediate", "prediction")
    ]
    assert [stage["summary"]["steps"] for stage in stages] == [1, 1]
    assert stages[1]["summary"]["dev mse"] >= 0


def test_placeholders_in_the_label_column_are_the_teachers_own(place: Path) -> None:
    """As text LABEL_10 stands before LABEL_2; to the teacher it is class 10."""
    tiny_bert(4, 16, 4, head="ForSequenceClassification", num_labels=12).save_pretrained(place / "teacher")
    rows = [("good film", f"LABEL_{i}") for i in range(12)]
    for split in ("train", "dev", "test"):
        write_tsv(place / f"{split}.tsv", rows)
    plan = make_plan(load(place / "recipe.yaml"))
    assert [row["labels"] for row in plan.data["train"]] == list(range(12))
    assert plan.student.config.label2id == {f"LABEL_{i}": i for i in range(12)}
