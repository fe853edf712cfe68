"""A task in one new file, registered by one call, is encoded, trained, measured and told like those that are here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertxfer_fast import data, tasks
from bertxfer_fast.cli.config.schema import describe
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import Labels, Logits
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.training.arguments import DistillationArguments
from bertxfer_fast.training.trainer import DistillationTrainer

from .folders import change, distill, make_place, write_tsv
from .tiny import tiny_pair

GRADES = '''
"""Grades are classes, and a neighbour of the right one is better than the opposite."""

from bertxfer_fast.tasks import Task, register


def off_by(logits, labels):
    return float(abs(logits.argmax(-1) - labels).mean())


GRADING = register(
    Task(
        "grading",
        "a grade a text",
        "AutoModelForSequenceClassification",
        "sequence",
        "class",
        metrics={"off_by": off_by},
    )
)
'''


@pytest.fixture
def grading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tasks.Task]:
    """The task of one new file, registered as long as the test runs."""
    path = tmp_path / "grading.py"
    path.write_text(GRADES)
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    spec = importlib.util.spec_from_file_location("grading", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.GRADING


def grades(path: Path) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in path.read_text().splitlines()[1:]]  # type: ignore[misc]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The usual folder with grades instead of names."""
    make_place(tmp_path)
    for name in ("train", "dev", "test"):
        rows = grades(tmp_path / f"{name}.tsv")
        write_tsv(
            tmp_path / f"{name}.tsv",
            [(text, {"neg": "1", "neutral": "2", "pos": "3"}[y]) for text, y in rows],
        )
    return tmp_path


def off_by(folder: Path, rows: list[tuple[str, str]]) -> float:
    """What transformers says of one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    distances = []
    for text, grade in rows:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=16)).logits
        distances.append(abs(int(logits.argmax()) - (int(grade) - 1)))
    return sum(distances) / len(distances)


def test_the_command_learns_it(place: Path, grading: tasks.Task) -> None:
    change(place, task="grading", training__max_steps=2, stages={})
    assert "grading" in describe()
    assert distill(place) == 0
    stage = json.loads((place / "out" / "prediction" / "stage.json").read_text())["summary"]
    assert "dev off_by" in stage and "dev accuracy" not in stage
    [heading, row] = [
        line.split("|")
        for line in (place / "out" / "summary.md").read_text().splitlines()
        if line.startswith(("| model", "| student"))
    ]
    assert heading[2].strip() == "off_by"
    assert float(row[2]) == pytest.approx(off_by(place / "out", grades(place / "test.tsv")), abs=1e-4)
    assert "Task: grading." in (place / "out" / "README.md").read_text()


def test_the_trainer_learns_it(place: Path, grading: tasks.Task) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    label2id = {"1": 0, "2": 1, "3": 2}
    features = data.encode(
        place / "train.tsv", tokenizer, text="sentence", label="label", task="grading", label2id=label2id
    )
    teacher, student = tiny_pair()
    arguments = DistillationArguments(
        output_dir=str(place / "out"), max_steps=2, save_strategy="no", disable_tqdm=True, eval_strategy="no"
    )
    trainer = DistillationTrainer(
        Distiller(teacher, student, [Logits(), Labels()]),
        arguments,
        train_dataset=features,
        eval_dataset=features,
        task=grading,
    )
    trainer.train()
    found = trainer.evaluate()
    assert "eval_accuracy" not in found
    assert found["eval_off_by"] == pytest.approx(evaluate(student, features, task="grading")["off_by"])


def test_a_task_that_is_none_says_why(grading: tasks.Task) -> None:
    with pytest.raises(ValueError, match="task: got 'grading' again"):
        tasks.register(grading)
    with pytest.raises(ValueError, match=r"task: got 'gradng', want one of .*; did you mean 'grading'"):
        tasks.get("gradng")
    with pytest.raises(ValueError, match="labels: got 'class' beside head None"):
        tasks.Task("x", "", "AutoModel", head=None, labels="class")
    with pytest.raises(ValueError, match="labels: got 'float' beside a token head"):
        tasks.Task("x", "", "AutoModelForTokenClassification", head="token", labels="float")
    # What a model was made for does not change by a task that shares its class.
    assert tasks.task_of("BertForSequenceClassification", 3).name == "sequence-classification"
