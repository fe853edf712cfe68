"""A masked LM takes the labelled tokens for what the plain model does, and no other token meets the vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertxfer_fast.evaluation import predict
from bertxfer_fast.models import token_ids
from bertxfer_fast.models.hf.encoder import PackedModel
from bertxfer_fast.models.token_ids import ids_of_labelled

from ..tiny import packed_batch, tiny_bert

LABELLED = torch.tensor([1, 4, 5, 9, 20])


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every product with a vocabulary; of `token_ids` at most two."""
    seen: list[int] = []
    linear = torch.nn.functional.linear

    def spy(rows: Any, weight: Any, bias: Any = None) -> Any:
        if len(weight) == 50:
            seen.append(rows.flatten(0, -2).shape[0])
        return linear(rows, weight, bias)

    monkeypatch.setattr(token_ids.F, "linear", spy)
    monkeypatch.setattr(token_ids, "_ROWS", 2)
    return seen


def labelled_batch() -> dict[str, Any]:
    labels = torch.full((1, 22), -100)
    labels[0, LABELLED] = torch.arange(5)
    return {**packed_batch(token_types=False), "labels": labels}


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_ids_are_those_of_whole_logits(family: str, widths: list[int]) -> None:
    model = tiny_bert(2, 16, 4, head="ForMaskedLM", family=family)
    encoder, batch = PackedModel(model), labelled_batch()
    assert encoder.spec.output_layer
    with torch.no_grad():
        logits = encoder.run(batch).logits
        found = ids_of_labelled(encoder, batch)
    assert logits is not None and found.shape == (22,)
    assert torch.equal(found[LABELLED], logits.argmax(-1)[LABELLED])
    assert not found[batch["labels"][0] < 0].any()
    assert widths == [22, 2, 2, 1]


def test_a_masked_lm_is_measured_by_its_labelled_tokens() -> None:
    model = tiny_bert(2, 16, 4, head="ForMaskedLM")
    rows = [{"input_ids": [2, *range(5, 6 + i % 5), 3]} for i in range(9)]
    right = []
    for i, row in enumerate(rows):
        with torch.no_grad():
            guess = model(torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
        row["labels"] = [-100] * len(guess)
        row["labels"][1] = guess[1] if i % 3 else (guess[1] + 1) % 50
        right.append(bool(i % 3))
    heads: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: heads.append(1))
    predictions = predict(model, rows, tokens_per_batch=16)
    hook.remove()
    assert not heads
    assert predictions.metrics() == {"token_accuracy": pytest.approx(sum(right) / 9)}
    assert predictions.lengths.tolist() == [len(row["input_ids"]) for row in rows]


def test_a_head_without_an_output_layer_is_asked_for_its_logits() -> None:
    encoder = PackedModel(tiny_bert(2, 16, 4, head="ForTokenClassification"))
    batch = labelled_batch()
    with torch.no_grad():
        logits = encoder.run(batch).logits
        found = ids_of_labelled(encoder, batch)
    assert logits is not None and torch.equal(found, logits.argmax(-1))
