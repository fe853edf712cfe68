"""What a stranger adds, each as one new file with one registration, and trains with: nothing of the package changes."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bertxfer_fast import Distiller, objectives, recipes
from bertxfer_fast.models import ActivationSource, Encoder
from bertxfer_fast.models.stream import TeacherStream
from bertxfer_fast.packing import PackingCollator
from tests.tiny import tiny_bert

# Every file stands for itself; a new kind of extension is one more entry here and one more test below.
FILES = {
    "toy_objective": '''
from torch import nn
from bertxfer_fast import objectives, ops

@objectives.register
class Cosine(objectives.Objective):
    """Direction of hidden states, through a learned map."""

    place = "hidden"
    default_name = "toy_cosine"

    def bind(self, student, teacher):
        super().bind(student, teacher)
        self.map = nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)

    def forward(self, student, teacher):
        return ops.hidden_cosine(student.hidden, teacher.hidden, self.map.weight)
''',
    "toy_recipe": '''
from bertxfer_fast import objectives, recipes

@recipes.register
def toy(*, temperature=1.0):
    """Last hidden states by direction, then predictions and labels."""
    return recipes.Recipe(
        "toy",
        [
            recipes.Stage("hidden", lambda: [objectives.get("toy_cosine")(layers=[(1, 4)])]),
            recipes.Stage("prediction", lambda: [objectives.Logits(temperature), objectives.Labels()]),
        ],
    )
''',
    "toy_student": '''
import torch
from torch import nn
from bertxfer_fast.models import EncoderSpec, LayerActivations, PackedOutput
from bertxfer_fast.packing import pack, unpack

class LSTM(nn.Module):
    """One layer without attention, and a head on the mean of each sequence."""

    spec = EncoderSpec("LSTM", num_layers=1, hidden_size=12, vocab_size=50, num_labels=3, head="sequence")

    def __init__(self):
        super().__init__()
        self.embeddings, self.lstm, self.head = nn.Embedding(50, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def run(self, batch, tap=None):
        cu_seqlens = batch["cu_seq_lens_q"]
        longest = int(cu_seqlens.diff().max())
        padded = self.lstm(unpack(self.embeddings(batch["input_ids"][0]), cu_seqlens))[0]
        mask = torch.arange(longest)[None] < cu_seqlens.diff()[:, None]
        hidden = pack(padded, mask)[0]
        if tap is not None and tap.wants("hidden", 1):
            tap.sink(LayerActivations("hidden", 1, cu_seqlens, longest, hidden=hidden))
        if tap is not None and not tap.wants("logits"):
            return PackedOutput(hidden)
        logits = self.head((padded * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        if tap is not None:
            tap.sink(LayerActivations("logits", 0, cu_seqlens, longest, logits=logits))
        return PackedOutput(hidden, logits)
''',
    "toy_store": '''
import torch
from bertxfer_fast.models import LayerActivations

class Store:
    """A teacher that ran before: its tensors of each text, by the keys that a batch carries."""

    def __init__(self, folder, spec):
        self.folder, self.spec = folder, spec

    def stream(self, batch, sink):
        texts = [torch.load(self.folder / f"{key}.pt") for key in batch["keys"].tolist()]
        pack = (batch["cu_seq_lens_q"], int(batch["cu_seq_lens_q"].diff().max()))
        sink(LayerActivations("hidden", 4, *pack, hidden=torch.cat([text["hidden"] for text in texts])))
        sink(LayerActivations("logits", 0, *pack, logits=torch.cat([text["logits"] for text in texts])))
''',
}


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of `FILES`, imported from a folder of their own; what they register is forgotten afterwards."""
    for registry in (objectives.base._registry, recipes.base._registry):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.syspath_prepend(tmp_path)
    modules = {}
    for name, source in FILES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        modules[name.removeprefix("toy_")] = importlib.import_module(name)
    return SimpleNamespace(folder=tmp_path, **modules)


def texts(count: int) -> list[dict[str, Any]]:
    return [
        {"input_ids": [5 + (3 * i + j) % 40 for j in range(2 + i % 7)], "labels": i % 3} for i in range(count)
    ]


def batch_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {**PackingCollator()(rows), "keys": torch.arange(len(rows))}


