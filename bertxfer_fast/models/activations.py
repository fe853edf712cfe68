"""The plain records that models, the stream and objectives hand to each other: what a model is, and what it computed.

Nothing but torch is needed to read or make them, so whoever has tensors from elsewhere can use the objectives too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Kind", "LayerActivations", "ModelFacts", "PackedOutput", "Sink", "Tap"]


@dataclass(frozen=True)
class ModelFacts:
    """What objectives check before work starts. ``num_labels`` is the width of the logits, 0 without a head."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int
    vocab_size: int
    num_labels: int
    head: str | None
    problem_type: str | None = None
    max_positions: int | None = None


Kind = Literal["attention", "hidden", "logits"]


@dataclass(frozen=True)
class LayerActivations:
    """Tensors of one place in a model, views of the model's own memory.

    Attributes:
        kind: ``"attention"``, ``"hidden"`` or ``"logits"``.
        index: attention ``0..L-1``; hidden 0 = what the first layer reads (embeddings after LayerNorm and
            dropout), i = output of the i-th layer; logits 0.
        cu_seqlens, max_seqlen: int32 ``[N + 1]`` and the longest length of the pack.
        q, k, v: ``[T, H, D]``, only of attention. Positional rotations, where a model has them, are applied.
        scale: the factor the model puts before ``q @ k.T``; None means ``1 / sqrt(D)``.
        hidden: ``[T, D]``, only of hidden.
        logits: ``[N, C]`` of a sequence head or ``[T, C]`` of a token head.
    """

    kind: Kind
    index: int
    cu_seqlens: Tensor
    max_seqlen: int
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    scale: float | None = None
    hidden: Tensor | None = None
    logits: Tensor | None = None


Sink = Callable[[LayerActivations], None]


@dataclass(frozen=True)
class Tap:
    """What a caller of `PackedModel` wants to see, and the function that gets it while the model runs.

    With ``stop`` the model is left as soon as everything wanted has been handed over: the layers after it,
    and where attention was the last thing wanted even the rest of that layer, never run.
    """

    sink: Sink
    attention: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    logits: bool = False
    stop: bool = False


@dataclass(frozen=True)
class PackedOutput:
    """``last_hidden_state [T, D]`` and ``logits`` (``[N, C]`` or ``[T, V]``); None for what was not computed.

    A model that normalises behind its layer stack and has a sequence-level head gives no last_hidden_state:
    only the rows its head reads pass that norm. Wrap ``model.base_model`` for its token states.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
