"""Students start as the teacher's layers, or not at all; never as something that only has the right shapes."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    EsmConfig,
    EsmModel,
    EuroBertConfig,
    EuroBertModel,
    ModernBertConfig,
    ModernBertModel,
    NomicBertConfig,
    NomicBertModel,
)
from transformers.models.auto import AutoModel

from bertxfer_fast.students.smaller import smaller, uniform_layers
from tests.tiny import tiny_bert

FAMILIES = ["Bert", "Roberta", "DistilBert", "Electra"]
IDS = torch.arange(3, 11)[None]


def teacher_of(family: str, head: str = "Model", **sizes):
    config = {"embedding_size": 8} if family == "Electra" else {}
    return tiny_bert(4, 16, 4, family=family, head=head, **config, **sizes)


def hidden_states(model) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model.eval()(IDS, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForMaskedLM"])
def test_a_student_of_the_first_layers_computes_what_the_teacher_computes_there(family, head):
    teacher = teacher_of(family, head)
    student = smaller(teacher, num_hidden_layers=2, layers=[0, 1])
    assert type(student) is type(teacher)
    assert student.config.num_hidden_layers == 2
    assert teacher.config.num_hidden_layers == 4
    for theirs, ours in zip(hidden_states(teacher), hidden_states(student), strict=False):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM"])
def test_the_head_comes_along(family, head):
    teacher = teacher_of(family, head)
    whole = smaller(teacher, num_hidden_layers=4).eval()
    with torch.no_grad():
        assert torch.equal(whole(IDS).logits, teacher(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_copies_the_last_layer_of_every_block(family):
    teacher = teacher_of(family)
    by_default = smaller(teacher, num_hidden_layers=2).state_dict()
    explicit = smaller(teacher, num_hidden_layers=2, layers=[1, 3]).state_dict()
    others = smaller(teacher, num_hidden_layers=2, layers=[0, 2]).state_dict()
    assert all(torch.equal(by_default[key], explicit[key]) for key in explicit)
    assert not all(torch.equal(by_default[key], others[key]) for key in others)


def test_uniform_layers():
    assert uniform_layers(12, 4) == [2, 5, 8, 11]
    assert uniform_layers(6, 6) == list(range(6))
    with pytest.raises(
        ValueError, match=r"num_hidden_layers: got 4 of the student and 6 of the teacher.*layers="
    ):
        uniform_layers(6, 4)


def test_a_student_shares_no_memory_with_the_teacher_and_leaves_it_alone():
    teacher = teacher_of("Bert", "ForMaskedLM")
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = smaller(teacher, num_hidden_layers=2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    tied = student.get_output_embeddings().weight
    assert tied is student.get_input_embeddings().weight


def test_a_half_precision_teacher_gives_a_student_that_can_be_trained():
    student = smaller(teacher_of("Bert").to(torch.bfloat16), num_hidden_layers=2)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert student.training and all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrow_student_has_the_widths_asked_for_and_no_weight_of_the_teacher(family):
    teacher = teacher_of(family)
    sizes = {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 20}
    student = smaller(teacher, num_hidden_layers=3, init="random", **sizes)
    assert len(hidden_states(student)) == 4
    assert hidden_states(student)[-1].shape[-1] == student.config.hidden_size == 12
    assert student.config.num_attention_heads == 2
    shapes = {tuple(p.shape) for p in student.parameters()}
    assert {(12, 20), (20, 12)} <= shapes
    assert not any(24 in shape or 16 in shape for shape in shapes)


def test_random_init_takes_no_weights_even_where_shapes_agree():
    teacher = teacher_of("Bert")
    student = smaller(teacher, num_hidden_layers=2, init="random")
    ours, theirs = (m.get_input_embeddings().weight for m in (student, teacher))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("init", ["teacher", "random"])
def test_one_rate_is_all_the_dropout_a_student_has(family, init):
    teacher = teacher_of(family, "ForSequenceClassification")
    student = smaller(teacher, num_hidden_layers=2, init=init, dropout=0.0).train()
    with torch.no_grad():
        once, again = student(IDS).logits, student(IDS).logits
        assert torch.equal(once, again)
        assert torch.equal(once, student.eval()(IDS).logits)
    other = smaller(teacher, num_hidden_layers=2, dropout=0.25)
    rates = {module.p for module in other.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.25}
    assert smaller(teacher, num_hidden_layers=2).config.to_dict().keys() == other.config.to_dict().keys()
    assert teacher.config.to_dict() == teacher_of(family, "ForSequenceClassification").config.to_dict()


def test_a_rate_of_dropout_leaves_what_is_no_rate():
    config = EsmConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        pad_token_id=0,
        mask_token_id=1,
        token_dropout=True,
    )
    student = smaller(EsmModel(config), num_hidden_layers=1, init="random", dropout=0.5)
    assert student.config.token_dropout is True
    assert student.config.hidden_dropout_prob == 0.5


def test_a_saved_student_loads_with_auto_classes(tmp_path):
    student = smaller(teacher_of("DistilBert"), num_hidden_layers=2)
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == 2
    for ours, theirs in zip(hidden_states(student), hidden_states(loaded), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"hidden_size": 12},
            r"widths: got hidden_size=12, want the teacher's hidden_size=16, or init='random'",
        ),
        ({"intermediate_size": 20}, r"got intermediate_size=20, want the teacher's intermediate_size=24"),
        # The shapes agree, but the columns of a head would be dealt to other heads.
        ({"num_attention_heads": 2}, r"got num_attention_heads=2, want the teacher's num_attention_heads=4"),
        (
            {"hidden_size": 14, "init": "random"},
            "hidden_size: got 14, want a multiple of num_attention_heads=4",
        ),
        ({"hidden_size": 0, "init": "random"}, "hidden_size: got 0, want 1 or more"),
        ({"num_hidden_layers": 3}, "num_hidden_layers: got 3 of the student and 4 of the teacher"),
        ({"num_hidden_layers": 5}, "num_hidden_layers: got 5, want 1 to the teacher's 4"),
        ({"num_hidden_layers": 0}, "got 0, want 1 to the teacher's 4"),
        ({"layers": [1]}, r"layers: got \[1\], want num_hidden_layers=2 numbers from 0 to 3"),
        ({"layers": [1, 4]}, "numbers from 0 to 3"),
        ({"layers": [0, 1], "init": "random"}, "init='random' copies no layers"),
        ({"dropout": 1.0}, "dropout: got 1.0, want 0 or more and less than 1"),
        ({"dropout": "0.1"}, "dropout: got '0.1', want 0 or more and less than 1"),
        ({"dropout": False}, "dropout: got False, want 0 or more and less than 1"),
        ({"dropout": float("nan")}, "dropout: got nan, want 0 or more and less than 1"),
        ({"init": "teacherr"}, "init: got 'teacherr', want 'teacher' or 'random'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        smaller(teacher_of("Bert"), **{"num_hidden_layers": 2, **options})


def test_sizes_that_a_family_cannot_be_built_of_are_named():
    """MobileBERT's vocabulary head is as wide as the hidden states less the embeddings."""
    bottleneck = {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16}
    teacher = tiny_bert(4, 16, 4, head="ForMaskedLM", family="MobileBert", trigram_input=False, **bottleneck)
    with pytest.raises(
        ValueError, match="widths: got hidden_size=8, want sizes that MobileBertForMaskedLM can"
    ):
        smaller(teacher, num_hidden_layers=2, hidden_size=8, init="random")


