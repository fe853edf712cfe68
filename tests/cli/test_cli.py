"""The command from end to end on tiny models: whole runs, a restart, features, and what it tells."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from bertxfer_fast import cli
from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.objectives import HiddenStates, Labels, Logits
from bertxfer_fast.features import FeatureExtractor

from ..folders import (
    WORDS,
    change,
    contents,
    distill,
    make_place,
    one_logit,
    sentences,
    write_tsv,
)
from ..tiny import tiny_bert


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


# ---- distill ------------------------------------------------------------------------------------------------


def test_curves_are_told_of_where_they_were_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for strategy, told in (("steps", "README.md, losses.png, summary.md,"), ("no", "README.md, summary.md,")):
        change(
            place, training__max_steps=1, training__logging_strategy=strategy, output_dir=f"out {strategy}"
        )
        change(place, training__logging_steps=1)
        assert distill(place) == 0
        assert told in capsys.readouterr().out
        assert (place / f"out {strategy}" / "losses.png").is_file() == (strategy == "steps")


def test_numbers_are_ids_where_the_training_file_lacks_a_class(place: Path) -> None:
    for name, numbers in (("train", "0020"), ("dev", "012"), ("test", "210")):
        write_tsv(place / f"{name}.tsv", [("good film", number) for number in numbers])
    change(place, training__max_steps=1)
    assert distill(place) == 0
    student = AutoModelForSequenceClassification.from_pretrained(place / "out")
    assert student.config.id2label == {0: "0", 1: "1", 2: "2"}
    results = json.loads((place / "out" / "results.json").read_text())
    assert [row["support"] for row in results["models"][0]["classes"]] == [1, 1, 1]


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
        # In the second epoch of the second stage; the trial before the run and the evaluation take a call each.
        if calls["n"] == 6:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Logits, "forward", interrupt)
    assert distill(place) == 130
    assert "same command" in capsys.readouterr().err
    assert not (place / "out" / "config.json").exists()
    monkeypatch.setattr(Logits, "forward", original)
    saved = place / "out" / "prediction" / "checkpoint-3" / "trainer_state.json"
    state = json.loads(saved.read_text())
    assert state["stateful_callbacks"]["Elapsed"]["args"]["before"] > 0
    state["stateful_callbacks"]["Elapsed"]["args"]["before"] = 1e6
    saved.write_text(json.dumps(state))
    assert distill(place) == 0
    told = capsys.readouterr().out
    stage = json.loads((place / "out" / "prediction" / "stage.json").read_text())["summary"]
    assert stage["steps"] == 6 and stage["seconds"] > 1e6  # both of the whole stage
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

    monkeypatch.setitem(recipes.base._registry._entries, "values", build)
    one_logit(place)
    change(place, recipe="values", stages={}, training={})
    assert distill(place) == 0
    row = json.loads((place / "out" / "values" / "stage.json").read_text())["summary"]
    assert row["steps"] == 2 and row["dev mse"] >= 0 and "dev accuracy" not in row
    heading = (place / "out" / "summary.md").read_text().split("## Measured")[1]
    assert "mse" in heading and "accuracy" not in heading
    student = AutoModelForSequenceClassification.from_pretrained(place / "out")
    assert student.config.num_labels == 1 and student.config.id2label == {0: "LABEL_0"}


def tagged(count: int, seed: int) -> list[dict[str, Any]]:
    """Words with a tag each; "films" is two tokens."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice([*WORDS[:30], "films"]) for _ in range(draw.randint(1, 9))]
        rows.append({"words": words, "tags": [("O", "B-FILM", "I-FILM")[len(word) % 3] for word in words]})
    return rows


