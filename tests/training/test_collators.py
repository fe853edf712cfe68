"""Batches of the collators that everyone has, and every way in which Trainer hands predictions to metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import HiddenStates, Labels, LinearLogits, Logits, Objective
from bertxfer_fast.packing import PackingCollator

from ..folders import tiny_tokenizer
from ..tiny import tiny_bert, tiny_pair
from .test_trainer import features, trainer_of


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizerFast:
    return tiny_tokenizer(tmp_path / "tokenizer")


def rows_of(labels: str) -> list[dict[str, Any]]:
    return [
        {**row, "attention_mask": [1] * len(row["input_ids"])}
        for row in features(13, shortest=2, labels=labels)
    ]


@pytest.mark.parametrize(
    ("head", "labels", "collator", "side"),
    [
        ("ForSequenceClassification", "class", DataCollatorWithPadding, "right"),
        ("ForSequenceClassification", "class", DataCollatorWithPadding, "left"),
        ("ForTokenClassification", "token", DataCollatorForTokenClassification, "right"),
    ],
)
def test_a_padding_collator_trains_and_measures_what_packs_do(
    tmp_path: Path, tokenizer: BertTokenizerFast, head: str, labels: str, collator: Any, side: str
) -> None:
    tokenizer.padding_side = side
    rows, results, predicted = rows_of(labels), [], []
    for collate in (collator(tokenizer, pad_to_multiple_of=8), None):
        trainer = trainer_of(
            tmp_path / str(collate is None),
            [Logits(), HiddenStates(), Labels()],
            tiny_pair(head),
            train=rows,
            eval_dataset=rows,
            max_steps=2,
            per_device_eval_batch_size=5,
            train_sampling_strategy="sequential",
            extra={"data_collator": collate},
        )
        trainer.train()
        results.append(
            {name: value for name, value in trainer.evaluate().items() if "loss" in name or "acc" in name}
        )
        predicted.append(trainer.predict(rows).predictions)
    assert any("accuracy" in name for name in results[0]) and "eval_loss/hidden_states" in results[0]
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    np.testing.assert_allclose(predicted[0], predicted[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("soft", [Logits, LinearLogits])
def test_a_masking_collator_measures_the_masked_tokens(
    tmp_path: Path, tokenizer: BertTokenizerFast, soft: type[Objective]
) -> None:
    rows = [{"input_ids": row["input_ids"]} for row in rows_of("none")]
    trainer = trainer_of(
        tmp_path,
        [soft(), Labels()],
        tiny_pair("ForMaskedLM"),
        train=rows,
        eval_dataset=rows,
        max_steps=1,
        per_device_eval_batch_size=20,
        extra={"data_collator": DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4, seed=3)},
    )
    trainer.train()
    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4, seed=3)(rows)
    trainer.data_collator = lambda _: {name: value.clone() for name, value in batch.items()}
    heads: list[int] = []
    hook = trainer.student.get_output_embeddings().register_forward_hook(lambda *_: heads.append(1))
    found = trainer.evaluate()
    hook.remove()
    # A vocabulary's logits of all tokens are there only where an objective looks at them.
    assert bool(heads) == (soft is Logits)
    with torch.no_grad():
        logits = trainer.student.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits
    masked = batch["labels"] != -100
    right = (logits.argmax(-1) == batch["labels"])[masked].float().mean()
    assert 5 < int(masked.sum()) < masked.numel()
    assert found["eval_token_accuracy"] == pytest.approx(float(right))
    expected = torch.nn.functional.cross_entropy(logits[masked], batch["labels"][masked])
    assert found["eval_loss/labels"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("collate", ["padding", "packs", "flattening"])
def test_a_plain_trainer_gets_logits_beside_the_labels_they_are_for(
    tmp_path: Path, tokenizer: BertTokenizerFast, collate: str
) -> None:
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows_of("token")]
    collator = {
        "padding": DataCollatorForTokenClassification(tokenizer),
        "packs": PackingCollator(token_labels=True),
        "flattening": DataCollatorWithFlattening(return_tensors="pt"),
    }[collate]

    def measure(prediction: Any) -> dict[str, float]:
        counted = prediction.label_ids != -100
        right = (prediction.predictions.argmax(-1) == prediction.label_ids)[counted]
        return {"accuracy": float(right.mean()), "tokens": float(counted.sum())}

    distiller = Distiller(*tiny_pair("ForTokenClassification"), [Logits(), Labels()])
    settings = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=5, report_to=[], use_cpu=True, disable_tqdm=True
    )
    found = Trainer(distiller, settings, collator, eval_dataset=rows, compute_metrics=measure).evaluate()
    first = 1 if collate == "flattening" else 0  # which leaves out the label of every first token
    right = []
    for row in rows:
        with torch.no_grad():
            predicted = distiller.student(torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
        labelled = list(zip(predicted, row["labels"], strict=True))[first:]
        right += [guess == label for guess, label in labelled if label != -100]
    assert found["eval_tokens"] == len(right)
    assert found["eval_accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("labels", ["class", "token", "float"])
@pytest.mark.parametrize("way", [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}])
def test_metrics_do_not_depend_on_how_predictions_arrive(
    tmp_path: Path, labels: str, way: dict[str, bool]
) -> None:
    head = "ForTokenClassification" if labels == "token" else "ForSequenceClassification"
    models = [
        tiny_bert(2, 16, 4, head=head, num_labels=1 if labels == "float" else 3, seed=n) for n in (1, 2)
    ]
    rows = features(11, labels=labels)
    found = []
    for settings in ({}, way):
        trainer = trainer_of(
            tmp_path,
            [HiddenStates("last")],
            tuple(models),
            eval_dataset=rows,
            per_device_eval_batch_size=4,
            **settings,
        )
        trainer.evaluate(rows[3:8])
        with pytest.raises((RuntimeError, TypeError)):  # stops in its third batch
            trainer.evaluate([*rows[:9], {**rows[9], "labels": object()}])
        found.append(trainer.evaluate())  # nothing of an evaluation before is counted again
    for name in {"class": ["accuracy"], "token": ["token_accuracy"], "float": ["mse", "pearson"]}[labels]:
        assert found[1][f"eval_{name}"] == pytest.approx(found[0][f"eval_{name}"])


@pytest.mark.parametrize("setting", ["split_batches", "dispatch_batches"])
def test_what_would_cut_a_pack_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ValueError, match=f"accelerator_config: got {setting}=True, want it left out"):
        trainer_of(tmp_path, accelerator_config={setting: True})
    trainer = trainer_of(tmp_path, accelerator_config={"use_seedable_sampler": True}, max_steps=1)
    config = trainer.args.accelerator_config
    assert config.even_batches is False and config.non_blocking is True
    kept = trainer_of(tmp_path, accelerator_config={"non_blocking": False}, max_steps=1)
    assert kept.args.accelerator_config.non_blocking is False
