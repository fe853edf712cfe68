"""What the axes of a model's parameters run over: hidden states, heads, feed-forward columns, ...

Nothing is known by name. A size of the configuration is multiplied and the class built again without memory: the axes
that grow run over it. What only a run can tell (which maps give queries, which one reads the heads, what a head reads)
is read off a run of three tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.activations import LayerActivations, Tap
from ..models.hf.encoder import PackedModel
from ..models.loans import device_of, inference
from .smaller import SIZES

__all__ = ["Attention", "Axes", "axes_of", "split_name"]

# Space -> names that configurations have for its size.
_SPACES = {
    "hidden": SIZES["hidden_size"],
    "columns": SIZES["intermediate_size"],
    "heads": ("head_dim",),
    "embedding": ("embedding_size",),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings",),
    "types": ("type_vocab_size",),
    "labels": ("num_labels",),
}


@dataclass(frozen=True)
class Attention:
    """The maps of one layer's attention, by the name of their module.

    Attributes:
        inputs: what runs before attention and gives heads: queries, keys, values, or all of them in one.
        output: what reads the heads.
        query, key, value: the maps whose output is what attention gets; None where it is turned or scaled before, or
            comes out of one map.
    """

    inputs: tuple[str, ...]
    output: str
    query: str | None = None
    key: str | None = None
    value: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether queries, keys and values reach attention as three maps give them."""
        return None not in (self.query, self.key, self.value)


@dataclass(frozen=True)
class Axes:
    """What the axes of a model's parameters run over.

    Attributes:
        spaces: name of a parameter -> for each axis the space, or None where its size is the model's own:
            ``"hidden"``, ``"heads"`` (heads times their width), ``"columns"`` (of a feed-forward layer),
            ``"pooled"`` (what a head makes of hidden states), ``"embedding"``, ``"vocabulary"``, ``"positions"``,
            ``"types"``, ``"labels"``.
        blocks: (name, axis) -> how often the space stands there one after the other, where it is not once: queries,
            keys and values of one map, gate and value of one map.
        attention: of each layer.
        pooled_is_hidden: a map back to the vocabulary that is tied to the embeddings reads what the head makes.
    """

    spaces: Mapping[str, tuple[str | None, ...]]
    blocks: Mapping[tuple[str, int], int] = field(default_factory=dict)
    attention: tuple[Attention, ...] = ()
    pooled_is_hidden: bool = False


def axes_of(model: PreTrainedModel) -> Axes:
    """The axes of a transformers encoder's parameters. The model is run once; nothing about it changes.

    Raises:
        ValueError: the model cannot run packed, or its class cannot be built in other sizes.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    spaces: dict[str, list[str | None]] = {name: [None] * len(shape) for name, shape in shapes.items()}
    blocks: dict[tuple[str, int], int] = {}
    for space, names in _SPACES.items():
        for (name, axis), grown in _grown(model, shapes, names):
            spaces[name][axis] = space
            if grown > 1:
                blocks[name, axis] = grown
    if not any(
        {"embedding", "hidden"} <= set(axes) for axes in spaces.values()
    ):  # no map leads from one to the other
        spaces = {
            name: ["hidden" if axis == "embedding" else axis for axis in axes]
            for name, axes in spaces.items()
        }
    run = _Run(model)
    attention = tuple(run.attention(layer) for layer in range(len(run.packed.layers)))
    heads = run.packed.spec.num_heads * run.packed.spec.head_dim  # type: ignore[operator]
    for layer in attention:
        for name in layer.inputs:
            for kind in ("weight", "bias"):
                _relabel(spaces, blocks, f"{name}.{kind}", 0, "heads", shapes, heads)
        _relabel(spaces, blocks, f"{layer.output}.weight", 1, "heads", shapes, heads)
    pooled_is_hidden = run.label_head(spaces)
    return Axes({name: tuple(axes) for name, axes in spaces.items()}, blocks, attention, pooled_is_hidden)


def split_name(name: str) -> tuple[str, str]:
    """A parameter's module and its name there."""
    module, _, own = name.rpartition(".")
    return module, own


def _relabel(
    spaces: dict[str, list[str | None]],
    blocks: dict[tuple[str, int], int],
    name: str,
    axis: int,
    space: str,
    shapes: Mapping[str, torch.Size],
    size: int,
) -> None:
    if name in spaces:
        spaces[name][axis] = space
        blocks.pop((name, axis), None)
        if shapes[name][axis] > size:
            blocks[name, axis] = shapes[name][axis] // size


