"""The command from end to end on tiny models: a whole run, a restart, and every kind of bad input."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertxfer_fast import cli, recipes
from bertxfer_fast.features import FeatureExtractor
from bertxfer_fast.objectives import HiddenStates, Labels, Logits

from .test_features import WORDS, tiny_tokenizer
from .tiny import tiny_bert


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(WORDS[:30]) for _ in range(draw.randint(2, 9))]
        rows.append((" ".join(words), draw.choice(["neg", "neutral", "pos"])))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a teacher (4 layers), its tokenizer, three files, and recipe.yaml."""
    tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=1).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer(tmp_path / "teacher")
    write_tsv(tmp_path / "train.tsv", sentences(24, 0))
    write_tsv(tmp_path / "dev.tsv", sentences(8, 1))
    write_tsv(tmp_path / "test.tsv", sentences(10, 2))
    recipe: dict[str, Any] = {
        "recipe": "tinybert",
        "teacher": "teacher",
        "student": {"num_hidden_layers": 2, "hidden_size": 12, "init": "random"},
        "data": {
            "train": "train.tsv",
            "eval": "dev.tsv",
            "test": "test.tsv",
            "text": "sentence",
            "label": "label",
            "max_length": 16,
        },
        "output_dir": "out",
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": "1e-3"},
        "stages": {"prediction": {"num_train_epochs": 1}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def change(place: Path, **changes: Any) -> None:
    """Set keys (section__key) of the recipe."""
    path = place / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section = recipe
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))


def distill(place: Path, *flags: str) -> int:
    return cli.main(["distill", str(place / "recipe.yaml"), *flags])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- distill ------------------------------------------------------------------------------------------------


def test_distill_leaves_student_card_curves_and_table(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distill(place) == 0
    out = place / "out"
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    assert {"losses.png", "summary.md", "run.json"} <= names
    assert {"tokenizer.json", "intermediate", "prediction"} <= names

    student = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 12)
    assert student.config.id2label == {0: "neg", 1: "neutral", 2: "pos"}
    rows = sentences(10, 2)
    right = 0
    for text, label in rows:
        with torch.no_grad():
            logits = student(**tokenizer(text, truncation=True, max_length=16, return_tensors="pt")).logits
        right += student.config.id2label[int(logits.argmax())] == label
    table = (out / "summary.md").read_text()
    card = (out / "README.md").read_text()
    shown = next(line for line in table.splitlines() if line.startswith("| student"))
    assert float(shown.split("|")[2]) == pytest.approx(right / 10)
    assert shown in card and "| teacher" in card and "test: 10 sequences" in card
    assert str(place) not in card

    # Stages ran in order and handed the student on.
    first = json.loads((out / "intermediate" / "stage.json").read_text())
    assert first["summary"]["steps"] == 6 and "dev accuracy" in first["summary"]
    logged = {key for entry in first["log_history"] for key in entry}
    assert {"loss/attention_scores", "loss/hidden_states", "eval_loss/hidden_states"} <= logged
    last = AutoModelForSequenceClassification.from_pretrained(out / "prediction").state_dict()
    assert all(torch.equal(value, last[name]) for name, value in student.state_dict().items())
    told = capsys.readouterr().out
    assert "stage intermediate: starts" in told and "24 train, 8 eval, 10 test" in told

    # Again: nothing is trained, the result stays.
    before = contents(out / "prediction")
    assert distill(place) == 0
    assert "stage prediction: finished before, skipped" in capsys.readouterr().out
    assert contents(out / "prediction") == before
    again = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in student.state_dict().items())


def test_interrupted_run_goes_on_and_ends_the_same(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(place, stages__prediction__num_train_epochs=2)
    assert distill(place, "--output_dir", str(place / "straight")) == 0
    original, calls = Logits.forward, {"n": 0}

    def interrupt(self: Any, *args: Any) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] == 5:  # in the second epoch of the second stage (evaluation takes one call)
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Logits, "forward", interrupt)
    assert distill(place) == 130
    assert "same command" in capsys.readouterr().err
    assert not (place / "out" / "config.json").exists()
    monkeypatch.setattr(Logits, "forward", original)
    assert distill(place) == 0
    told = capsys.readouterr().out
    assert "stage intermediate: finished before, skipped" in told
    assert "stage prediction: goes on from checkpoint-3" in told
    for name in ("model.safetensors", "prediction/model.safetensors"):
        assert (place / "out" / name).read_bytes() == (place / "straight" / name).read_bytes()


