"""What a transformers encoder is made of, found by reading it: layers, stack, positions, head. Nothing is changed.

No layer is named by model type: the layers are the list that is as long as the model is deep, and the tasks say what a
head reads.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from ... import tasks
from ..spec import EncoderSpec

__all__ = ["find_layers", "find_output_layer", "find_stack", "layer_lists", "spec_of"]

# Heads that no task has, by the end of their class's name, and what they read. Others (two outputs, several choices per
# row) are left out: the encoder below them runs.
_HEADS_WITHOUT_TASK = {"ForNextSentencePrediction": "sequence"}

# Configuration switches of models that mix neighbouring tokens outside of attention (MobileBERT's embeddings,
# ESM's rescaling by the share of masked tokens): in a pack they would mix neighbouring sequences.
MIXES_TOKENS = ("trigram_input", "token_dropout")

# Facts that every text encoder's configuration has. FNet has no heads, a model of text and images only parts.
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")

# How sequence heads make one row of a sequence's hidden states; "late" would average logits over the whole pack.
_POOLINGS = ("cls", "bos", "mean")


def spec_of(model: PreTrainedModel, head: str | None = None) -> EncoderSpec:
    """The facts of a transformers encoder, bare or with a head.

    Args:
        model: the model.
        head: ``"sequence"``, ``"token"`` or ``"span"``; by default known from the class name for transformers' own
            heads.

    Raises:
        TypeError: ``model`` is not a PreTrainedModel.
        ValueError: it cannot run packed, see `PackedModel`, or ``head`` is unknown.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model: got {type(model).__name__}, want a transformers PreTrainedModel or an Encoder"
        )
    if head not in (None, "sequence", "token", "span"):
        raise ValueError(f"head: got {head!r}, want 'sequence', 'token', 'span' or None")
    name, config, base = type(model).__name__, model.config, cast(PreTrainedModel, model.base_model)
    _check_packable(model)
    layers = find_layers(base)
    if head is None and base is not model:
        found = (kind for suffix, kind in _HEADS_WITHOUT_TASK.items() if name.endswith(suffix))
        head = tasks.head_of(name) or next(found, None)
    pooling = getattr(config, "classifier_pooling", "cls")
    if head == "sequence" and pooling not in _POOLINGS:
        raise ValueError(
            f"model: got {name}, which pools {pooling!r} (config.classifier_pooling), want one of {_POOLINGS}"
        )
    masked_lm = name.endswith("ForMaskedLM")
    num_labels = 0 if head is None else int((config.vocab_size if masked_lm else config.num_labels) or 0)
    positions = _embedding(base, "position_embeddings")
    offset = 0 if positions is None or positions.padding_idx is None else positions.padding_idx + 1
    types = _embedding(base, "token_type_embeddings")
    head_dims = _numbers(layers, ("attention_head_size", "head_dim"))
    widths = (getattr(config, key, None) for key in ("intermediate_size", "hidden_dim"))
    return EncoderSpec(
        name=name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_dim=head_dims[0] if head_dims else config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        num_labels=num_labels,
        head=head,
        problem_type=getattr(config, "problem_type", None),
        max_positions=None if positions is None else positions.num_embeddings - offset,
        position_offset=offset,
        # Layers count the tokens on either side, the token itself included.
        window=min(_numbers(layers, ("sliding_window",)), default=None),
        type_vocab_size=None if types is None else types.num_embeddings,
        intermediate_size=next((width for width in widths if isinstance(width, int)), None),
        labels=() if masked_lm else _labels(config, num_labels),
        output_layer=head == "token" and find_output_layer(model) is not None,
    )


def find_output_layer(model: PreTrainedModel) -> nn.Linear | None:
    """The linear map that makes a masked-LM head's logits of token rows; None where the head does not end in one."""
    if not type(model).__name__.endswith("ForMaskedLM"):
        return None
    layer = model.get_output_embeddings()
    return layer if isinstance(layer, nn.Linear) and layer.out_features == model.config.vocab_size else None


def find_layers(base: PreTrainedModel) -> list[nn.Module]:
    """The layers of an encoder: the first of `layer_lists`.

    Raises:
        ValueError: there is none.
    """
    found = layer_lists(base)
    if not found:
        raise ValueError(
            f"model: got {type(base).__name__}, which has no list of {base.config.num_hidden_layers} layers of their "
            "own (does it share weights between layers, as ALBERT does?), want one module per hidden layer"
        )
    return list(found[0][1])


def layer_lists(model: PreTrainedModel) -> list[tuple[str, nn.ModuleList]]:
    """(name, list) of the outermost module lists with one entry per hidden layer, each entry a module of its own."""
    depth = model.config.num_hidden_layers
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other, _ in found)
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == depth == len(set(module))
            and depth
            and not inside
        ):
            found.append((name, module))
    return found


def find_stack(base: PreTrainedModel, first_layer: nn.Module) -> nn.Module:
    """The part of the encoder whose output is the last layer's: a child of it, or the encoder itself."""
    for child in base.children():
        if not isinstance(child, nn.ModuleList) and any(module is first_layer for module in child.modules()):
            return child
    return base


def _check_packable(model: PreTrainedModel) -> None:
    name, config = type(model).__name__, model.config
    lacking = next((fact for fact in _NEEDED if not hasattr(config, fact)), None)
    if lacking is not None:
        raise ValueError(
            f"model: got {name}, which has no {lacking} in its configuration, want a text encoder with attention"
        )
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model: got {name}, which is a decoder, want an encoder")
    mixing = [switch for switch in MIXES_TOKENS if getattr(config, switch, False)]
    if mixing:
        raise ValueError(
            f"model: got {name}, which mixes tokens outside of attention (config.{mixing[0]}), want it off"
        )
    # transformers only warns when a model does not follow the interface; it would then mix sequences.
    base = cast(PreTrainedModel, model.base_model)
    if not (model._can_set_attn_implementation() and base._can_set_attn_implementation()):
        raise ValueError(
            f"model: got {name}, which does not use transformers' AttentionInterface, so its attention cannot run "
            "packed; want one that does (BERT, RoBERTa, DistilBERT, ELECTRA, ...)"
        )
    for part in base.modules():
        if getattr(part, "is_causal", False):
            raise ValueError(
                f"model: got {name}, which attends causally, want an encoder, which looks both ways"
            )
        if getattr(part, "sinks", None) is not None:
            raise ValueError(f"model: got {name}, which has attention sinks, want attention without them")


def _embedding(base: PreTrainedModel, suffix: str) -> nn.Embedding | None:
    tables = (m for name, m in base.named_modules() if name.endswith(suffix) and isinstance(m, nn.Embedding))
    return next(tables, None)


def _numbers(layers: list[nn.Module], names: tuple[str, ...]) -> list[int]:
    """The whole numbers that modules of the layers have under these names."""
    values = (getattr(part, name, None) for layer in layers for part in layer.modules() for name in names)
    return [value for value in values if isinstance(value, int)]


def _labels(config: Any, count: int) -> tuple[str, ...]:
    names = getattr(config, "id2label", None) or {}
    return tuple(names[i] for i in range(count)) if all(i in names for i in range(count)) else ()
