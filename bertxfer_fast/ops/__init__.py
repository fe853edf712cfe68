"""The fused operators. All work on packed, token-major tensors; see each function's docstring."""

from __future__ import annotations

from ._dispatch.backend import explain, use_backend
from ._dispatch.library import build_info
from .attention_map import attention_map_loss
from .attention_score_mse import attention_score_mse
from .hidden_cosine import hidden_cosine
from .hidden_mse import hidden_mse
from .linear_logits_kl import linear_logits_kl
from .logits_kl import logits_kl
from .pool_features import pool_features
from .relation_kl import relation_kl
from .varlen_attention import varlen_attention

__all__ = [
    "attention_map_loss",
    "attention_score_mse",
    "build_info",
    "explain",
    "hidden_cosine",
    "hidden_mse",
    "linear_logits_kl",
    "logits_kl",
    "pool_features",
    "relation_kl",
    "use_backend",
    "varlen_attention",
]
