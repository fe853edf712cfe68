"""Runs a transformers encoder on packed tokens and lets a listener see each layer's tensors as they appear.

Queries, keys and values come from the attention function that `attention` registers, hidden states from hooks that
live only as long as the call. No layer is named by model type: the layers are the list that is as long as the
model is deep, and one small table says which heads read the first token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...ops import pool_features
from ..activations import LayerActivations, ModelFacts, PackedOutput, Tap
from .attention import ATTENTION, PackedCall, Stop, register_attention

# The records are here too: whoever runs a model needs them.
__all__ = ["LayerActivations", "ModelFacts", "PackedModel", "PackedOutput", "Tap"]

# What a head reads, by the end of its class name. "sequence": one row per sequence; "token": every token.
# Heads that are not here (two outputs, several choices per row) are left out: the encoder below them runs.
HEADS: dict[str, Literal["sequence", "token"]] = {
    "ForSequenceClassification": "sequence",
    "ForNextSentencePrediction": "sequence",
    "ForTokenClassification": "token",
    "ForMaskedLM": "token",
}

# Configuration switches of models that mix neighbouring tokens outside of attention (MobileBERT's embeddings,
# ESM's rescaling by the share of masked tokens): in a pack they would mix neighbouring sequences.
MIXES_TOKENS = ("trigram_input", "token_dropout")


class PackedModel:
    """A transformers encoder, bare or with a head, prepared to run on packed batches.

    Not an ``nn.Module``: it holds the model, sets its attention to "bertxfer" and knows where its layers are.
    The model itself is otherwise unchanged: it still takes padded batches, and ``save_pretrained`` writes
    nothing of the preparation.

    Args:
        model: a ``PreTrainedModel`` whose attention goes through transformers' ``AttentionInterface``.
        head: ``"sequence"`` (the head reads one row per sequence) or ``"token"``; by default known from the
            class name for transformers' own heads, None (no logits) for others.

    Attributes:
        model, base: the model, and the encoder inside it (the same object for a bare model).
        facts: `ModelFacts`.

    Raises:
        TypeError: ``model`` is not a PreTrainedModel.
        ValueError: the model does not use the attention interface, shares one set of weights between its
            layers (ALBERT), mixes tokens outside of attention (MobileBERT), is a decoder, or ``head`` is unknown.
    """

    def __init__(self, model: PreTrainedModel, *, head: str | None = None) -> None:
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"model: wants a transformers PreTrainedModel, got {type(model).__name__}")
        if head not in (None, "sequence", "token"):
            raise ValueError(f"head: wants 'sequence', 'token' or None, got {head!r}")
        name = type(model).__name__
        if getattr(model.config, "is_decoder", False) or getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(f"model: {name} is a decoder; wants an encoder")
        mixing = [switch for switch in MIXES_TOKENS if getattr(model.config, switch, False)]
        if mixing:
            raise ValueError(
                f"model: {name} mixes tokens outside of attention (config.{mixing[0]}), wants it off"
            )
        self.model = model
        self.base = cast(PreTrainedModel, model.base_model)
        self.layers = _find_layers(self.base)
        self._stack = _find_stack(self.base, self.layers[0])
        self._position_offset, max_positions = _positions(self.base)
        self._takes_token_types = "token_type_ids" in inspect.signature(self.base.forward).parameters
        if head is None and self.base is not model:
            head = next((kind for suffix, kind in HEADS.items() if name.endswith(suffix)), None)
        self.facts = _facts(model, self.layers[0], head, max_positions)
        self._prepare()

    def _prepare(self) -> None:
        register_attention()
        if self.model.config._attn_implementation != ATTENTION:
            self.model.set_attn_implementation(ATTENTION)
        # transformers only warns when a model does not follow the interface; it would then mix sequences.
        if self.base.config._attn_implementation != ATTENTION:
            raise ValueError(
                f"model: {type(self.model).__name__} does not use transformers' AttentionInterface, so its "
                "attention cannot run packed; wants one that does (BERT, RoBERTa, DistilBERT, ELECTRA, ...)"
            )

    def __call__(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        """Run the model on a packed batch.

        Args:
            batch: ``input_ids [1, T]``, ``cu_seq_lens_q`` int32 ``[N + 1]``; optional ``position_ids [1, T]``
                (from 0 in each sequence), ``token_type_ids [1, T]``, ``max_length_q`` int. Other keys, such as
                labels, are not looked at.
            tap: who listens, and to what.

        Raises:
            ValueError: a bad batch, a wanted layer the model does not have, wanted logits it does not have.
        """
        inputs = self._inputs(batch)
        if tap is not None:
            self.check_wanted(tap.attention, tap.hidden, tap.logits)
        if self.base.config._attn_implementation != ATTENTION:  # someone set it back
            self._prepare()
        call = PackedCall(tap, inputs["cu_seq_lens_q"], inputs["max_length_q"])
        if tap is not None and tap.stop and call.remaining == 0:
            return PackedOutput()
        with_head = self.facts.head is not None and not (tap is not None and tap.stop and not tap.logits)
        catch = _CatchOutput(self, call.cu_seqlens) if with_head and self.facts.head == "sequence" else None
        try:
            with ExitStack() as stack:
                stack.enter_context(call.running())
                stack.enter_context(self._listen(call))
                if catch is not None:
                    stack.enter_context(catch.installed())
                return self._run(inputs, call, with_head, catch)
        except Stop:
            return PackedOutput()

    def _run(
        self, inputs: dict[str, Any], call: PackedCall, with_head: bool, catch: _CatchOutput | None
    ) -> PackedOutput:
        if not with_head:
            return PackedOutput(self.base(**inputs, return_dict=True)[0].squeeze(0))
        captured: list[Tensor] = []
        hook = self.base.register_forward_hook(lambda _m, _a, out: captured.append(out[0]))
        try:
            output = self.model(**inputs, return_dict=True)
        finally:
            hook.remove()
        hidden: Tensor | None = captured[0]
        if catch is not None:
            hidden = catch.hidden if hidden is catch.rows else None
            logits = catch.check_logits(output.logits)
        else:
            logits = output.logits.squeeze(0)
        if call.tap is not None and call.tap.logits:
            call.offer("logits", 0, logits=logits)
        return PackedOutput(None if hidden is None else hidden.squeeze(0), logits)

    @contextmanager
    def _listen(self, call: PackedCall) -> Iterator[None]:
        """Hooks on the layers for the length of one call: the model is left as it was found."""

        def before(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                call.enter_layer(index, args[0] if args else kwargs["hidden_states"])

            return hook

        def after(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
                call.leave_layer(index, output[0] if isinstance(output, tuple) else output)

            return hook

        handles = []
        try:
            for index, layer in enumerate(self.layers):
                handles.append(layer.register_forward_pre_hook(before(index), with_kwargs=True))
                handles.append(layer.register_forward_hook(after(index)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of one packed call, checked."""
        for name in ("input_ids", "cu_seq_lens_q"):
            if not isinstance(batch.get(name), Tensor):
                raise ValueError(f"batch: wants a tensor {name!r}, got {sorted(batch)}")
        ids, cu_seqlens = batch["input_ids"], batch["cu_seq_lens_q"]
        if ids.ndim != 2 or ids.shape[0] != 1:
            raise ValueError(f"input_ids: wants packed tokens [1, T], got {tuple(ids.shape)}")
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or len(cu_seqlens) < 2:
            raise ValueError(
                f"cu_seq_lens_q: wants int32 [N + 1] with N >= 1, got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
            )
        if cu_seqlens.device.type == "cpu":  # elsewhere looking costs a host sync
            _check_lengths(cu_seqlens, ids.shape[1])
        max_seqlen = batch.get("max_length_q")
        max_seqlen = int(cu_seqlens.diff().max() if max_seqlen is None else max_seqlen)
        limit = self.facts.max_positions
        if limit is not None and max_seqlen > limit:
            raise ValueError(
                f"max_length_q: {self.facts.name} has {limit} positions, got {max_seqlen} tokens"
            )
        positions = batch.get("position_ids")
        if positions is None:
            starts = (
                cu_seqlens[:-1].long().repeat_interleave(cu_seqlens.diff().long(), output_size=ids.shape[1])
            )
            positions = (torch.arange(ids.shape[1], device=ids.device) - starts).unsqueeze(0)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": positions + self._position_offset if self._position_offset else positions,
            "cu_seq_lens_q": cu_seqlens,
            "cu_seq_lens_k": cu_seqlens,
            "max_length_q": max_seqlen,
            "max_length_k": max_seqlen,
        }
        if self._takes_token_types and batch.get("token_type_ids") is not None:
            inputs["token_type_ids"] = batch["token_type_ids"]
        for name in ("position_ids", "token_type_ids"):
            if name in inputs and inputs[name].shape != ids.shape:
                raise ValueError(
                    f"{name}: wants the shape of input_ids {tuple(ids.shape)}, got {tuple(inputs[name].shape)}"
                )
        # A configuration that asks for them would keep every layer's states alive.
        for flag in ("output_attentions", "output_hidden_states"):
            if getattr(self.base.config, flag, False):
                inputs[flag] = False
        return inputs

    def check_wanted(self, attention: Set[int], hidden: Set[int], logits: bool) -> None:
        """Raise ValueError for a layer this model does not have, or for logits where it has no known head."""
        count = self.facts.num_layers
        for kind, wanted, top in (("attention", attention, count - 1), ("hidden", hidden, count)):
            bad = sorted(i for i in wanted if not 0 <= i <= top)
            if bad:
                raise ValueError(f"{kind}: {self.facts.name} has indices 0..{top}, got {bad}")
        if logits and self.facts.head is None:
            raise ValueError(
                f"logits: {self.facts.name} has no head this package knows; "
                "wants one of " + ", ".join(HEADS) + ", or PackedModel(model, head='sequence' | 'token')"
            )


