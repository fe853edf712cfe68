"""The facts of a model: right, and read without touching it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch

from bertxfer_fast.models import EncoderSpec
from bertxfer_fast.models.hf.encoder import PackedModel
from tests.tiny import tiny_bert

MODERN = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0)


def test_facts_of_a_model_with_a_head():
    model = tiny_bert(3, 20, 5, head="ForTokenClassification", num_labels=3)
    model.config.id2label = {0: "O", 1: "B", 2: "I"}
    spec = EncoderSpec.of(model)
    assert (spec.name, spec.num_layers, spec.hidden_size) == ("BertForTokenClassification", 3, 20)
    assert (spec.num_heads, spec.head_dim, spec.intermediate_size) == (5, 4, 24)
    assert (spec.vocab_size, spec.type_vocab_size, spec.max_positions, spec.position_offset) == (50, 2, 64, 0)
    assert (spec.head, spec.num_labels, spec.labels, spec.window) == ("token", 3, ("O", "B", "I"), None)
    assert PackedModel(model).spec == spec


def test_facts_that_families_tell_in_their_own_way():
    bare = EncoderSpec.of(tiny_bert())
    assert (bare.head, bare.num_labels, bare.labels) == (None, 0, ())
    masked = EncoderSpec.of(tiny_bert(head="ForMaskedLM"))
    assert (masked.head, masked.num_labels, masked.labels) == ("token", 50, ())
    roberta = EncoderSpec.of(tiny_bert(family="Roberta"))
    assert (roberta.max_positions, roberta.position_offset) == (62, 2)  # the first two are not used
    distil = EncoderSpec.of(tiny_bert(family="DistilBert"))
    assert (distil.type_vocab_size, distil.intermediate_size) == (None, 24)
    modern = EncoderSpec.of(tiny_bert(4, family="ModernBert", local_attention=8, **MODERN))
    assert (modern.window, modern.max_positions) == (5, None)


def test_reading_facts_changes_nothing():
    model = tiny_bert(head="ForSequenceClassification").train()
    model.bert.encoder.layer[0].eval()
    before = pickle.dumps(model)
    EncoderSpec.of(model)
    PackedModel(model)
    assert pickle.dumps(model) == before


def test_whatever_has_a_spec_tells_its_own():
    spec = EncoderSpec("Mine", 1, 8)
    assert EncoderSpec.of(SimpleNamespace(spec=spec)) is spec
    with pytest.raises(
        TypeError, match="model: got Linear, want a transformers PreTrainedModel or an Encoder"
    ):
        EncoderSpec.of(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"attention: got \[0\], want none: Mine has no attention"):
        spec.check_wanted({0}, set(), False)
