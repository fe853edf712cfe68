"""The packed path of a transformers model: same numbers as the padded one, and nothing left behind."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from bertxfer_fast.models.activations import LayerActivations, Tap
from bertxfer_fast.models.hf import attention
from bertxfer_fast.models.hf.encoder import PackedModel
from tests.tiny import LENGTHS, pack_padded, packed_batch, padded_batch, tiny_bert

FAMILIES = ("Bert", "Roberta", "DistilBert", "Electra", "RobertaPreLayerNorm", "ModernBert")
# Padding positions and types that a family cannot take are left out of its batch.
WITHOUT_TYPES = ("Roberta", "DistilBert", "RobertaPreLayerNorm", "ModernBert")
EXTRA = {
    "ModernBert": {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "sep_token_id": 1,
    }
}


def everything(model: PackedModel, sink, *, stop: bool = False) -> Tap:
    layers = model.spec.num_layers
    return Tap(
        sink, frozenset(range(layers)), frozenset(range(layers + 1)), model.spec.head is not None, stop=stop
    )


def build(family: str, head: str = "Model", **kwargs):
    return tiny_bert(family=family, head=head, **EXTRA.get(family, {}), **kwargs)


def batch_for(family: str, model) -> dict[str, torch.Tensor]:
    batch = padded_batch(token_types=family not in WITHOUT_TYPES)
    # RoBERTa counts positions by looking for its padding id.
    padding = batch["attention_mask"] == 0
    batch["input_ids"] = batch["input_ids"].masked_fill(padding, model.config.pad_token_id)
    return batch


@pytest.mark.parametrize(
    "head", ["Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"]
)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_equals_padded_eager(family, head):
    model = build(family, head)
    batch = batch_for(family, model)
    mask = batch["attention_mask"].bool()
    model.set_attn_implementation("eager")
    hidden = model.base_model(**batch).last_hidden_state[mask]
    logits = None if head == "Model" else model(**batch).logits

    out = PackedModel(model)(pack_padded(batch))

    if out.last_hidden_state is not None:
        torch.testing.assert_close(out.last_hidden_state, hidden, rtol=0, atol=2e-6)
    else:
        assert (family, head) == ("RobertaPreLayerNorm", "ForSequenceClassification")
    if head == "Model":
        assert out.logits is None
        return
    logits = logits if head == "ForSequenceClassification" else logits[mask]
    # Masked-LM logits reach 10 here: 2e-6 beside values of size 1.
    torch.testing.assert_close(out.logits, logits, rtol=0, atol=2e-6 * max(1.0, logits.abs().max().item()))


@torch.no_grad()
def test_a_head_that_averages_gets_the_mean_of_each_sequence():
    model = build("ModernBert", "ForSequenceClassification", classifier_pooling="mean")
    batch = batch_for("ModernBert", model)
    expected = model(**batch).logits
    torch.testing.assert_close(PackedModel(model)(pack_padded(batch)).logits, expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_the_models_own_scale_and_dropout_are_used():
    model = tiny_bert(attention_probs_dropout_prob=0.5)
    for layer in model.encoder.layer:
        layer.attention.self.scaling = 0.1
    batch = padded_batch()
    expected = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    packed = PackedModel(model)
    torch.testing.assert_close(packed(pack_padded(batch)).last_hidden_state, expected, rtol=0, atol=2e-6)
    scales: list[float | None] = []
    packed(pack_padded(batch), Tap(lambda a: scales.append(a.scale), attention=frozenset({1})))
    assert scales == [0.1]
    model.train()
    first, second = (packed(pack_padded(batch)).last_hidden_state for _ in range(2))
    assert (first != second).any()


@torch.no_grad()
def test_no_mask_is_built_for_a_pack():
    """Not even by a model with a sliding window, whose mask transformers would build for one long row."""
    masks: list[tuple[int, ...]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-2:] == (25, 25):
                masks.append(tuple(out.shape))
            return out

    model = build("ModernBert", local_attention=8, layers=4)
    packed = PackedModel(model)
    batch = packed_batch((5,) * 5, token_types=False)
    with Watch():
        packed(batch)
    assert not masks
    with Watch():
        model(input_ids=batch["input_ids"])
    assert masks


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
@torch.no_grad()
def test_a_prepared_model_is_still_an_ordinary_one(family):
    model = build(family, "ForSequenceClassification")
    batch = batch_for(family, model)
    model.set_attn_implementation("sdpa")
    expected = model(**batch).logits
    packed = PackedModel(model)
    assert torch.equal(model(**batch).logits, expected)
    packed(pack_padded(batch))
    assert torch.equal(model(**batch).logits, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_of_the_preparation_is_saved(tmp_path):
    model = tiny_bert(head="ForSequenceClassification")
    PackedModel(model)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "bertxfer" not in text and "attn_implementation" not in json.loads(text)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    batch = padded_batch()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_the_tap_sees_views_of_what_the_model_computed():
    model = tiny_bert(2, 16, 4, head="ForSequenceClassification")
    linears: list[torch.Tensor] = []
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.register_forward_hook(lambda _m, _a, out: linears.append(out))
    seen: list[LayerActivations] = []
    packed = PackedModel(model)
    batch = packed_batch()
    out = packed(batch, everything(packed, seen.append))

    assert [a.spot for a in seen] == [
        ("hidden", 0),
        ("attention", 0),
        ("hidden", 1),
        ("attention", 1),
        ("hidden", 2),
        ("logits", 0),
    ]
    tokens = sum(LENGTHS)
    for activations in seen:
        assert activations.cu_seqlens is batch["cu_seq_lens_q"] and activations.max_seqlen == max(LENGTHS)
    for activations, linear in zip((seen[1], seen[3]), linears, strict=True):
        assert activations.q.shape == activations.k.shape == activations.v.shape == (tokens, 4, 4)
        assert activations.q.data_ptr() == linear.data_ptr() and activations.q.is_contiguous()
        assert activations.scale == 0.5
    torch.testing.assert_close(
        seen[0].hidden,
        model.bert.embeddings(batch["input_ids"], batch["token_type_ids"], batch["position_ids"])[0],
    )
    assert torch.equal(seen[4].hidden, out.last_hidden_state)
    assert seen[5].logits is out.logits and out.logits.shape == (len(LENGTHS), 3)


@torch.no_grad()
def test_positions_and_lengths_left_out_are_computed():
    packed = PackedModel(tiny_bert(family="Roberta"))
    batch = packed_batch(token_types=False)
    expected = packed(batch).last_hidden_state
    short = {name: batch[name] for name in ("input_ids", "cu_seq_lens_q")}
    assert torch.equal(packed(short).last_hidden_state, expected)


def test_a_sink_that_raises_leaves_the_model_as_it_was():
    packed = PackedModel(tiny_bert())

    def sink(_):
        raise RuntimeError("sink")

    with pytest.raises(RuntimeError, match="sink"):
        packed(packed_batch(), everything(packed, sink))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in packed.model.modules())
    assert attention._running.get() is None


@torch.no_grad()
def test_another_model_run_by_the_sink_is_not_heard():
    other = tiny_bert(seed=3)
    PackedModel(other)
    batch = packed_batch()
    heard: list[str] = []

    def sink(activations):
        heard.append(activations.place)
        plain = {k: v for k, v in batch.items() if k != "labels"}
        other(**plain)  # a plain call of a prepared model, packed, while the first one runs

    packed = PackedModel(tiny_bert())
    packed(batch, everything(packed, sink))
    assert heard == ["hidden", "attention"] * 2 + ["hidden"]


def captured_gradients(model, batch, **checkpointing) -> list[torch.Tensor]:
    if checkpointing:
        model.gradient_checkpointing_enable(checkpointing)
    model.train()
    seen: list[LayerActivations] = []
    packed = PackedModel(model)
    packed(batch, everything(packed, seen.append))
    loss = sum(a.hidden.square().mean() if a.place == "hidden" else (a.q * a.k).square().mean() for a in seen)
    before = len(seen)
    loss.backward()
    assert len(seen) == before  # the recomputation in backward has no listener
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_gradient_checkpointing_gives_the_same_gradients():
    batch = packed_batch()
    plain = captured_gradients(tiny_bert(), batch)
    again = captured_gradients(tiny_bert(), batch, use_reentrant=False)
    assert len(plain) == len(again) > 10
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_reentrant_checkpointing_is_refused_instead_of_losing_gradients():
    with pytest.raises(ValueError, match="use_reentrant"):
        captured_gradients(tiny_bert(), packed_batch(), use_reentrant=True)


@torch.no_grad()
def test_bf16_autocast():
    model = tiny_bert(head="ForSequenceClassification")
    packed = PackedModel(model)
    seen: list[LayerActivations] = []
    reference = packed(packed_batch()).logits
    with torch.autocast("cpu", torch.bfloat16):
        logits = packed(packed_batch(), everything(packed, seen.append)).logits
    assert seen[1].q.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), reference, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_configuration_flags_that_collect_states_are_overruled():
    model = tiny_bert()
    model.config.output_hidden_states = True
    collected: list[object] = []
    model.register_forward_hook(lambda _m, _a, out: collected.append(out.hidden_states))
    PackedModel(model)(packed_batch())
    assert collected == [None]


# Bad input


def test_what_is_not_a_model_is_refused():
    with pytest.raises(TypeError, match="model: got Linear, want a transformers PreTrainedModel"):
        PackedModel(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="head: got 'both', want 'sequence', 'token', 'span' or None"):
        PackedModel(tiny_bert(), head="both")


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("Albert", "shares? weights between layers"),
        ("MPNet", "does not use transformers' AttentionInterface"),
        ("MobileBert", "trigram_input"),
    ],
)
def test_models_that_cannot_run_packed_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        PackedModel(tiny_bert(family=family, embedding_size=16))


def test_decoders_are_refused():
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    with pytest.raises(ValueError, match="which is a decoder"):
        PackedModel(BertModel(config))


def test_a_layer_without_the_interface_is_noticed_before_sequences_mix():
    model = tiny_bert()
    packed = PackedModel(model)
    model.encoder.layer[1].attention.forward = lambda hidden, *args, **kwargs: (hidden, None)
    with pytest.raises(ValueError, match="layer 1 ran without calling the attention interface"):
        packed(packed_batch())


def test_windows_shorter_than_a_sequence_are_refused():
    model = build("ModernBert", local_attention=8, layers=4)
    packed = PackedModel(model)
    packed(packed_batch((5, 5), token_types=False))
    with pytest.raises(ValueError, match="at most 4 tokens to either side"):
        packed(packed_batch((5, 6), token_types=False))


def test_a_head_that_reads_something_else_is_noticed():
    class Mean(nn.Module):
        def forward(self, hidden):
            return hidden.mean((0, 1))[None]

    model = tiny_bert(head="ForSequenceClassification")
    model.bert.pooler = Mean()
    with pytest.raises(
        ValueError, match=r"got logits \(1, 3\) from the head of .* for a pack of 4 sequences"
    ):
        PackedModel(model)(packed_batch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "want a tensor 'input_ids'"),
        ({"cu_seq_lens_q": None}, "want a tensor 'cu_seq_lens_q'"),
        (
            {"input_ids": torch.zeros(2, 11, dtype=torch.long)},
            r"input_ids: got \(2, 11\), want packed tokens \[1, T\]",
        ),
        ({"cu_seq_lens_q": torch.tensor([0, 22])}, "want int32"),
        ({"cu_seq_lens_q": torch.tensor([0, 9, 5, 22], dtype=torch.int32)}, "rise from 0 to T = 22"),
        ({"cu_seq_lens_q": torch.tensor([0, 9, 9, 22], dtype=torch.int32)}, "no sequence is empty"),
        ({"cu_seq_lens_q": torch.tensor([0, 21], dtype=torch.int32)}, "rise from 0 to T = 22"),
        (
            {"position_ids": torch.zeros(1, 3, dtype=torch.long)},
            r"position_ids: got \(1, 3\), want one value",
        ),
        (
            {"token_type_ids": torch.zeros(22, dtype=torch.long)},
            r"token_type_ids: got \(22,\), want one value",
        ),
        ({"input_ids": torch.full((1, 22), 50)}, r"input_ids: got 50, want ids 0..49"),
        ({"token_type_ids": torch.full((1, 22), 2)}, r"token_type_ids: got 2, want ids 0..1"),
        (
            {"input_ids": torch.full((1, 22), -1)},
            "input_ids: got -1, want ids 0..49, the vocabulary of BertModel",
        ),
        ({"max_length_q": 65}, "got 65 tokens, want at most the 64 positions"),
        ({"max_length_q": 10}, "max_length_q: got 10, want at least the longest, 11"),
        ({"position_ids": torch.arange(2, 24)[None]}, "position_ids: got others than 0, 1, 2"),
        ({"position_ids": torch.arange(22)[None]}, "position_ids: got others than 0, 1, 2"),
    ],
)
def test_bad_batches(change, message):
    with pytest.raises(ValueError, match=message):
        PackedModel(tiny_bert())({**packed_batch(), **change})


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap(print, attention=frozenset({2})), r"attention: got \[2\], want indices 0..1 of BertModel"),
        (Tap(print, hidden=frozenset({-1, 3})), r"hidden: got \[-1, 3\], want indices 0..2 of BertModel"),
        (Tap(print, logits=True), "has no head this package knows"),
    ],
)
def test_wanting_what_a_model_does_not_have(tap, message):
    with pytest.raises(ValueError, match=message):
        PackedModel(tiny_bert())(packed_batch(), tap)


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Electra"])
@pytest.mark.parametrize("inside", [[(0, 2)], [(0, 0), (0, 1), (3, 10)], [(2, 0)]])
def test_a_padding_token_inside_a_text_counts_as_in_the_plain_model(family, inside):
    """RoBERTa numbers positions by looking for it; the texts behind it in the pack are not moved by it."""
    model = tiny_bert(family=family, pad_token_id=1)
    batch = padded_batch(token_types=False)
    for row, column in inside:
        batch["input_ids"][row, column] = 1
    packed = pack_padded(batch)
    # The plain model takes what the mask hides for padding only where the padding token stands there.
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        plain = [
            model(input_ids=row[m][None]).last_hidden_state[0]
            for row, m in zip(batch["input_ids"], mask, strict=True)
        ]
        got = PackedModel(model)(packed).last_hidden_state
    torch.testing.assert_close(got, torch.cat(plain), rtol=1e-5, atol=1e-5)
