"""`bertxfer transfer`: what is blended is what Python blends, and the sweep keeps what its dev file likes best."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertxfer_fast import cli
from bertxfer_fast.cli.config.schema import load as load_recipe
from bertxfer_fast.cli.run.plan import make_plan
from bertxfer_fast.data import encode
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.evaluation.sweeps import sweep_curve
from bertxfer_fast.students import transfer_weights
from bertxfer_fast.training.sweep import sweep_weights

from ..folders import change, contents, distill, make_place, tiny_tokenizer
from ..tiny import tiny_bert
from .test_tasks import answers, likeness

NAMES = {"id2label": {0: "neg", 1: "neutral", 2: "pos"}, "label2id": {"neg": 0, "neutral": 1, "pos": 2}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A teacher of four layers beside students of two, of its widths and narrower, and labelled files."""
    make_place(tmp_path)
    models = {
        "teacher": tiny_bert(4, head="ForSequenceClassification", seed=1),
        "small": tiny_bert(2, head="ForSequenceClassification", seed=2, **NAMES),
        "narrow": tiny_bert(2, hidden=12, head="ForSequenceClassification", seed=2, **NAMES),
    }
    for name, model in models.items():
        with torch.no_grad():  # so that it says different things of different texts
            model.classifier.bias.zero_()
            model.classifier.weight.sub_(model.classifier.weight.mean(0)).mul_(5)
            model.bert.pooler.dense.weight.mul_(3)
        model.save_pretrained(tmp_path / name)
    return tmp_path


def transfer(place: Path, student: str, *words: str) -> int:
    paths = [str(place / "teacher"), str(place / student), "--output", str(place / "out")]
    return cli.main(["transfer", *paths, *words])


def load(folder: Path):
    return AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    ("student", "words", "options"),
    [
        ("small", [], {}),
        (
            "small",
            ["--beta", "0.25", "--layers", "last", "--no-head"],
            {"beta": 0.25, "layer_map": "last", "head": False},
        ),
        ("small", ["--layers=1:0", "--no-embeddings"], {"layer_map": [(1, 0)], "embeddings": False}),
        (
            "narrow",
            ["--layers", "0,3", "--width-rule", "svd", "--beta", "0.5"],
            {"layer_map": [0, 3], "width_rule": "svd", "beta": 0.5},
        ),
    ],
)
def test_what_is_written_is_what_python_blends(place, student, words, options, capsys):
    assert transfer(place, student, *words) == 0
    wanted = load(place / student)
    record = transfer_weights(load(place / "teacher"), wanted, **options)
    written = load(place / "out").state_dict()
    assert all(torch.equal(value, written[name]) for name, value in wanted.state_dict().items())
    told = json.loads((place / "out" / "transfer.json").read_text())
    assert told == json.loads(json.dumps(record.to_dict()))
    assert str(record) in capsys.readouterr().out
    assert len(AutoTokenizer.from_pretrained(place / "out")) == 50
    assert "from `teacher`" in (place / "out" / "README.md").read_text()


def test_a_head_that_the_teacher_was_not_saved_with_is_not_blended(place):
    """A bare encoder, or one with another head, has no classifier to give; its layers and pooler it has."""
    for head, pooler in (("Model", True), ("ForTokenClassification", False)):
        tiny_bert(4, head=head, seed=1, num_labels=3).save_pretrained(place / "teacher")
        assert transfer(place, "small", "--task", "sequence-classification") == 0
        was, now = load(place / "small").state_dict(), load(place / "out").state_dict()
        same = {name for name in was if torch.equal(was[name], now[name])}
        assert {"classifier.weight", "classifier.bias"} <= same
        assert ("bert.pooler.dense.weight" not in same) == pooler
        assert not any(".layer." in name and name.endswith("dense.weight") for name in same)
        shutil.rmtree(place / "out")


