"""The compiled operators check for callers of torch.ops too: `argument: got X, want Y`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertxfer_fast.ops._dispatch import library

pytestmark = pytest.mark.skipif(library.extension is None, reason="no compiled extension")
OPS = torch.ops.bertxfer_fast
STATES = torch.ones(6, 8)
HEADS = torch.ones(6, 2, 4)
OFFSETS = torch.tensor([0, 2, 6], dtype=torch.int32)
PAIR: dict[str, Any] = {
    **dict.fromkeys(("q_student", "k_student", "q_teacher", "k_teacher"), HEADS),
    **{"cu_seqlens": OFFSETS, "seqused": None, "max_seqlen": 4, "scale_student": 1.0, "scale_teacher": 1.0},
    **{"reduction": "mean", "need_grad": True},
}
SCORES = {**PAIR, "method": "auto"}
MAPS = {**PAIR, "kind": "kl"}
PROJECTED: dict[str, Any] = {"student": STATES, "teacher": STATES, "weight": None, "bias": None}
PROJECTED |= {"reduction": "mean", "need_grad": True}
LOGITS: dict[str, Any] = {
    "student": STATES,
    "teacher": STATES,
    "temperature": 1.0,
    "reduction": "batchmean",
    "need_grad": True,
}
RELATION: dict[str, Any] = {name: PAIR[name] for name in PAIR if name[:2] not in ("q_", "k_")}
RELATION |= {"x_student": STATES, "x_teacher": STATES, "heads": 2}
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("attention_score_mse", SCORES, {"reduction": "none"}, "reduction: got 'none', want 'mean' or 'sum'"),
    ("attention_map_loss", MAPS, {"reduction": "none"}, "reduction: got 'none', want 'mean' or 'sum'"),
    ("relation_kl", RELATION, {"reduction": "none"}, "reduction: got 'none', want 'mean' or 'sum'"),
    ("hidden_mse", PROJECTED, {"reduction": "none"}, "reduction: got 'none', want 'mean' or 'sum'"),
    ("logits_kl", LOGITS, {"reduction": "mean"}, "reduction: got 'mean', want 'batchmean' or 'sum'"),
    ("attention_score_mse", SCORES, {"method": "fast"}, "method: got 'fast', want 'auto', 'gram' or 'tiled'"),
    ("attention_map_loss", MAPS, {"k_teacher": HEADS[:5]}, r"k_teacher: got Float \[5, 2, 4\], want T and H"),
    ("attention_map_loss", MAPS, {"cu_seqlens": OFFSETS + 1}, "cu_seqlens: got first entry 1, want 0"),
    ("attention_map_loss", MAPS, {"seqused": OFFSETS[1:] + 1}, "seqused: got 3 for sequence 0, want 0 to 2"),
    ("relation_kl", RELATION, {"heads": 3}, "heads: got 3, want a divisor of 8"),
    ("hidden_mse", PROJECTED, {"teacher": STATES[:, :7]}, "weight: got none, want one for widths 8 and 7"),
    ("logits_kl", LOGITS, {"temperature": 0.0}, "temperature: got 0, want a positive number"),
]


@pytest.mark.parametrize(
    "name, good, change, message", REFUSED, ids=[f"{case[0]}-{next(iter(case[2]))}" for case in REFUSED]
)
def test_refuses_in_words(name: str, good: dict[str, Any], change: dict[str, Any], message: str) -> None:
    operator = getattr(OPS, name).cpp
    operator(**good)
    with pytest.raises(RuntimeError, match=message):
        operator(**{**good, **change})