def test_other_settings_do_not_mix_with_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(place, data={"train": "train.tsv", "text": "sentence"}, training__max_steps=1)
    assert distill(place) == 0
    before = contents(place / "out")
    assert distill(place, "--seed", "3", "--training.learning_rate", "0.5") == 2
    error = capsys.readouterr().err
    assert "seed, training.learning_rate" in error and "another output_dir" in error
    assert contents(place / "out") == before
    assert distill(place, "--training.dataloader_num_workers", "0") == 0
    # The same settings over other content: a finished stage would be taken for one of this data.
    write_tsv(place / "train.tsv", sentences(24, 9))
    assert distill(place) == 2
    assert "differs (content of.train)" in capsys.readouterr().err


def test_unlabelled_data(place: Path) -> None:
    """Distilling needs no labels; then only sizes and speed can be told."""
    change(place, data={"train": "train.tsv", "test": "test.tsv", "text": "sentence"})
    assert distill(place, "--stages.prediction.max_steps", "1", "--training.max_steps", "1") == 0
    table = (place / "out" / "summary.md").read_text()
    assert "accuracy" not in table and "sentences/s" in table


def test_dev_set_picks_only_when_asked(place: Path) -> None:
    change(
        place,
        training__load_best_model_at_end=True,
        training__metric_for_best_model="loss/logits",
        training__greater_is_better=True,
        training__num_train_epochs=3,
    )
    change(place, stages={"intermediate": {"load_best_model_at_end": False, "metric_for_best_model": None}})
    change(place, stages__intermediate__max_steps=1, training__learning_rate=0.01)
    assert distill(place) == 0
    states = sorted((place / "out" / "prediction").glob("checkpoint-*/trainer_state.json"))
    best = json.loads(states[-1].read_text())["best_model_checkpoint"]
    chosen = AutoModelForSequenceClassification.from_pretrained(best).state_dict()
    final = AutoModelForSequenceClassification.from_pretrained(place / "out").state_dict()
    assert all(torch.equal(value, final[name]) for name, value in chosen.items())


