"""The attention function that transformers calls, by itself, and what a packed call tells its listener."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from bertxfer_fast.models.activations import LayerActivations, Tap
from bertxfer_fast.models.hf.attention import PackedCall, Stop, attention_forward, register_attention

CU_SEQLENS = torch.tensor([0, 2, 5], dtype=torch.int32)


def test_registering_again_changes_nothing():
    register_attention()
    before = AttentionInterface._global_mapping["bertxfer"]
    register_attention()
    assert AttentionInterface._global_mapping["bertxfer"] is before is attention_forward


def test_mixed_dtypes_of_q_k_v_meet_in_the_widest():
    q, k = torch.randn(2, 1, 4, 5, 4).bfloat16()
    value = torch.randn(1, 4, 5, 4)
    out, _ = attention_forward(
        nn.Identity(), q, k, value, None, is_causal=False, cu_seq_lens_q=CU_SEQLENS, max_length_q=3
    )
    assert out.dtype == torch.float32 and out.shape == (1, 5, 4, 4)


def test_packed_attention_refuses_what_it_does_not_have():
    module = nn.Identity()
    q = torch.randn(1, 2, 5, 4)
    packed = {"cu_seq_lens_q": CU_SEQLENS, "max_length_q": 3}
    with pytest.raises(ValueError, match="got causal attention"):
        attention_forward(module, q, q, q, None, is_causal=True, **packed)
    with pytest.raises(ValueError, match="position_bias"):
        attention_forward(module, q, q, q, None, position_bias=q, **packed)
    with pytest.raises(ValueError, match="want one shape"):
        attention_forward(module, q, q[:, :1], q[:, :1], None, **packed)


def test_only_what_is_wanted_is_handed_over_and_the_last_of_it_stops_the_model():
    seen: list[LayerActivations] = []
    call = PackedCall(Tap(seen.append, frozenset({1}), frozenset({1}), stop=True), CU_SEQLENS, 3)
    q, hidden = torch.randn(5, 2, 4), torch.randn(1, 5, 8)
    call.enter_layer(0, hidden)
    call.attention(q, q, q, None)
    assert not seen
    call.leave_layer(0, hidden)
    call.enter_layer(1, hidden)
    with pytest.raises(Stop):
        call.attention(q, q, q, 0.5)
    assert [(a.place, a.index, a.max_seqlen) for a in seen] == [("hidden", 1, 3), ("attention", 1, 3)]
    assert seen[0].hidden.shape == (5, 8) and seen[1].q is q and seen[1].scale == 0.5
    assert all(a.cu_seqlens is CU_SEQLENS for a in seen)


def test_no_kind_of_activation_is_handed_over_cut_off_from_autograd():
    """As reentrant checkpointing would: depending on transformers' version its no_grad covers a layer's hooks too."""
    call = PackedCall(Tap(print, frozenset({0}), frozenset({0, 1})), CU_SEQLENS, 3)
    q, hidden = torch.randn(5, 2, 4), torch.randn(1, 5, 8)
    with torch.no_grad():
        for offer in (
            lambda: call.enter_layer(0, hidden),
            lambda: call.attention(q, q, q, None),
            lambda: call.leave_layer(0, hidden),
        ):
            with pytest.raises(ValueError, match="use_reentrant"):
                offer()
