"""The commands on a machine with a GPU: what is measured, and so what its speed is compared with, runs there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="the commands read data sets, and there is no package datasets")

from bertxfer_fast import cli
from bertxfer_fast.evaluation import predictions
from bertxfer_fast.models.loans import device_of

from ..folders import distill, make_place
from ..tiny import tiny_bert


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the models that were run over a file, in order."""
    seen: list[str] = []
    original: Callable[..., Any] = predictions.inference

    def inference(model: Any, *args: Any, **options: Any) -> Any:
        seen.append(device_of(model).type)
        return original(model, *args, **options)

    monkeypatch.setattr(predictions, "inference", inference)
    return seen


def test_a_run_again_after_it_was_over_and_evaluated(tmp_path: Path, devices: list[str]) -> None:
    place = make_place(tmp_path)
    assert distill(place) == 0
    assert set(devices) == {"cuda"}
    devices.clear()
    assert distill(place) == 0  # all stages are skipped: nobody has moved a model
    words = ["--data", str(place / "test.tsv"), "--text", "sentence", "--label", "label"]
    assert cli.main(["evaluate", str(place / "out"), *words]) == 0
    assert set(devices) == {"cuda"} and len(devices) == 3  # teacher and student, and the student by itself


def test_a_sweep_of_blends(tmp_path: Path, devices: list[str]) -> None:
    place = make_place(tmp_path)
    names = {"id2label": {0: "neg", 1: "neutral", 2: "pos"}, "label2id": {"neg": 0, "neutral": 1, "pos": 2}}
    tiny_bert(2, head="ForSequenceClassification", seed=2, **names).save_pretrained(place / "small")
    paths = [str(place / "teacher"), str(place / "small"), "--output", str(place / "out")]
    words = ["--dev", str(place / "test.tsv"), "--text", "sentence", "--label", "label", "--sweep", "0,1"]
    assert cli.main(["transfer", *paths, *words]) == 0
    assert set(devices) == {"cuda"} and len(devices) == 2
