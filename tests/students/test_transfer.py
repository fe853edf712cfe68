"""Weights come over as they are asked for: the blend of the right layers, and other widths by the stated rule alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    NomicBertConfig,
    NomicBertModel,
)

import bertxfer_fast
from bertxfer_fast.students import smaller, transfer_weights
from bertxfer_fast.students.transfer import layer_pairs
from bertxfer_fast.students.widths import shared_basis
from tests.tiny import tiny_bert

FAMILIES = ["Bert", "Roberta", "DistilBert", "Electra"]
HEADS = ["Model", "ForSequenceClassification", "ForMaskedLM"]
IDS = torch.arange(3, 11)[None]


def model(layers: int, family: str = "Bert", head: str = "Model", seed: int = 0, **sizes):
    extra = {"embedding_size": 8} if family == "Electra" else {}
    return tiny_bert(layers, family=family, head=head, seed=seed, **{**extra, **sizes})


def weights(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def logits(network) -> torch.Tensor:
    with torch.no_grad():
        output = network.eval()(IDS)
    return output.logits if "logits" in output else output.last_hidden_state


def origin(name: str, layers: dict[int, int]) -> str | None:
    """The teacher's name for a student's: its layer number replaced."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return name
    index = int(parts[at])
    return ".".join([*parts[:at], str(layers[index]), *parts[at + 1 :]]) if index in layers else None