def test_the_sweep_keeps_the_best_on_the_dev_file(place, capsys):
    words = ["--sweep", "0,0.3,0.6,1", "--dev", str(place / "train.tsv"), "--text", "sentence"]
    assert transfer(place, "small", *words) == 0
    told = json.loads((place / "out" / "sweep.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    dev = encode(
        str(place / "train.tsv"), tokenizer, text="sentence", label="label", label2id=NAMES["label2id"]
    )
    values = []
    for row in told["rows"]:
        student = load(place / "small")
        transfer_weights(load(place / "teacher"), student, row["beta"])
        values.append(evaluate(student, dev)["accuracy"])
        assert row["accuracy at start"] == pytest.approx(values[-1])
    assert len(set(values)) > 1
    assert told["best"] == told["rows"][values.index(max(values))]
    assert evaluate(load(place / "out"), dev)["accuracy"] == pytest.approx(max(values))
    assert {"sweep.md", "sweep.png", "transfer.json", "README.md"} <= set(contents(place / "out"))
    assert "| accuracy at start |" in (place / "out" / "sweep.md").read_text()
    assert f"best: beta {told['best']['beta']:g}" in capsys.readouterr().out


def test_every_share_is_fine_tuned_alike(place):
    files = ["--dev", str(place / "dev.tsv"), "--train", str(place / "train.tsv"), "--text", "sentence"]
    words = ["--sweep", "1,0", "--steps", "3", "--learning-rate", "0.01", "--batch-size", "8", *files]
    assert transfer(place, "small", *words) == 0
    told = json.loads((place / "out" / "sweep.json").read_text())
    assert [sorted(row) for row in told["rows"]] == [["accuracy at start", "accuracy trained", "beta"]] * 2
    trained = [row["accuracy trained"] for row in told["rows"]]
    assert told["best"]["accuracy trained"] == max(trained)
    blended = load(place / "small")
    transfer_weights(load(place / "teacher"), blended, told["best"]["beta"])
    assert not torch.equal(load(place / "out").classifier.weight, blended.classifier.weight)


def test_in_python_nothing_given_is_changed_and_less_may_be_better(place):
    teacher = tiny_bert(2, head="ForSequenceClassification", num_labels=1, seed=1)
    student = tiny_bert(2, head="ForSequenceClassification", num_labels=1, seed=2)
    before = copy.deepcopy(student.state_dict())
    rows = [{"input_ids": [2, 7 + i, 3], "labels": i / 5} for i in range(6)]
    found = sweep_weights(teacher, student, [0.0, 0.5, 1.0], rows)
    assert found.metric == "mse"
    errors = [row["mse at start"] for row in found.rows]
    assert found.best["mse at start"] == min(errors) < max(errors)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    by_correlation = sweep_weights(teacher, student, [0.0, 1.0], rows, metric="pearson")
    values = [row["pearson at start"] for row in by_correlation.rows]
    assert by_correlation.best["pearson at start"] == max(values)
    with torch.no_grad():
        student.classifier.weight.zero_()  # equal predictions, which correlate with nothing
    undefined = sweep_weights(teacher, student, [0.0, 1.0], rows, metric="pearson")
    assert math.isnan(undefined.rows[0]["pearson at start"]) and undefined.best["beta"] == 1.0
    again = [
        sweep_weights(teacher, student, [0.5], rows, train=rows, steps=2, arguments={"learning_rate": 0.01})
        for _ in range(2)
    ]
    assert again[0].rows == again[1].rows
    assert again[0].rows[0]["mse trained"] != again[0].rows[0]["mse at start"]
    with pytest.raises(ValueError, match="metric: got 'f1', want one that is measured here: mse, pearson"):
        sweep_weights(teacher, student, [0.5], rows, metric="f1")
    with pytest.raises(ValueError, match="steps: got 2 without training data"):
        sweep_weights(teacher, student, [0.5], rows, steps=2)


@pytest.mark.parametrize(
    ("row", "head", "words", "metric"),
    [
        (answers, "ForQuestionAnswering", ["--train", "rows.jsonl", "--steps", "2"], "exact_match"),
        (likeness, "Model", ["--task", "embedding"], "spearman"),
    ],
)
def test_labels_of_a_sweep_need_no_names(tmp_path, row, head, words, metric, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer(tmp_path / "teacher")
    for name, layers in (("teacher", 4), ("small", 2)):
        tiny_bert(layers, head=head, num_labels=2, seed=layers).save_pretrained(tmp_path / name)
    draw = random.Random(0)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row(draw)) + "\n" for _ in range(12)))
    columns = ["--text", "a", "--text-pair", "b", "--label", "y", "--max-length", "40"]
    assert transfer(tmp_path, "small", "--sweep", "0,1", "--dev", "rows.jsonl", *columns, *words) == 0
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["metric"] == metric


