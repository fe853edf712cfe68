"""Recipes from the command: masked text for masked-LM recipes, plain text for sentence vectors, labels without a
teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from bertxfer_fast import cli
from bertxfer_fast.distillation.objectives import Labels

from ..folders import change, contents, distill, make_place, tiny_tokenizer
from ..tiny import tiny_bert


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def use(place: Path, recipe: str, stage: str, **changes: Any) -> None:
    change(place, recipe=recipe, stages={stage: {"num_train_epochs": 2}}, **changes)


def log_of(place: Path, stage: str) -> list[dict[str, float]]:
    return json.loads((place / "out" / stage / "stage.json").read_text())["log_history"]


def test_a_language_model_is_distilled_from_masked_text_and_resumes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_bert(4, 16, 4, head="ForMaskedLM", seed=1).save_pretrained(place / "teacher")
    use(place, "distilbert", "distillation", data__label=None, training__logging_steps=1)
    original, calls, seen = Labels.forward, [0], []

    def watch(self: Labels, student: Any, labels: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        seen.append(labels)
        # In the second epoch; the trial and the evaluation behind the first epoch take a call each.
        if calls[0] == 6 and (place / "out" / "distillation" / "checkpoint-3").exists():
            raise KeyboardInterrupt
        return original(self, student, labels)

    assert distill(place, "--output_dir", str(place / "straight")) == 0
    monkeypatch.setattr(Labels, "forward", watch)
    assert distill(place) == 130
    assert all(0 < (labels != -100).float().mean() < 0.5 for labels in seen)
    monkeypatch.setattr(Labels, "forward", original)
    assert distill(place) == 0
    assert "goes on from checkpoint-3" in capsys.readouterr().out
    names = ("model.safetensors", "distillation/distiller.safetensors")
    for name in names:
        assert (place / "out" / name).read_bytes() == (place / "straight" / name).read_bytes()
    logged = {key for entry in log_of(place, "distillation") for key in entry}
    assert {"loss/logits", "loss/labels", "loss/hidden_cosine", "eval_token_accuracy"} <= logged
    AutoModelForMaskedLM.from_pretrained(place / "out")


def test_sentence_vectors_of_plain_text(place: Path) -> None:
    tiny_bert(4, 16, 4, seed=1).save_pretrained(place / "teacher")
    options = {"projection": "pca", "sizes": [12, 4], "scores_weight": 0.1}
    use(place, "embedding", "embedding", data__label=None, options=options)
    assert distill(place) == 0
    assert {"loss/embeddings", "loss/scores"} <= {k for entry in log_of(place, "embedding") for k in entry}
    assert AutoModel.from_pretrained(place / "out").config.hidden_size == 12


def test_finetune_makes_a_teacher_out_of_a_pretrained_model(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file names neither recipe nor teacher; classes come from the training file."""
    tiny_bert(2, 16, 4, head="ForMaskedLM", seed=5).save_pretrained(place / "pretrained")
    tiny_tokenizer(place / "pretrained")
    change(
        place, teacher=None, recipe=None, student="pretrained", task="sequence-classification", stages=None
    )
    change(place, training__num_train_epochs=3, training__learning_rate=0.01)
    recipe = str(place / "recipe.yaml")
    assert cli.main(["finetune", recipe]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(place / "out")
    assert model.config.id2label == {0: "neg", 1: "neutral", 2: "pos"}
    losses = [entry["loss"] for entry in log_of(place, "finetuning") if "loss" in entry]
    assert losses[-1] < losses[0]
    table, card = (place / "out" / "summary.md").read_text(), (place / "out" / "README.md").read_text()
    assert "| student" in table and "| teacher" not in table and "A model trained" in card
    before = contents(place / "out" / "finetuning")
    assert cli.main(["finetune", recipe]) == 0
    assert "finished before, skipped" in capsys.readouterr().out
    assert contents(place / "out" / "finetuning") == before
    # And then it teaches.
    half = {"num_hidden_layers": 1, "dropout": 0}
    change(place, recipe="logits", teacher="out", student=half, output_dir="small")
    change(place, training={"num_train_epochs": 1})
    assert distill(place) == 0
    config = AutoModelForSequenceClassification.from_pretrained(place / "small").config
    assert (config.num_hidden_layers, config.hidden_dropout_prob) == (1, 0.0)


def test_finetune_keeps_the_classes_that_a_model_has_and_makes_the_twin_of_a_student(place: Path) -> None:
    settings = {
        "id2label": {0: "pos", 1: "neg", 2: "neutral"},
        "label2id": {"pos": 0, "neg": 1, "neutral": 2},
    }
    tiny_bert(2, 16, 4, head="ForSequenceClassification", **settings).save_pretrained(place / "own")
    tiny_tokenizer(place / "own")
    use(place, "finetune", "finetuning", teacher=None, student="own", output_dir="a")
    assert distill(place) == 0
    assert AutoModelForSequenceClassification.from_pretrained(place / "a").config.id2label[0] == "pos"
    use(place, "finetune", "finetuning", teacher="teacher", student={"num_hidden_layers": 2}, output_dir="b")
    assert distill(place) == 0
    assert "| teacher" in (place / "b" / "summary.md").read_text()


def test_finetune_of_a_language_model(place: Path) -> None:
    tiny_bert(2, 16, 4, head="ForMaskedLM", seed=5).save_pretrained(place / "pretrained")
    tiny_tokenizer(place / "pretrained")
    use(place, "finetune", "finetuning", teacher=None, student="pretrained", data__label=None)
    assert distill(place) == 0
    assert "eval_token_accuracy" in {key for entry in log_of(place, "finetuning") for key in entry}