# ---- equal widths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_tensor_is_the_blend_of_its_own_and_the_mapped_layers(family, head):
    teacher, student = model(4, family, head, seed=1), model(2, family, head, seed=2)
    before, source = weights(student), weights(teacher)
    record = transfer_weights(teacher, student, beta=0.3)
    for name, value in student.state_dict().items():
        taught = source[origin(name, {0: 1, 1: 3})]
        wanted = 0.3 * taught.double() + 0.7 * before[name].double()
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)
    assert not record.kept and {moved.how for moved in record.moved} == {"copied"}
    assert all(torch.equal(value, source[name]) for name, value in teacher.state_dict().items())
    named = {p.data_ptr() for p in student.parameters()}
    assert len(record.moved) == len(named)  # a tied tensor is blended once
    json.dumps(record.to_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_teacher_is_what_smaller_copies(family):
    teacher = model(4, family, "ForMaskedLM", seed=1)
    student = model(2, family, "ForMaskedLM", seed=2)
    transfer_weights(teacher, student)
    copied = smaller(teacher, num_hidden_layers=2).state_dict()
    assert all(torch.equal(value, copied[name]) for name, value in student.state_dict().items())
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_nothing_of_the_teacher_leaves_the_student_as_it_was():
    teacher, student = model(4, seed=1), model(2, seed=2)
    before = weights(student)
    record = transfer_weights(teacher, student, beta=0.0)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert record.beta == 0.0 and record.moved


@pytest.mark.parametrize(
    ("layer_map", "pairs"),
    [
        ("first", {0: 0, 1: 1}),
        ("last", {0: 2, 1: 3}),
        ([3, 0], {0: 3, 1: 0}),
        ([(1, 0)], {1: 0}),
    ],
)
def test_layer_maps(layer_map, pairs):
    teacher, student = model(4, seed=1), model(2, seed=2)
    before = weights(student)
    record = transfer_weights(teacher, student, layer_map=layer_map)
    assert dict(record.layers) == pairs
    for name, value in student.state_dict().items():
        source = origin(name, pairs)
        assert torch.equal(value, before[name] if source is None else teacher.state_dict()[source])
        assert (name in record.kept) == (source is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_and_head_may_be_left_out(family):
    head = "ForSequenceClassification"
    teacher, student = model(2, family, head, seed=1), model(2, family, head, seed=2)
    before, source = weights(student), weights(teacher)
    record = transfer_weights(teacher, student, embeddings=False, head=False)
    for name, value in student.state_dict().items():
        inside = ".layer." in name
        assert torch.equal(value, (source if inside else before)[name]), name
        assert (name in record.kept) != inside


def test_a_bare_teacher_gives_what_it_has_and_another_head_stays():
    student = model(2, head="ForSequenceClassification", seed=2)
    before = weights(student)
    bare = model(2, seed=1)
    record = transfer_weights(bare, student)
    assert torch.equal(student.bert.pooler.dense.weight, bare.pooler.dense.weight)
    assert set(record.kept) == {"classifier.weight", "classifier.bias"}
    # Its classifier has the same name and shape, and is of tokens.
    tokens = model(2, head="ForTokenClassification", seed=3)
    record = transfer_weights(tokens, student)
    assert torch.equal(student.classifier.weight, before["classifier.weight"])
    assert record.kept["classifier.weight"] == "BertForTokenClassification has another head"
    assert record.kept["bert.pooler.dense.weight"].startswith("BertForTokenClassification has no bert.pooler")


def test_rows_of_the_head_meet_under_their_names():
    names = ["bad", "good", "so-so"]
    teacher = model(2, head="ForSequenceClassification", seed=1)
    student = model(2, head="ForSequenceClassification", seed=2)
    for network, order in ((teacher, names), (student, names[::-1])):
        network.config.id2label = dict(enumerate(order))
        network.config.label2id = {name: i for i, name in enumerate(order)}
    before = weights(student)["classifier.weight"]
    transfer_weights(teacher, student, beta=0.5)
    wanted = (teacher.classifier.weight + before.flip(0)) / 2
    torch.testing.assert_close(student.classifier.weight, wanted)
    assert list(student.config.id2label.values()) == names


# ---- other widths -------------------------------------------------------------------------------------------


def test_truncation_takes_the_first_of_everything():
    """Four heads of four dimensions become four of three: the first three of each."""
    head = "ForSequenceClassification"
    teacher = model(2, head=head, seed=1, max_positions=64)
    student = model(1, head=head, seed=2, hidden=12, intermediate=20, max_positions=32)
    record = transfer_weights(teacher, student, layer_map="last", width_rule="truncate")
    ours, theirs = student.state_dict(), teacher.state_dict()
    rows = torch.tensor([i for i in range(16) if i % 4 < 3])
    for kind in ("query", "key", "value"):
        name = f"bert.encoder.layer.{{}}.attention.self.{kind}"
        wanted = theirs[f"{name.format(1)}.weight"][rows][:, :12]
        assert torch.equal(ours[f"{name.format(0)}.weight"], wanted)
        assert torch.equal(ours[f"{name.format(0)}.bias"], theirs[f"{name.format(1)}.bias"][rows])
    output = "bert.encoder.layer.{}.attention.output.dense.weight"
    assert torch.equal(ours[output.format(0)], theirs[output.format(1)][:12][:, rows])
    inner = "bert.encoder.layer.{}.intermediate.dense.weight"
    assert torch.equal(ours[inner.format(0)], theirs[inner.format(1)][:20, :12])
    norm = "bert.encoder.layer.{}.output.LayerNorm.weight"
    assert torch.equal(ours[norm.format(0)], theirs[norm.format(1)][:12])
    positions = "bert.embeddings.position_embeddings.weight"
    assert torch.equal(ours[positions], theirs[positions][:32, :12])
    assert torch.equal(ours["bert.pooler.dense.weight"], theirs["bert.pooler.dense.weight"][:12, :12])
    assert torch.equal(ours["classifier.weight"], theirs["classifier.weight"][:, :12])
    assert record.widths == {
        "hidden_size": (16, 12),
        "intermediate_size": (24, 20),
        "max_position_embeddings": (64, 32),
    }
    assert {moved.how for moved in record.moved} == {"truncate", "copied"}
    assert [moved.name for moved in record.moved if moved.how == "copied"] == ["classifier.bias"]


def test_equal_shapes_of_other_heads_are_no_equal_widths():
    """The columns of a head would be dealt to other heads."""
    with pytest.raises(ValueError, match="num_attention_heads=2 and 4 of the teacher"):
        transfer_weights(model(2, seed=1), model(2, heads=2, seed=2))
    with pytest.raises(ValueError, match="student: got head_dim=8, want at most the teacher's 4"):
        transfer_weights(model(2, seed=1), model(2, heads=2, seed=2), width_rule="truncate")


def isometry(wide: int, narrow: int) -> torch.Tensor:
    """``[wide, narrow]`` with orthonormal columns that takes equal entries to equal entries."""
    draw = torch.randn(wide, narrow - 1, dtype=torch.float64)
    equal = torch.full((wide, 1), wide**-0.5, dtype=torch.float64)
    inside = torch.full((narrow, 1), narrow**-0.5, dtype=torch.float64)
    others = torch.linalg.qr(torch.cat([inside, torch.randn(narrow, narrow - 1, dtype=torch.float64)], 1)).Q[
        :, 1:
    ]
    return equal @ inside.T + torch.linalg.qr(draw - equal @ (equal.T @ draw)).Q @ others.T


def widened(small, heads: int, head_dim: int, intermediate: int):
    """A teacher that computes what ``small`` computes, in a wider space, with heads and columns that do nothing."""
    config = small.config
    narrow, wide = config.hidden_size, heads * head_dim
    large = tiny_bert(
        config.num_hidden_layers, wide, heads, intermediate=intermediate, head="ForSequenceClassification"
    )
    ours, theirs = {n: v.double() for n, v in small.state_dict().items()}, large.state_dict()
    basis = isometry(wide, narrow)
    old, dim = config.num_attention_heads, narrow // config.num_attention_heads
    where = torch.randperm(heads)[:old]
    columns = torch.randperm(intermediate)[: config.intermediate_size]
    pooled = torch.randperm(wide)[:narrow]
    turns = {
        kind: torch.stack([torch.linalg.qr(torch.randn(head_dim, head_dim).double()).Q for _ in range(heads)])
        for kind in ("qk", "vo")
    }
    stretch = (head_dim / dim) ** 0.25

    def spread(rows: torch.Tensor, kind: str) -> torch.Tensor:
        """Rows of the small heads ``[old * dim, ...]`` among those of the large ones, turned inside each."""
        rows = rows.reshape(old, dim, -1)
        full = rows.new_zeros(heads, head_dim, rows.shape[-1])
        full[where, :dim] = rows
        return (turns[kind] @ full).reshape(wide, -1)

    for name, value in theirs.items():
        given = ours[name]
        if "embeddings." in name and given.ndim == 2:
            new = given @ basis.T
        elif "LayerNorm.weight" in name:
            new = torch.full((wide,), (narrow / wide) ** 0.5)
        elif "attention.self" in name:
            rows = given @ basis.T if given.ndim == 2 else given[:, None]
            new = spread(rows, "vo" if "value" in name else "qk").reshape(value.shape)
            new = new * (1 if "value" in name else stretch)
        elif "attention.output.dense.weight" in name:
            new = spread((basis @ given).T, "vo").T
        elif "intermediate" in name:
            new = torch.zeros(value.shape).double()
            new[columns] = given @ basis.T if given.ndim == 2 else given
        elif name.endswith("output.dense.weight"):
            new = torch.zeros(value.shape).double()
            new[:, columns] = basis @ given
        elif "pooler" in name:
            new = torch.zeros(value.shape).double()
            new[pooled] = given @ basis.T if given.ndim == 2 else given
        elif name == "classifier.weight":
            new = torch.zeros(value.shape).double()
            new[:, pooled] = given
        elif name == "classifier.bias":
            new = given
        else:  # biases of what writes hidden states
            new = basis @ given
        value.copy_(new)
    return large


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 6), (2, 12), (6, 4)])
def test_the_projection_is_exact_where_the_teacher_has_no_more_directions(heads, head_dim):
    """Wider hidden states, more heads, wider heads, more columns: what they add is nothing, so nothing is lost."""
    small = tiny_bert(
        2, 12, 2 if heads != 6 else 3, intermediate=20, head="ForSequenceClassification", seed=3
    )
    torch.manual_seed(4)
    teacher = widened(small, heads, head_dim, 32)
    wanted = logits(small)
    torch.testing.assert_close(logits(teacher), wanted, rtol=1e-4, atol=1e-5)
    student = tiny_bert(
        2, 12, small.config.num_attention_heads, intermediate=20, head="ForSequenceClassification", seed=5
    )
    record = transfer_weights(teacher, student, width_rule="svd")
    torch.testing.assert_close(logits(student), wanted, rtol=1e-4, atol=1e-5)
    assert record.widths["hidden_size"] == (24, 12)
    # Truncation of the same teacher keeps an arbitrary part.
    transfer_weights(teacher, student, width_rule="truncate")
    assert not torch.allclose(logits(student), wanted, atol=0.05)


