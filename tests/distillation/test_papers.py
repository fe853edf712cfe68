"""Objectives against the definitions of their papers: plain torch in float64, sequence by sequence; values and
gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bertxfer_fast.distillation.objectives import (
    AttentionMaps,
    Embeddings,
    HiddenCosine,
    Labels,
    LinearLogits,
    Logits,
    Objective,
    PatientStates,
    Relations,
    Scores,
)
from bertxfer_fast.models.activations import LayerActivations
from bertxfer_fast.models.spec import EncoderSpec

from .test_objectives import CU_SEQLENS, LENGTHS, activations, bound, facts

WIDE, NARROW = 16, 12


def check(
    objective: Objective,
    student: LayerActivations,
    *targets: Any,
    expected: Callable[[dict[str, Tensor]], Tensor],
    rtol: float = 1e-4,
) -> None:
    """Value and gradient, by the student's tensors and the objective's parameters, against a function of doubles."""
    leaves = {
        name: value
        for name in ("q", "k", "v", "hidden", "weight", "bias", "logits")
        if (value := getattr(student, name)) is not None
    }
    leaves |= dict(objective.named_parameters())
    wanted = expected({name: leaf.double() for name, leaf in leaves.items()})
    loss = objective(student, *targets)
    torch.testing.assert_close(loss.double(), wanted, rtol=rtol, atol=1e-7)
    assert loss.dtype == torch.float32 and float(wanted.detach()) != 0
    used = [leaf for leaf in leaves.values() if leaf.requires_grad]
    got, want = (torch.autograd.grad(x, used, allow_unused=True) for x in (loss, wanted))
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=10 * rtol, atol=1e-6)


def spec_of_lm(hidden: int, vocabulary: int = 7) -> EncoderSpec:
    return facts(hidden=hidden, head="token", num_labels=vocabulary, output_layer=True)


def heads_of(x: Tensor, heads: int) -> list[Tensor]:
    """``[heads, L, D / heads]`` of each sequence."""
    return [part.flatten(1).view(len(part), heads, -1).transpose(0, 1) for part in x.split(LENGTHS)]


def relation(s: Tensor, t: Tensor, heads: int) -> Tensor:
    """MiniLMv2, eq. 4 to 6: the mean over relation heads and rows of KL(teacher || student)."""
    total, rows = torch.zeros((), dtype=torch.float64), 0
    for a, b in zip(heads_of(s, heads), heads_of(t.double(), heads), strict=True):
        ours, theirs = (x @ x.mT / x.shape[-1] ** 0.5 for x in (a, b))
        total = total + F.kl_div(
            ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum"
        )
        rows += heads * a.shape[1]
    return total / rows


@pytest.mark.parametrize(("of", "heads"), [("v", None), ("qkv", 2), ("kq", 4)])
def test_relations(of: str, heads: int | None) -> None:
    shape = {"heads": 4} if heads is None else {"heads": 3}  # other head counts need re-split heads
    h = shape["heads"]
    student = activations("attention", grad=True, **{x: (16, h, NARROW // h) for x in "qkv"})
    teacher = activations("attention", **{x: (16, 4, WIDE // 4) for x in "qkv"})
    objective = bound(Relations(of, heads=heads), facts(hidden=NARROW, heads=h), facts(4, WIDE, 4))
    assert objective.pairs == ((1, 3),) and objective.reads == tuple(of)
    check(
        objective,
        student,
        teacher,
        expected=lambda x: sum(relation(x[n], getattr(teacher, n), heads or 4) for n in of),  # type: ignore[arg-type, return-value]
    )


def test_relations_of_another_teacher_layer() -> None:
    objective = bound(Relations(heads=2, layers=[["last", 2]]))
    assert objective.pairs == ((1, 2),)
    assert bound(Relations(heads=2, layers=[("last", "last")])).pairs == ((1, 3),)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_hidden_cosine(width: int) -> None:
    student = activations("hidden", 2, grad=True, hidden=(16, width))
    teacher = activations("hidden", 4, hidden=(16, WIDE))
    objective = bound(HiddenCosine(), facts(hidden=width), facts(4, WIDE))
    assert objective.pairs == ((2, 4),)
    assert len(objective.projections) == (width != WIDE)

    def expected(x: dict[str, Tensor]) -> Tensor:
        s = x["hidden"]
        if width != WIDE:
            s = s @ x["projections.0.weight"].T + x["projections.0.bias"]
        # DistilBERT's distiller: CosineEmbeddingLoss with targets of 1.
        return F.cosine_embedding_loss(s, teacher.hidden.double(), torch.ones(16))

    check(objective, student, teacher, expected=expected)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_patient_states(width: int) -> None:
    student = activations("hidden", 1, grad=True, hidden=(16, width))
    teacher = activations("hidden", 2, hidden=(16, WIDE))
    objective = bound(PatientStates(), facts(3, width), facts(6, WIDE))
    assert objective.pairs == ((1, 2), (2, 4))
    assert bound(PatientStates(), facts(6), facts(12)).pairs == tuple((i, 2 * i) for i in range(1, 6))

    def expected(x: dict[str, Tensor]) -> Tensor:
        s = torch.stack([part[0] for part in x["hidden"].split(LENGTHS)])
        if width != WIDE:
            s = s @ x["projections.0.weight"].T + x["projections.0.bias"]
        t = torch.stack([part[0] for part in teacher.hidden.double().split(LENGTHS)])
        s, t = (v / v.norm(dim=1, keepdim=True) for v in (s, t))
        return ((s - t) ** 2).sum() / s.numel() / 2  # and by the layers

    check(objective, student, teacher, expected=expected)


def test_skip_needs_something_between() -> None:
    # Every second of twelve, and not the last, which the logits stand for.
    assert bound(PatientStates(), facts(6), facts(12)).pairs == tuple((i, 2 * i) for i in range(1, 6))
    maps = bound(AttentionMaps("skip"), facts(6), facts(12))
    assert maps.pairs == tuple((i, 2 * i + 1) for i in range(5))
    with pytest.raises(ValueError, match="got 'skip' of 1 layer, want a student of 2 or more"):
        bound(PatientStates(), facts(1), facts(4))


# Vocabularies


def language_model(width: int, *, grad: bool) -> LayerActivations:
    return activations("output_layer", width, grad=grad, hidden=(16, width), weight=(7, width), bias=(7,))


LABELS = torch.where(torch.arange(16) % 3 == 0, torch.arange(16) % 7, -100)[None]


@pytest.mark.parametrize("tokens", ["all", "labelled"])
def test_linear_logits(tokens: str) -> None:
    student, teacher = language_model(NARROW, grad=True), language_model(WIDE, grad=False)
    objective = bound(LinearLogits(2.0, tokens=tokens), spec_of_lm(NARROW), spec_of_lm(WIDE))
    (match,) = objective.matches
    assert match.student == match.teacher == ("output_layer", 0) and match.labels == (tokens == "labelled")
    rows = torch.arange(16) if tokens == "all" else (LABELS[0] != -100).nonzero().flatten()

    def expected(x: dict[str, Tensor]) -> Tensor:
        s = (x["hidden"][rows] @ x["weight"].T + x["bias"]) / 2
        t = (teacher.hidden.double()[rows] @ teacher.weight.double().T + teacher.bias.double()) / 2
        # DistilBERT's distiller: KLDivLoss(batchmean) * T**2 over the selected tokens.
        return F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean") * 4

    targets = (teacher,) if tokens == "all" else (teacher, LABELS)
    check(objective, student, *targets, expected=expected)


def test_masked_lm() -> None:
    student = language_model(NARROW, grad=True)
    objective = Labels()
    objective.bind(spec_of_lm(NARROW), None)
    assert objective.matches[0].student == ("output_layer", 0)
    check(
        objective,
        student,
        LABELS,
        expected=lambda x: F.cross_entropy(x["hidden"] @ x["weight"].T + x["bias"], LABELS[0]),
    )
    nothing = objective(student, torch.full((1, 16), -100))
    assert nothing == 0 and not torch.autograd.grad(nothing, student.weight)[0].any()
    with pytest.raises(ValueError, match=r"labels: got \(3,\), want one for each of 16 tokens"):
        objective(student, torch.zeros(3))


# Sentence vectors


def mean_vectors(hidden: Tensor) -> Tensor:
    return torch.stack([part.mean(0) for part in hidden.split(LENGTHS)])


def distance(kind: str, s: Tensor, t: Tensor) -> Tensor:
    if kind == "mse":
        return ((s - t) ** 2).mean()
    if kind == "l2":
        return ((s - t) ** 2).sum(1).sqrt().mean()
    return (1 - (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))).mean()


@pytest.mark.parametrize("kind", ["mse", "l2", "cosine"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sizes", [(), (WIDE, 5, 2)])
def test_embeddings(kind: str, normalize: bool, sizes: tuple[int, ...]) -> None:
    student = activations("hidden", 2, grad=True, hidden=(16, WIDE))
    teacher = activations("hidden", 4, hidden=(16, WIDE))
    objective = Embeddings(distance=kind, normalize=normalize, sizes=sizes)
    bound(objective, facts(hidden=WIDE), facts(4, WIDE))

    def expected(x: dict[str, Tensor]) -> Tensor:
        s, t = mean_vectors(x["hidden"]), mean_vectors(teacher.hidden.double())
        total = torch.zeros((), dtype=torch.float64)
        for size in sizes or (WIDE,):
            a, b = s[:, :size], t[:, :size]
            if normalize:
                a, b = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
            total = total + distance(kind, a, b)
        return total

    check(objective, student, teacher, expected=expected)


def test_embeddings_through_a_learned_map() -> None:
    student = activations("hidden", 2, grad=True, hidden=(16, NARROW))
    teacher = activations("hidden", 4, hidden=(16, WIDE))
    objective = bound(Embeddings(normalize=False), facts(hidden=NARROW), facts(4, WIDE))
    check(
        objective,
        student,
        teacher,
        expected=lambda x: distance(
            "mse",
            mean_vectors(x["hidden"]) @ x["linear.weight"].T + x["linear.bias"],
            mean_vectors(teacher.hidden.double()),
        ),
    )


def test_a_vector_instead_of_hidden_states_teaches_the_same() -> None:
    student = activations("hidden", 2, grad=True, hidden=(16, WIDE))
    teacher = activations("hidden", 4, hidden=(16, WIDE))
    vectors = LayerActivations("hidden", 4, CU_SEQLENS, 9, pooled={"mean": mean_vectors(teacher.hidden)})
    for objective in (Embeddings(), Scores()):
        bound(objective, facts(hidden=WIDE), facts(4, WIDE))
        torch.testing.assert_close(objective(student, vectors), objective(student, teacher))


def shown(objective: Embeddings, count: int = 40) -> tuple[Tensor, Tensor]:
    """The objective after a preview of vectors that mostly lie in few directions; they, and their axes by an SVD."""
    generator = torch.Generator().manual_seed(3)
    scales = torch.tensor([10.0, 5.0, 3.0, 2.0, *[0.1] * (WIDE - 4)])
    turn = torch.linalg.qr(torch.randn(WIDE, WIDE, generator=generator))[0]
    vectors = torch.randn(count, WIDE, generator=generator) * scales @ turn.T
    one_each = torch.arange(count + 1, dtype=torch.int32)
    half = count // 2
    for rows in (vectors[:half], vectors[half:]):
        objective.preview(LayerActivations("hidden", 4, one_each[: len(rows) + 1], 1, hidden=rows))
    objective.end_preview()
    return vectors.double(), torch.linalg.svd(vectors.double(), full_matrices=False).Vh


def test_principal_axes_are_those_of_the_teachers_vectors() -> None:
    objective = Embeddings(projection="pca", normalize=False)
    bound(objective, facts(hidden=4), facts(4, WIDE))
    student, teacher = (activations("hidden", i, grad=i == 2, hidden=(16, w)) for i, w in ((2, 4), (4, WIDE)))
    with pytest.raises(ValueError, match="got no look at the teacher's vectors yet"):
        objective(student, teacher)
    assert objective.needs_preview
    vectors, axes = shown(objective)
    assert not objective.needs_preview and not list(objective.parameters())
    torch.testing.assert_close(
        (objective.axes.double() @ axes[:4].T).abs(), torch.eye(4).double(), rtol=0, atol=1e-4
    )
    # What the width allows of the inner products: all but the four directions is noise.
    reduced = vectors @ objective.axes.double().T
    torch.testing.assert_close(reduced @ reduced.T, vectors @ vectors.T, rtol=0, atol=2.0)
    check(
        objective,
        student,
        teacher,
        expected=lambda x: distance(
            "mse",
            mean_vectors(x["hidden"]),
            mean_vectors(teacher.hidden.double()) @ objective.axes.double().T,
        ),
    )
    twin = Embeddings(projection="pca", normalize=False)
    bound(twin, facts(hidden=4), facts(4, WIDE))
    twin.load_state_dict(objective.state_dict())
    assert torch.equal(twin(student, teacher), objective(student, teacher))


def test_unit_vectors_are_compared_on_the_axes_too() -> None:
    """A student whose vectors point where the reduced ones do has nothing to learn."""
    objective = Embeddings(projection="pca")
    bound(objective, facts(hidden=4), facts(4, WIDE))
    shown(objective)
    one_each = torch.arange(6, dtype=torch.int32)
    vectors = torch.randn(5, WIDE, generator=torch.Generator().manual_seed(1))
    teacher = LayerActivations("hidden", 4, one_each, 1, hidden=vectors)
    student = LayerActivations("hidden", 2, one_each, 1, hidden=3 * vectors @ objective.axes.T)
    torch.testing.assert_close(objective(student, teacher), torch.tensor(0.0))


def test_a_learned_map_may_start_from_the_axes() -> None:
    objective = Embeddings(projection="pca_init", normalize=False)
    bound(objective, facts(hidden=4), facts(4, WIDE))
    vectors, axes = shown(objective)
    assert objective.linear is not None and not objective.linear.bias.any()
    back = vectors @ axes[:4].T @ axes[:4]  # the best of rank 4
    weight = objective.linear.weight.double()
    torch.testing.assert_close(vectors @ weight @ weight.T, back, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
@pytest.mark.parametrize("group", [None, 3])
def test_scores(kind: str, group: int | None) -> None:
    student = activations("hidden", 2, grad=True, hidden=(16, NARROW))
    teacher = activations("hidden", 4, hidden=(16, WIDE))
    objective = Scores(kind, temperature=0.5, group=group)
    bound(objective, facts(), facts(4, WIDE))

    def rows(hidden: Tensor) -> list[Tensor]:
        v = mean_vectors(hidden)
        v = v / v.norm(dim=1, keepdim=True)
        queries = [0] if group else [0, 1, 2]
        return [torch.stack([v[q] @ v[d] for d in range(3) if d != q]) for q in queries]

    def expected(x: dict[str, Tensor]) -> Tensor:
        losses = []
        for s, t in zip(rows(x["hidden"]), rows(teacher.hidden.double()), strict=True):
            if kind == "kl":
                s, t = (s / 0.5).log_softmax(0), (t / 0.5).log_softmax(0)
                losses.append((t.exp() * (t - s)).sum() * 0.25)
            else:
                pairs = [(0, 1)] if group else [(0, 1), (1, 0)]
                losses += [((s[j] - s[k]) - (t[j] - t[k])) ** 2 for j, k in pairs]
        return torch.stack(losses).mean()

    check(objective, student, teacher, expected=expected, rtol=1e-3)


@pytest.mark.parametrize("group", [None, 3])
def test_autocast_rounds_no_scores_and_no_axes(group: int | None) -> None:
    student, teacher = (activations("hidden", i, hidden=(16, WIDE)) for i in (2, 4))
    axes = Embeddings(projection="pca")
    bound(axes, facts(hidden=WIDE), facts(4, WIDE))
    shown(axes)
    for objective in (bound(Scores(group=group), facts(hidden=WIDE), facts(4, WIDE)), axes):
        plain = objective(student, teacher)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(objective(student, teacher), plain)


def test_a_pack_that_has_nothing_to_rank() -> None:
    alone = LayerActivations("hidden", 2, CU_SEQLENS[:2], 5, hidden=torch.randn(5, 4, requires_grad=True))
    objective = bound(Scores(), facts(hidden=4), facts(4, 4))
    loss = objective(alone, alone)
    loss.backward()
    assert loss == 0 and not alone.hidden.grad.any()
    with pytest.raises(ValueError, match="got a pack of 3 texts, want a multiple of group=4"):
        bound(Scores(group=4), facts(), facts(4))(*[activations("hidden", hidden=(16, 12))] * 2)


# Temperatures


def textbrewer(kind: str, s: Tensor, t: Tensor, base: float, beta: float, gamma: float) -> Tensor:
    if kind == "flsw":
        a, b = (x / x.norm(dim=-1, keepdim=True) for x in (s, t))
        w = (1 - (a * b).sum(-1)) ** gamma
    else:
        w = 1 / (s.softmax(-1).max(-1).values + 1e-3)
    return base + (w.mean() - w) * beta


@pytest.mark.parametrize("kind", ["flsw", "cwsm"])
@pytest.mark.parametrize("loss", ["kl", "soft_ce", "sigmoid"])
def test_temperatures_of_rows(kind: str, loss: str) -> None:
    student = activations("logits", grad=True, logits=(4, 5))
    teacher = activations("logits", logits=(4, 5))
    options = {"kind": kind, "value": 4.0, "beta": 0.5, **({"gamma": 2.0} if kind == "flsw" else {})}
    objective = bound(Logits(options, kind=loss), facts(num_labels=5), facts(num_labels=5))

    def decisions(x: Tensor) -> Tensor:
        return torch.stack([x.reshape(-1), torch.zeros_like(x.reshape(-1))], 1) if loss == "sigmoid" else x

    def expected(x: dict[str, Tensor]) -> Tensor:
        s, t = decisions(x["logits"]), decisions(teacher.logits.double())
        tau = textbrewer(kind, s.detach(), t, 4.0, 0.5, 2.0)[:, None]
        assert tau.std() > 0.01
        s, t = (s / tau).log_softmax(-1), (t / tau).log_softmax(-1)
        if loss == "soft_ce":
            return -(t.exp() * s).sum(-1).mean()
        return (tau**2 * t.exp() * (t - s)).sum(-1).mean()

    check(objective, student, teacher, expected=expected)


def test_a_temperature_of_a_row_stays_positive() -> None:
    student, teacher = (activations("logits", grad=g, logits=(4, 5)) for g in (True, False))
    loss = Logits({"kind": "flsw", "value": 1.0, "beta": 50.0})(student, teacher)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.logits.grad).all()


def test_a_temperature_that_falls_over_the_training() -> None:
    student, teacher = (activations("logits", grad=g, logits=(4, 5)) for g in (True, False))
    objective = Logits({"kind": "linear", "value": 8.0, "end": 2.0})
    for progress, temperature in ((0.0, 8.0), (0.5, 5.0), (1.0, 2.0)):
        objective.progress = progress
        torch.testing.assert_close(objective(student, teacher), Logits(temperature)(student, teacher))
    linear = bound(LinearLogits({"kind": "linear", "value": 8.0, "end": 2.0}), spec_of_lm(12), spec_of_lm(16))
    fixed = bound(LinearLogits(5.0), spec_of_lm(12), spec_of_lm(16))
    linear.progress = 0.5
    models = language_model(NARROW, grad=True), language_model(WIDE, grad=False)
    torch.testing.assert_close(linear(*models), fixed(*models))
    scores = bound(Scores(temperature={"kind": "linear", "value": 1.0, "end": 0.2}), facts(), facts(4, WIDE))
    scores.progress = 0.5
    vectors = activations("hidden", 2, hidden=(16, NARROW)), activations("hidden", 4, hidden=(16, WIDE))
    fixed = bound(Scores(temperature=0.6), facts(), facts(4, WIDE))
    torch.testing.assert_close(scores(*vectors), fixed(*vectors))


def test_sigmoid_sees_a_shift_of_all_logits_of_a_class() -> None:
    t = activations("logits", logits=(4, 5))
    s = LayerActivations("logits", 0, CU_SEQLENS, 9, logits=(t.logits + 1).requires_grad_())
    p = torch.sigmoid(t.logits.double() / 2)

    def expected(x: dict[str, Tensor]) -> Tensor:
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
        return 4 * (F.binary_cross_entropy_with_logits(x["logits"] / 2, p) - entropy)

    check(bound(Logits(2.0, kind="sigmoid")), s, t, expected=expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relations("qx"), "of: got 'qx', want letters out of 'qkv', each once"),
        (lambda: Relations("qq"), "each once"),
        (lambda: Relations(heads=0), "heads: got 0, want a whole number"),
        (lambda: bound(Relations(heads=5)), "heads: got 5, want a divisor of the student's width 12"),
        (lambda: bound(Relations(), facts(heads=3)), "want equal head counts"),
        (lambda: bound(LinearLogits()), "got Model as student, want a masked-LM model"),
        (lambda: bound(LinearLogits(), spec_of_lm(12), spec_of_lm(16, 9)), "got a vocabulary of 7 .* and 9"),
        (
            lambda: bound(LinearLogits(vocab_size=8), spec_of_lm(12), spec_of_lm(16, 9)),
            "vocab_size: got 8, want at most the 7 rows of the smaller",
        ),
        (lambda: LinearLogits(vocab_size=0), "vocab_size: got 0, want 1 or more"),
        (lambda: LinearLogits("flsw"), "temperature: got 'flsw', want a number or 'linear'"),
        (lambda: Embeddings(distance="l1"), "distance: got 'l1', want one of"),
        (lambda: Embeddings(pooling="first"), "pooling: got 'first', want one of"),
        (lambda: Embeddings(sizes=[0]), r"sizes: got \[0\], want a list of whole numbers"),
        (lambda: Embeddings(sizes=[4], projection="learned"), "want 'pca' or 'none'"),
        (lambda: bound(Embeddings(sizes=[4])), "want at most that, with projection='pca'"),
        (lambda: bound(Embeddings(projection="pca"), facts(hidden=20)), "want a student no wider"),
        (lambda: bound(Embeddings(projection="none")), "want equal widths with projection='none'"),
        (lambda: bound(Embeddings(layers="uniform")), "want one pair"),
        (lambda: Scores("mse"), "kind: got 'mse', want one of"),
        (lambda: Scores(group=2), "group: got 2, want 3 or more"),
        (lambda: Logits("flswx"), "temperature: got 'flswx', want a known one; did you mean 'flsw'"),
        (lambda: Logits({"kind": "flsw", "betta": 1}), "got option 'betta', .* did you mean 'beta'"),
        (lambda: Logits({"kind": "linear", "end": 0}), "temperature: end: got 0, want a positive number"),
        (lambda: Logits("linear"), "temperature: got 'linear' alone, want where it starts or ends beside it"),
        (lambda: Logits({"kind": "linear"}), "temperature: got 'linear' alone"),
        (lambda: Logits({"value": "hot"}), "temperature: got 'hot', want a positive number"),
    ],
)
def test_what_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
