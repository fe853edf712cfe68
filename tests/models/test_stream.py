"""The teacher stream: what is asked for, in order, no further, and nothing of it stays."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from bertxfer_fast.models.hf.encoder import PackedModel
from bertxfer_fast.models.stream import LayerActivations, TeacherStream
from tests.tiny import packed_batch, tiny_bert


def tensors(activations: LayerActivations) -> list[torch.Tensor]:
    found = (activations.q, activations.k, activations.v, activations.hidden, activations.logits)
    return [t for t in found if t is not None]


def counted(model) -> dict[str, int]:
    """Counts how often each part of every layer of a BertModel runs."""
    counts: dict[str, int] = {}
    for i, layer in enumerate(model.base_model.encoder.layer):
        for name, module in (("query", layer.attention.self.query), ("ffn", layer.intermediate.dense)):
            key = f"{name}{i}"
            counts[key] = 0
            module.register_forward_hook(lambda *_, key=key: counts.__setitem__(key, counts[key] + 1))
    return counts


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [
        ({"attention": [0]}, ["query0"]),
        ({"attention": [1]}, ["query0", "ffn0", "query1"]),
        ({"hidden": [0]}, []),
        ({"hidden": [1]}, ["query0", "ffn0"]),
        ({"attention": [0], "hidden": [0]}, ["query0"]),
        ({"attention": [1], "hidden": [2, 0]}, ["query0", "ffn0", "query1", "ffn1"]),
        ({}, []),
    ],
)
def test_the_teacher_stops_after_the_last_thing_wanted(wanted, runs):
    model = tiny_bert(3, head="ForSequenceClassification")
    counts = counted(model)
    seen: list[tuple[str, int]] = []
    TeacherStream(model, **wanted).stream(packed_batch(), lambda a: seen.append(a.spot))
    assert [key for key, count in counts.items() if count] == runs
    assert sorted(seen) == sorted((kind, i) for kind, indices in wanted.items() for i in indices)


def test_logits_come_last_and_only_when_wanted():
    model = tiny_bert(2, head="ForSequenceClassification")
    seen: list[LayerActivations] = []
    TeacherStream(model, hidden=[2], logits=True).stream(packed_batch(), seen.append)
    assert [a.spot for a in seen] == [("hidden", 2), ("logits", 0)]
    expected = PackedModel(model)(packed_batch())
    assert torch.equal(seen[1].logits, expected.logits)

    calls: list[int] = []
    model.classifier.register_forward_hook(lambda *_: calls.append(1))
    TeacherStream(model, hidden=[2]).stream(packed_batch(), lambda _: None)
    assert not calls


def test_streamed_tensors_are_those_of_the_whole_run():
    model = tiny_bert(3)
    whole: dict[tuple[str, int], list[torch.Tensor]] = {}
    TeacherStream(model, attention=range(3), hidden=range(4)).stream(
        packed_batch(), lambda a: whole.__setitem__(a.spot, tensors(a))
    )
    assert len(whole) == 7
    TeacherStream(model, attention=[1], hidden=[2]).stream(
        packed_batch(),
        lambda a: [torch.testing.assert_close(x, y) for x, y in zip(tensors(a), whole[a.spot], strict=True)],
    )


def test_nothing_of_a_layer_outlives_its_turn():
    """Memory, not Python objects: the storages of a layer are freed before a later layer's sink runs."""
    model = tiny_bert(4)
    alive: dict[tuple[str, int], list[StorageWeakRef]] = {}

    def sink(activations: LayerActivations) -> None:
        for (kind, index), storages in alive.items():
            # A layer's input, which its residual still needs, lives as long as the layer runs; and the frame of
            # BertModel.forward holds the embeddings output to its end.
            still_needed = kind == "hidden" and (
                index == 0 or index >= activations.index - (activations.place == "hidden")
            )
            if not still_needed and (kind, index) != ("attention", activations.index):
                assert all(storage.expired() for storage in storages), (kind, index, activations.index)
        alive[activations.spot] = [StorageWeakRef(t.untyped_storage()) for t in tensors(activations)]

    TeacherStream(model, attention=range(4), hidden=range(4)).stream(packed_batch(), sink)
    assert len(alive) == 8
    assert all(storage.expired() for storages in alive.values() for storage in storages)


def test_the_model_runs_without_grad_in_eval_mode_and_the_sink_as_the_caller():
    model = tiny_bert(dropout=0.5)
    model.train()
    modes: list[tuple[bool, bool]] = []

    def sink(activations: LayerActivations) -> None:
        assert not any(module.training for module in model.modules())
        modes.append((torch.is_grad_enabled(), any(t.requires_grad for t in tensors(activations))))

    stream = TeacherStream(model, attention=[0], hidden=[1])
    stream.stream(packed_batch(), sink)
    assert all(module.training for module in model.modules())  # as it was
    model.eval().encoder.layer[0].train()
    before = [module.training for module in model.modules()]
    stream.stream(packed_batch(), sink)
    assert [module.training for module in model.modules()] == before and True in before and False in before
    with torch.no_grad():
        stream.stream(packed_batch(), sink)
    assert modes == [(True, False)] * 4 + [(False, False)] * 2


def test_wanting_what_the_model_does_not_have_is_an_error_at_once():
    with pytest.raises(ValueError, match=r"attention: got \[2\], want indices 0..1 of BertModel"):
        TeacherStream(tiny_bert(2), attention=[2])
    with pytest.raises(ValueError, match=r"hidden: got \[3\], want indices 0..2 of BertModel"):
        TeacherStream(tiny_bert(2), hidden=[3])
    with pytest.raises(ValueError, match="logits: got BertModel, which has no head"):
        TeacherStream(tiny_bert(2), logits=True)
    with pytest.raises(TypeError, match="PreTrainedModel"):
        TeacherStream(torch.nn.Linear(1, 1))