class _CatchOutput:
    """Gives a sequence-level head what it would read of a padded batch: one row per sequence.

    Poolers and classifiers take ``hidden[:, 0]``. Behind the layer stack the pack ``[1, T, D]`` is replaced by
    the first tokens ``[N, 1, D]`` (or, for a head that averages, by the means), and the rest of the model,
    whatever it is, runs on that.
    """

    def __init__(self, owner: PackedModel, cu_seqlens: Tensor) -> None:
        self.owner, self.cu_seqlens = owner, cu_seqlens
        self.hidden: Tensor | None = None
        self.rows: Tensor | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        handle = self.owner._stack.register_forward_hook(self._hook)
        try:
            yield
        finally:
            handle.remove()

    def _hook(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        self.hidden = output[0]
        self.rows = self._pool(self.hidden.squeeze(0)).unsqueeze(1)
        if isinstance(output, tuple):
            return (self.rows, *output[1:])
        output.last_hidden_state = self.rows
        return output

    def _pool(self, hidden: Tensor) -> Tensor:
        """``[T, D]`` -> ``[N, D]``."""
        if getattr(self.owner.model.config, "classifier_pooling", "cls") == "mean":
            return pool_features(hidden, self.cu_seqlens, mode="mean").to(hidden.dtype)
        return hidden.index_select(0, self.cu_seqlens[:-1])

    def check_logits(self, logits: Tensor) -> Tensor:
        wanted = (len(self.cu_seqlens) - 1, self.owner.facts.num_labels)
        if tuple(logits.shape) != wanted:
            raise ValueError(
                f"model: the head of {self.owner.facts.name} gave logits {tuple(logits.shape)} for a pack of "
                f"{wanted[0]} sequences, wants {wanted}; it reads something other than the first token"
            )
        return logits


def _check_lengths(cu_seqlens: Tensor, tokens: int) -> None:
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or (cu_seqlens.diff() <= 0).any():
        raise ValueError(
            f"cu_seq_lens_q: wants to rise from 0 to T = {tokens} (no sequence is empty), got {cu_seqlens.tolist()}"
        )


def _find_layers(base: PreTrainedModel) -> list[nn.Module]:
    """The outermost module list with one entry per hidden layer."""
    count = base.config.num_hidden_layers
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and len(set(module)) == count > 0:
            return list(module)
    raise ValueError(
        f"model: {type(base).__name__} has no list of {count} layers of their own (does it share weights between "
        "layers, as ALBERT does?); wants one module per hidden layer"
    )


def _find_stack(base: PreTrainedModel, first_layer: nn.Module) -> nn.Module:
    """The part of the encoder whose output is the last layer's: a child of it, or the encoder itself."""
    for child in base.children():
        if not isinstance(child, nn.ModuleList) and any(module is first_layer for module in child.modules()):
            return child
    return base


def _positions(base: PreTrainedModel) -> tuple[int, int | None]:
    """Where positions start (RoBERTa's after the padding index) and how many there are (None: no table)."""
    for name, module in base.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return offset, module.num_embeddings - offset
    return 0, None


def _facts(
    model: PreTrainedModel, layer: nn.Module, head: str | None, max_positions: int | None
) -> ModelFacts:
    config = model.config
    heads = config.num_attention_heads
    of_module = (
        getattr(module, name, None)
        for module in layer.modules()
        for name in ("attention_head_size", "head_dim")
    )
    head_dim = next((size for size in of_module if isinstance(size, int)), config.hidden_size // heads)
    labels = config.vocab_size if type(model).__name__.endswith("ForMaskedLM") else config.num_labels
    return ModelFacts(
        name=type(model).__name__,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        num_labels=0 if head is None else int(labels or 0),
        head=head,
        problem_type=getattr(config, "problem_type", None),
        max_positions=max_positions,
    )
