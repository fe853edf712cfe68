"""A recipe whose student has a tokenizer of its own: what each reads, what is saved, measured and gone on with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertxfer_fast import cli, data, students
from bertxfer_fast.cli.config import schema
from bertxfer_fast.cli.run import plan
from bertxfer_fast.distillation.teachers import OtherTokens
from bertxfer_fast.evaluation import evaluate

from ..folders import BYTE_VOCAB, WORDS, byte_tokenizer, change, distill, make_place, tiny_tokenizer
from ..tiny import tiny_bert
from .test_teachers import counted

LABELS = {"neg": 0, "neutral": 1, "pos": 2}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_place(tmp_path)
    byte_tokenizer(tmp_path / "bytes")
    change(
        tmp_path,
        recipe="logits",
        student={"kind": "bilstm", "hidden_size": 8, "tokenizer": "bytes"},
        stages={},
        training__num_train_epochs=1,
    )
    return tmp_path


def rows(place: Path, tokenizer: Any, name: str = "test.tsv") -> Any:
    settings = {"text": "sentence", "label": "label", "label2id": LABELS, "max_length": 16}
    return data.encode(place / name, tokenizer, **settings)


def test_each_is_trained_saved_and_measured_with_its_own_tokens(place: Path) -> None:
    assert distill(place) == 0
    student = students.load(place / "out")
    own = AutoTokenizer.from_pretrained(place / "out")
    assert student.config.vocab_size == len(own) == BYTE_VOCAB
    assert (
        own("a good film")["input_ids"]
        == AutoTokenizer.from_pretrained(place / "bytes")("a good film")["input_ids"]
    )
    teacher = AutoModelForSequenceClassification.from_pretrained(place / "teacher")
    found = {
        model["model"]: model for model in json.loads((place / "out" / "results.json").read_text())["models"]
    }
    theirs = AutoTokenizer.from_pretrained(place / "teacher")
    for name, model, tokenizer in (("teacher", teacher, theirs), ("student", student, own)):
        measured = evaluate(model, rows(place, tokenizer))
        shown = {key: value["value"] for key, value in found[name]["metrics"].items()}
        assert shown == pytest.approx(measured, abs=1e-6)
    assert "- tokenizer: bytes\n" in (place / "out" / "README.md").read_text()
    assert cli.main(["extract", str(place / "out"), "--input", str(place / "dev.tsv"), "--text", "sentence",
                     "--output", str(place / "features.npy")]) == 0  # fmt: skip


def planned(place: Path, *flags: str) -> plan.Plan:
    return plan.make_plan(schema.load(place / "recipe.yaml", flags))


@pytest.mark.parametrize("student", [{"kind": "bilstm", "hidden_size": 8}, {"num_hidden_layers": 2}])
def test_it_starts_from_the_teachers_rows_of_the_same_words(place: Path, student: dict[str, Any]) -> None:
    change(place, student={**student, "tokenizer": "bytes"})
    made = planned(place)
    table = made.student.get_input_embeddings().weight
    torch.manual_seed(made.config.seed)
    size = table.shape[1]
    inherited = students.inherited_table(made.teacher, made.tokenizer, made.teacher_tokenizer, size)
    film = made.tokenizer.get_vocab()["Ġfilm"]
    assert torch.equal(table[film], inherited[film]) and len(table) == BYTE_VOCAB


def test_a_flag_names_the_tokenizer_of_a_saved_student(place: Path) -> None:
    """Beside a directory, in a section or not; another directory does not inherit it."""
    tiny_bert(2, 12, 4, head="ForSequenceClassification", vocab=BYTE_VOCAB).save_pretrained(place / "small")
    change(place, student="small")
    flags = ["--student.tokenizer", str(place / "bytes")]
    config = schema.load(place / "recipe.yaml", flags)
    assert (config.student.path, config.student.tokenizer) == (str(place / "small"), str(place / "bytes"))
    assert distill(place, *flags, "--training.max_steps", "1") == 0
    change(place, student={"path": "small", "tokenizer": "bytes"})
    config = schema.load(place / "recipe.yaml", ["--student", str(place / "teacher")])
    assert (config.student.path, config.student.tokenizer) == (str(place / "teacher"), None)


@pytest.mark.parametrize("aligned", [True, False])
def test_texts_are_aligned_where_single_tokens_are_matched(place: Path, aligned: bool) -> None:
    """`distilbert` matches hidden states of the last layer; `embedding` means them."""
    tiny_bert(2, 16, 4, head="ForSequenceClassification", vocab=BYTE_VOCAB, seed=3).save_pretrained(
        place / "small"
    )
    options = {"logits": "whole"} if aligned else {}
    recipe = "distilbert" if aligned else "embedding"
    change(place, recipe=recipe, options=options, student={"path": "small", "tokenizer": "bytes"})
    made = planned(place)
    [stage] = made.recipe.stages
    source = made.distiller(stage).source
    assert isinstance(source, OtherTokens) and source.aligned == aligned
    assert ("teacher_spans" in made.data["train"].column_names) == aligned
    change(place, report={"twin": True, "resamples": 10})
    assert distill(place) == 0
    page = (place / "out" / "report.html").read_text()
    assert "Teacher and student read other tokens." in page
    before = (place / "out" / "model.safetensors").read_bytes()
    assert distill(place) == 0  # goes on with what is finished
    assert (place / "out" / "model.safetensors").read_bytes() == before


def test_words_are_tagged_by_both(place: Path) -> None:
    """Labels stand at the first token of each word, each model's own; soft labels of every token are aligned."""
    draw = random.Random(0)
    texts = [[draw.choice([*WORDS[:30], "films"]) for _ in range(draw.randint(1, 9))] for _ in range(24)]
    tagged = [{"words": words, "tags": [("O", "B", "I")[len(word) % 3] for word in words]} for words in texts]
    (place / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in tagged))
    (place / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in tagged[:9]))
    teacher = tiny_bert(4, 16, 4, head="ForTokenClassification", seed=1)
    teacher.config.update({"label2id": {"B": 0, "I": 1, "O": 2}, "id2label": {0: "B", 1: "I", 2: "O"}})
    teacher.save_pretrained(place / "teacher")
    files = {"train": "train.jsonl", "test": "test.jsonl", "text": "words", "label": "tags"}
    change(place, task="token-classification", data=files, options={"labels_weight": 1.0})
    made = planned(place)
    for features in (made.data["test"], made.teacher_data["test"]):
        assert [sum(label >= 0 for label in row["labels"]) for row in features] == list(map(len, texts[:9]))
    for row in made.data["test"]:
        spans = row["teacher_spans"]
        assert spans[0] == [0, 1] and all(first < last for first, last in spans)
    assert distill(place) == 0
    found = json.loads((place / "out" / "results.json").read_text())["models"]
    values = {model["model"]: model["metrics"]["token_accuracy"]["value"] for model in found}
    theirs = AutoTokenizer.from_pretrained(place / "teacher")
    settings = {
        "text": "words",
        "label": "tags",
        "label2id": {"B": 0, "I": 1, "O": 2},
        "task": "token-classification",
    }
    encoded = data.encode(place / "test.jsonl", theirs, **settings)
    assert values["teacher"] == pytest.approx(evaluate(teacher, encoded)["token_accuracy"], abs=1e-6)