@pytest.mark.parametrize("named", [True, False])
def test_token_classification(place: Path, named: bool) -> None:
    """Lists of words with a tag each, from jsonl and parquet; tags named by the teacher, or found in the file."""
    tags = {"B-FILM": 0, "I-FILM": 1, "O": 2}
    names = {"label2id": tags, "id2label": {i: tag for tag, i in tags.items()}} if named else {}
    teacher = tiny_bert(4, 16, 4, head="ForTokenClassification", seed=1)
    teacher.config.update(names)
    teacher.save_pretrained(place / "teacher")
    (place / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in tagged(24, 0)))
    Dataset.from_list(tagged(10, 1)).to_parquet(place / "test.parquet")
    change(
        place,
        task="token-classification",
        data={"train": "train.jsonl", "test": "test.parquet", "text": "words", "label": "tags"},
        training={"max_steps": 2},
        stages={},
    )
    assert distill(place) == 0
    student = AutoModelForTokenClassification.from_pretrained(place / "out")
    assert student.config.label2id == tags
    tokenizer = AutoTokenizer.from_pretrained(place / "out")
    right = []
    for row in tagged(10, 1):
        encoded = tokenizer(row["words"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            predicted = student(**encoded).logits[0].argmax(-1).tolist()
        first = [encoded.word_ids().index(i) for i in range(len(row["words"]))]
        assert encoded["input_ids"].shape[1] == len(first) + row["words"].count("films") + 2
        right += [predicted[i] == tags[tag] for i, tag in zip(first, row["tags"], strict=True)]
    shown = next(
        line for line in (place / "out" / "summary.md").read_text().splitlines() if "| student" in line
    )
    assert any("films" in row["words"] for row in tagged(10, 1)) and 0 < sum(right) < len(right)
    assert float(shown.split("|")[2]) == pytest.approx(sum(right) / len(right), abs=1e-4)
    assert "token_accuracy" in (place / "out" / "README.md").read_text()


def test_multi_label_classification(place: Path) -> None:
    """The task is the teacher's own; a list of labels a text, none of them, or all."""
    teacher = tiny_bert(
        4, 16, 4, head="ForSequenceClassification", seed=1, problem_type="multi_label_classification"
    )
    teacher.save_pretrained(place / "teacher")
    for name in ("train", "test"):
        rows = [
            {"sentence": text, "label": ["neg", "neutral", "pos"][: len(text) % 4]}
            for text, _ in sentences(12, 0)
        ]
        (place / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"train": "train.jsonl", "test": "test.jsonl", "text": "sentence", "label": "label"}
    change(place, data=data, training={"max_steps": 1}, stages={})
    assert distill(place) == 0
    card = (place / "out" / "README.md").read_text()
    assert "Task: multi-label-classification." in card and "| model   | accuracy |" in card


def test_masked_lm(place: Path) -> None:
    """The task is the teacher's own: its logits of every token are distilled, and no column holds labels."""
    tiny_bert(4, 16, 4, head="ForMaskedLM", seed=1).save_pretrained(place / "teacher")
    change(place, data={"train": "train.tsv", "text": "sentence"}, training={"max_steps": 1}, stages={})
    assert distill(place) == 0
    loaded, notes = AutoModelForMaskedLM.from_pretrained(place / "out", output_loading_info=True)
    assert not notes["missing_keys"] and loaded.config.num_hidden_layers == 2
    assert "AutoModelForMaskedLM.from_pretrained" in (place / "out" / "README.md").read_text()


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


# ---- extract and info ---------------------------------------------------------------------------------------


def test_extract(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", str(place / "teacher"), "--input", str(place / "test.tsv"), "--text", "sentence"]
    output = place / "features.npy"
    assert cli.main([*words, "--output", str(output), "--layers=-2,-1", "--pooling", "cls"]) == 0
    assert "10 x 16" in capsys.readouterr().out
    expected = FeatureExtractor(place / "teacher", layers=(-2, -1), pooling="cls", device="cpu")
    texts = [text for text, _ in sentences(10, 2)]
    np.testing.assert_allclose(np.load(output), expected.extract(texts).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--output": "x.txt"}, "want a name ending in"),
        ({"--output": "nowhere/x.npy"}, "no such directory"),
        ({"--layers": "last"}, "--layers: got 'last', want whole numbers"),
        ({"--layers": "9"}, "got 9, want hidden states 0..4"),
        ({"--pooling": "median"}, "pooling: got 'median', want one of"),
        ({"--text": "sentense"}, "did you mean 'sentence'"),
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
    assert re.search("bf16 (fast|slow)er than float32", facts["devices"]["cpu"])
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


def test_help_needs_no_torch() -> None:
    """Help, and every mistake that can be seen without the models, comes at once."""
    code = (
        "import sys, bertxfer_fast.cli as cli\n"
        "for words in (['--help'], ['distill', '--help'], ['extract', '--help'], ['bench', 'no-such']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: pass\n"
        "assert cli.main(['distill', 'no-such-recipe.yaml']) == 2\n"
        "print('loaded:', {'datasets', 'numpy', 'torch', 'transformers'} & sys.modules.keys() or 'none')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--training.FIELD" in shown.stdout and shown.stdout.endswith("loaded: none\n")
    assert "cannot read the recipe" in shown.stderr
