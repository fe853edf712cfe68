"""Parameters that no objective reaches: out of training while a Distiller is bound, and back as they were."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import AttentionMaps, AttentionScores, HiddenStates, Labels, Logits
from bertxfer_fast.models import EncoderSpec, LayerActivations, PackedOutput
from tests.tiny import packed_batch, tiny_bert, tiny_pair


def held(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    "objectives",
    [
        lambda: [AttentionScores()],
        lambda: [AttentionMaps("last"), HiddenStates([(0, 0)])],
        lambda: [HiddenStates([(1, 2)])],
        lambda: [HiddenStates()],
        lambda: [Logits()],
        lambda: [HiddenStates([(0, 0)]), Labels()],
    ],
)
@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Electra"])
def test_exactly_those_without_a_gradient_are_held(objectives, family):
    """Then DistributedDataParallel finds no unused parameter, and every gradient is where it was."""
    teacher = tiny_bert(4, 16, 4, head="ForSequenceClassification", family=family, seed=1)
    student = tiny_bert(2, 12, 4, head="ForSequenceClassification", family=family, seed=2)
    distiller = Distiller(teacher, student, objectives())
    before = held(student)
    distiller(**packed_batch(labels="class", token_types=family != "DistilBert")).loss.backward()
    assert {name for name, p in student.named_parameters() if p.grad is None} == before == held(student)


def test_a_bare_models_pooler_is_held_and_the_last_layers_rest_too():
    teacher, student = tiny_bert(4), tiny_bert(2)
    distiller = Distiller(teacher, student, [AttentionScores()])
    names = held(student)
    assert {"pooler.dense.weight", "encoder.layer.1.attention.self.value.weight"} < names
    assert "encoder.layer.1.attention.self.key.weight" not in names
    distiller.release()
    assert not held(student)


def test_requires_grad_comes_back_with_the_end_of_the_distiller():
    teacher, student = tiny_pair()
    student.bert.embeddings.word_embeddings.weight.requires_grad_(False)  # the user's own choice
    own = held(student)
    distiller = Distiller(teacher, student, [HiddenStates()])
    assert held(student) > own
    del distiller
    gc.collect()
    assert held(student) == own


def test_stages_share_a_student():
    """The second stage looks at the head that the first one held; the first one may go on after it."""
    teacher, student = tiny_pair()
    first = Distiller(teacher, student, [HiddenStates()])
    names = held(student)
    second = Distiller(teacher, student, [Logits()])
    assert "classifier.weight" in names and not held(student)
    first(**packed_batch())
    assert held(student) == names
    second(**packed_batch()).loss.backward()
    assert student.classifier.weight.grad is not None
    first(**packed_batch())
    third = Distiller(
        teacher, student, [AttentionScores()]
    )  # looks for its own among those that the first one held
    assert held(student) > names
    third.release()
    twin = copy.deepcopy(first)
    twin(**packed_batch())
    assert held(twin.student) == names and not held(student)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda distiller: pickle.loads(pickle.dumps(distiller))])
def test_a_copy_gives_its_own_student_back(copied):
    distiller = Distiller(*tiny_pair(), [HiddenStates()])
    twin = copied(distiller)
    names = held(distiller.student)
    assert names and held(twin.student) == names
    twin.release()
    assert not held(twin.student) and held(distiller.student) == names
    assert not held(copied(twin).student)
    student = copied(distiller).student  # whose Distiller is gone
    gc.collect()
    assert not held(student)


def test_looking_for_them_is_not_felt_by_the_student():
    teacher, student = tiny_pair(dropout=0.5)
    student.train()
    calls: list[Any] = []
    for module in student.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Distiller(teacher, student, [AttentionScores()])
    assert not calls and torch.equal(torch.rand(3), expected)
    assert all(module.training for module in student.modules())


def test_parts_that_other_inputs_would_ask_for_stay_in_training():
    """X-MOD's adapters, one for each language; a text says which by an input of its own."""
    settings = {"languages": ["en", "de"], "default_language": "en"}
    teacher, student = (tiny_bert(2, 16, 4, family="Xmod", seed=seed, **settings) for seed in (1, 2))
    distiller = Distiller(teacher, student, [HiddenStates("last", projection="none")])
    names = held(student)
    assert any("pooler" in name for name in names) and not any("adapter" in name for name in names)
    batch = packed_batch(token_types=False)
    german = student.encoder.layer[0].output.adapter_modules["de"]
    distiller(**batch, lang_ids=torch.ones_like(batch["input_ids"])).loss.backward()
    assert german.dense1.weight.grad.any()


class Noisy(nn.Module):
    """An encoder that draws random numbers in eval mode too, has a part for other texts, and may not know a token."""

    spec = EncoderSpec("Noisy", num_layers=0, hidden_size=4, vocab_size=50)

    def __init__(self, known: int):
        super().__init__()
        self.known, self.table, self.unused = known, nn.Embedding(50, 4), nn.Linear(1, 1)

    def run(self, batch, tap=None):
        if int(batch["input_ids"].min()) < self.known:
            raise KeyError("unknown token")
        hidden = self.table(batch["input_ids"][0]) + torch.rand(1)
        tap.sink(LayerActivations("hidden", 0, batch["cu_seq_lens_q"], 11, hidden=hidden))
        return PackedOutput(hidden)


def test_an_encoder_of_ones_own():
    teacher, batch = tiny_bert(1), packed_batch()
    for known in (0, 5):  # four tokens from 0 on cannot run in the second one
        student = Noisy(known)
        torch.manual_seed(0)
        nn.Linear(4, 16)  # the projection that is made
        expected = torch.rand(3)
        torch.manual_seed(0)
        distiller = Distiller(teacher, student, [HiddenStates([(0, 0)])])
        assert torch.equal(torch.rand(3), expected)
        distiller(**batch).loss.backward()
        assert student.table.weight.grad.any() and student.unused.weight.requires_grad