def test_columns_are_kept_by_the_product_of_their_norms():
    """One that reads much and gives little does less than its sum of norms says."""
    teacher, student = model(1, intermediate=3), model(1, intermediate=2, seed=1)
    read, give = (
        teacher.encoder.layer[0].intermediate.dense.weight,
        teacher.encoder.layer[0].output.dense.weight,
    )
    with torch.no_grad():
        read.copy_(torch.nn.functional.normalize(read, dim=1) * torch.tensor([[10.0], [2.0], [3.0]]))
        give.copy_(torch.nn.functional.normalize(give, dim=0) * torch.tensor([0.1, 2.0, 1.0]))
    transfer_weights(teacher, student, width_rule="svd")
    assert torch.equal(student.encoder.layer[0].intermediate.dense.weight, read[1:])
    assert torch.equal(student.encoder.layer[0].output.dense.weight, give[:, 1:])


def test_the_shared_basis_is_orthonormal_keeps_equal_entries_and_the_largest_directions():
    torch.manual_seed(0)
    states = torch.randn(200, 8, dtype=torch.float64) * torch.tensor([9, 8, 7, 1, 1, 1, 1, 1.0])
    moment = states.T @ states
    basis = shared_basis(moment, 4)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(basis.T @ basis, eye)
    torch.testing.assert_close(basis.T @ torch.ones(8).double(), torch.ones(4).double() * 2**0.5)
    centred = states - states.mean(1, keepdim=True)
    kept = (centred @ basis).square().sum()
    # Three directions beside that of equal entries: the largest three moments of the centred states.
    values = torch.linalg.eigvalsh(centred.T @ centred)
    torch.testing.assert_close(kept, values[-3:].sum())
    assert torch.equal(basis, shared_basis(moment, 4))


