"""Sizes of transformers students by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bertxfer_fast.students import build, parse_size, smaller

from ..tiny import tiny_bert

BASE = SimpleNamespace(num_attention_heads=12)


@pytest.mark.parametrize(
    ("size", "layers", "width", "heads", "feed_forward"),
    [
        ("tinybert-4", 4, 312, 12, 1200),  # Jiao et al., 2020
        ("tinybert-6", 6, 768, 12, 3072),
        ("minilm-6x384", 6, 384, 12, 1536),  # Wang et al., 2020
        ("3x192", 3, 192, 12, 768),
        ("2x128x2", 2, 128, 2, 512),
    ],
)
def test_sizes_are_those_of_the_papers(size, layers, width, heads, feed_forward):
    assert parse_size(size, BASE) == {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": feed_forward,
    }


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("tinybert4", "size: got 'tinybert4', want one of 'tinybert-4', .*did you mean 'tinybert-4'"),
        ("3 by 192", "size: got '3 by 192', want one of .*'LAYERSxWIDTH'"),
        ("3x100", "size: got '3x100', want a width that 12 heads divide; or say the heads: '3x100xHEADS'"),
        ("0x192", "size: got '0x192'"),
    ],
)
def test_other_names_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        parse_size(size, BASE)


def test_a_student_of_a_size():
    teacher = tiny_bert(4, 16, 4, head="ForSequenceClassification", intermediate=24)
    config = smaller(teacher, size="2x8").config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 8, 4)
    assert config.intermediate_size == 32
    deeper = smaller(teacher, size="2x8", num_hidden_layers=4, intermediate_size=12).config
    assert (deeper.num_hidden_layers, deeper.hidden_size, deeper.intermediate_size) == (4, 8, 12)


def test_a_size_of_the_teachers_widths_starts_from_its_weights():
    teacher = tiny_bert(4, 16, 4, intermediate=64)
    copied = smaller(teacher, size="2x16").get_input_embeddings().weight
    assert copied.equal(teacher.get_input_embeddings().weight)
    assert not smaller(teacher, size="2x16", init="random").get_input_embeddings().weight.equal(copied)
    with pytest.raises(ValueError, match=r"widths: got hidden_size=8, .*or init='random'"):
        smaller(teacher, size="2x8", init="teacher")
    with pytest.raises(ValueError, match="num_hidden_layers: got None, want a number of layers, or a size"):
        smaller(teacher)


def test_a_student_of_another_kind_has_no_layers_to_cut_out():
    lstm = build("bilstm", tiny_bert(2, 16, 4), hidden_size=8)
    with pytest.raises(TypeError, match="teacher: got BiLSTM, want a transformers model"):
        smaller(lstm, size="1x8")