def test_sizes_equal_to_the_teachers_are_no_mismatch():
    smaller(
        teacher_of("DistilBert"),
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        intermediate_size=24,
    )


def test_a_teacher_must_be_a_transformers_model():
    with pytest.raises(TypeError, match="teacher: got Linear, want a transformers model"):
        smaller(torch.nn.Linear(2, 2), num_hidden_layers=1)


SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)


def test_layers_of_different_make_are_copied_to_their_like_or_refused():
    """ModernBERT's first layer has no norm before attention, and every third layer looks at all tokens."""
    teacher = ModernBertModel(ModernBertConfig(**SIZES, **SPECIAL))
    with pytest.raises(ValueError, match=r"want others or init='random'.*attn_norm"):
        smaller(teacher, num_hidden_layers=2)
    student = smaller(teacher, num_hidden_layers=2, layers=[0, 3])
    assert student.config.layer_types == [teacher.config.layer_types[0], teacher.config.layer_types[3]]


def test_a_shared_layer_is_refused():
    with pytest.raises(ValueError, match="got AlbertModel with 0 lists of 4 layers"):
        smaller(AlbertModel(AlbertConfig(**SIZES, embedding_size=8)), num_hidden_layers=2)


def test_heads_of_keys_follow_those_of_queries():
    """EuroBERT's configuration counts both."""
    teacher = EuroBertModel(EuroBertConfig(**SIZES, **SPECIAL, num_key_value_heads=4))
    student = smaller(teacher, num_hidden_layers=2, hidden_size=8, num_attention_heads=2, init="random")
    assert student.config.num_key_value_heads == 2
    assert student(IDS).last_hidden_state.shape[-1] == 8
    grouped = EuroBertModel(EuroBertConfig(**SIZES, **SPECIAL, num_key_value_heads=2))
    with pytest.raises(
        ValueError, match="num_attention_heads: got 1, want a multiple of num_key_value_heads=2"
    ):
        smaller(grouped, num_hidden_layers=2, num_attention_heads=1, init="random")
    assert smaller(grouped, num_hidden_layers=2).config.num_key_value_heads == 2


def test_a_head_dim_in_the_configuration_follows_the_widths():
    student = smaller(
        NomicBertModel(NomicBertConfig(**SIZES)), num_hidden_layers=2, hidden_size=8, init="random"
    )
    assert student.config.head_dim == 2