def test_regression(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> recipes.Recipe:
        stage = recipes.Stage("values", lambda: [Logits(kind="mse"), Labels()], {"max_steps": 2})
        return recipes.Recipe("values", [stage])

    monkeypatch.setitem(recipes._BUILDERS, "values", build)
    one_logit(place)
    change(place, recipe="values", stages={}, training={})
    assert distill(place) == 0
    row = json.loads((place / "out" / "values" / "stage.json").read_text())["summary"]
    assert row["steps"] == 2 and row["dev mse"] >= 0 and "dev accuracy" not in row
    heading = (place / "out" / "summary.md").read_text().split("## Measured")[1]
    assert "mse" in heading and "accuracy" not in heading
    student = AutoModelForSequenceClassification.from_pretrained(place / "out")
    assert student.config.num_labels == 1 and student.config.id2label == {0: "LABEL_0"}


def test_nan_stops_with_one_line_and_keeps_the_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = HiddenStates.forward, {"n": 0}

    def forward(self: Any, *args: Any) -> torch.Tensor:
        calls["n"] += 1
        # An epoch is 3 steps and 1 evaluation of 3 pairs each: NaN in the second epoch.
        return original(self, *args) * (float("nan") if calls["n"] > 14 else 1.0)

    monkeypatch.setattr(HiddenStates, "forward", forward)
    assert distill(place) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "hidden_states is nan" in error and "checkpoint-3" in error
    AutoModelForSequenceClassification.from_pretrained(place / "out" / "intermediate" / "checkpoint-3")


# ---- bad input ----------------------------------------------------------------------------------------------


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


def one_logit(place: Path) -> None:
    tiny_bert(4, 16, 4, head="ForSequenceClassification", num_labels=1).save_pretrained(place / "teacher")
    for name in ("train", "dev", "test"):
        write_tsv(place / f"{name}.tsv", [("good film", "0.5"), ("bad film", "-1")])
    change(place, task="regression")


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


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown key": (lambda p: change(p, techer="x"), "unknown key 'techer'; did you mean 'teacher'"),
    "unknown recipe": (
        lambda p: change(p, recipe="tinybrt"),
        "unknown recipe 'tinybrt'; did you mean 'tinybert'",
    ),
    "unknown option": (lambda p: change(p, options__temprature=2), "did you mean 'temperature'"),
    "bad option": (lambda p: change(p, options__temperature=-1), "temperature: wants a positive number"),
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
        "stage intermediate: eval_strategy is 'epoch' but data.eval is missing",
    ),
    "unmeasured metric": (
        lambda p: change(p, training__load_best_model_at_end=True, training__metric_for_best_model="f1"),
        "metric_for_best_model: 'f1' is not measured here; known: loss, loss/attention_scores",
    ),
    "no teacher": (lambda p: change(p, teacher="techer"), r"line 2: teacher: no such directory"),
    "not a model": (lambda p: change(p, teacher="."), "not a transformers model"),
    "no file": (lambda p: change(p, data__test="tst.tsv"), r"\(section data\): no such file: .*tst\.tsv"),
    "missing column": (
        lambda p: change(p, data__text="sentense"),
        "no column 'sentense'; nearest is 'sentence'",
    ),
    "missing label column": (
        lambda p: change(p, data__label="lable"),
        "no column 'lable'; nearest is 'label'",
    ),
    "empty data": (no_rows, r"train\.tsv.*no rows"),
    "missing text": (missing_text, "no 'sentence' in row 2"),
    "unknown label": (unknown_label, r"dev\.tsv: column 'label', row 1: 'meh' is not in label2id"),
    "other tokenizer": (
        other_tokenizer,
        "wants the teacher's vocabulary.*'and' is|wants the teacher's vocabulary",
    ),
    "same tokens, other cutting": (other_case, "cuts text differently"),
    "other vocabulary": (student_with(vocab=60), "got vocab_size 60 for the student and 50 for the teacher"),
    "head counts": (
        lambda p: change(p, student__num_attention_heads=3),
        "attention_scores.*equal head counts, got student 3 and teacher 4",
    ),
    "head counts of a saved student": (
        student_with(heads=2),
        "equal head counts, got student 2 and teacher 4",
    ),
    "classes": (student_with(num_labels=2), "as many labels, got student .* 2 and teacher"),
    "classes of a file": (
        lambda p: write_tsv(p / "train.tsv", [("good", "a"), ("bad", "b")]),
        r"column 'label' has 2 classes \(a, b\), the teacher 3",
    ),
    "depth": (lambda p: change(p, student__num_hidden_layers=3), "multiple of the student's, got 4 and 3"),
    "widths": (lambda p: change(p, student__init="teacher"), "hidden_size=12 .teacher: 16."),
    "one logit": (one_logit, "stage prediction: logits: kind 'soft_ce' of one logit is constant"),
    "torn weights": (torn_weights, "line 2: .*teacher: its weights cannot be read"),
    "not text": (binary_data, r"train\.tsv.*cannot be read"),
    "no head": (teacher_without_head, "no trained weights for task 'sequence-classification'"),
    "wrong task": (
        lambda p: change(p, task="regression"),
        "the teacher's head does 'sequence-classification'",
    ),
    "bare encoder": (
        lambda p: change(p, task="none", data__label=None),
        "stage prediction: logits: wants a student with a classification",
    ),
    "too long": (lambda p: change(p, data__max_length=500), "max_length=500 is beyond the tokenizer's"),
    "small packs": (
        lambda p: change(p, training__tokens_per_batch=5),
        "tokens_per_batch is 5, train has a sequence",
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


# ---- extract and info ---------------------------------------------------------------------------------------


def test_extract(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", str(place / "teacher"), "--input", str(place / "test.tsv"), "--text", "sentence"]
    output = place / "features.npy"
    assert cli.main([*words, "--output", str(output), "--layers=-2,-1", "--mode", "cls"]) == 0
    assert "10 x 16" in capsys.readouterr().out
    expected = FeatureExtractor(place / "teacher", layers=(-2, -1), mode="cls", device="cpu")
    texts = [text for text, _ in sentences(10, 2)]
    np.testing.assert_allclose(np.load(output), expected.extract(texts).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--output": "x.txt"}, "wants a name ending in"),
        ({"--output": "nowhere/x.npy"}, "no such directory"),
        ({"--layers": "last"}, "--layers: wants whole numbers"),
        ({"--layers": "9"}, "hidden states 0..4, got 9"),
        ({"--mode": "median"}, "mode: wants one of"),
        ({"--text": "sentense"}, "nearest is 'sentence'"),
        ({"--input": "none.tsv"}, "no file"),
    ],
)
def test_extract_bad_input(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    options = {"--input": "test.tsv", "--text": "sentence", "--output": "x.npy", **changes}
    before = contents(place)
    assert cli.main(["extract", "teacher", *(f"{key}={value}" for key, value in options.items())]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert contents(place) == before


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    chosen = facts["ops"]["attention_score_mse"]["cpu"]
    assert chosen["implementation"] in ("cpp", "eager") and chosen["reasons"]
    assert "cpu" in facts["devices"]
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "attention_score_mse on cpu: " in text and "torch: " in text


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "distill" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["distill", "recipe.yaml", "--help"])
    assert end.value.code == 0
    assert "--data.train" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["destill"])
    assert end.value.code == 2
