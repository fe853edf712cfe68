"""A model that ran packed stays an ordinary model: for others, for other threads, for other processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import AttentionScores, HiddenStates
from bertxfer_fast.features import FeatureExtractor
from bertxfer_fast.models import LayerActivations, Tap
from bertxfer_fast.models.hf.encoder import PackedModel
from bertxfer_fast.models.loans import eval_mode
from bertxfer_fast.models.stream import TeacherStream
from tests.tiny import packed_batch, padded_batch, tiny_bert


def checkpointed(model):
    """The same, recomputing its layers; up to 5.17 transformers called it gradient checkpointing."""
    known = hasattr(model, "activation_checkpointing_enable")
    enable = model.activation_checkpointing_enable if known else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model


def marks(model: torch.nn.Module) -> list[object]:
    """What a packed call lends itself."""
    parts = list(model.modules())
    return [
        model.config._attn_implementation,
        [part.training for part in parts],
        [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
        [getattr(part, "_gradient_checkpointing_func", None) for part in parts],
        [p.requires_grad for p in model.parameters()],
    ]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_call_leaves_no_mark(implementation):
    model = tiny_bert(head="ForSequenceClassification")
    model.set_attn_implementation(implementation)
    checkpointed(model).train()
    model.bert.encoder.layer[1].eval()
    before = marks(model)
    TeacherStream(model, attention=[1], hidden=[0], logits=True).stream(packed_batch(), lambda _: None)
    assert marks(model) == before
    PackedModel(model).run(packed_batch()).logits.sum().backward()
    assert marks(model) == before


def test_attentions_are_as_before_also_while_a_packed_call_runs():
    model = tiny_bert()
    model.set_attn_implementation("eager")
    batch = padded_batch()
    with torch.no_grad():
        before = model(**batch, output_attentions=True)
    seen = []

    def sink(_: LayerActivations) -> None:
        with torch.no_grad():
            seen.append(model(**batch, output_attentions=True))

    TeacherStream(model, hidden=[1]).stream(packed_batch(), sink)
    with torch.no_grad():
        seen.append(model(**batch, output_attentions=True))
    for output in seen:
        assert torch.equal(output.last_hidden_state, before.last_hidden_state)
        assert all(torch.equal(a, b) for a, b in zip(output.attentions, before.attentions, strict=True))


def test_threads_share_a_model():
    """Packed calls beside each other, and beside plain ones."""
    model = tiny_bert(4, 32, 4)
    model.set_attn_implementation("eager")
    batches = [packed_batch((length, 3, 2 * length), seed=length) for length in range(2, 10)]
    stream = TeacherStream(model, attention=[2], hidden=[1, 3])
    plain = padded_batch()

    def streamed(batch):
        tensors: list[torch.Tensor] = []
        stream.stream(batch, lambda a: tensors.append(a.q if a.hidden is None else a.hidden))
        return tensors

    with torch.no_grad():
        wanted, ordinary = [streamed(batch) for batch in batches], model(**plain).last_hidden_state
    before = marks(model)

    def job(number: int) -> bool:
        if number % 5 == 4:
            with torch.no_grad():
                return torch.allclose(model(**plain).last_hidden_state, ordinary, atol=1e-6)
        index = number % len(batches)
        return all(torch.equal(a, b) for a, b in zip(streamed(batches[index]), wanted[index], strict=True))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(job, range(120)))
    assert marks(model) == before


def test_eval_mode_lasts_until_the_last_holder_is_done():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval()).train()
    model[1].eval()
    first, second = eval_mode(model), eval_mode(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in model.modules())
    second.__exit__(None, None, None)
    assert [part.training for part in model.modules()] == [True, True, False]


def test_copies_run_by_themselves():
    packed = PackedModel(tiny_bert())
    expected = packed.run(packed_batch()).last_hidden_state
    twin = copy.deepcopy(packed)
    with torch.no_grad():
        packed.model.embeddings.word_embeddings.weight.zero_()
    assert torch.equal(twin.run(packed_batch()).last_hidden_state, expected)


def test_another_process_reads_what_was_saved(tmp_path: Path):
    """The model without this package; extractor and distiller, which spawning pickles in the same way, with it."""
    batch, ids = packed_batch(), [{"input_ids": [2, 7, 8, 3]}]
    extractor = FeatureExtractor(tiny_bert())
    features = extractor.extract_ids(ids)
    distiller = Distiller(tiny_bert(4), tiny_bert(2, 12), [AttentionScores(), HiddenStates()])
    plain = {"input_ids": torch.tensor([[2, 7, 8, 3]])}
    with torch.no_grad():
        expected = extractor.model(**plain).last_hidden_state
    torch.save((extractor.model, plain, expected), tmp_path / "model.pt")
    saved = (extractor, ids, features, distiller, batch, distiller(**batch).loss.item())
    (tmp_path / "ours.pkl").write_bytes(pickle.dumps(saved))
    code = """
import pickle, sys, torch
model, plain, expected = torch.load("model.pt", weights_only=False)
with torch.no_grad():
    torch.testing.assert_close(model(**plain).last_hidden_state, expected)
assert not [name for name in sys.modules if name.startswith("bertxfer")]
with open("ours.pkl", "rb") as file:
    extractor, ids, features, distiller, batch, loss = pickle.load(file)
assert torch.allclose(extractor.extract_ids(ids), features)
assert abs(distiller(**batch).loss.item() - loss) < 1e-5 * loss
"""
    paths = [str(Path(__file__).parents[2])]
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr


def test_a_checkpointed_layer_is_recomputed_packed():
    """Backward comes after the call: by then the model's own attention is back, which would mix the sequences."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_bert(2, 16, 4).train()
        if checkpointing:
            checkpointed(model)
        seen: list[torch.Tensor] = []
        PackedModel(model).run(
            packed_batch(), Tap(lambda a, seen=seen: seen.append(a.hidden), hidden=frozenset({2}))
        )
        assert model.config._attn_implementation == "sdpa"
        seen[0].square().mean().backward()
        gradients.append(model.encoder.layer[0].attention.self.value.weight.grad)
    torch.testing.assert_close(*gradients)
