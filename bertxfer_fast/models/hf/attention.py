"""transformers' attention and mask functions "bertxfer", and the packed call that is running.

transformers calls whatever is registered under ``config._attn_implementation`` with the queries, keys and
values of a layer. `register_attention` registers "bertxfer" there: with ``cu_seq_lens_q`` among the keyword
arguments it attends inside each packed sequence and offers q, k, v to the listener of the running call;
without it, it is transformers' own ``sdpa``, so that a prepared model stays an ordinary model. Nothing here
asks for ``output_attentions``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...ops import varlen_attention
from ..activations import Kind, LayerActivations, Tap

__all__ = ["ATTENTION", "PackedCall", "Stop", "attention_forward", "attention_mask", "register_attention"]

ATTENTION = "bertxfer"

# The call that is running in this thread. Unset outside of it, so backward's recomputation under gradient
# checkpointing and any other model find nobody listening.
_running: ContextVar[PackedCall | None] = ContextVar("bertxfer_running", default=None)


class Stop(Exception):
    """Leaves a model whose listener has everything it asked for."""


class PackedCall:
    """One packed forward pass: which layer is running, who listens, what is still to come."""

    def __init__(self, tap: Tap | None, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.tap = tap
        self.cu_seqlens, self.max_seqlen = cu_seqlens, max_seqlen
        self.remaining = len(tap.attention) + len(tap.hidden) + tap.logits if tap else 0
        self._with_grad = torch.is_grad_enabled()
        self._layer = 0
        self._attended = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, attention reports to this call. What the listener wants last ends it with `Stop`."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def enter_layer(self, index: int, hidden: Tensor) -> None:
        """Layer ``index`` is about to read ``hidden [1, T, D]``."""
        self._layer, self._attended = index, False
        if index == 0 and self._wants("hidden", 0):
            self.offer("hidden", 0, hidden=hidden.squeeze(0))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> None:
        """The layer attends with ``[T, H, D]``."""
        self._attended = True
        if self._wants("attention", self._layer):
            self.offer("attention", self._layer, q=q, k=k, v=v, scale=scale)

    def leave_layer(self, index: int, hidden: Tensor) -> None:
        """Layer ``index`` gave ``hidden [1, T, D]``.

        Raises:
            ValueError: it did so without attention that keeps the sequences apart.
        """
        if not self._attended:
            raise ValueError(
                f"layer {index} ran without calling the attention interface, so its tokens would see other "
                "sequences of the pack; this model cannot run packed"
            )
        if self._wants("hidden", index + 1):
            self.offer("hidden", index + 1, hidden=hidden.squeeze(0))

    def offer(self, kind: Kind, index: int, **tensors: Any) -> None:
        """Hand something wanted to the listener.

        Raises:
            Stop: that was the last of it, and the listener wants the model left then.
            ValueError: checkpointing cut it off from autograd.
        """
        if self.tap is None:
            return
        if self._with_grad and not torch.is_grad_enabled():
            raise ValueError(
                "gradient checkpointing with use_reentrant=True hides what a layer computes from autograd; "
                'set gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        token = _running.set(None)  # what the sink itself may run is not this model
        try:
            self.tap.sink(LayerActivations(kind, index, self.cu_seqlens, self.max_seqlen, **tensors))
        finally:
            _running.reset(token)
        self.remaining -= 1
        if self.tap.stop and self.remaining == 0:
            raise Stop

    def _wants(self, kind: Kind, index: int) -> bool:
        return self.tap is not None and index in (
            self.tap.attention if kind == "attention" else self.tap.hidden
        )


def register_attention() -> None:
    """Register "bertxfer" with transformers' attention and mask interfaces. Calling it again changes nothing."""
    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, attention_mask)


def attention_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The ``sdpa`` mask of an ordinary call; none for a packed one, whose sequences cu_seqlens keeps apart."""
    return None if _running.get() is not None else sdpa_mask(*args, **kwargs)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: ``[B, H, L, D]`` in, ``[B, L, H, D]`` out.

    With ``cu_seq_lens_q`` the batch is one row of packed tokens, each sequence attends to itself only and
    ``attention_mask`` is not looked at; without it this is ``sdpa``.
    """
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    max_seqlen = kwargs.get("max_length_q")
    _check_packed_attention(module, query, key, max_seqlen, kwargs)
    # The model's transpose undone: views of the projections' own output, no copy.
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    call = _running.get()
    if call is not None:
        call.attention(q, k, v, scaling)
    if not q.dtype == k.dtype == v.dtype:
        q, k, v = _same_dtype(q, k, v)
    out = varlen_attention(q, k, v, cu_seqlens, max_seqlen=max_seqlen, scale=scaling, dropout_p=dropout)
    return out.unsqueeze(0), None


def _check_packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, max_seqlen: int | None, kwargs: Mapping[str, Any]
) -> None:
    name = type(module).__name__
    if query.shape[0] != 1 or key.shape != query.shape:
        raise ValueError(
            f"{name}: packed attention wants query and key of one shape [1, H, T, D], "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    if kwargs.get("is_causal", getattr(module, "is_causal", False)):
        raise ValueError(f"{name} is causal; packed attention is for encoders, which look both ways")
    for unknown in ("position_bias", "softcap", "s_aux"):
        if kwargs.get(unknown) is not None:
            raise ValueError(
                f"{name} passes {unknown} to its attention, which packed attention does not have"
            )
    window = kwargs.get("sliding_window")
    # transformers passes the number of tokens on either side, the token itself included.
    if window is not None and (max_seqlen is None or max_seqlen > window):
        raise ValueError(
            f"{name} looks at most {window - 1} tokens to either side, packed attention has no window: "
            f"sequences of at most {window} tokens are the same with and without it, got max_length_q {max_seqlen}"
        )


def _same_dtype(*tensors: Tensor) -> list[Tensor]:
    """Autocast's dtype where it is on, otherwise the widest: a model may compute values in another dtype."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = tensors[0].dtype
        for other in tensors[1:]:
            dtype = torch.promote_types(dtype, other.dtype)
    return [x.to(dtype) for x in tensors]
