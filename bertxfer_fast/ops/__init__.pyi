# Written by `python -m tests.ops.tables --write`.
from ._dispatch.backend import explain as explain
from ._dispatch.backend import use_backend as use_backend
from ._dispatch.library import build_info as build_info
from .attention_map import attention_map_loss as attention_map_loss
from .attention_score_mse import attention_score_mse as attention_score_mse
from .hidden_cosine import hidden_cosine as hidden_cosine
from .hidden_mse import hidden_mse as hidden_mse
from .linear_logits_kl import linear_logits_kl as linear_logits_kl
from .logits_kl import logits_kl as logits_kl
from .pool_features import pool_features as pool_features
from .relation_kl import relation_kl as relation_kl
from .varlen_attention import varlen_attention as varlen_attention