def stored(new: SimpleNamespace, rows: list[dict[str, Any]]) -> Any:
    """A store of everything that a live teacher says of the rows."""
    live = TeacherStream(tiny_bert(4, head="ForSequenceClassification"), hidden=[4], logits=True)
    for key, row in enumerate(rows):
        seen: dict[str, torch.Tensor] = {}
        live.stream(
            PackingCollator()([row]), lambda a, seen=seen: seen.update({a.place: getattr(a, a.place)})
        )
        torch.save(seen, new.folder / f"{key}.pt")
    return new.store.Store(new.folder, live.spec)


def train(distiller: Distiller, batch: dict[str, Any], steps: int = 6) -> list[float]:
    optimizer = torch.optim.Adam([p for p in distiller.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = distiller(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_all_of_them_train_together(new):
    rows = texts(8)
    teacher, student = stored(new, rows), new.student.LSTM()
    assert isinstance(teacher, ActivationSource) and isinstance(student, Encoder)
    assert "toy" in recipes.names() and "toy_cosine" in objectives.names()
    for stage in recipes.get("toy", temperature=2.0).stages:
        distiller = Distiller(teacher, student, stage.build_objectives())
        assert distiller.teacher is teacher and distiller.student is student
        # The head is held as long as nobody looks at it, everything else learns.
        names = {name for name, p in distiller.named_parameters() if not p.requires_grad}
        assert names == ({"student.head.weight", "student.head.bias"} if stage.name == "hidden" else set())
        losses = train(distiller, batch_of(rows))
        assert all(later < earlier for earlier, later in pairwise(losses))
    with torch.no_grad():
        output = distiller.eval()(**batch_of(rows))
    assert output.logits.shape == (8, 3) and list(output.parts) == ["logits", "labels"]


def test_a_stored_teacher_teaches_what_the_live_one_does(new):
    rows = texts(5)
    live = tiny_bert(4, head="ForSequenceClassification")
    losses = []
    for teacher in (stored(new, rows), live):
        torch.manual_seed(0)
        student = tiny_bert(2, head="ForSequenceClassification", seed=2)
        made = [objectives.HiddenStates("last", projection="none"), objectives.Logits()]
        batch = batch_of(rows)
        if teacher is live:
            del batch["keys"]
        losses.append(Distiller(teacher, student, made)(**batch).loss)
    torch.testing.assert_close(*losses)


def test_an_encoder_of_ones_own_teaches(new):
    distiller = Distiller(
        new.student.LSTM(),
        tiny_bert(1, 12, head="ForSequenceClassification"),
        [objectives.HiddenStates("last")],
    )
    losses = train(distiller, batch_of(texts(6)))
    assert losses[-1] < losses[0] and all(p.grad is None for p in distiller.teacher.parameters())


def test_what_a_source_or_an_encoder_leaves_out_is_named(new):
    rows = texts(3)
    teacher, student = stored(new, rows), new.student.LSTM()
    with pytest.raises(ValueError, match="teacher: got no hidden 2 from BertForSequenceClassification"):
        Distiller(teacher, student, [objectives.HiddenStates([(1, 2)])])(**batch_of(rows))
    with pytest.raises(ValueError, match="student: got no hidden 0 from its run"):
        Distiller(teacher, student, [objectives.HiddenStates([(0, 4)])])(**batch_of(rows))
    with pytest.raises(
        ValueError, match="attention_scores: got LSTM as student, want a model with attention"
    ):
        Distiller(teacher, student, [objectives.AttentionScores("last")])


def test_a_name_is_given_once(new):
    assert objectives.register(new.objective.Cosine) is new.objective.Cosine  # the same again changes nothing
    with pytest.raises(ValueError, match="objective: got 'toy_cosine' twice"):
        objectives.register(type("Other", (objectives.Objective,), {"default_name": "toy_cosine"}))
    with pytest.raises(
        ValueError, match="objective: got 'toy_cosin', want a known one; did you mean 'toy_cosine'"
    ):
        objectives.get("toy_cosin")
    with pytest.raises(ValueError, match="recipe: got 'tinybert' twice"):

        @recipes.register
        def tinybert() -> recipes.Recipe:
            return recipes.Recipe("tinybert", [])
