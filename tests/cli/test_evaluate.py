"""What a run leaves to be read, and the commands that measure and compare."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertxfer_fast import cli
from bertxfer_fast.cli.config.schema import load
from bertxfer_fast.cli.run.plan import make_plan
from bertxfer_fast.cli.run.results import resampling_of
from bertxfer_fast.evaluation.assessment import Resampling

from ..evaluation.test_report import Page, numbers
from ..folders import change, contents, distill, make_place, sentences
from ..tiny import tiny_bert


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a twin, which logs to TensorBoard."""
    place = make_place(tmp_path_factory.mktemp("run"))
    change(place, report={"twin": True, "resamples": 30, "sentences": 2}, training__report_to="tensorboard")
    change(place, training__num_train_epochs=1)
    assert distill(place, "--seed", "7", f"--output_dir={place / 'out'}") == 0
    return place


def read(place: Path) -> dict[str, Any]:
    return json.loads((place / "out" / "results.json").read_text())


def test_a_run_leaves_results(run: Path) -> None:
    results = read(run)
    assert [model["model"] for model in results["models"]] == ["teacher", "student", "twin"]
    assert results["recipe"] == "tinybert" and results["measured on"] == "test.tsv" and results["seed"] == 7
    assert results["data"]["train"] == {"file": "train.tsv", "sequences": 24}
    assert results["command"] == "bertxfer distill recipe.yaml --seed 7 --output_dir=out"
    assert results["resamples"] == 30 and len(results["differences"]) == 2
    config = load(run / "recipe.yaml", ["--seed", "7"])
    assert resampling_of(config) == Resampling(resamples=30, seed=7)
    changed = {row["key"]: (row["value"], row["default"]) for row in results["settings"]}
    assert changed["seed"] == (7, 42) and changed["report.twin"] == ("True", "False")
    assert changed["training.learning_rate"] == (1e-3, 5e-5) and "data.text_pair" not in changed
    assert str(run) not in json.dumps(results)


def test_the_twin_starts_as_the_student_and_takes_as_many_steps_on_labels(run: Path) -> None:
    stages = {row["stage"]: row for row in read(run)["stages"]}
    assert stages["twin"]["steps"] == stages["intermediate"]["steps"] + stages["prediction"]["steps"] == 6
    logged = json.loads((run / "out" / "twin" / "stage.json").read_text())["log_history"]
    keys = {key for entry in logged for key in entry}
    assert "loss/labels" in keys and not keys & {"loss/logits", "loss/hidden_states"}
    twin, student = (
        AutoModelForSequenceClassification.from_pretrained(run / "out" / name) for name in ("twin", ".")
    )
    assert {n: p.shape for n, p in twin.named_parameters()} == {
        n: p.shape for n, p in student.named_parameters()
    }
    assert not torch.equal(twin.classifier.weight, student.classifier.weight)
    # All of it learned: nothing was held back because no objective of the student's reached it.
    start = make_plan(load(run / "recipe.yaml", ["--seed", "7"])).student
    for name, parameter in start.named_parameters():
        assert not torch.equal(parameter, twin.get_parameter(name)), name


def test_the_report_and_the_card_say_the_same(run: Path) -> None:
    results, text = read(run), (run / "out" / "report.html").read_text()
    page = Page(text)
    assert not set(numbers(results["models"]) + numbers(results["differences"])) - set(page.values)
    assert len(page.sources) == 2 and "http" not in text and str(run) not in text
    card = (run / "out" / "README.md").read_text()
    for expected in (
        "`teacher`",
        "tinybert",
        "train: 24 sequences of `train.tsv`",
        results["command"],
        "| twin",
    ):
        assert expected in card


def test_objectives_are_logged_by_name_wherever_transformers_logs(run: Path) -> None:
    tags: dict[str, list[float]] = {}
    for folder in (run / "out" / "intermediate").rglob("events.out.tfevents*"):
        events = EventAccumulator(str(folder)).Reload()
        for tag in events.Tags()["scalars"]:
            tags.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    logged = json.loads((run / "out" / "intermediate" / "stage.json").read_text())["log_history"]
    for name in ("attention_scores", "hidden_states"):
        expected = [entry[f"loss/{name}"] for entry in logged if f"loss/{name}" in entry]
        assert len(expected) == 3 and tags[f"train/loss/{name}"] == pytest.approx(expected)
        assert f"eval/loss/{name}" in tags


def test_again_nothing_is_trained_and_the_report_may_change(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "out" / "twin" / "model.safetensors").read_bytes()
    assert distill(run, "--seed", "7", "--report.resamples", "20", "--report.sentences", "0") == 0
    assert "stage twin: finished before, skipped" in capsys.readouterr().out
    assert read(run)["resamples"] == 20
    assert (run / "out" / "twin" / "model.safetensors").read_bytes() == before
    assert len(Page((run / "out" / "report.html").read_text()).sources) == 1


