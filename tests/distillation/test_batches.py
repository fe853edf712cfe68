"""What a Distiller takes in: every key of a batch is used, or refused by its name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import DataCollatorWithFlattening

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import AttentionScores, HiddenStates, Labels
from bertxfer_fast.packing import PackingCollator
from tests.tiny import packed_batch, padded_batch, tiny_bert, tiny_pair


def last() -> list[HiddenStates]:
    return [HiddenStates("last", projection="none")]


def boxes(shape: tuple[int, int]) -> torch.Tensor:
    corner = torch.arange(shape[0] * shape[1]).view(*shape, 1) % 40
    return torch.cat([corner, corner, corner + 50, corner + 60], -1)


def test_further_inputs_of_a_model_reach_it_packed():
    teacher, student = (
        tiny_bert(2, 16, 4, family="LayoutLM", seed=seed, max_2d_position_embeddings=128) for seed in (1, 2)
    )
    batch = padded_batch(token_types=False)
    bbox = boxes(batch["input_ids"].shape)
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        s, t = (model(**batch, bbox=bbox).last_hidden_state[mask] for model in (student, teacher))
    distiller = Distiller(teacher, student, last())
    torch.testing.assert_close(distiller(**batch, bbox=bbox).loss, F.mse_loss(s, t))
    packed = {**packed_batch(token_types=False), "bbox": bbox[mask][None]}
    torch.testing.assert_close(distiller(**packed).loss, F.mse_loss(s, t))
    plain = Distiller(teacher, tiny_bert(2, 16, 4, seed=3), last())  # only the teacher takes it
    assert plain(**batch, bbox=bbox).loss != plain(**batch).loss
    with pytest.raises(ValueError, match=r"bbox: got \(4, 4\), want one value per token, \(4, 11\)"):
        distiller(**batch, bbox=bbox[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": torch.zeros(4, 11, 4)}, "bbox: got an input that the models' forward does not take"),
        ({"idx": [1, 2, 3, 4]}, "idx: got an input"),
        ({"inputs_embeds": torch.zeros(4, 11, 12)}, "inputs_embeds: got an input"),
        ({"token_type_ids": torch.zeros(4, 3)}, r"token_type_ids: got \(4, 3\), want one value per token"),
        ({"position_ids": torch.ones(4, 11)}, "position_ids: got others than 0, 1, 2"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(change, message):
    distiller = Distiller(*tiny_pair(), [AttentionScores()])
    with pytest.raises(ValueError, match=message):
        distiller(**{**padded_batch(), **change})


@pytest.mark.parametrize("lengths", [(3, 3), (3, 2), (1, 3)])
def test_a_row_of_labels_a_text_is_not_taken_for_one_a_token(lengths):
    """Three labels a text, texts of three tokens: only the head tells what they belong to."""
    settings = {"head": "ForSequenceClassification", "problem_type": "multi_label_classification"}
    teacher, student = (tiny_bert(2, 16, 4, seed=seed, **settings) for seed in (1, 2))
    batch = padded_batch(lengths)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert labels.shape == batch["input_ids"].shape
    loss = Distiller(teacher, student, [Labels()])(**batch, labels=labels).loss
    expected = F.binary_cross_entropy_with_logits(student(**batch).logits, labels)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("place", ["left", "holes"])
def test_spans_are_counted_without_padding(place):
    """Labels say where in a padded row a span is, wherever its padding stands."""
    settings = {"head": "ForQuestionAnswering", "num_labels": 2}
    distiller = Distiller(None, tiny_bert(seed=1, **settings), [Labels()])
    batch, labels = padded_batch((5, 3), token_types=False), torch.tensor([[1, 4], [0, 2]])
    where = {"left": [2, 3, 4], "holes": [0, 2, 4]}[place]
    ids, mask = batch["input_ids"].clone(), batch["attention_mask"].clone()
    ids[1, where], mask[1] = batch["input_ids"][1, :3], 0
    mask[1, where] = 1
    moved = torch.tensor([[1, 4], [where[0], where[2]]])
    expected = distiller(**batch, labels=labels).loss
    torch.testing.assert_close(distiller(input_ids=ids, attention_mask=mask, labels=moved).loss, expected)
    none = torch.tensor([[1, 4], [-100, -100]])
    assert torch.equal(
        distiller(input_ids=ids, attention_mask=mask, labels=none).loss, distiller(**batch, labels=none).loss
    )
    for bad in (1, 5):
        moved[1, 0] = bad
        with pytest.raises(ValueError, match=rf"labels: got {bad}, want a token of its sequence \(or -100\)"):
            distiller(input_ids=ids, attention_mask=mask, labels=moved)


def test_none_counts_as_left_out_and_padding_in_a_pack_is_refused():
    distiller = Distiller(*tiny_pair(), [AttentionScores()])
    batch = packed_batch()
    expected = distiller(**batch).loss
    assert torch.equal(distiller(**batch, labels=None, bbox=None).loss, expected)
    ones = torch.ones_like(batch["input_ids"])
    assert torch.equal(distiller(**batch, attention_mask=ones).loss, expected)
    ones[0, 3] = 0
    with pytest.raises(ValueError, match="attention_mask: got padding in a packed batch"):
        distiller(**batch, attention_mask=ones)


def test_sequences_that_only_positions_tell_apart():
    """As transformers' flattening collator hands them over."""
    ids = padded_batch((7, 3, 11))["input_ids"]
    rows = [{"input_ids": row[:n].tolist()} for row, n in zip(ids, (7, 3, 11), strict=True)]
    distiller = Distiller(*tiny_pair(), [AttentionScores(), HiddenStates()])
    flat = DataCollatorWithFlattening(return_tensors="pt")(rows)
    assert torch.equal(distiller(**flat).loss, distiller(**PackingCollator()(rows)).loss)
    with pytest.raises(ValueError, match="position_ids: got 2 first"):
        distiller(**{**flat, "position_ids": torch.where(flat["position_ids"] > 0, 0, 2)})
    with pytest.raises(ValueError, match="position_ids: got others"):
        distiller(**{**flat, "position_ids": flat["position_ids"] * 2})


def test_positional_names_of_forward_are_those_of_transformers():
    distiller = Distiller(*tiny_pair(), [AttentionScores()])
    batch = padded_batch()
    ordered = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    assert torch.equal(distiller(*ordered).loss, distiller(**batch).loss)


def test_logits_alone():
    teacher, student = tiny_pair()
    distiller = Distiller(teacher, student, [AttentionScores()])
    output = distiller(**padded_batch(), return_loss=False)
    torch.testing.assert_close(output.logits, student(**padded_batch()).logits.detach(), rtol=0, atol=2e-6)
    assert output.loss is None and output.parts is None
    without_head = Distiller(None, tiny_bert(head="ForSequenceClassification"), [Labels()])
    assert without_head(**padded_batch(), return_loss=False).logits.shape == (4, 3)