def _grown(
    model: PreTrainedModel, shapes: Mapping[str, torch.Size], names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, int], int]]:
    """(parameter, axis) and how many times a size stands there, for what grows with that size."""
    config = copy.deepcopy(model.config)
    key = next((name for name in names if isinstance(getattr(config, name, None), int)), None)
    if key is None or getattr(config, key) < 1:
        return
    size = getattr(config, key)
    # Some classes leave a map out where two sizes are equal, so the new one is equal to no other.
    others = {value for value in config.to_dict().values() if isinstance(value, int)}
    larger_size = next(factor * size for factor in (2, 4, 8, 16) if factor * size not in others)
    setattr(config, key, larger_size)
    try:
        with torch.device("meta"):
            build: Any = type(model)
            larger = build(config).state_dict()
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"teacher: got {type(model).__name__}, which cannot be built with {key}={larger_size} ({error}), want a "
            "class that can: where widths differ its axes are found that way"
        ) from error
    for name, shape in shapes.items():
        if name in larger and len(larger[name].shape) == len(shape):
            for axis, (before, after) in enumerate(zip(shape, larger[name].shape, strict=True)):
                if after > before:
                    yield (name, axis), (after - before) // (larger_size - size)


class _Run:
    """What happened when the model ran on a sequence of one token, whose mean it is, and one of two, with positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.packed = model, PackedModel(model)
        self.names = {module: name for name, module in model.named_modules()}
        # The modules with parameters of their own that ran, with what they read and gave, and the spots between them.
        self.events: list[tuple[Any, Tensor, Tensor]] = []
        self.found: dict[tuple[str, int], tuple[int, LayerActivations]] = {}
        device = device_of(model)
        cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32, device=device)
        ids = torch.arange(3, device=device)[None] + min(5, model.config.vocab_size - 3)
        spec = self.packed.spec
        layers = range(spec.num_layers)
        tap = Tap(self._keep, frozenset(layers), frozenset(range(spec.num_layers + 1)), spec.head is not None)
        with self._listening(), inference(model):
            self.packed.run({"input_ids": ids, "cu_seq_lens_q": cu_seqlens, "max_length_q": 2}, tap)

    def _keep(self, activations: LayerActivations) -> None:
        self.found[activations.spot] = (len(self.events), activations)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                self.events.append((module, args[0], output))

        leaves = [m for m in self.model.modules() if any(True for _ in m.parameters(recurse=False))]
        handles = [leaf.register_forward_hook(hook) for leaf in leaves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def attention(self, layer: int) -> Attention:
        start, _ = self.found["hidden", layer]
        middle, activations = self.found["attention", layer]
        end, _ = self.found["hidden", layer + 1]
        before = [event for event in self.events[start:middle] if isinstance(event[0], nn.Linear)]
        after = next((e[0] for e in self.events[middle:end] if isinstance(e[0], nn.Linear)), None)
        if after is None or not before:
            raise ValueError(
                f"teacher: got {type(self.model).__name__}, whose layer {layer} has no linear maps around attention, "
                "want them: where widths differ heads are found by them"
            )
        given = {"query": activations.q, "key": activations.k, "value": activations.v}
        found = {
            role: self.names[module]
            for module, _, output in before
            for role, tensor in given.items()
            if tensor is not None and output.numel() == tensor.numel()
            if torch.equal(output.reshape(tensor.shape), tensor)
        }
        return Attention(tuple(self.names[module] for module, _, _ in before), self.names[after], **found)

    def label_head(self, spaces: dict[str, list[str | None]]) -> bool:
        """Behind the layers what no longer is a hidden state is "pooled"; whether a tied map reads it."""
        end, last = self.found["hidden", self.packed.spec.num_layers]
        stream = [cast(Tensor, last.hidden)]
        table = cast(Any, self.model.get_input_embeddings()).weight
        tied = False
        for module, read, gave in self.events[end:]:
            on_stream = any(_rows_of(read, rows) for rows in stream)
            if not isinstance(module, nn.Linear):
                if on_stream:
                    stream.append(gave.reshape(-1, gave.shape[-1]))
                    continue
            elif not on_stream:
                tied = tied or module.weight is table
            for kind, _ in module.named_parameters(recurse=False):
                axes = spaces[f"{self.names[module]}.{kind}"]
                if module.weight is table:
                    continue  # its axes are the embeddings'
                writes = range(1) if on_stream else range(len(axes))
                for axis in writes:
                    axes[axis] = "pooled" if axes[axis] == "hidden" else axes[axis]
        return tied


def _rows_of(read: Tensor, rows: Tensor) -> bool:
    """Whether some of what was read is a row of a matrix: means of several rows are none."""
    read = read.reshape(-1, read.shape[-1])
    if read.shape[-1] != rows.shape[-1]:
        return False
    return bool((read[:, None] == rows[None]).all(-1).any())
