"""The plain records that models, the stream and objectives hand to each other: what a model computed, and who listens.

Nothing but torch is needed to read or make them, so whoever has tensors from elsewhere can use the objectives too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Alignment", "LayerActivations", "PackedOutput", "Place", "Sink", "Spot", "Tap"]

#: Where in a model something is looked at.
Place = Literal["attention", "hidden", "output_layer", "logits"]

#: A place and which one of it: attention ``0..L-1``; hidden 0 = what the first layer reads (embeddings after LayerNorm
#: and dropout), i = output of the i-th layer; output_layer 0 = what the last linear map of a masked-LM head reads;
#: logits 0.
Spot = tuple[Place, int]


@dataclass(frozen=True)
class Alignment:
    """Which tokens of a teacher stand for a token of a student that reads others.

    Attributes:
        rows: int64 ``[R]``, the student's tokens for which there are any, rising.
        tokens: int64 ``[S]``, the teacher's tokens of each of them, one after the other.
        bounds: int32 ``[R + 1]``, where each of them begins in ``tokens``.
    """

    rows: Tensor
    tokens: Tensor
    bounds: Tensor


@dataclass(frozen=True)
class LayerActivations:
    """Tensors of one spot of a model, views of the model's own memory.

    Attributes:
        place: ``"attention"``, ``"hidden"``, ``"output_layer"`` or ``"logits"``.
        index: which one of that place, see `Spot`.
        cu_seqlens: int32 ``[N + 1]``, where each sequence of the pack begins.
        max_seqlen: the longest length of the pack.
        q: queries ``[T, H, D]``, only of attention. Positional rotations, where a model has them, are applied.
        k: keys, as ``q``.
        v: values, as ``q``.
        scale: the factor the model puts before ``q @ k.T``; None means ``1 / sqrt(D)``.
        hidden: ``[T, D]``, only of hidden and of output_layer (there, what the output layer reads).
        weight: ``[V, D]``, only of output_layer: logits are ``hidden @ weight.T + bias``. The model's own parameter.
        bias: ``[V]``, only of output_layer, None where it has none.
        pooled: in place of ``hidden``, of a teacher that has nothing else: by pooling (a mode of `ops.pool_features`),
            ``[N, D]``, one vector a sequence.
        logits: ``[N, C]`` of a sequence head or ``[T, C]`` of a token head.
        alignment: of a teacher that reads other tokens than the student, where there is a row a token: whose they are.
    """

    place: Place
    index: int
    cu_seqlens: Tensor
    max_seqlen: int
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    scale: float | None = None
    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    pooled: Mapping[str, Tensor] | None = None
    logits: Tensor | None = None
    alignment: Alignment | None = None

    @property
    def spot(self) -> Spot:
        """Place and index."""
        return self.place, self.index


Sink = Callable[[LayerActivations], None]


@dataclass(frozen=True)
class Tap:
    """What a caller of an `Encoder` wants to see, and the function that gets it while the model runs.

    Attributes:
        sink: called with each wanted `LayerActivations`, in the order in which the model computes them.
        attention: the layers whose q, k, v are wanted.
        hidden: the hidden states that are wanted.
        logits: whether the logits are wanted.
        stop: the caller needs nothing else: the model may be left as soon as everything wanted has been handed over.
            A transformers model is; the layers after it, and where attention was the last thing wanted even the rest of
            that layer, never run.
        output_layer: whether the input, weight and bias of the head's last linear map are wanted.
    """

    sink: Sink
    attention: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    logits: bool = False
    stop: bool = False
    output_layer: bool = False

    def wants(self, place: Place, index: int = 0) -> bool:
        """Whether the caller wants what is there."""
        if place in ("logits", "output_layer"):
            return self.logits if place == "logits" else self.output_layer
        return index in (self.attention if place == "attention" else self.hidden)


@dataclass(frozen=True)
class PackedOutput:
    """What running a packed batch gave; None for what was not computed.

    A transformers model that normalises behind its layer stack and has a sequence-level head gives no
    last_hidden_state: only the rows its head reads pass that norm. Wrap ``model.base_model`` for its token states.

    Attributes:
        last_hidden_state: ``[T, D]``.
        logits: ``[N, C]`` of a sequence head or ``[T, C]`` of a token head.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