def test_a_sweep_of_files_with_empty_rows(place, capsys):
    (place / "dev.tsv").write_text("sentence\tlabel\ngood film\tpos\n\tneg\nbad\tneg\n")
    words = ["--sweep", "0,1", "--dev", str(place / "dev.tsv"), "--text", "sentence"]
    assert transfer(place, "small", *words) == 2
    assert "no 'sentence' in row 2, want complete rows, or one of skip, keep" in capsys.readouterr().err
    assert transfer(place, "small", *words, "--empty-rows", "skip") == 0


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_a_sweep_wants_labels_of_the_data(place, head, capsys):
    for name, layers in (("teacher", 4), ("small", 2)):
        tiny_bert(layers, head=head).save_pretrained(place / name)
    assert transfer(place, "small", "--sweep", "0,1", "--dev", str(place / "dev.tsv")) == 2
    assert "want one whose data has a column of labels to measure by" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_a_teacher_with_another_head_names_no_labels(place):
    tags = ["B-X", "I-X", "O"]
    names = {"id2label": dict(enumerate(tags)), "label2id": {tag: i for i, tag in enumerate(tags)}}
    tiny_bert(4, head="ForTokenClassification", **names).save_pretrained(place / "teacher")
    words = ["--sweep", "0,1", "--dev", str(place / "dev.tsv"), "--text", "sentence"]
    assert transfer(place, "small", *words) == 0
    assert load(place / "out").config.label2id == NAMES["label2id"]


