"""Rows of numbers teach as the teacher that made them would."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bertxfer_fast import Distiller, objectives
from bertxfer_fast.distillation import teachers
from bertxfer_fast.models.activations import LayerActivations
from bertxfer_fast.models.stream import TeacherStream
from tests.tiny import tiny_pair

from .rows import features, pack, streamed, trained


def rows_of(model: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    return streamed(TeacherStream(model, logits=True), pack(rows))["logits", 0].numpy()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_student_of_rows_is_the_student_of_the_teacher(tmp_path: Path, suffix: str) -> None:
    """Within rounding: the rows are float32, but what a text gives depends in its last bit on its pack's size."""
    rows, path = features(), tmp_path / f"vectors{suffix}"
    weights, losses = [], []
    for black_box in (False, True):
        model, student = tiny_pair()
        taught_by: Any = model
        if black_box:
            numbers = rows_of(model, rows)
            np.save(path, numbers) if suffix == ".npy" else save_file(
                {"logits": torch.from_numpy(numbers)}, path
            )
            taught_by = teachers.StoredTeacher(teachers.BlackBox({"train": path}, {"train": rows}))
        distiller = Distiller(taught_by, student, [objectives.Logits(kind="mse")])
        losses.append(trained(distiller, rows))
        weights.append(student.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name in weights[0]:
        if not name.endswith("key.bias"):  # its gradient is rounding alone, which Adam makes into steps
            torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6)


def test_every_split_has_rows_of_its_own(tmp_path: Path) -> None:
    data = {"train": features(10, 0), "eval": features(7, 1)}
    numbers = {split: torch.randn(len(rows), 5) for split, rows in data.items()}
    box = teachers.StoredTeacher(teachers.BlackBox(numbers, data, kind="vectors"))
    for split, picked in (("eval", [6, 2]), ("train", [9, 0, 4])):
        seen: list[LayerActivations] = []
        source = box.select([(("hidden", 0), "cls")])
        source.stream(pack([data[split][i] for i in picked]), seen.append)
        assert seen[0].pooled is not None
        assert torch.equal(seen[0].pooled["cls"], numbers[split][picked])


def test_rows_with_the_same_tokens_teach_their_mean(caplog: pytest.LogCaptureFixture) -> None:
    rows = features(6)
    rows[4] = rows[1]
    rows[5] = rows[0]
    numbers = torch.randn(6, 3)
    numbers[5] = numbers[0]
    with caplog.at_level(logging.WARNING):
        box = teachers.BlackBox({"train": numbers}, {"train": rows})
    got = streamed(teachers.StoredTeacher(box).select([(("logits", 0), None)]), pack(rows))["logits", 0]
    assert torch.equal(got[[0, 2, 3, 5]], numbers[[0, 2, 3, 5]])
    torch.testing.assert_close(got[[1, 4]], numbers[[1, 4]].mean(0).expand(2, 3))
    assert "1 texts come more than once with other numbers" in caplog.text


def test_the_rows_are_mapped_and_converted_as_they_are_read(tmp_path: Path) -> None:
    rows = features(6)
    numbers = np.random.default_rng(0).normal(size=(6, 3))
    for dtype in (np.float64, np.float16):
        np.save(tmp_path / "v.npy", numbers.astype(dtype))
        box = teachers.StoredTeacher(teachers.BlackBox({"train": tmp_path / "v.npy"}, {"train": rows}))
        got = streamed(box.select([(("logits", 0), None)]), pack(rows))["logits", 0]
        assert got.dtype == torch.float32
        assert torch.equal(got, torch.from_numpy(numbers.astype(dtype)).float())


def test_labels_and_widths_are_the_heads() -> None:
    rows = features(6)
    names = ["neg", "neutral", "pos"]
    box = teachers.StoredTeacher(
        teachers.BlackBox({"train": torch.randn(6, 3)}, {"train": rows}, labels=names)
    )
    student = tiny_pair()[1]
    Distiller(box, student, [objectives.Logits()])
    assert student.config.id2label == dict(enumerate(names))
    two = teachers.StoredTeacher(teachers.BlackBox({"train": torch.randn(6, 2)}, {"train": rows}))
    with pytest.raises(
        ValueError, match="student sequence head with 3 labels and a teacher sequence head with 2"
    ):
        Distiller(two, tiny_pair()[1], [objectives.Logits()])


ROWS = features(6)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            {"train": torch.zeros(5, 3)},
            {},
            "rows of train: got 5 rows, want 6, one for every row of train",
        ),
        ({"train": torch.zeros(6)}, {}, r"got shape \(6,\), want \(rows, width\)"),
        ({"train": torch.tensor([[0.0]] * 4 + [[torch.inf]] + [[0.0]])}, {}, "not finite in row 5"),
        ({"train": torch.zeros(6, 3, dtype=torch.int64)}, {}, "got dtype torch.int64, want floating point"),
        ({"dev": torch.zeros(6, 3)}, {}, "got rows for 'dev', want those of train, eval"),
        ({"train": torch.zeros(6, 3), "eval": torch.zeros(6, 2)}, {}, "widths {'train': 3, 'eval': 2}"),
        ({"train": torch.zeros(6, 3)}, {"labels": ["a"]}, "^labels: got 1 names, want 3"),
        (
            {"train": torch.zeros(6, 3)},
            {"kind": "maps"},
            "^kind: got 'maps', want one of 'logits', 'vectors'",
        ),
        (
            {"train": torch.zeros(6, 3)},
            {"kind": "vectors", "labels": ["a", "b", "c"]},
            r"^labels: got \['a', 'b', 'c'\] of vectors, want them for kind='logits' alone",
        ),
        (
            {"train": torch.zeros(6, 3)},
            {"kind": "vectors", "problem_type": "regression"},
            "^problem_type: got 'regression' of vectors",
        ),
        ({"train": "nowhere.npy"}, {}, "^rows: got nowhere.npy, want a file: there is none"),
        ({}, {}, "^rows: got none"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: Any, settings: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        teachers.BlackBox(rows, {"train": ROWS, "eval": ROWS}, **settings)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    for name, content in (("torn.npy", b"\x93NUMPY"), ("torn.safetensors", b"xx")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            teachers.read_rows(tmp_path / name)
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"it holds the tensors \['a', 'b'\], want one"):
        teachers.read_rows(tmp_path / "two.safetensors")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        teachers.read_rows(tmp_path / "pickled.npy")


def test_vectors_teach_nobody_who_looks_at_tokens() -> None:
    box = teachers.BlackBox({"train": torch.randn(6, 12)}, {"train": ROWS}, kind="vectors")
    with pytest.raises(
        ValueError, match=r"^teacher: got the rows given with hidden\.0\.any, want hidden 0 for each token"
    ):
        Distiller(teachers.StoredTeacher(box), tiny_pair()[1], [objectives.HiddenStates("last")])
