"""The model card says what it was given, and nothing else."""

from __future__ import annotations

from pathlib import Path

import yaml

from bertxfer_fast.evaluation.card import ModelCard, short_name


def test_model_card_holds_what_it_was_given(tmp_path: Path) -> None:
    card = ModelCard(
        recipe="tinybert",
        teacher="/data/private/big",
        student={"layers": 3, "parameters": 17_000_000},
        data={"train": 8000, "test": 1000},
        metrics=[{"model": "teacher", "accuracy": 0.9}, {"model": "student", "accuracy": 0.88}],
        auto_class="AutoModelForSequenceClassification",
    )
    folder = tmp_path / "my-student"
    folder.mkdir()
    text = card.write(folder).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "transformers"
    for expected in ("# my-student", "`big`", "17,000,000", "test: 1,000 sequences", "0.88"):
        assert expected in text
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    assert "private" not in text and "## Training" not in text
    empty = ModelCard().render()
    assert "Measured" not in empty and "## Data" not in empty


def test_short_name() -> None:
    assert short_name("/a/b/model") == "model"
    assert short_name("./model/") == "model"
    assert short_name("org/model") == "org/model"