def test_evaluate_says_what_transformers_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(run / "out"), "--data", str(run / "test.tsv"), "--text", "sentence"]
    predictions, output = run / "predictions.tsv", run / "evaluated.json"
    further = ["--label", "label", "--resamples", "25", "--predictions", str(predictions)]
    assert cli.main([*words, *further, "--json", "--output", str(output)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads(output.read_text())
    model = AutoModelForSequenceClassification.from_pretrained(run / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "out")
    with predictions.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    right = 0
    for row, (text, label) in zip(rows, sentences(10, 2), strict=True):
        with torch.no_grad():
            shares = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        name = model.config.id2label[int(shares.argmax())]
        assert (row["label"], row["predicted"]) == (label, name)
        assert float(row["probability"]) == pytest.approx(float(shares.max()), rel=1e-4)
        right += name == label
    [found] = results["models"]
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(right / 10) and found["sentences/s"] > 0
    assert [row["class"] for row in found["classes"]] == ["neg", "neutral", "pos"]
    assert results["command"].startswith("bertxfer evaluate out --data test.tsv")
    # Without labels: size and speed; as a page; as tables.
    assert cli.main([*words, "--output", str(run / "page.html")]) == 0
    told = capsys.readouterr().out
    assert (
        "accuracy" not in told and "sentences/s" in told and Page((run / "page.html").read_text()).open == []
    )
    assert cli.main([*words, *further[:4]]) == 0
    assert "precision" in capsys.readouterr().out


def test_names_that_the_model_does_not_know(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(run / "teacher"), "--data", str(run / "test.tsv"), "--text", "sentence"]
    assert cli.main([*words, "--label", "label"]) == 2
    assert "is not in label2id" in capsys.readouterr().err
    (run / "map.json").write_text(json.dumps({"pos": 0, "neutral": 1, "neg": 2}))
    further = ["--label", "label", "--label-map", str(run / "map.json"), "--json", "--resamples", "5"]
    assert cli.main([*words, *further]) == 0
    [found] = json.loads(capsys.readouterr().out)["models"]
    assert [row["class"] for row in found["classes"]] == ["pos", "neutral", "neg"]


def test_a_map_does_not_contradict_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(run / "out"), "--data", str(run / "test.tsv"), "--text", "sentence"]
    words += ["--label", "label", "--json", "--resamples", "5"]

    def measured(*names: str) -> float:
        (run / "map.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
        assert cli.main([*words, "--label-map", str(run / "map.json")]) == 0
        return json.loads(capsys.readouterr().out)["models"][0]["metrics"]["accuracy"]["value"]

    assert cli.main(words) == 0
    [own] = json.loads(capsys.readouterr().out)["models"]
    assert measured("neg", "neutral", "pos") == own["metrics"]["accuracy"]["value"]
    for names, said in (
        (("pos", "neutral", "neg"), "got 'pos' as 0, want 2"),
        (("Neutral", "mixed", "pos"), "got 'Neutral' as 0, want 1"),
    ):
        (run / "map.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
        assert cli.main([*words, "--label-map", str(run / "map.json")]) == 2
        error = capsys.readouterr().err
        assert f"--label-map: {run / 'map.json'}: {said}, as the model has it: ['neg'" in error
    # Other names for the same classes are the user's to give.
    lines = (run / "test.tsv").read_text().replace("\tneg", "\tbad").replace("\tpos", "\tgood")
    (run / "renamed.tsv").write_text(lines)
    words[words.index("--data") + 1] = str(run / "renamed.tsv")
    assert measured("bad", "neutral", "good") == own["metrics"]["accuracy"]["value"]


def test_predictions_have_the_numbers_of_their_rows(run: Path) -> None:
    (run / "gaps.tsv").write_text("sentence\tlabel\n\tneg\ngood film\tpos\nbad\t\nbad film\tneg\n")
    words = ["evaluate", str(run / "out"), "--data", str(run / "gaps.tsv"), "--text", "sentence"]
    words += ["--label", "label", "--resamples", "5", "--predictions", str(run / "gaps.jsonl")]
    assert cli.main([*words, "--empty-rows", "skip"]) == 0
    rows = [json.loads(line) for line in (run / "gaps.jsonl").read_text().splitlines()]
    assert [(row["row"], row["label"]) for row in rows] == [(2, "pos"), (4, "neg")]


def test_compare(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run / "one.json"
    words = [
        "evaluate",
        str(run / "out"),
        "--data",
        str(run / "dev.tsv"),
        "--text",
        "sentence",
        "--label",
        "label",
    ]
    assert cli.main([*words, "--resamples", "5", "--output", str(output)]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(output), str(run / "out"), "--sort", "training s", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["run"], second["run"]) == ("out", "one.json")
    assert first["accuracy"] == read(run)["models"][1]["metrics"]["accuracy"]["value"]
    assert cli.main(["compare", str(run / "out")]) == 0
    told = capsys.readouterr().out
    assert "accuracy, over the twin" in told and len(told.splitlines()) == 3


def test_compare_tells_runs_of_one_name_apart(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/out", "b/out", "c"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(run / "out" / "results.json", tmp_path / name)
    assert cli.main(["compare", "a/out", "b/out", "c", "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == ["a/out", "b/out", "c"]


def test_compare_knows_the_tasks_of_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("second", "first"):
        (tmp_path / "both" / task).mkdir(parents=True)
        shutil.copy(run / "out" / "results.json", tmp_path / "both" / task)
    assert cli.main(["compare", str(tmp_path / "both"), str(run / "out"), "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == ["both/first", "both/second", "out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--predictions": "x.txt"}, "--predictions: got 'x.txt', want a name ending in .csv"),
        ({"--output": "none/x.json"}, "--output: got 'none/x.json', want a file in a directory that exists"),
        ({"--output": "x.pdf"}, "--output: got 'x.pdf', want a name ending in .json, .html"),
        ({"--confidence": "95"}, "--confidence: got 95.0, want a number between 0 and 1"),
        ({"--resamples": "0"}, "--resamples: got 0, want 1 or more"),
        ({"--label": "lable"}, "no column 'lable'; did you mean 'label'?"),
        ({"--task": "regression"}, "task: got 'regression', want 'sequence-classification'"),
        ({"--data": "none.tsv"}, "no file"),
        ({"--label-map": "test.tsv"}, "--label-map: test.tsv: "),
        ({"--label": None, "--predictions": "x.csv"}, "--predictions: got a file without --label"),
        (
            {"--output": "out/results.json"},
            "--output: got 'out/results.json', the record of a run, want another",
        ),
    ],
)
def test_evaluate_bad_input(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | None],
    message: str,
) -> None:
    monkeypatch.chdir(run)
    options = {"--data": "test.tsv", "--text": "sentence", "--label": "label", **changes}
    before = contents(run)
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    assert cli.main(["evaluate", "out", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and contents(run) == before


def test_compare_bad_input(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(run / "teacher")]) == 2
    assert "want a folder with a results.json" in capsys.readouterr().err
    assert cli.main(["compare", str(run / "out"), "--sort", "f1"]) == 2
    assert "--sort: got 'f1', want one of run, recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"report": {"twin": True}, "data": {"train": "train.tsv", "text": "sentence"}},
            "got true without data.label",
        ),
        (
            {"report": {"sentences": -1}},
            "(section report): sentences: got -1, want 0 or more",
        ),
        ({"report": {"resamples": 0}}, "resamples: got 0, want 1 or more"),
        ({"report": {"twins": True}}, "unknown key 'twins'; did you mean 'twin'?"),
        ({"report": True}, "report: got True, want a section of keys"),
    ],
)
def test_report_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    place = make_place(tmp_path)
    change(place, **changes)
    assert distill(place) == 2
    assert message in capsys.readouterr().err and not (place / "out").exists()


def test_labels_of_several_classes_are_lists_where_a_file_has_them(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    tiny_bert(
        2, 16, 4, head="ForSequenceClassification", problem_type="multi_label_classification"
    ).save_pretrained(place / "teacher")
    rows = [{"text": "good films", "tags": [0, 1]}, {"text": "bad", "tags": []}]
    (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", str(place / "teacher"), "--data", str(place / "t.jsonl"), "--label", "tags"]
    for name in ("p.jsonl", "p.tsv"):
        assert cli.main([*words, "--resamples", "5", "--predictions", str(place / name)]) == 0
    listed = [json.loads(line) for line in (place / "p.jsonl").read_text().splitlines()]
    assert [row["label"] for row in listed] == [["LABEL_0", "LABEL_1"], []]
    with (place / "p.tsv").open() as file:
        flat = list(csv.DictReader(file, delimiter="\t"))
    for key in ("label", "predicted"):
        assert [row[key] for row in flat] == [" ".join(row[key]) for row in listed]


def test_a_student_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_place(tmp_path)
    tiny_bert(2, 16, 4, head="ForTokenClassification").save_pretrained(place / "teacher")
    rows = [{"words": ["good", "films"], "tags": [0, 1]}, {"words": ["bad"], "tags": [2]}]
    (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "evaluate",
        str(place / "teacher"),
        "--data",
        str(place / "t.jsonl"),
        "--text",
        "words",
        "--label",
        "tags",
    ]
    assert cli.main([*words, "--predictions", str(place / "p.tsv")]) == 2
    assert "want .jsonl or .parquet: a table has no place for lists" in capsys.readouterr().err
    assert cli.main([*words, "--predictions", str(place / "p.jsonl"), "--resamples", "5"]) == 0
    predicted = [json.loads(line) for line in (place / "p.jsonl").read_text().splitlines()]
    assert [len(row["predicted"]) for row in predicted] == [2, 1]
    assert predicted[0]["label"] == ["LABEL_0", "LABEL_1"]
    tiny_bert(2, 16, 4, head="ForMaskedLM").save_pretrained(place / "teacher")
    assert cli.main(words) == 2
    assert "--label: got 'tags' for task 'masked-lm', want it left out" in capsys.readouterr().err
    assert cli.main(words[:-2]) == 0
