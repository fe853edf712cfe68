"""Objectives: layer maps, values against the plain definitions, and refusals."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from bertxfer_fast.distillation.objectives import (
    AttentionMaps,
    AttentionScores,
    Embeddings,
    HiddenStates,
    Labels,
    Logits,
    Objective,
)
from bertxfer_fast.models.activations import LayerActivations
from bertxfer_fast.models.spec import EncoderSpec

LENGTHS = (5, 2, 9)
CU_SEQLENS = torch.tensor([0, 5, 7, 16], dtype=torch.int32)


def facts(layers: int = 2, hidden: int = 12, heads: int = 4, **kwargs) -> EncoderSpec:
    settings = {"vocab_size": 50, "num_labels": 3, "head": "sequence", **kwargs}
    return EncoderSpec("Model", layers, hidden, heads, hidden // heads, **settings)


def bound(
    objective: Objective, student: EncoderSpec | None = None, teacher: EncoderSpec | None = None
) -> Objective:
    objective.bind(student or facts(), teacher or facts(4, 16))
    return objective


def activations(
    kind: str, index: int = 0, *, grad: bool = False, **shapes: tuple[int, ...]
) -> LayerActivations:
    generator = torch.Generator().manual_seed(100 * index + len(kind) + grad)
    tensors = {
        name: torch.randn(shape, generator=generator).requires_grad_(grad) for name, shape in shapes.items()
    }
    return LayerActivations(kind, index, CU_SEQLENS, max(LENGTHS), **tensors)


def attention(head_dim: int, *, grad: bool = False, scale: float | None = None) -> LayerActivations:
    made = activations("attention", grad=grad, q=(16, 4, head_dim), k=(16, 4, head_dim), v=(16, 4, head_dim))
    return LayerActivations(
        "attention", 0, CU_SEQLENS, max(LENGTHS), q=made.q, k=made.k, v=made.v, scale=scale
    )


def score_blocks(a: LayerActivations) -> list[torch.Tensor]:
    """Scores ``[H, L, L]`` of every sequence."""
    scale = a.q.shape[2] ** -0.5 if a.scale is None else a.scale
    return [
        scale * torch.einsum("qhd,khd->hqk", q, k)
        for q, k in zip(a.q.split(LENGTHS), a.k.split(LENGTHS), strict=True)
    ]


# Layer maps (METHODS: attention i matches i*k+k-1, hidden i matches i*k)


def test_uniform_map_of_tinybert():
    student, teacher = facts(4, 312, 12), facts(12, 768, 12)
    assert bound(AttentionScores(), student, teacher).pairs == ((0, 2), (1, 5), (2, 8), (3, 11))
    assert bound(HiddenStates(), student, teacher).pairs == ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))


def test_last_and_explicit_maps():
    assert bound(AttentionMaps()).pairs == ((1, 3),)
    assert bound(HiddenStates("last")).pairs == ((2, 4),)
    assert bound(HiddenStates([[0, 0], [2, 3], [2, 4]])).pairs == ((0, 0), (2, 3), (2, 4))
    assert bound(AttentionScores([(1, 0)]), facts(2), facts(3)).pairs == ((1, 0),)


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "message"),
    [
        (
            "uniform",
            facts(2),
            facts(3),
            "got 2 of the student and 3 of the teacher, want .* a multiple",
        ),
        (
            "uniform",
            facts(4),
            facts(2),
            "got 4 of the student and 2 of the teacher, want .* a multiple",
        ),
        ("unifrom", facts(2), facts(4), "did you mean 'uniform'"),
        ("skip", facts(1), facts(4), "layers: got 'skip' of 1 layer, want a student of 2 or more"),
        ([(0, 4)], facts(2), facts(4), "got teacher attention index 4 in .*, want 0..3"),
        ([(2, 0)], facts(2), facts(4), "got student attention index 2 in .*, want 0..1"),
        ([(-1, 0)], facts(2), facts(4), "student attention index -1"),
        ([(0, 1), (0, 1)], facts(2), facts(4), "none twice"),
        ([], facts(2), facts(4), "at least one pair"),
        ([(0, 1, 2)], facts(2), facts(4), "got .*, want .* pairs"),
        (3, facts(2), facts(4), "layers: got 3, want .* pairs"),
    ],
)
def test_maps_that_do_not_fit(layers, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        AttentionScores(layers).bind(student, teacher)


# Values


@pytest.mark.parametrize("scale", [None, 0.2])
def test_attention_scores_are_the_mean_over_valid_pairs(scale):
    student, teacher = attention(3, scale=scale), attention(4)
    squares = [(s - t).square() for s, t in zip(score_blocks(student), score_blocks(teacher), strict=True)]
    total = sum(block.sum() for block in squares)
    pairs = sum(length**2 for length in LENGTHS)
    torch.testing.assert_close(bound(AttentionScores())(student, teacher), total / (4 * pairs))
    # TinyBERT's own code: masked pairs add 0 and stay in the denominator.
    reference = bound(AttentionScores(padding="reference"))(student, teacher)
    torch.testing.assert_close(reference, total / (3 * 4 * 9 * 9))


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_attention_maps(kind):
    student, teacher = attention(3), attention(4)
    total, count = 0.0, 0
    for s, t in zip(score_blocks(student), score_blocks(teacher), strict=True):
        if kind == "kl":
            total += F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="sum")
            count += s.shape[0] * s.shape[1]
        else:
            total += (s.softmax(-1) - t.softmax(-1)).square().sum()
            count += s.numel()
    torch.testing.assert_close(bound(AttentionMaps(kind=kind))(student, teacher), total / count)


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize(("ours", "theirs"), [(0.2, None), (None, 0.3), (0.2, 0.3)])
def test_attention_maps_of_models_with_scales_of_their_own(kind, ours, theirs):
    student, teacher = attention(3, scale=ours), attention(4, scale=theirs)
    total, count = 0.0, 0
    for s, t in zip(score_blocks(student), score_blocks(teacher), strict=True):
        if kind == "kl":
            total += F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="sum")
        else:
            total += (s.softmax(-1) - t.softmax(-1)).square().sum()
        count += s.shape[0] * s.shape[1] * (1 if kind == "kl" else s.shape[2])
    torch.testing.assert_close(bound(AttentionMaps(kind=kind))(student, teacher), total / count)


@pytest.mark.parametrize("projection", ["shared", "per_layer"])
def test_hidden_states_go_through_their_projection(projection):
    objective = bound(HiddenStates(projection=projection))
    assert len(objective.projections) == (1 if projection == "shared" else 3)
    for pair_index, (s, t) in enumerate(objective.pairs):
        student = activations("hidden", s, grad=True, hidden=(16, 12))
        teacher = activations("hidden", t, hidden=(16, 16))
        linear = objective.projections[0 if projection == "shared" else pair_index]
        expected = F.mse_loss(linear(student.hidden), teacher.hidden)
        wanted = torch.autograd.grad(expected, [student.hidden, linear.weight, linear.bias])
        loss = objective(student, teacher)
        torch.testing.assert_close(loss, expected)
        for got, want in zip(
            torch.autograd.grad(loss, [student.hidden, linear.weight, linear.bias]), wanted, strict=True
        ):
            torch.testing.assert_close(got, want)


def test_hidden_states_without_projection_and_with_the_references_mean():
    student, teacher = activations("hidden", 1, hidden=(16, 12)), activations("hidden", 2, hidden=(16, 12))
    objective = bound(HiddenStates([(1, 2)], projection="none"), facts(), facts(4, 12))
    assert not list(objective.parameters())
    expected = (student.hidden - teacher.hidden).square()
    torch.testing.assert_close(objective(student, teacher), expected.mean())
    reference = bound(HiddenStates([(1, 2)], projection="none", padding="reference"), facts(), facts(4, 12))
    torch.testing.assert_close(reference(student, teacher), expected.sum() / (3 * 9 * 12))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits(temperature):
    student, teacher = activations("logits", grad=True, logits=(3, 5)), activations("logits", logits=(3, 5))
    target = (teacher.logits / temperature).softmax(-1)
    soft_ce = F.cross_entropy(student.logits / temperature, target)
    kl = F.kl_div((student.logits / temperature).log_softmax(-1), target, reduction="batchmean")
    for kind, expected in (
        ("kl", kl * temperature**2),
        ("soft_ce", soft_ce),
        ("mse", F.mse_loss(student.logits, teacher.logits)),
    ):
        loss = Logits(temperature, kind=kind)(student, teacher)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, student.logits)[0],
            torch.autograd.grad(expected, student.logits, retain_graph=True)[0],
        )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ({"problem_type": "multi_label_classification"}, {"problem_type": "multi_label_classification"}),
        ({}, {"problem_type": "multi_label_classification"}),  # one of them tells it
        ({"problem_type": "multi_label_classification"}, {}),
    ],
)
def test_multi_label_logits_are_decisions_of_their_own(student, teacher, temperature):
    s = activations("logits", grad=True, logits=(4, 3))
    t = activations("logits", logits=(4, 3))
    p, z = torch.sigmoid(t.logits.double() / temperature), s.logits.double() / temperature
    soft_ce = F.binary_cross_entropy_with_logits(z, p)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    for kind, expected in (
        ("kl", (soft_ce - entropy) * temperature**2),
        ("soft_ce", soft_ce),
        ("mse", F.mse_loss(s.logits.double(), t.logits.double())),
    ):
        objective = bound(Logits(temperature, kind=kind), facts(**student), facts(**teacher))
        loss = objective(s, t)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
        got, want = (torch.autograd.grad(x, s.logits, retain_graph=True)[0] for x in (loss, expected))
        torch.testing.assert_close(got, want)


def test_a_shift_of_all_multi_label_logits_is_seen():
    """A softmax would not see it, and yet every decision differs."""
    t = activations("logits", logits=(4, 3))
    shifted = LayerActivations("logits", 0, CU_SEQLENS, max(LENGTHS), logits=t.logits + 4)
    for settings in ({"num_labels": 3}, {"num_labels": 3, "head": "token"}):
        task = {"problem_type": "multi_label_classification", **settings}
        objective = bound(Logits(), facts(**task), facts(**task))
        assert (objective(shifted, t) > 0.5) == (settings.get("head") != "token")  # a token has one class


@pytest.mark.parametrize("kind", ["kl", "soft_ce", "mse"])
@pytest.mark.parametrize(
    "settings",
    [{"num_labels": 1}, {"problem_type": "regression"}, {"num_labels": 1, "problem_type": "regression"}],
)
def test_numbers_are_matched_by_their_squared_error(kind, settings):
    shape = (4, settings.get("num_labels", 3))
    s, t = activations("logits", grad=True, logits=shape), activations("logits", logits=shape)
    objective = bound(Logits(2.0, kind=kind), facts(**settings), facts(**settings))
    torch.testing.assert_close(objective(s, t), F.mse_loss(s.logits, t.logits))


def test_heads_for_different_tasks_are_refused():
    with pytest.raises(
        ValueError, match="got a student for regression and a teacher for multi-label-classification"
    ):
        bound(Logits(), facts(problem_type="regression"), facts(problem_type="multi_label_classification"))


def test_labels_of_a_multi_label_head_may_be_whole_numbers():
    student = activations("logits", logits=(4, 3))
    many = torch.tensor([[0, 1, 1]] * 4)
    expected = F.binary_cross_entropy_with_logits(student.logits, many.float())
    objective = Labels()
    objective.bind(facts(problem_type="multi_label_classification"), None)
    torch.testing.assert_close(objective(student, many), expected)
    objective.bind(facts(), facts(problem_type="multi_label_classification"))  # the teacher tells it
    torch.testing.assert_close(objective(student, many), expected)
    objective.bind(facts(), facts(problem_type="regression"))
    torch.testing.assert_close(objective(student, many.float()), F.mse_loss(student.logits, many.float()))


def test_labels_are_what_transformers_heads_compute():
    student = activations("logits", logits=(4, 3))
    ids = torch.tensor([0, 2, 1, 1])
    objective = Labels()
    objective.bind(facts(), None)
    torch.testing.assert_close(objective(student, ids), F.cross_entropy(student.logits, ids))
    many = torch.tensor([[0.0, 1.0, 1.0]] * 4)
    torch.testing.assert_close(
        objective(student, many), F.binary_cross_entropy_with_logits(student.logits, many)
    )
    objective.bind(facts(problem_type="regression"), None)
    torch.testing.assert_close(objective(student, many), F.mse_loss(student.logits, many))
    objective.bind(facts(num_labels=1), None)
    one = activations("logits", logits=(4, 1))
    for targets in (torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.tensor([1, 0, 2, 1])):
        torch.testing.assert_close(objective(one, targets), F.mse_loss(one.logits[:, 0], targets.float()))


def test_token_labels_ignore_minus_100():
    student = activations("logits", grad=True, logits=(6, 3))
    ids = torch.tensor([[0, -100, 2, 1, -100, 0]])
    objective = Labels()
    objective.bind(facts(head="token"), None)
    torch.testing.assert_close(objective(student, ids), F.cross_entropy(student.logits, ids[0]))
    nothing = objective(student, torch.full((1, 6), -100))  # plain cross-entropy would be NaN
    nothing.backward()
    assert nothing == 0 and not student.logits.grad.any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3, 0]), r"labels: got 3, want class ids 0..2 \(or -100\)"),
        (torch.tensor([0, -1, 1, 0]), "got -1"),
        (torch.tensor([0, 1]), "want 4 class ids"),
        (torch.zeros(4), r"got \(4,\), want floats \(4, 3\)"),
    ],
)
def test_bad_labels(labels, message):
    objective = Labels()
    objective.bind(facts(), None)
    with pytest.raises(ValueError, match=message):
        objective(activations("logits", logits=(4, 3)), labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_learned_map_takes_a_student_of_its_dtype(dtype):
    objective = bound(Embeddings()).to(dtype)
    states = torch.randn(16, 12).to(dtype).requires_grad_()
    student = LayerActivations("hidden", 2, CU_SEQLENS, 9, hidden=states)
    teacher = activations("hidden", 4, hidden=(16, 16))
    loss = objective(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and states.grad.abs().sum() > 0
    torch.testing.assert_close(loss, objective.float()(student, teacher), rtol=0.02, atol=0)


def test_values_are_float32_and_take_bfloat16():
    student = LayerActivations("hidden", 0, CU_SEQLENS, 9, hidden=torch.randn(16, 12).bfloat16())
    teacher = activations("hidden", hidden=(16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert bound(HiddenStates())(student, teacher).dtype == torch.float32
    mixed = LayerActivations(
        "attention", 0, CU_SEQLENS, 9, q=torch.randn(16, 4, 3).bfloat16(), k=torch.randn(16, 4, 3).bfloat16()
    )
    assert bound(AttentionScores())(mixed, attention(4)).dtype == torch.float32


# Weights


def test_schedules():
    assert [Labels(weight=2.0).weight_at(p) for p in (0, 0.25, 1)] == [2, 2, 2]
    assert [Labels(weight=2.0, schedule="linear_decay").weight_at(p) for p in (0, 0.25, 1)] == [2, 1.5, 0]
    assert [Labels(weight="warmup").weight_at(p) for p in (0, 0.05, 0.1, 1)] == [0, 0.5, 1, 1]
    longer = {"kind": "warmup", "value": 2.0, "share": 0.5}
    assert [Labels(weight=longer).weight_at(p) for p in (0, 0.25, 0.5, 1)] == [0, 1, 2, 2]
    assert Labels(weight={"share": 0.5}, schedule="warmup").weight_at(0.25) == 0.5
    assert Labels(weight={"kind": "linear_decay", "value": 3}).weight_at(0.5) == 1.5
    assert pickle.loads(pickle.dumps(Labels(weight=longer))).weight_at(0.25) == 1
    assert [Labels(weight="linear_growth").weight_at(p) for p in (0, 0.25, 1, 1.5)] == [0, 0.25, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Labels(weight=-1.0), "weight: got -1.0, want a finite number >= 0"),
        (lambda: Labels(weight=math.nan), "weight"),
        (lambda: Labels(weight={"value": "much"}), "weight: got much, want a finite number >= 0"),
        (
            lambda: Labels(weight={"kind": "warmup", "shar": 1}),
            "weight: got option 'shar' of 'warmup', .*'share'",
        ),
        (lambda: Labels(weight={"share": 0.2}), "weight: got option 'share' of 'constant', want a known one"),
        (
            lambda: Labels(weight={"kind": "warmup", "share": 0}),
            "weight: share: got 0, want a share of the training",
        ),
        (lambda: Labels(weight={"kind": "warmup", "share": 1.5}), "weight: share: got 1.5, want a share"),
        (lambda: Labels(weight="linear_grwth"), "did you mean 'linear_growth'"),
        (lambda: AttentionScores(padding="all"), "padding: got 'all', want one of 'valid', 'reference'"),
        (lambda: AttentionScores(method="grams"), "did you mean 'gram'"),
        (lambda: AttentionMaps(kind="ce"), "kind: got 'ce', want one of 'kl', 'mse'"),
        (lambda: HiddenStates(projection="linear"), "projection: got 'linear', want one of"),
        (lambda: Logits(0.0), "temperature: got 0.0, want a positive number"),
        (lambda: Logits(kind="soft_kl"), "kind: got 'soft_kl', want one of"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# What does not fit together


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "message"),
    [
        (
            AttentionScores(),
            facts(heads=4),
            facts(4, heads=2),
            "got 4 heads of the student and 2 of the teacher, want equal head counts",
        ),
        (AttentionMaps(), facts(heads=4), facts(4, heads=2), "equal head counts"),
        (
            HiddenStates(projection="none"),
            facts(),
            facts(4, 16),
            "got widths 12 of the student and 16 of the teacher, want equal widths",
        ),
        (Logits(), facts(head=None), facts(4), "as student, want a classification"),
        (Logits(), facts(), facts(4, head=None), "as teacher, want a classification"),
        (
            Logits(),
            facts(),
            facts(4, num_labels=5),
            "sequence head with 3 labels and a teacher sequence head with 5",
        ),
        (Logits(), facts(head="token"), facts(4), "a student token head"),
        (
            Logits(),
            facts(head="token", num_labels=1),
            facts(head="token", num_labels=1),
            "want kind='mse': of one logit it is constant",
        ),
        (Labels(), facts(head=None), facts(4), "as student, want a classification"),
        (AttentionScores(), facts(), None, "got no teacher, want one"),
        (Logits(), facts(), None, "got no teacher, want one"),
    ],
)
def test_models_that_do_not_fit(objective, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        objective.bind(student, teacher)


def test_a_trained_projection_is_not_silently_replaced():
    objective = bound(HiddenStates())
    weight = objective.projections[0].weight
    assert bound(objective).projections[0].weight is weight
    with pytest.raises(ValueError, match=r"got projections .* from earlier"):
        objective.bind(facts(), facts(4, 20))
