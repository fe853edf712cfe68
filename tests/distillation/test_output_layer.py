"""What a masked-LM head's last linear map reads, with its weight and bias: in place of logits as wide as a
vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bertxfer_fast import ops
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import (
    Embeddings,
    HiddenCosine,
    Labels,
    LinearLogits,
    Logits,
    Objective,
    Relations,
    Scores,
)
from bertxfer_fast.models import EncoderSpec, LayerActivations
from bertxfer_fast.models.stream import TeacherStream
from tests.tiny import packed_batch, tiny_bert

FAMILIES = ["Bert", "Roberta", "DistilBert", "Electra", "ModernBert"]


def language_model(layers: int, hidden: int, family: str = "Bert", seed: int = 0) -> Any:
    special = {"family": family, "head": "ForMaskedLM", "seed": seed}
    if family == "ModernBert":
        special |= {
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
    return tiny_bert(layers, hidden, 4, **special)


def batch_of(family: str) -> dict[str, Any]:
    labels = torch.where(torch.arange(22) % 4 == 0, torch.arange(22) + 5, -100)[None]
    return {**packed_batch(token_types=family not in ("DistilBert", "ModernBert")), "labels": labels}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_makes_the_logits(family: str) -> None:
    model, seen = language_model(2, 16, family), {}
    assert EncoderSpec.of(model).output_layer
    stream = TeacherStream(model, logits=True, output_layer=True)

    def sink(activations: LayerActivations) -> None:
        seen[activations.place] = activations

    stream.stream(batch_of(family), sink)
    assert list(seen) == ["output_layer", "logits"]
    layer = seen["output_layer"]
    torch.testing.assert_close(F.linear(layer.hidden, layer.weight, layer.bias), seen["logits"].logits)


def test_the_model_is_left_in_front_of_it() -> None:
    model, ran = language_model(2, 16), []
    model.get_output_embeddings().register_forward_hook(lambda *_: ran.append(1))
    stream = TeacherStream(model, hidden=[1], output_layer=True)
    places: list[str] = []
    stream.stream(batch_of("Bert"), lambda seen: places.append(seen.place))
    assert places == ["hidden", "output_layer"] and not ran
    model(**{"input_ids": torch.tensor([[2, 7, 3]])})
    assert ran  # outside of a call the model is an ordinary one


@pytest.mark.parametrize("model", [tiny_bert(2), tiny_bert(2, head="ForTokenClassification")])
def test_models_that_have_none(model: Any) -> None:
    assert not EncoderSpec.of(model).output_layer
    with pytest.raises(ValueError, match=r"output_layer: got Bert.*, want a masked-LM model"):
        TeacherStream(model, output_layer=True)


class LabelsFromLogits(Labels):
    """As of a model whose output layer cannot be had."""

    matches = Objective.matches


@pytest.mark.parametrize("family", FAMILIES[:4])
def test_the_same_losses_and_gradients_as_from_whole_logits(family: str) -> None:
    """DistilBERT's three losses; the tied embedding gets the decoder's gradient too."""
    teacher, found = language_model(4, 16, family, seed=1), []
    for from_logits in (True, False):
        student = language_model(2, 12, family, seed=2)
        labels = (LabelsFromLogits if from_logits else Labels)(weight=2.0)
        soft = (Logits if from_logits else LinearLogits)(2.0, weight=5.0, name="soft")
        torch.manual_seed(0)
        distiller = Distiller(teacher, student, [soft, labels, HiddenCosine()])
        held = {name for name, p in student.named_parameters() if not p.requires_grad}
        out = distiller.train()(**batch_of(family))
        out.loss.backward()
        assert (out.logits is None) != from_logits  # the student's are never computed
        assert held == {name for name, p in student.named_parameters() if p.grad is None}
        found.append(
            (out.loss.detach(), {n: p.grad for n, p in student.named_parameters() if p.grad is not None})
        )
    torch.testing.assert_close(*(loss for loss, _ in found))
    whole, linear = (gradients for _, gradients in found)
    assert whole.keys() == linear.keys() and any("embeddings" in name for name in whole)
    for name in whole:
        torch.testing.assert_close(linear[name], whole[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("student_rows", "teacher_rows", "stated"), [(50, 56, None), (56, 50, None), (50, 61, 50), (56, 64, 47)]
)
def test_tables_that_differ_by_padding_meet_in_the_rows_of_both(
    student_rows: int, teacher_rows: int, stated: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from whole logits without the padding's columns; no table is copied, and the padding learns nothing."""
    classes = stated or 50
    sizes = {"student": (2, 12, student_rows), "teacher": (4, 16, teacher_rows)}
    torch.manual_seed(0)
    spot = {"place": "output_layer", "index": 0, "cu_seqlens": torch.tensor([0, 9]), "max_seqlen": 9}
    sides = {
        role: LayerActivations(
            **spot,
            hidden=torch.randn(9, width),
            weight=torch.randn(rows, width, requires_grad=True),
            bias=torch.randn(rows, requires_grad=True),
        )
        for role, (_, width, rows) in sizes.items()
    }
    objective = LinearLogits(2.0, vocab_size=stated)
    objective.bind(
        *(
            EncoderSpec(
                "LM", layers, width, vocab_size=rows, num_labels=rows, head="token", output_layer=True
            )
            for layers, width, rows in sizes.values()
        )
    )
    tables: list[int] = []
    real = ops.linear_logits_kl

    def spy(s: Any, weight_s: Any, t: Any, weight_t: Any, **rest: Any) -> Any:
        tables.extend(table.data_ptr() for table in (weight_s, weight_t))
        return real(s, weight_s, t, weight_t, **rest)

    monkeypatch.setattr(ops, "linear_logits_kl", spy)
    loss = objective(sides["student"], sides["teacher"])
    loss.backward()
    assert tables == [side.weight.data_ptr() for side in sides.values()]
    s, t = (F.linear(x.hidden, x.weight, x.bias).detach()[:, :classes].double() / 2 for x in sides.values())
    wanted = 4 * F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    for learned in (sides["student"].weight, sides["student"].bias):
        assert learned.grad[:classes].abs().sum() > 0 and not learned.grad[classes:].any()


