"""A teacher's parameters in a student's widths, by a stated rule: truncated, or projected on a shared basis.

**truncate** keeps the first of everything: hidden dimensions, heads and dimensions inside a head, feed-forward columns.

**svd** chooses. The hidden space is projected on one orthonormal basis ``P [teacher, student]`` on both sides of every
matrix: what reads hidden states becomes ``W P``, what writes them ``P^T W``, tables ``E P``. Its first direction is
that of equal entries, which is mapped to the student's, so LayerNorm's subtraction of the mean commutes with ``P``; the
others are the principal directions of the teacher's hidden states of all layers. A norm divides by the root mean
square over fewer entries, so its weight g becomes ``sqrt(teacher / student) * (P * P)^T g``: exact for equal entries of
g, the best diagonal otherwise. Heads, feed-forward columns and the dimensions of a pooler are whole things: those of
the largest product of norms are kept. Narrower heads keep the largest singular values of their query-key and
value-output products.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.loans import device_of
from ..models.spec import EncoderSpec, padded_alike
from ..models.stream import TeacherStream
from .axes import Attention, Axes, split_name

__all__ = ["WidthRule", "Widths", "shared_basis"]

WidthRule = Literal["error", "truncate", "svd"]
_SHARED = ("hidden", "pooled", "embedding")  # one choice for all layers
_ROWS = ("vocabulary", "positions", "types")
_STATES, _LENGTH = 2048, 32


class Widths:
    """Turns a teacher's parameters into those of a narrower student.

    Args:
        teacher: the model; it is run once on its own vocabulary for ``"svd"``.
        axes: its axes.
        stack: name, with a dot, of its list of layers.
        heads: attention heads of teacher and student.
        head_dims: their widths.
        rule: ``"truncate"`` or ``"svd"``.

    Raises:
        ValueError: heads that are turned by position (rotary) where the student's are narrower.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        axes: Axes,
        stack: str,
        heads: tuple[int, int],
        head_dims: tuple[int, int],
        rule: Literal["truncate", "svd"],
    ) -> None:
        self.teacher, self.axes, self.stack, self.rule = teacher, axes, stack, rule
        self.heads, self.head_dims = heads, head_dims
        for what, (theirs, ours) in (("num_attention_heads", heads), ("head_dim", head_dims)):
            if ours > theirs:
                raise ValueError(f"student: got {what}={ours}, want at most the teacher's {theirs}")
        if head_dims[0] != head_dims[1] and not all(layer.is_plain for layer in axes.attention):
            raise ValueError(
                f"student: got heads of {head_dims[1]} dimensions, want the teacher's {head_dims[0]}: "
                f"{type(teacher).__name__} turns or scales queries and keys by dimension, so no part of a head is one"
            )
        self._weights = teacher.state_dict()
        self._bases: dict[tuple[str, int], Tensor] = {}
        self._kept: dict[tuple[str, str, int], Tensor] = {}
        self._factors: dict[int, dict[str, Tensor]] = {}

    def fit(self, name: str, shape: torch.Size) -> Tensor:
        """The teacher's parameter ``name`` in a student's shape; rows of a table may be fewer than ``shape`` has.

        Raises:
            ValueError: an axis for which there is no rule, or a student that is wider than the teacher.
        """
        layer = self._layer_of(name)
        if self.rule == "svd" and layer is not None and self.head_dims[0] != self.head_dims[1]:
            factors = self._narrow_heads(layer, name, shape)
            if name in factors:
                return factors[name]
        value = self._source(name)
        for axis, (space, size) in enumerate(zip(self._spaces(name), shape, strict=True)):
            value = self._along(name, value, axis, space, size, layer)
        return value

    def _source(self, name: str) -> Tensor:
        return self._weights[name].detach().double()

    def _spaces(self, name: str) -> tuple[str | None, ...]:
        same = {"pooled": "hidden"} if self.axes.pooled_is_hidden else {}
        return tuple(same.get(str(space), space) for space in self.axes.spaces[name])

    def _layer_of(self, name: str) -> int | None:
        return int(name.removeprefix(self.stack).partition(".")[0]) if name.startswith(self.stack) else None

    def _along(
        self, name: str, value: Tensor, axis: int, space: str | None, size: int, layer: int | None
    ) -> Tensor:
        """``value`` with ``size`` entries along an axis."""
        have = value.shape[axis]
        if space in _ROWS:
            if space == "vocabulary" and size != have and not padded_alike(size, have):
                raise ValueError(
                    f"student: got vocab_size {size} and {have} of the teacher, want the teacher's vocabulary, or one "
                    "that differs by padding alone; embeddings=False, and head=False with a masked-LM head, leave out "
                    "what is of single tokens"
                )
            return value.narrow(axis, 0, min(size, have))
        if have == size and not (space == "heads" and self.heads[0] != self.heads[1]):
            return value
        if space is None or space == "labels" or size > have:
            raise ValueError(
                f"student: got {size} along axis {axis} of {name}, want {'at most ' if space else ''}the teacher's "
                f"{have}" + ("" if space != "labels" else ", or head=False")
            )
        if self.rule == "svd" and space in ("hidden", "embedding"):
            basis = self._basis(space, size)
            if value.ndim == 1 and split_name(name)[1] == "weight":  # a norm's
                return math.sqrt(have / size) * (basis.square().T @ value)
            return (value.movedim(axis, -1) @ basis).movedim(-1, axis)
        blocks = self.axes.blocks.get((name, axis), 1)
        kept = self._kept_of(space, size // blocks, None if space in _SHARED else layer)
        starts = torch.arange(blocks)[:, None] * (have // blocks)
        return value.index_select(axis, (starts + kept).flatten().to(value.device))

    def _basis(self, space: str, size: int) -> Tensor:
        if (space, size) not in self._bases:
            moment = (
                _moment_of_states(self.teacher) if space == "hidden" else _moment_of_embeddings(self.teacher)
            )
            self._bases[space, size] = shared_basis(moment, size)
        return self._bases[space, size]

    def _kept_of(self, space: str, size: int, layer: int | None) -> Tensor:
        """Which entries of a space are kept, in ascending order."""
        key = space, str(layer), size
        if key not in self._kept:
            if space == "heads":
                wide, narrow = self.head_dims
                heads = self._largest("heads", self.heads[1], layer)
                self._kept[key] = (heads[:, None] * wide + torch.arange(narrow)).flatten()
            else:
                self._kept[key] = self._largest(space, size, layer)
        return self._kept[key]

    def _largest(self, space: str, count: int, layer: int | None) -> Tensor:
        if self.rule == "truncate":
            return torch.arange(count)
        return self._norms(space, layer).topk(count).indices.sort().values.cpu()

    def _norms(self, space: str, layer: int | None) -> Tensor:
        """For each head, column or pooled dimension the product of the norms of all matrices that have it."""
        product = None
        for name, spaces in self.axes.spaces.items():
            if self._layer_of(name) != layer or len(spaces) != 2 or space not in spaces:
                continue
            axis = spaces.index(space)
            rows = self._source(name).movedim(axis, 0)
            rows = rows.reshape(self.axes.blocks.get((name, axis), 1), -1, rows.shape[1])
            if space == "heads":
                rows = rows.reshape(rows.shape[0], self.heads[0], -1)
            # Equal to the product over blocks: each is a matrix of its own.
            norms = rows.square().sum(-1).sqrt().prod(0)
            product = norms if product is None else product * norms
        assert product is not None
        return product

    def _narrow_heads(self, layer: int, name: str, shape: torch.Size) -> dict[str, Tensor]:
        """The attention of a layer with narrower heads: by name, in the student's hidden width."""
        if layer not in self._factors:
            maps: Attention = self.axes.attention[layer]
            spaces = self._spaces(name)
            hidden = [size for space, size in zip(spaces, shape, strict=True) if space == "hidden"]
            if "heads" not in spaces or not hidden:
                return {}
            self._factors[layer] = self._factored(maps, hidden[0], layer)
        return self._factors[layer]

    def _factored(self, maps: Attention, hidden: int, layer: int) -> dict[str, Tensor]:
        heads = self._largest("heads", self.heads[1], layer)
        wide, narrow = self.head_dims

        def reading(module: str | None) -> Tensor:
            """A map and its bias, ``[heads, head_dim, hidden + 1]``."""
            own = f"{module}.weight"
            weight = self._along(own, self._source(own), 1, "hidden", hidden, layer)
            has_bias = f"{module}.bias" in self._weights
            bias = self._source(f"{module}.bias") if has_bias else weight.new_zeros(len(weight))
            return torch.cat([weight, bias[:, None]], 1).reshape(self.heads[0], wide, -1)[heads]

        name = f"{maps.output}.weight"
        output = self._along(name, self._source(name), 0, "hidden", hidden, layer)
        output = output.reshape(hidden, self.heads[0], wide).permute(1, 2, 0)[heads]
        # The student divides scores by the root of its own head_dim.
        query, key = _low_rank(reading(maps.query), reading(maps.key), narrow)
        scale = (narrow / wide) ** 0.25
        value, output = _low_rank(reading(maps.value), output, narrow)
        found = {name: output.permute(2, 0, 1).reshape(hidden, -1)}
        for module, factor in ((maps.query, query * scale), (maps.key, key * scale), (maps.value, value)):
            rows = factor.reshape(-1, hidden + 1)
            found[f"{module}.weight"], found[f"{module}.bias"] = rows[:, :-1], rows[:, -1]
        return found


def shared_basis(moment: Tensor, size: int) -> Tensor:
    """An orthonormal basis ``[D, size]`` that keeps the direction of equal entries and then the largest moments.

    Args:
        moment: ``[D, D]``, second moments of hidden states.
        size: at least 2 and at most D.

    Raises:
        ValueError: another size.
    """
    have = moment.shape[0]
    if not 2 <= size <= have:
        raise ValueError(f"size: got {size}, want 2 to {have}")
    equal = moment.new_full((have, 1), have**-0.5)
    centred = moment - equal @ (equal.T @ moment)
    centred = centred - (centred @ equal) @ equal.T
    directions = torch.linalg.eigh((centred + centred.T) / 2).eigenvectors.flip(1)[:, : size - 1]
    directions = directions - equal @ (equal.T @ directions)
    directions = torch.linalg.qr(directions).Q
    # Without this the sign of a direction is the solver's.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return (
        equal @ moment.new_full((1, size), size**-0.5)
        + directions * largest.sign() @ _sums_of_zero(moment, size).T
    )


def _sums_of_zero(like: Tensor, size: int) -> Tensor:
    """An orthonormal basis ``[size, size - 1]`` of the vectors whose entries add up to 0: Helmert's."""
    rows = torch.arange(1, size, dtype=like.dtype, device=like.device)
    basis = torch.triu(like.new_ones(size, size - 1))
    basis[torch.arange(1, size), torch.arange(size - 1)] = -rows
    return basis / (rows * (rows + 1)).sqrt()


def _low_rank(first: Tensor, second: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two stacks ``[heads, rank, ...]`` whose product over the rank is the nearest to that of wider stacks."""
    outer, inner = torch.linalg.qr(first.mT)
    outer2, inner2 = torch.linalg.qr(second.mT)
    left, values, right = torch.linalg.svd(inner @ inner2.mT)
    root = values[:, None, :rank].sqrt()
    return (outer @ left[..., :rank] * root).mT, (outer2 @ right.mT[..., :rank] * root).mT


def _moment_of_embeddings(teacher: PreTrainedModel) -> Tensor:
    embeddings: Any = teacher.get_input_embeddings()
    table = embeddings.weight.detach().double()
    return table.T @ table


def _moment_of_states(teacher: PreTrainedModel) -> Tensor:
    """Second moments of the hidden states of all layers, each counting the same, on tokens of all the vocabulary."""
    spec = EncoderSpec.of(teacher)
    assert spec.vocab_size is not None
    device = device_of(teacher)
    length = min(_LENGTH, spec.max_positions or _LENGTH, spec.window or _LENGTH)
    ids = torch.linspace(0, spec.vocab_size - 1, _STATES, device=device).long()
    # Neighbours in the vocabulary are often alike, so they are put into different sequences.
    count = _STATES // length
    ids = ids[: count * length].reshape(length, count).T.reshape(1, -1)
    batch = {
        "input_ids": ids,
        "cu_seq_lens_q": torch.arange(0, count * length + 1, length, dtype=torch.int32, device=device),
        "max_length_q": length,
    }
    moments: list[Tensor] = []

    def add(activations: object) -> None:
        hidden = activations.hidden.double()  # type: ignore[attr-defined]
        moment = hidden.T @ hidden
        moments.append(moment / moment.trace())

    TeacherStream(teacher, hidden=range(spec.num_layers + 1)).stream(batch, add)
    return torch.stack(moments).sum(0)
