"""Runs a transformers encoder on packed tokens and lets a listener see each layer's tensors as they appear.

Queries, keys and values come from the attention function that `attention` registers, hidden states from hooks. Both are
there for the length of one call: before and after it the model is an ordinary model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...ops import pool_features
from ..activations import PackedOutput, Tap
from ..packed import check_ids, packed_tokens
from ..spec import EncoderSpec
from .attention import PackedAttention, PackedCall, Stop
from .structure import find_layers, find_output_layer, find_stack, spec_of

__all__ = ["PackedModel"]

# Arguments of a transformers forward that are not further inputs: made here, not of an encoder, or about the output.
_NOT_INPUTS = {
    "self",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "head_mask",
    "labels",
    "next_sentence_label",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "past_key_values",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "kwargs",
}


class PackedModel:
    """A transformers encoder, bare or with a head, as an `Encoder`: it runs on packed batches.

    Not an ``nn.Module``: it holds the model and knows where its layers are. The model stays an ordinary one: outside of
    a call nothing about it is changed, so it takes padded batches with the attention it had, is copied, pickled and
    saved as it was. Several threads may run it at once.

    Args:
        model: a ``PreTrainedModel`` whose attention goes through transformers' ``AttentionInterface``.
        head: ``"sequence"`` (the head reads one row per sequence), ``"token"`` or ``"span"``; by default known from the
            class name for transformers' own heads, None (no logits) for others.

    Attributes:
        model: the model.
        base: the encoder inside it (the same object for a bare model).
        spec: `EncoderSpec`.
        inputs: names of further inputs of the model (LayoutLM's ``bbox``), which a batch may have.

    Raises:
        TypeError: ``model`` is not a PreTrainedModel.
        ValueError: the model does not use the attention interface, shares one set of weights between its
            layers (ALBERT), mixes tokens outside of attention (MobileBERT), is a decoder, or ``head`` is unknown.
    """

    def __init__(self, model: PreTrainedModel, *, head: str | None = None) -> None:
        self.spec: EncoderSpec = spec_of(model, head)
        self.model = model
        self.base = cast(PreTrainedModel, model.base_model)
        self.layers = find_layers(self.base)
        self.stack = find_stack(self.base, self.layers[0])
        arguments = inspect.signature(model.forward).parameters.keys()
        self.inputs = frozenset(
            arguments & inspect.signature(self.base.forward).parameters.keys() - _NOT_INPUTS
        )
        self._takes_token_types = "token_type_ids" in inspect.signature(self.base.forward).parameters
        self._attention = PackedAttention(model)

    def run(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        """Run the model on a packed batch.

        Args:
            batch: ``input_ids [1, T]``, ``cu_seq_lens_q`` int32 ``[N + 1]``; optional ``token_type_ids [1, T]``,
                ``max_length_q`` int and the model's further ``inputs`` ``[1, T, ...]``. Positions are counted here;
                ``position_ids [1, T]`` on the CPU are compared with them. ``logit_rows`` int64 ``[M]``: the tokens of
                the pack whose logits a token head computes, ``[M, C]``, in place of all of them: of a masked LM, whose
                logits are as wide as a vocabulary, few are wanted. Other keys, such as labels, are not looked at.
            tap: who listens, and to what.

        Raises:
            ValueError: a bad batch, a wanted layer the model does not have, wanted logits it does not have.
        """
        inputs = self._inputs(batch)
        if tap is not None:
            self.spec.check_wanted(tap.attention, tap.hidden, tap.logits, tap.output_layer)
        call = PackedCall(tap, inputs["cu_seq_lens_q"], inputs["max_length_q"])
        if tap is not None and tap.stop and call.remaining == 0:
            return PackedOutput()
        headless = tap is not None and tap.stop and not (tap.logits or tap.output_layer)
        with_head = self.spec.head is not None and not headless
        rows = batch.get("logit_rows") if self.spec.head == "token" else None
        caught = with_head and (self.spec.head == "sequence" or rows is not None)
        catch = _CatchOutput(self, call, rows) if caught else None
        try:
            with ExitStack() as stack:
                stack.enter_context(self._attention.on())
                stack.enter_context(call.running())
                stack.enter_context(self._listen(call))
                if catch is not None:
                    stack.enter_context(catch.installed())
                return self._run(inputs, call, with_head, catch)
        except Stop:
            return PackedOutput()

    def __call__(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        """The same as `run`."""
        return self.run(batch, tap)

    def _run(
        self, inputs: dict[str, Any], call: PackedCall, with_head: bool, catch: _CatchOutput | None
    ) -> PackedOutput:
        if not with_head:
            return PackedOutput(self.base(**inputs, return_dict=True)[0].squeeze(0))
        captured: list[Tensor] = []

        def capture(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if call.is_running:
                captured.append(output[0])

        hook = self.base.register_forward_hook(capture)
        try:
            output = self.model(**inputs, return_dict=True)
        finally:
            hook.remove()
        hidden: Tensor | None = captured[0]
        if catch is not None:
            hidden = catch.hidden if hidden is catch.rows else None
            logits = catch.check_logits(output.logits)
        else:
            logits = _token_logits(output)
        if call.tap is not None and call.tap.logits:
            call.offer("logits", 0, logits=logits)
        return PackedOutput(None if hidden is None else hidden.squeeze(0), logits)

    @contextmanager
    def _listen(self, call: PackedCall) -> Iterator[None]:
        """Hooks on the layers for the length of one call. Other threads' calls run into them and are not heard."""

        def before(index: int) -> Callable[..., None]:
            # Without keyword arguments where another thread removed the hook just now.
            def hook(
                _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
            ) -> None:
                if call.is_running:
                    call.enter_layer(index, args[0] if args else (kwargs or {})["hidden_states"])

            return hook

        def after(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
                if call.is_running:
                    call.leave_layer(index, output[0] if isinstance(output, tuple) else output)

            return hook

        def before_output(module: nn.Module, args: tuple[Any, ...]) -> None:
            if call.is_running:
                rows = args[0].flatten(0, -2)
                call.offer("output_layer", 0, hidden=rows, weight=module.weight, bias=module.bias)

        handles = []
        try:
            for index, layer in enumerate(self.layers):
                handles.append(layer.register_forward_pre_hook(before(index), with_kwargs=True))
                handles.append(layer.register_forward_hook(after(index)))
            if call.tap is not None and call.tap.output_layer:
                output_layer = find_output_layer(self.model)
                assert output_layer is not None  # `check_wanted` has seen it
                handles.append(output_layer.register_forward_pre_hook(before_output))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of one packed call, checked."""
        ids, cu_seqlens, max_seqlen = packed_tokens(batch, self.spec)
        lengths = cu_seqlens.diff().long()
        starts = cu_seqlens[:-1].long().repeat_interleave(lengths, output_size=ids.shape[1]).unsqueeze(0)
        positions = torch.arange(ids.shape[1], device=ids.device) - starts
        per_token: dict[str, Any] = {"input_ids": ids, "position_ids": batch.get("position_ids")}
        if self._takes_token_types:
            per_token["token_type_ids"] = batch.get("token_type_ids")
        per_token.update({name: batch.get(name) for name in self.inputs})
        per_token = {name: value for name, value in per_token.items() if value is not None}
        for name, value in per_token.items():
            if not isinstance(value, Tensor) or value.shape[:2] != ids.shape:
                shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name}: got {shown}, want one value per token, {tuple(ids.shape)} as input_ids"
                )
        _check_positions(per_token.get("position_ids"), positions)
        if "token_type_ids" in per_token:
            types = f"the token types of {self.spec.name}"
            check_ids("token_type_ids", per_token["token_type_ids"], self.spec.type_vocab_size, types)
        inputs: dict[str, Any] = {
            **per_token,
            "position_ids": self._numbered(ids, positions, starts),
            "cu_seq_lens_q": cu_seqlens,
            "cu_seq_lens_k": cu_seqlens,
            "max_length_q": max_seqlen,
            "max_length_k": max_seqlen,
        }
        # A configuration that asks for them would keep every layer's states alive.
        for flag in ("output_attentions", "output_hidden_states"):
            if getattr(self.base.config, flag, False):
                inputs[flag] = False
        return inputs

    def _numbered(self, ids: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        """Positions ``[1, T]`` from 0 as the model numbers them, for sequences that begin at ``starts [1, T]``.

        RoBERTa and its kin begin behind their padding index, and do not count a padding token, whatever it does there:
        inside a text it has the padding index as its position, and those after it move up.
        """
        offset = self.spec.position_offset
        if not offset:
            return positions
        padding = ids == offset - 1
        if ids.device.type == "cpu" and not padding.any():
            return positions + offset
        before = padding.cumsum(-1) - padding.long()
        return torch.where(padding, offset - 1, positions + offset - (before - before.gather(-1, starts)))


class _CatchOutput:
    """Gives a head the rows it is to read: a sequence-level head one row per sequence, as of a padded batch.

    Poolers and classifiers take ``hidden[:, 0]``. Behind the layer stack the pack ``[1, T, D]`` is replaced by
    the first tokens ``[N, 1, D]`` (or, for a head that averages, by the means), and the rest of the model,
    whatever it is, runs on that. A token head runs on the tokens ``wanted [M]`` in the same way.
    """

    def __init__(self, owner: PackedModel, call: PackedCall, wanted: Tensor | None) -> None:
        self.owner, self.call, self.cu_seqlens, self.wanted = owner, call, call.cu_seqlens, wanted
        self.hidden: Tensor | None = None
        self.rows: Tensor | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        base, stack = self.owner.base, self.owner.stack
        handles = [stack.register_forward_hook(self._hook)]
        # Where the encoder itself is the stack, its pooler runs before the stack's output is there (NomicBERT, GTE).
        pooler = getattr(base, "pooler", None) if stack is base else None
        if pooler is not None:
            handles.append(pooler.register_forward_pre_hook(self._before_pooler))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before_pooler(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.call.is_running:
            return args
        return (self._pool(args[0].squeeze(0)).unsqueeze(1), *args[1:])

    def _hook(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if not self.call.is_running:
            return output
        self.hidden = output[0]
        self.rows = self._pool(self.hidden.squeeze(0)).unsqueeze(1)
        if isinstance(output, tuple):
            return (self.rows, *output[1:])
        output.last_hidden_state = self.rows
        return output

    def _pool(self, hidden: Tensor) -> Tensor:
        """``[T, D]`` -> ``[N, D]``, or ``[M, D]`` of the wanted tokens."""
        if self.wanted is not None:
            return hidden.index_select(0, self.wanted)
        if getattr(self.owner.model.config, "classifier_pooling", "cls") == "mean":
            return pool_features(hidden, self.cu_seqlens, mode="mean").to(hidden.dtype)
        return hidden.index_select(0, self.cu_seqlens[:-1])

    def check_logits(self, logits: Tensor) -> Tensor:
        if self.wanted is not None:
            return logits.squeeze(1)  # [M, 1, C]
        wanted = (len(self.cu_seqlens) - 1, self.owner.spec.num_labels)
        if tuple(logits.shape) != wanted:
            raise ValueError(
                f"model: got logits {tuple(logits.shape)} from the head of {self.owner.spec.name} for a pack of "
                f"{wanted[0]} sequences, want {wanted}; it reads something other than the first token"
            )
        return logits


def _token_logits(output: Any) -> Tensor:
    """``[T, C]``; a span head's two, of being the first and the last token, side by side."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1).squeeze(0)
    return output.logits.squeeze(0)


def _check_positions(given: Tensor | None, counted: Tensor) -> None:
    if given is None or given.device.type != "cpu":  # elsewhere looking costs a host sync
        return
    if not torch.equal(given.long(), counted):
        raise ValueError("position_ids: got others than 0, 1, 2, ... in each sequence, want those, or none")
