"""transformers' attention and mask functions "bertxfer", and the packed call that is running.

transformers calls whatever is registered under ``config._attn_implementation`` with the queries, keys and
values of a layer. `PackedAttention` sets "bertxfer" there for the length of a call. With ``cu_seq_lens_q`` among the
keyword arguments it attends inside each packed sequence and offers q, k, v to the listener of the running call;
without it, it is the implementation that the model had before, so that another thread may use the model as it is.
Nothing here asks for ``output_attentions``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...ops import varlen_attention
from ..activations import LayerActivations, Place, Tap
from ..loans import Undo, lent

__all__ = [
    "ATTENTION",
    "PackedAttention",
    "PackedCall",
    "Stop",
    "attention_forward",
    "attention_mask",
    "register_attention",
]

ATTENTION = "bertxfer"

# The call that is running in this thread. Unset outside of it, so backward's recomputation under gradient
# checkpointing and any other model find nobody listening.
_running: ContextVar[PackedCall | None] = ContextVar("bertxfer_running", default=None)

# What each configuration that says "bertxfer" during a call said before, by its id.
_before: dict[int, str | None] = {}


class Stop(Exception):
    """Leaves a model whose listener has everything it asked for."""


class PackedCall:
    """One packed forward pass: which layer is running, who listens, what is still to come."""

    def __init__(self, tap: Tap | None, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.tap = tap
        self.cu_seqlens, self.max_seqlen = cu_seqlens, max_seqlen
        self.remaining = 0
        if tap is not None:
            self.remaining = len(tap.attention) + len(tap.hidden) + tap.output_layer + tap.logits
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

    @property
    def is_running(self) -> bool:
        """Whether this is the call that runs in this thread: hooks hear other threads' calls of the model too."""
        return _running.get() is self

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

    def offer(self, place: Place, index: int, **tensors: Any) -> None:
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
            self.tap.sink(LayerActivations(place, index, self.cu_seqlens, self.max_seqlen, **tensors))
        finally:
            _running.reset(token)
        self.remaining -= 1
        if self.tap.stop and self.remaining == 0:
            raise Stop

    def _wants(self, place: Place, index: int) -> bool:
        return self.tap is not None and self.tap.wants(place, index)


def register_attention() -> None:
    """Register "bertxfer" with transformers' attention and mask interfaces. Calling it again changes nothing."""
    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, attention_mask)


class PackedAttention:
    """Lets a model attend packed for the length of a block; afterwards its attention is what it was.

    Args:
        model: the model. What is switched is found here, once.
    """

    def __init__(self, model: nn.Module) -> None:
        register_attention()  # the name is known from now on, for whoever wants to set it for good
        configs = (vars(module).get("config") for module in model.modules())
        # Mostly it is one configuration, which all parts share.
        self._configs = list({id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values())
        self._checkpointing: list[Any] = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, attention is "bertxfer", and so it is when backward recomputes a checkpointed layer later."""
        register_attention()  # a copy that was unpickled in another process has not done so
        with ExitStack() as stack:
            stack.enter_context(self._attention())
            for module in self._checkpointing:
                if module.training and module.gradient_checkpointing:
                    stack.enter_context(
                        lent(module, "checkpointing", partial(self._recompute_packed, module))
                    )
            yield

    @contextmanager
    def _attention(self) -> Iterator[None]:
        with ExitStack() as stack:
            for config in self._configs:
                stack.enter_context(lent(config, "attention", partial(_set_attention, config)))
            yield

    def _recompute_packed(self, module: Any) -> Undo:
        before: Callable[..., Any] = module._gradient_checkpointing_func

        def checkpoint(function: Callable[..., Any], *args: Any) -> Any:
            def packed(*inputs: Any) -> Any:
                with self._attention():
                    return function(*inputs)

            return before(packed, *args)

        def undo() -> None:
            module._gradient_checkpointing_func = before

        module._gradient_checkpointing_func = checkpoint
        return undo


def _set_attention(config: PreTrainedConfig) -> Undo:
    before = config._attn_implementation

    def undo() -> None:
        config._attn_implementation = {"": before}
        del _before[id(config)]

    _before[id(config)] = before
    config._attn_implementation = {"": ATTENTION}  # of this configuration alone, not of those below it
    return undo


def _own_implementation(config: Any) -> str:
    """The attention that a model has without us, also while "bertxfer" stands in its configuration."""
    name = _before.get(id(config), getattr(config, "_attn_implementation", None))
    return "sdpa" if name in (None, ATTENTION) else str(name)


def attention_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """The mask of the model's own attention for an ordinary call; none for a packed one, which needs none."""
    if _running.get() is not None:
        return None
    masks: Mapping[str, Any] = AttentionMaskInterface._global_mapping
    own = masks.get(_own_implementation(config), sdpa_mask)
    return own(*args, config=config, **kwargs)


def _own_attention(module: nn.Module) -> Callable[..., Any]:
    """transformers' function for the attention that the module has without us."""
    own = _own_implementation(getattr(module, "config", None))
    if own == "eager":  # not registered: each model brings its own
        return getattr(
            sys.modules[type(module).__module__], "eager_attention_forward", sdpa_attention_forward
        )
    return AttentionInterface._global_mapping.get(own, sdpa_attention_forward)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: ``[B, H, L, D]`` in, ``[B, L, H, D]`` out.

    With ``cu_seq_lens_q`` the batch is one row of packed tokens, each sequence attends to itself only and
    ``attention_mask`` is not looked at; without it this is the attention that the model has without us.
    """
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is None:
        return _own_attention(module)(
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
            f"{name}: got query {tuple(query.shape)} and key {tuple(key.shape)}, want one shape [1, H, T, D] of both"
        )
    if kwargs.get("is_causal", getattr(module, "is_causal", False)):
        raise ValueError(f"{name}: got causal attention, want an encoder's, which looks both ways")
    for unknown in ("position_bias", "softcap", "s_aux"):
        if kwargs.get(unknown) is not None:
            raise ValueError(
                f"{name}: got {unknown} for its attention, want none: packed attention does not have it"
            )
    window = kwargs.get("sliding_window")
    # transformers passes the number of tokens on either side, the token itself included.
    if window is not None and (max_seqlen is None or max_seqlen > window):
        raise ValueError(
            f"max_length_q: got {max_seqlen}, want at most {window}: {name} looks at most {window - 1} tokens to "
            "either side, packed attention has no window, and only up to that length the two are the same"
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
