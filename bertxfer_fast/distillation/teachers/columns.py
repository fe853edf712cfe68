"""What of a teacher is kept, and how its numbers become bytes and numbers again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.activations import LayerActivations, Spot
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .wants import Want, numbers_of

__all__ = ["DTYPES", "Column", "decode", "encode"]

#: By name, the type in which numbers are kept. int8 has a float32 scale for every row.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class Column:
    """One thing that is kept of every row.

    Attributes:
        place: ``"logits"`` or ``"hidden"``.
        index: which one of that place, see `Spot`.
        pooling: how hidden states were pooled, a mode of `ops.pool_features`; None: every token's are kept.
        top_k: how many of a token's logits are kept, the largest; None: all.
        dtype: one of `DTYPES`.
        precision: the dtype in which the teacher gave the numbers, and in which they are handed out again.
        width: numbers in a row.
        per_token: whether there is a row a token, not one a sequence.
    """

    place: str
    index: int = 0
    pooling: str | None = None
    top_k: int | None = None
    dtype: str = "float32"
    precision: str = "float32"
    width: int = 0
    per_token: bool = False

    @property
    def name(self) -> str:
        """What the column is called: in file names, and where one is asked for."""
        parts = [self.place, *([str(self.index)] if self.place == "hidden" else [])]
        parts += [self.pooling] if self.pooling else []
        return ".".join([*parts, *([f"top{self.top_k}"] if self.top_k else [])])

    @property
    def spot(self) -> Spot:
        """Where in the teacher it is looked at."""
        return self.place, self.index  # type: ignore[return-value]

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a row of this column takes, without its key."""
        kept = self.top_k or self.width
        size = kept * DTYPES[self.dtype].itemsize + (4 if self.dtype == "int8" else 0)
        return size + (kept * _id_dtype(self.width).itemsize + 4 if self.top_k else 0)

    def of(self, activations: LayerActivations) -> Tensor:
        """The numbers of this column in what a teacher gave, ``[R, width]``."""
        return numbers_of(activations, self.pooling)

    def to_json(self) -> str:
        """For a shard's header; `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Column:
        """What `to_json` wrote."""
        return Column(**json.loads(text))

    @staticmethod
    def for_want(want: Want, spec: EncoderSpec, *, dtype: str, top_k: int | None) -> Column:
        """The column that keeps what somebody looks at in a teacher.

        Raises:
            ValueError: an unknown dtype, a ``top_k`` that does not fit, or a place that cannot be kept.
        """
        check_choice("dtype", dtype, tuple(DTYPES))
        (place, index), pooling = want
        if place not in ("logits", "hidden"):
            raise ValueError(f"store: got {place} {index} to keep, want logits or hidden states")
        if place == "hidden":
            per_token, width, top_k = pooling is None, spec.hidden_size, None
        else:
            pooling, per_token, width = None, spec.head in ("token", "span"), spec.num_labels
            top_k = top_k if spec.head == "token" else None
        if top_k is not None and not 1 <= top_k < width:
            raise ValueError(f"top_k: got {top_k}, want 1 to {width - 1}, fewer than the logits of a token")
        return Column(place, index, pooling, top_k, dtype, width=width, per_token=per_token)


def encode(column: Column, values: Tensor) -> dict[str, Tensor]:
    """What is kept of ``values [R, width]``: tensors with R rows each, on the CPU.

    Of the largest ``top_k`` logits their ids are kept, and one number for all others: the logit that gives each of them
    an equal share of the probability that they have together. So the largest keep their probabilities exactly, and a
    row still sums to 1.

    Raises:
        ValueError: numbers that are not finite, or too large for float16.
    """
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"teacher: got {column.name} that are not finite, want finite numbers to keep")
    kept = values.detach().float().cpu()
    parts: dict[str, Tensor] = {}
    if column.top_k is not None:
        kept, ids, parts["rest"] = _largest(kept, column.top_k)
        parts["ids"] = ids.to(_id_dtype(column.width))
    if column.dtype == "int8":
        scale = kept.abs().amax(1) / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        parts["scale"] = scale
        kept = (kept / scale[:, None]).round().clamp(-127, 127)
    elif column.dtype == "float16" and bool((kept.abs() > torch.finfo(torch.float16).max).any()):
        raise ValueError(
            f"dtype: got float16 for {column.name} up to {kept.abs().max():.3g}, want float32 or int8: it is too large"
        )
    return {"values": kept.to(DTYPES[column.dtype]).contiguous(), **parts}


def decode(column: Column, parts: dict[str, Tensor]) -> Tensor:
    """The numbers that `encode` kept, ``[R, width]`` in the column's precision, where ``parts`` are."""
    values = parts["values"].float()
    if "scale" in parts:
        values = values * parts["scale"][:, None]
    if column.top_k is not None:
        whole = parts["rest"][:, None].expand(-1, column.width).clone()
        values = whole.scatter_(1, parts["ids"].long(), values)
    return values.to(getattr(torch, column.precision))


def part_names(column: Column) -> list[str]:
    """The names of what `encode` returns."""
    return [
        "values",
        *(["rest", "ids"] if column.top_k else []),
        *(["scale"] if column.dtype == "int8" else []),
    ]


def _largest(values: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest ``[R, K]``, their ids, and the logit of every other one, ``[R]``."""
    kept, ids = values.topk(top_k, dim=1)
    others = values.scatter(1, ids, -torch.inf).logsumexp(1)
    rest: Any = others - torch.tensor(float(values.shape[1] - top_k)).log()
    # A row whose other logits have all underflowed still gets a finite one.
    return kept, ids, rest.clamp(min=torch.finfo(torch.float32).min)


def _id_dtype(width: int) -> torch.dtype:
    return torch.int16 if width <= torch.iinfo(torch.int16).max + 1 else torch.int32
