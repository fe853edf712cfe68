"""Where a parameter stands in a model: before its layers, in one of them, or behind them. Found by structure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from ..models.hf.structure import layer_lists
from .smaller import layer_stack

__all__ = ["check_freeze", "frozen_by", "own_tensors", "part_of", "parts_of", "prefix_of", "relative_name"]


def own_tensors(model: PreTrainedModel) -> Iterator[str]:
    """Names of the floating-point tensors of a state dict, shared ones by their first name."""
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            yield name


def prefix_of(model: PreTrainedModel) -> str:
    """What the names of an encoder's tensors begin with in a model with a head; nothing in a bare one."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def relative_name(model: PreTrainedModel, name: str) -> str | None:
    """The name inside the encoder; None for a tensor of the head."""
    prefix = prefix_of(model)
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def part_of(model: PreTrainedModel, name: str) -> Literal["embeddings", "layers", "head"]:
    """Where a tensor stands: before the layers, in them (with a norm behind them), or behind them."""
    relative = relative_name(model, name)
    if relative is None:
        return "head"
    children: dict[str, Any] = dict(model.base_model.named_children())
    order = list(children)
    stack = layer_stack(model).removeprefix(prefix_of(model)).partition(".")[0]
    child = relative.partition(".")[0]
    if child not in children or child == stack:
        return "layers"
    if order.index(child) < order.index(stack):
        return "embeddings"
    return "head" if any(isinstance(part, nn.Linear) for part in children[child].modules()) else "layers"


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters by part, from what reads the tokens to what gives the logits; shared ones where they come first.

    Returns:
        ``"embeddings"``, ``"layer 0"``, ... (with the last one, norms behind the layers), ``"head"``. A network without
        a list of layers has ``"embeddings"`` and ``"rest"``.

    Raises:
        ValueError: it has no table of embeddings that transformers knows of.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"student: got {type(model).__name__}, want a transformers model: its parts are not known"
        )
    named = dict(model.named_parameters())
    depth = getattr(model.config, "num_hidden_layers", None)
    if not (isinstance(depth, int) and len(layer_lists(model)) == 1):
        table = {id(p) for p in model.get_input_embeddings().parameters()}
        return {
            "embeddings": [p for p in named.values() if id(p) in table],
            "rest": [p for p in named.values() if id(p) not in table],
        }
    stack = layer_stack(model)
    found: dict[str, list[nn.Parameter]] = {
        name: [] for name in ("embeddings", *(f"layer {i}" for i in range(depth)), "head")
    }
    for name, parameter in named.items():
        part: str = part_of(model, name)
        if part == "layers":
            inside = name.startswith(stack)
            part = f"layer {name.removeprefix(stack).partition('.')[0] if inside else depth - 1}"
        found[part].append(parameter)
    return found


def check_freeze(policy: str) -> None:
    """Raise ValueError unless ``policy`` is one that `frozen_by` knows."""
    if policy not in ("none", "embeddings", "all-but-head") and not re.fullmatch(r"first-[1-9]\d*", policy):
        raise ValueError(
            f"freeze: got {policy!r}, want 'none', 'embeddings', 'first-N' (the embeddings and N layers) or "
            "'all-but-head'"
        )


def frozen_by(model: nn.Module, policy: str) -> list[nn.Parameter]:
    """The parameters that a freezing policy keeps as they are.

    Args:
        model: a student.
        policy: ``"none"``; ``"embeddings"``; ``"first-3"``: the embeddings and the first three layers;
            ``"all-but-head"``: all in front of pooler and head.

    Raises:
        ValueError: an unknown policy, more layers than there are, or a network without layers or a head to tell apart.
    """
    check_freeze(policy)
    if policy == "none":
        return []
    parts = parts_of(model)
    if policy == "embeddings":
        return parts["embeddings"]
    if "head" not in parts:
        raise ValueError(
            f"freeze: got {policy!r} for {type(model).__name__}, want 'none' or 'embeddings': it has no layers"
        )
    if policy == "all-but-head":
        return [p for name, part in parts.items() if name != "head" for p in part]
    count = int(policy.partition("-")[2])
    if f"layer {count - 1}" not in parts:
        raise ValueError(
            f"freeze: got {policy!r}, want at most the {len(parts) - 2} layers of {type(model).__name__}"
        )
    return [p for name in ("embeddings", *(f"layer {i}" for i in range(count))) for p in parts[name]]