@pytest.mark.parametrize(
    ("student", "words", "message"),
    [
        ("small", ["--beta", "2"], "--beta: got 2, want 0 to 1"),
        ("small", ["--beta", "0.5", "--sweep", "0,1", "--dev", "dev.tsv"], "--beta: got 0.5 beside --sweep"),
        ("small", ["--sweep", "0,1"], "--sweep: got no --dev file"),
        ("small", ["--sweep", "0,x", "--dev", "dev.tsv"], "--sweep: got '0,x', want numbers with commas"),
        ("small", ["--sweep", "0,0", "--dev", "dev.tsv"], "want shares from 0 to 1, none twice"),
        ("small", ["--sweep", "0,1", "--dev", "dev.tsv", "--steps", "2"], "--steps: got 2 without --train"),
        ("small", ["--dev", "dev.tsv"], "--dev: got 'dev.tsv' without --sweep"),
        ("small", ["--steps", "100"], "--steps: got 100 without --sweep, want both"),
        ("small", ["--max-length", "0"], "--max-length: got 0 without --sweep, want both"),
        (
            "small",
            ["--sweep", "0,1", "--dev", "dev.tsv", "--text", "sentence", "--max-length", "0"],
            "--dev: dev.tsv: max_length: got 0, want more than the 2 special tokens",
        ),
        (
            "small",
            ["--sweep", "0,1", "--dev", "dev.tsv", "--train", "train.tsv"],
            "--train: got 'train.tsv' without --steps, want both",
        ),
        (
            "small",
            ["--sweep", "0,1", "--dev", "dev.tsv", "--learning-rate", "0.1"],
            "--learning-rate: got 0.1 without --steps, want both",
        ),
        ("small", ["--sweep", "0,1", "--dev", "dev.tsv", "--steps=-1"], "--steps: got -1, want 0 or more"),
        ("small", ["--sweep", "0,1", "--dev", "none.tsv"], "--dev: no such file: none.tsv"),
        ("small", ["--sweep", "0,1", "--dev", "dev.tsv"], "--dev: dev.tsv: no column 'text'"),
        ("small", ["--layers", "1,x"], "--layers: got '1,x', want layers with commas"),
        ("small", ["--layers", "1,4"], "layer_map: got teacher layer 4"),
        ("small", ["--task", "sentiment"], "error: task: got 'sentiment', want one of"),
        ("narrow", [], "width_rule: got 'error' for hidden_size=12 and 16 of the teacher"),
        ("nowhere", [], "error: STUDENT: no such directory"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(place, student, words, message, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = contents(place)
    assert cli.main(["transfer", "teacher", student, "--output", "out", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(place) == before and not (place / "out").exists()


def test_a_place_with_something_in_it_is_refused(place, capsys):
    assert (
        cli.main(["transfer", *[str(place / name) for name in ("teacher", "small")], "--output", str(place)])
        == 2
    )
    assert "want a new directory: there is something" in capsys.readouterr().err


def test_a_sweep_of_nothing_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="rows: got"):
        sweep_curve([], tmp_path / "x.png")
    drawn = sweep_curve([{"beta": 1, "f1": 0.5}, {"beta": 0, "f1": 0.1}], tmp_path / "x.png", best=1)
    assert drawn.read_bytes().startswith(b"\x89PNG")


# ---- a recipe's student -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "options"),
    [
        (
            {"path": "small", "init": "blend", "beta": 0.25, "layers": [2, 3]},
            {"beta": 0.25, "layer_map": [2, 3]},
        ),
        ({"path": "narrow", "init": "blend", "width_rule": "svd"}, {"beta": 0.5, "width_rule": "svd"}),
    ],
)
def test_a_recipe_starts_from_a_blend(place, student, options, capsys):
    change(place, student=student)
    config = load_recipe(place / "recipe.yaml")
    plan = make_plan(config)
    wanted = load(place / student["path"])
    record = transfer_weights(load(place / "teacher"), wanted, **options)
    assert all(
        torch.equal(value, wanted.state_dict()[name]) for name, value in plan.student.state_dict().items()
    )
    assert f"student: {record}" in capsys.readouterr().out


def test_a_new_student_may_be_blended_with_its_random_start(place):
    sizes = {"num_hidden_layers": 2, "hidden_size": 12, "width_rule": "truncate"}
    change(place, student={**sizes, "init": "blend", "beta": 1.0})
    whole = make_plan(load_recipe(place / "recipe.yaml")).student.state_dict()
    change(place, student={**sizes, "init": "blend", "beta": 0.0})
    nothing = make_plan(load_recipe(place / "recipe.yaml")).student.state_dict()
    change(place, student={**sizes, "init": "blend"})
    half = make_plan(load_recipe(place / "recipe.yaml")).student.state_dict()
    for name, value in half.items():
        torch.testing.assert_close(value, (whole[name] + nothing[name]) / 2)
    table = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(whole[table], load(place / "teacher").state_dict()[table][:, :12])


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"num_hidden_layers": 2, "beta": 0.5}, "beta: got it without init: blend, want both"),
        ({"num_hidden_layers": 2, "init": "blend", "beta": 2}, "beta: got 2.0, want 0 to 1"),
        (
            {"num_hidden_layers": 2, "hidden_size": 12, "init": "blend"},
            "width_rule: got 'error' for hidden_size=12",
        ),
        (
            {"path": "small", "init": "blend", "hidden_size": 12},
            "student is a directory; hidden_size cannot be set",
        ),
        ({"path": "small", "init": "teacher"}, "student is a directory; init cannot be set"),
    ],
)
def test_a_blend_that_cannot_be_is_one_line(place, student, message, capsys):
    change(place, student=student)
    assert distill(place) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