SIZES = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)


def other_family(name: str, hidden: int, heads: int, columns: int):
    torch.manual_seed(hidden)
    sizes = {**SIZES, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": columns}
    if name == "ModernBert":
        return ModernBertForSequenceClassification(ModernBertConfig(**sizes, **SPECIAL))
    return NomicBertModel(NomicBertConfig(**sizes))


@pytest.mark.parametrize("rule", ["truncate", "svd"])
@pytest.mark.parametrize("name", ["ModernBert", "NomicBert"])
def test_models_that_turn_their_heads_keep_whole_heads(name, rule):
    """Fused maps of queries, keys and values, gated columns, rotary positions, norms before and behind."""
    teacher, student = other_family(name, 32, 4, 24), other_family(name, 16, 2, 20)
    record = transfer_weights(teacher, student, layer_map=[0, 1], width_rule=rule)
    assert not record.kept and {moved.how for moved in record.moved} <= {rule, "copied"}
    assert torch.isfinite(logits(student)).all()
    if name == "ModernBert" and rule == "truncate":
        ours, theirs = student.state_dict(), teacher.state_dict()
        fused = theirs["model.layers.1.attn.Wqkv.weight"].reshape(3, 32, 32)[:, :16, :16].reshape(48, 16)
        assert torch.equal(ours["model.layers.1.attn.Wqkv.weight"], fused)
        gated = theirs["model.layers.1.mlp.Wi.weight"].reshape(2, 24, 32)[:, :20, :16].reshape(40, 16)
        assert torch.equal(ours["model.layers.1.mlp.Wi.weight"], gated)
    narrow = other_family(name, 16, 4, 20)
    with pytest.raises(ValueError, match="student: got heads of 4 dimensions, want the teacher's 8"):
        transfer_weights(teacher, narrow, layer_map=[0, 1], width_rule=rule)


@pytest.mark.parametrize("rule", ["truncate", "svd"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_family_narrows_and_saves(family, head, rule, tmp_path):
    teacher = model(4, family, head, seed=1)
    with torch.no_grad():
        for parameter in teacher.parameters():  # weights of norms that are not the student's
            parameter.mul_(1.1)
    small = {"embedding_size": 6} if family == "Electra" else {}
    student = model(2, family, head, seed=2, hidden=12, heads=4, intermediate=20, **small)
    before = weights(student)
    record = transfer_weights(teacher, student, width_rule=rule)
    assert not record.kept
    assert all(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(student))


# ---- what cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta": 1.5}, "beta: got 1.5, want 0 to 1"),
        ({"beta": float("nan")}, "beta: got nan, want 0 to 1"),
        ({"width_rule": "pad"}, "width_rule: got 'pad', want one of 'error', 'truncate', 'svd'"),
        ({"layer_map": "middle"}, "layer_map: got 'middle', want 'uniform', 'first', 'last'"),
        ({"layer_map": [0]}, "want a teacher layer for each of 2 layers"),
        ({"layer_map": [0, 4]}, r"got teacher layer 4 in \(1, 4\), want 0..3"),
        ({"layer_map": [(2, 0)]}, r"got student layer 2 in \(2, 0\), want 0..1"),
        ({"layer_map": [(0, 1), (0, 2)]}, "no student layer twice"),
        ({"layer_map": []}, "want at least one pair"),
        ({"layer_map": [(0, 1, 2)]}, r"got \(0, 1, 2\), want a \(student, teacher\) pair"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(options, named):
    teacher, student = model(4, seed=1), model(2, seed=2)
    before = weights(student)
    with pytest.raises(ValueError, match=named):
        transfer_weights(teacher, student, **options)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("sizes", "options", "named"),
    [
        (
            {"hidden": 12},
            {},
            "width_rule: got 'error' for hidden_size=12 and 16 of the teacher, want equal sizes",
        ),
        (
            {"intermediate": 32},
            {"width_rule": "svd"},
            "student: got 32 along axis 0 of .*want at most the teacher's 24",
        ),
        ({"vocab": 40}, {"width_rule": "svd"}, "student: got vocab_size 40 and 50 of the teacher"),
        ({"num_labels": 2}, {}, "head: got 2 labels and 3 of the teacher, want equally many, or head=False"),
        ({"layers": 3}, {}, "layer_map: got 'uniform' for 3 layers of the student and 4 of the teacher"),
    ],
)
def test_models_that_do_not_fit_are_named(sizes, options, named):
    head = "ForSequenceClassification"
    teacher, student = model(4, head=head, seed=1), model(**{"layers": 2, "head": head, "seed": 2, **sizes})
    with pytest.raises(ValueError, match=named):
        transfer_weights(teacher, student, **options)


def test_other_vocabularies_may_share_their_layers():
    teacher, student = model(4, seed=1), model(2, seed=2, vocab=40)
    record = transfer_weights(teacher, student, embeddings=False)
    assert {name.partition(".")[0] for name in record.kept} == {"embeddings"}


def test_a_padded_vocabulary_is_the_same():
    teacher, student = model(2, seed=1), model(2, seed=2, vocab=56)
    before = weights(student)["embeddings.word_embeddings.weight"]
    record = transfer_weights(teacher, student, width_rule="truncate")
    ours = student.get_input_embeddings().weight
    assert torch.equal(ours[:50], teacher.get_input_embeddings().weight) and torch.equal(
        ours[50:], before[50:]
    )
    assert {moved.name: moved.rows for moved in record.moved}["embeddings.word_embeddings.weight"] == 50


def test_models_that_share_memory_are_refused():
    teacher = model(2, seed=1)
    with pytest.raises(ValueError, match="teacher: got the student itself"):
        transfer_weights(teacher, teacher)
    student = copy.deepcopy(teacher)
    student.embeddings = teacher.embeddings
    with pytest.raises(
        ValueError, match=r"parameters that are the student's too \(embeddings.word_embeddings"
    ):
        transfer_weights(teacher, student)
    with pytest.raises(TypeError, match="student: got Linear, want a transformers model"):
        transfer_weights(teacher, torch.nn.Linear(2, 2))


def test_layers_of_another_make_are_refused():
    """ModernBERT's first layer has no norm before attention."""
    teacher = other_family("ModernBert", 16, 2, 24)
    student = other_family("ModernBert", 16, 2, 24)
    with pytest.raises(ValueError, match=r"counterpart model.layers.0.attn_norm.weight in ModernBert"):
        transfer_weights(teacher, student, layer_map=[0, 0])


def test_the_name_is_public_and_the_record_reads():
    assert bertxfer_fast.transfer_weights is transfer_weights
    told = str(transfer_weights(model(4, seed=1), model(2, seed=2, hidden=12), 0.5, "last", "svd"))
    assert (
        told == "39 tensors blended with beta 0.5 by svd, 0 kept; layers 0 <- 2, 1 <- 3; hidden_size 16 -> 12"
    )
    assert layer_pairs("uniform", 6, 3) == ((0, 1), (1, 3), (2, 5))
