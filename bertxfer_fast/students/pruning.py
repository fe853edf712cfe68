"""A plain smaller model of some of a model's heads, feed-forward columns, layers and hidden dimensions.

What is left has the sizes of an ordinary configuration: all layers keep equally many heads and columns. Models whose
configuration does not say how wide a head is (BERT, RoBERTa, DistilBERT, ELECTRA, ModernBERT: it is the hidden width
over the heads) keep as many hidden dimensions as the heads that stay have.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.hf.structure import find_layers
from ..models.spec import EncoderSpec
from .axes import Axes, axes_of
from .smaller import _PER_LAYER, SIZES, layer_stack
from .widths import Widths

__all__ = ["Kept", "facts_and_layers", "heads_are_hidden", "prune"]


@dataclass(frozen=True)
class Kept:
    """What stays of a model, by ascending numbers from 0; None: all of it.

    Attributes:
        heads: of every layer of the model, equally many.
        columns: feed-forward columns of every layer, equally many.
        layers: layers.
        hidden: hidden dimensions.
        pooled: dimensions of what a pooler or a head's own map gives, as many as ``hidden``; None: the same numbers.
    """

    heads: Sequence[Sequence[int]] | None = None
    columns: Sequence[Sequence[int]] | None = None
    layers: Sequence[int] | None = None
    hidden: Sequence[int] | None = None
    pooled: Sequence[int] | None = None


def facts_and_layers(model: PreTrainedModel) -> tuple[EncoderSpec, list[nn.Module]]:
    """The facts of a transformers encoder, and its layers."""
    return EncoderSpec.of(model), find_layers(cast(PreTrainedModel, model.base_model))


def heads_are_hidden(model: PreTrainedModel) -> bool:
    """Whether a head's width is the hidden width over the heads, so that fewer heads need fewer hidden dimensions."""
    return not isinstance(getattr(model.config, "head_dim", None), int)


def prune(model: PreTrainedModel, kept: Kept, *, axes: Axes | None = None) -> PreTrainedModel:
    """A model of the same class that has only what is kept.

    It computes what the model computes when the rest gives nothing: heads and columns whose output is 0, layers that
    hand on what they read, hidden dimensions that are 0 and that norms do not count.

    Args:
        model: a transformers encoder, bare or with a head; left as it is.
        kept: what stays.
        axes: the model's, where they are known; else it is run once to find them.

    Returns:
        A plain model with the sizes in its configuration, in the model's dtype, mode and device, sharing no memory.

    Raises:
        ValueError: other numbers of heads or columns in different layers, numbers that are not there, hidden dimensions
            that the heads do not fill, or a model that cannot run packed.
    """
    facts = EncoderSpec.of(model)
    assert facts.num_heads is not None and facts.head_dim is not None
    depth, heads, width = facts.num_layers, facts.num_heads, facts.head_dim
    layers = _checked("layers", kept.layers, depth)
    config = copy.deepcopy(model.config)
    config.name_or_path = ""  # it is not the model of that path any more
    choice: dict[tuple[str, int | None], Tensor] = {}
    new_heads = _equally_many("heads", kept.heads, depth, heads)
    columns = next((key for key in SIZES["intermediate_size"] if hasattr(config, key)), None)
    if kept.columns is not None and columns is None:
        raise ValueError(
            f"columns: got some for {facts.name}, want none: its configuration has no such width"
        )
    if columns is not None:
        setattr(config, columns, _equally_many("columns", kept.columns, depth, getattr(config, columns)))
    hidden = _checked("hidden", kept.hidden, facts.hidden_size)
    pooled = hidden if kept.pooled is None else _checked("pooled", kept.pooled, facts.hidden_size)
    if len(pooled) != len(hidden):
        raise ValueError(f"pooled: got {len(pooled)} dimensions, want {len(hidden)} as hidden has")
    if heads_are_hidden(model) and len(hidden) != new_heads * width:
        raise ValueError(
            f"hidden: got {len(hidden)} dimensions and {new_heads} heads of {width}, want {new_heads * width}: the "
            f"configuration of {facts.name} makes a head as wide as the hidden states over the heads"
        )
    for layer in range(depth):
        if kept.heads is not None:
            chosen = torch.tensor(kept.heads[layer])[:, None] * width + torch.arange(width)
            choice["heads", layer] = chosen.flatten()
        if kept.columns is not None:
            choice["columns", layer] = torch.tensor(kept.columns[layer])
    choice["hidden", None], choice["pooled", None] = torch.tensor(hidden), torch.tensor(pooled)
    choice["embedding", None] = choice["hidden", None]
    axes = axes_of(model) if axes is None else axes
    if getattr(config, "embedding_size", None) == facts.hidden_size and not _has(axes, "embedding"):
        config.embedding_size = len(hidden)
    config.hidden_size, config.num_attention_heads = len(hidden), new_heads
    if isinstance(getattr(config, "num_key_value_heads", None), int):
        config.num_key_value_heads = new_heads
    config.num_hidden_layers = len(layers)
    for name in _PER_LAYER:
        entries = getattr(model.config, name, None)
        if isinstance(entries, list):
            setattr(config, name, [entries[layer] for layer in layers])
    build: Any = type(model)
    smaller = build(config).to(device=model.device, dtype=model.dtype).train(model.training)
    stack = layer_stack(model)
    cut = _Cut(model, axes, stack, (heads, new_heads), (width, width), "truncate")
    cut.choice = choice
    origins = {name: _in_layer(name, stack, layers) for name in smaller.state_dict()}
    dropped = tuple(f"{stack}{layer}." for layer in range(depth) if layer not in layers)
    lost = [name for name in model.state_dict().keys() - origins.values() if not name.startswith(dropped)]
    if lost:
        raise ValueError(
            f"kept: got layers {layers} and {len(hidden)} hidden dimensions, want layers of one make where they then "
            f"stand, and a width that needs the same maps: {min(lost)} would have no place"
        )
    with torch.no_grad():
        for name, target in smaller.state_dict().items():
            origin = origins[name]
            target.copy_(
                cut.fit(origin, target.shape) if target.is_floating_point() else model.state_dict()[origin]
            )
    return smaller


class _Cut(Widths):
    """Keeps what it is told to."""

    choice: dict[tuple[str, int | None], Tensor]

    def _kept_of(self, space: str, size: int, layer: int | None) -> Tensor:
        return self.choice[space, layer]


def _in_layer(name: str, stack: str, layers: Sequence[int]) -> str:
    """The name in the model of a tensor of the smaller one."""
    if not name.startswith(stack):
        return name
    index, _, rest = name.removeprefix(stack).partition(".")
    return f"{stack}{layers[int(index)]}.{rest}"


def _has(axes: Axes, space: str) -> bool:
    return any(space in spaces for spaces in axes.spaces.values())


def _checked(name: str, numbers: Sequence[int] | None, count: int) -> list[int]:
    if numbers is None:
        return list(range(count))
    numbers = [int(number) for number in numbers]
    if not numbers or numbers != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < count:
        raise ValueError(f"{name}: got {numbers[:8]}, want ascending numbers from 0 to {count - 1}")
    return numbers


def _equally_many(name: str, kept: Sequence[Sequence[int]] | None, depth: int, count: int) -> int:
    if kept is None:
        return count
    if len(kept) != depth:
        raise ValueError(f"{name}: got them for {len(kept)} layers, want all {depth}")
    sizes = {len(_checked(name, numbers, count)) for numbers in kept}
    if len(sizes) > 1:
        raise ValueError(f"{name}: got {sorted(sizes)} of them in different layers, want equally many")
    return sizes.pop()
