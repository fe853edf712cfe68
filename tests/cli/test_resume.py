"""A run goes on only with what it began with, and nobody reads half a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bertxfer_fast.cli.run.resume import _sha256, finished_stage, record_stage, write_whole

from ..folders import change, contents, distill, make_place, tiny_tokenizer
from ..tiny import tiny_bert


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def started(place: Path) -> dict[str, bytes]:
    change(place, training__max_steps=1, stages__prediction__max_steps=1)
    assert distill(place) == 0
    return contents(place / "out")


def refused(place: Path, before: dict[str, bytes], capsys: pytest.CaptureFixture[str], what: str) -> None:
    capsys.readouterr()
    assert distill(place) == 2
    error = capsys.readouterr().err
    assert f"differs (content of.{what})" in error and error.count("\n") == 1
    assert contents(place / "out") == before


def test_a_teacher_that_changed_in_place_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = started(place)
    file = place / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"][0] += 1.0
    save_file(weights, file, {"format": "pt"})
    refused(place, before, capsys, "teacher")


def test_other_files_that_changed_in_place_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer(place / "tokenizer")
    student = tiny_bert(2, 12, 4, head="ForSequenceClassification", seed=5)
    student.save_pretrained(place / "student")
    change(place, tokenizer="tokenizer", student={"path": "student"})
    before = started(place)
    (place / "tokenizer" / "note.txt").write_text("another file")
    refused(place, before, capsys, "tokenizer")
    (place / "tokenizer" / "note.txt").unlink()
    student.config.hidden_dropout_prob = 0.3
    student.save_pretrained(place / "student")
    refused(place, before, capsys, "student")


def test_a_run_may_be_moved_with_all_that_it_reads(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(place, data__eval="dev.tsv")
    before = started(place)
    there = place.rename(place.with_name("elsewhere"))
    assert distill(there) == 0
    assert "stage prediction: finished before, skipped" in capsys.readouterr().out
    after = contents(there / "out")
    assert all(after[name] == before[name] for name in before if name.endswith((".safetensors", "run.json")))
    # Another file of that name is not what it read.
    (there / "dev.tsv").write_text("sentence\tlabel\ngood\tpos\nbad\tneg\n")
    refused(there, after, capsys, "eval")


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_that_differs_far_behind_is_another_one(tmp_path: Path, inside: bool) -> None:
    """Alone or in a folder, as large files of a model are: the whole of it counts."""
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(bytes(3 * 2**20))
    before = _sha256(file.parent if inside else file)
    for place in (2**20, 3 * 2**20 - 1):
        content = bytearray(3 * 2**20)
        content[place] = 1
        file.write_bytes(content)
        assert _sha256(file.parent if inside else file) != before


@pytest.mark.parametrize("method", ["write_text", "replace"])
def test_a_record_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Killed while writing, or between writing and renaming: the record before stays."""
    write_whole(tmp_path / "run.json", "before")
    original = Path.write_text

    def killed(path: Path, text: Any, *args: Any, **kwargs: Any) -> None:
        if method == "write_text":
            original(path, text[: len(text) // 2], *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, method, killed)
    for name in ("run.json", "stage.json"):
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / name, "after")
    monkeypatch.undo()
    assert (tmp_path / "run.json").read_text() == "before"
    assert finished_stage(tmp_path) is None
    record_stage(tmp_path, {"stage": "x"})
    assert finished_stage(tmp_path) == {"stage": "x"}
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".part"}


def test_the_table_tells_of_the_student_that_is_kept(place: Path) -> None:
    """With the best model chosen, its losses; here the highest one counts as best, the first epoch's."""
    change(
        place,
        training__num_train_epochs=3,
        training__load_best_model_at_end=True,
        training__metric_for_best_model="loss",
        training__greater_is_better=True,
        training__learning_rate=0.01,
        stages={"prediction": {"num_train_epochs": 3}},
    )
    assert distill(place) == 0
    for stage in ("intermediate", "prediction"):
        record = json.loads((place / "out" / stage / "stage.json").read_text())
        measured = [entry["eval_loss"] for entry in record["log_history"] if "eval_loss" in entry]
        assert record["summary"]["dev loss"] == pytest.approx(max(measured), rel=1e-5)
        assert max(measured) > measured[2] * 1.001  # the last epoch's
