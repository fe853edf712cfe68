"""What is known again: rows in every form they come in, models, tokenizers, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from bertxfer_fast.distillation import teachers
from bertxfer_fast.distillation.teachers.rows import Rows
from bertxfer_fast.distillation.teachers.shards import Shard
from tests.tiny import tiny_bert

from .rows import features, pack


def test_a_row_has_one_key_wherever_it_stands() -> None:
    rows = features()
    keys = teachers.dataset_keys(rows)
    assert len(set(keys.tolist())) == len(rows)
    picked = [7, 0, 19, 7]
    assert teachers.row_keys(pack([rows[i] for i in picked])).tolist() == keys[picked].tolist()
    assert teachers.dataset_keys(Dataset.from_list(rows)).tolist() == keys.tolist()


def test_token_types_count_where_they_are_not_zero() -> None:
    rows = features(6)
    typed = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in rows]
    keys = teachers.dataset_keys(rows)
    assert teachers.dataset_keys(typed).tolist() == keys.tolist()
    typed[2]["token_type_ids"] = [0] * (len(rows[2]["input_ids"]) - 1) + [1]
    changed = teachers.dataset_keys(typed)
    assert (changed != keys).tolist() == [i == 2 for i in range(6)]
    assert teachers.row_keys(pack(typed)).tolist() == changed.tolist()
    assert teachers.dataset_keys(Dataset.from_list(typed)).tolist() == changed.tolist()


def test_further_inputs_count_where_the_teacher_reads_them() -> None:
    rows: list[dict[str, Any]] = [
        {**row, "bbox": [[i, 0, 1, 1]] * len(row["input_ids"])} for i, row in enumerate(features(4))
    ]
    for row in rows[2:]:
        row["input_ids"], row["bbox"] = [9, 9], [[row["labels"], 0, 0, 0]] * 2
    without, keys = teachers.dataset_keys(rows), teachers.dataset_keys(rows, ["bbox"])
    assert without[2] == without[3] and len(set(keys.tolist())) == 4
    batch = {**pack(rows), "bbox": torch.tensor([box for row in rows for box in row["bbox"]])[None]}
    assert teachers.row_keys(batch, ["bbox"]).tolist() == keys.tolist()


def test_a_teacher_is_known_by_what_it_computes(tmp_path: Path) -> None:
    model = tiny_bert(head="ForSequenceClassification")
    known = teachers.teacher_fingerprint(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert teachers.teacher_fingerprint(again) == known
    assert teachers.teacher_fingerprint(again.half()) != known
    files = teachers.folder_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert teachers.folder_fingerprint(tmp_path) == files
    model.config.layer_norm_eps = 1e-3
    assert teachers.teacher_fingerprint(model) != known
    model.save_pretrained(tmp_path)
    assert teachers.folder_fingerprint(tmp_path) != files
    with pytest.raises(TypeError, match="want a model, or a source with a fingerprint"):
        teachers.teacher_fingerprint(object())


def test_keys_that_end_with_zeros_are_whole() -> None:
    """NumPy strips zeros off bytes; what is written and found must not notice."""
    column = teachers.Column("logits", width=1)
    keys = np.array([b"a" * 14 + b"\0\0", b"a" * 15 + b"\0", b"a" * 16], "S16")
    rows = Rows(column, [Shard(column, keys, np.ones(3, np.int64), {"values": torch.arange(3.0)[:, None]})])
    assert rows.gather(rows.find(keys[[2, 0, 1]]), torch.device("cpu")).flatten().tolist() == [2, 0, 1]
    rows.replace([])
    rows.add_small(Shard(column, keys, np.ones(3, np.int64), {"values": torch.arange(3.0)[:, None]}))
    assert rows.find(keys)[:, 1].tolist() == [0, 1, 2]