def test_labels_are_asked_for() -> None:
    distiller = Distiller(language_model(4, 16), language_model(2, 12), [LinearLogits(tokens="labelled")])
    distiller(**batch_of("Bert")).loss.backward()
    with pytest.raises(ValueError, match="want labels for objective 'linear_logits'"):
        distiller(**packed_batch())


def test_while_evaluating_the_logits_are_there_for_the_metrics() -> None:
    distiller = Distiller(language_model(4, 16), language_model(2, 12), [LinearLogits(), Labels()])
    assert distiller.eval()(**batch_of("Bert")).logits.shape == (1, 22, 50)


# Other objectives through a Distiller: relations with unequal heads, and vectors that have to be seen first


def test_relations_and_scores_of_models_with_other_heads() -> None:
    distiller = Distiller(tiny_bert(4, 16, 4), tiny_bert(2, 12, 3), [Relations(heads=2), Scores()])
    distiller(**packed_batch()).loss.backward()
    query = distiller.student.encoder.layer[1].attention.self.query.weight.grad
    assert query.abs().sum() > 0


def test_axes_are_found_before_training() -> None:
    teacher, student = tiny_bert(4, 16, 4, seed=1), tiny_bert(2, 12, 4, seed=2)
    distiller = Distiller(teacher, student, [Embeddings(projection="pca"), Scores()])
    with pytest.raises(ValueError, match="got no look at the teacher's vectors yet"):
        distiller(**packed_batch())
    distiller.preview(packed_batch(seed=seed) for seed in range(5))
    distiller(**packed_batch()).loss.backward()
    before = distiller.objectives[0].axes.clone()
    distiller.preview(iter(()))  # nobody needs to see anything any more
    assert torch.equal(distiller.objectives[0].axes, before) and before.any()
    with pytest.raises(ValueError, match="got no vectors of the teacher"):
        Distiller(teacher, student, [Embeddings(projection="pca")]).preview([])
