"""Whatever is wrong with a recipe or its files is said in one line, with code 2, before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertxfer_fast import cli

from ..folders import WORDS, change, contents, distill, make_place, tiny_tokenizer, write_tsv
from ..tiny import tiny_bert


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def other_tokenizer(place: Path) -> None:
    tiny_tokenizer(place / "tokenizer", words=[*WORDS[1:], WORDS[0]])
    change(place, tokenizer="tokenizer")


def other_case(place: Path) -> None:
    tiny_tokenizer(place / "tokenizer", lowercase=False)
    change(place, tokenizer="tokenizer")


def student_with(**settings: Any) -> Callable[[Path], None]:
    def build(place: Path) -> None:
        settings.setdefault("head", "ForSequenceClassification")
        tiny_bert(**{"layers": 2, "hidden": 12, "heads": 4, **settings}).save_pretrained(place / "small")
        change(place, student="small")

    return build


def teacher_without_head(place: Path) -> None:
    shutil.rmtree(place / "teacher")
    tiny_bert(4, 16, 4).save_pretrained(place / "teacher")
    tiny_tokenizer(place / "teacher")
    change(place, task="sequence-classification")


def torn_weights(place: Path) -> None:
    (place / "teacher" / "model.safetensors").write_bytes(b"torn")


def binary_data(place: Path) -> None:
    (place / "train.tsv").write_bytes(bytes(range(256)) * 4)


def no_rows(place: Path) -> None:
    (place / "train.tsv").write_text("sentence\tlabel\n")


def unknown_label(place: Path) -> None:
    write_tsv(place / "dev.tsv", [("good film", "meh")])


def missing_text(place: Path) -> None:
    write_tsv(place / "train.tsv", [("good film", "pos"), ("", "neg"), ("bad", "neutral")])


def other_model_there(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "config.json").write_text("{}")


def token_classifier(**row: Any) -> Callable[[Path], None]:
    """A teacher that tags words, and one row of training data."""

    def build(place: Path) -> None:
        tiny_bert(4, 16, 4, head="ForTokenClassification").save_pretrained(place / "teacher")
        (place / "train.jsonl").write_text(json.dumps(row))
        change(place, data={"train": "train.jsonl", "text": "words", "label": "tags"})

    return build


def multi_label(place: Path) -> None:
    settings = {"problem_type": "multi_label_classification"}
    tiny_bert(4, 16, 4, head="ForSequenceClassification", **settings).save_pretrained(place / "teacher")
    change(place, task="sequence-classification")


def masked_lm(place: Path) -> None:
    tiny_bert(4, 16, 4, head="ForMaskedLM").save_pretrained(place / "teacher")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown key": (lambda p: change(p, techer="x"), "unknown key 'techer'; did you mean 'teacher'"),
    "unknown recipe": (
        lambda p: change(p, recipe="tinybrt"),
        "recipe: got 'tinybrt', want a known one; did you mean 'tinybert'",
    ),
    "unknown option": (lambda p: change(p, options__temprature=2), "did you mean 'temperature'"),
    "bad option": (
        lambda p: change(p, options__temperature=-1),
        "temperature: got -1, want a positive number",
    ),
    "unknown stage": (lambda p: change(p, stages__predict__seed=1), "seed cannot be set here"),
    "unknown stage name": (
        lambda p: change(p, stages__predict={"max_steps": 1}),
        "did you mean 'prediction'",
    ),
    "bad training value": (
        lambda p: change(p, training__warmup_steps=-1),
        "stage intermediate: .*warmup_steps",
    ),
    "no dev set": (
        lambda p: change(p, data__eval=None, training__eval_strategy="epoch"),
        "stage intermediate: eval_strategy: got 'epoch' without data.eval",
    ),
    "unmeasured metric": (
        lambda p: change(p, training__load_best_model_at_end=True, training__metric_for_best_model="f1"),
        "metric_for_best_model: got 'f1', want one that is measured here: loss, loss/attention_scores",
    ),
    "no teacher": (lambda p: change(p, teacher="techer"), r"line 2: teacher: no such directory"),
    "not a model": (lambda p: change(p, teacher="."), "not a transformers model"),
    "no file": (lambda p: change(p, data__test="tst.tsv"), r"\(section data\): no such file: .*tst\.tsv"),
    "missing column": (
        lambda p: change(p, data__text="sentense"),
        "no column 'sentense'; did you mean 'sentence'",
    ),
    "missing label column": (
        lambda p: change(p, data__label="lable"),
        "no column 'lable'; did you mean 'label'",
    ),
    "empty data": (no_rows, r"train\.tsv.*no rows"),
    "missing text": (missing_text, "no 'sentence' in row 2"),
    "unknown label": (unknown_label, r"dev\.tsv: column 'label', row 1: 'meh' is not in label2id"),
    "other tokenizer": (
        other_tokenizer,
        "tokens, want the teacher's vocabulary",
    ),
    "same tokens, other cutting": (other_case, "cuts text differently"),
    "other vocabulary": (student_with(vocab=60), "got vocab_size 60 and 50 of the teacher"),
    "head counts": (
        lambda p: change(p, student__num_attention_heads=3),
        "attention_scores: got 3 heads of the student and 4 of the teacher",
    ),
    "head counts of a saved student": (
        student_with(heads=2),
        "got 2 heads of the student and 4 of the teacher, want equal head counts",
    ),
    "classes": (student_with(num_labels=2), "head with 2 labels and a teacher .*want .* as many labels"),
    "classes of a file": (
        lambda p: write_tsv(p / "train.tsv", [("good", "a"), ("bad", "b")]),
        r"column 'label' has 2 classes \(a, b\), the teacher 3",
    ),
    "depth": (lambda p: change(p, student__num_hidden_layers=3), "got 3 of the student and 4 of the teacher"),
    "widths": (
        lambda p: change(p, student__init="teacher"),
        "got hidden_size=12, want the teacher's hidden_size=16",
    ),
    "torn weights": (torn_weights, "line 2: .*teacher: its weights cannot be read"),
    "not text": (binary_data, r"train\.tsv.*cannot be read"),
    "no head": (teacher_without_head, "no trained weights for task 'sequence-classification'"),
    "wrong task": (
        lambda p: change(p, task="regression"),
        "task: got 'regression', want 'sequence-classification': the teacher's head does that",
    ),
    "bare encoder": (
        lambda p: change(p, task="none", data__label=None),
        "stage prediction: logits: got BertModel as student, want a classification",
    ),
    "labels without a head": (
        lambda p: change(p, task="none"),
        "logits: got BertModel as student, want a classification",
    ),
    "another task of the same class": (
        multi_label,
        "task: got 'sequence-classification', want 'multi-label-classification': the teacher's head does that",
    ),
    "a column for masked words": (masked_lm, "label: got 'label' for task 'masked-lm', want it left out"),
    "text instead of words": (
        token_classifier(words="good film", tags=["A", "B", "C"]),
        r"train\.jsonl: text: got .* labels for every token want a column of lists of words",
    ),
    "a tag instead of tags": (
        token_classifier(words=["good", "film"], tags="A"),
        "column 'tags' has 1 classes",
    ),
    "tags that do not fit": (
        token_classifier(words=["good", "film"], tags=["A", "B", "C"]),
        r"train\.jsonl: column 'tags', row 1: 3 labels for 2 words",
    ),
    "too long": (
        lambda p: change(p, data__max_length=500),
        "max_length: got 500, want at most the tokenizer's",
    ),
    "small packs": (
        lambda p: change(p, training__tokens_per_batch=5),
        "tokens_per_batch: got 5, want at least the .* tokens of a sequence in train",
    ),
    "output is a file": (lambda p: change(p, output_dir="train.tsv"), r"train\.tsv is a file"),
    "output is taken": (other_model_there, r"holds config\.json of something else"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_code_2_and_nothing_written(
    place: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    break_it, message = BAD[case]
    break_it(place)
    before = contents(place)
    assert distill(place) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bertxfer: error: ") and captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert contents(place) == before
    assert not any(path.is_dir() for path in (place / "out").rglob("*"))


def test_debug_shows_the_traceback(place: Path) -> None:
    with pytest.raises(ValueError, match="no column"):
        distill(place, "--data.text", "none", "--debug")
    with pytest.raises(ValueError, match="no column"):
        cli.main(["--debug", "distill", str(place / "recipe.yaml"), "--data.text", "none"])