def test_what_a_teacher_says_of_its_tokens_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_bert(2, 16, 4, head="ForSequenceClassification", vocab=BYTE_VOCAB, seed=3).save_pretrained(
        place / "small"
    )
    change(
        place,
        recipe="distilbert",
        options={"logits": "whole"},
        student={"path": "small", "tokenizer": "bytes"},
    )
    change(place, training__num_train_epochs=2)
    assert distill(place) == 0
    change(place, store="store", output_dir="kept")
    ran = counted(monkeypatch)
    assert distill(place) == 0
    assert 0 < sum(ran) <= 24 + 8 + 10  # once each, and measured at the end
    one, other = (load_file(place / name / "model.safetensors") for name in ("out", "kept"))
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert cli.main(["store", str(place / "recipe.yaml")]) == 0
    assert "0 of 32 texts asked" in capsys.readouterr().out
    kept, theirs = (AutoTokenizer.from_pretrained(place / name).get_vocab() for name in ("store", "teacher"))
    assert kept == theirs


def test_a_tokenizer_that_changed_in_place_is_noticed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(place) == 0
    tiny_tokenizer(place / "bytes")
    assert distill(place) == 2
    assert "holds a run that differs (content of.student.tokenizer)" in capsys.readouterr().err


def test_each_is_cut_at_what_its_own_model_takes(place: Path) -> None:
    """Without data.max_length; a teacher with few positions does not shorten the student's texts."""
    long = " ".join(["film"] * 30)
    for name in ("train", "dev", "test"):
        (place / f"{name}.tsv").write_text(f"sentence\tlabel\n{long}\tpos\nbad\tneg\nbad\tneutral\n")
    tiny_bert(4, 16, 4, head="ForSequenceClassification", max_positions=12).save_pretrained(place / "teacher")
    change(place, data__max_length=None)
    made = planned(place)
    longest = [int(data.sequence_lengths(read["train"]).max()) for read in (made.data, made.teacher_data)]
    assert longest == [32, 12]
