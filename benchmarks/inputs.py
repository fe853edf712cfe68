"""Tensors and batches that the benchmarks share. Seeded by the fixture `fresh`: every run sees the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from . import device
from .harness import full_or_quick

DTYPES = [torch.float32, torch.bfloat16]


def _dtypes(chosen: list[torch.dtype]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dtype", chosen, ids=[str(x).removeprefix("torch.") for x in chosen])


both_dtypes = _dtypes(DTYPES)
#: Both, too; on a GPU bfloat16 alone, in which models are trained there.
main_dtypes = _dtypes(DTYPES[1:] if device.ON_GPU else DTYPES)

#: Sequences and their length: 4096 tokens each, on a GPU 32768.
BATCHES = full_or_quick([(32, 128), (8, 512), (2, 2048)], [(2, 32), (1, 64)], [(64, 512), (16, 2048)])

#: Sequences, length, heads, student's and teacher's head width. TinyBERT's 26 where it is used, 32 in long sequences;
#: on a GPU half the teacher's width, and the teacher's in long sequences.
_WIDTHS = full_or_quick((26, 32), (26, 32), (32, 64))
ATTENTION_SHAPES = [(n, length, 12, _WIDTHS[length > 1024], 64) for n, length in BATCHES]
attention_shapes = pytest.mark.parametrize(
    "shape", ATTENTION_SHAPES, ids=["x".join(map(str, shape)) for shape in ATTENTION_SHAPES]
)

#: Entries of the maps that `map_products` holds at once: 1 MB of float32, about a core's cache; on a GPU 25 MB of
#: bfloat16, half of an H100's cache, and so many launches fewer.
_BLOCK = 12_500_000 if device.ON_GPU else 1 << 18


def random(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(*shape, device=device.TENSORS).to(dtype).requires_grad_(grad)


def even_packing(sequences: int, length: int) -> Tensor:
    """cu_seqlens of a batch without padding."""
    return torch.arange(sequences + 1, dtype=torch.int32, device=device.TENSORS) * length


def copy_of(size: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Moves ``size`` bytes: a copy of half as many, which it reads and writes."""
    source = random(size // (2 * dtype.itemsize), dtype=dtype)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def gpu_copy(size: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """The same as a floor on a GPU, where moving the operands may take longer than the products do."""
    return {"floor: copy": copy_of(size, dtype)} if device.ON_GPU else {}


def ragged_lengths(sequences: int, length: int) -> Tensor:
    """Lengths drawn evenly from ``length / 4`` to ``length``, int32 ``[sequences]``; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(length // 4, length + 1, (sequences,), generator=generator, dtype=torch.int32)


@dataclass(frozen=True)
class Ragged:
    """A batch of ragged sequences: the padded ``[B, L]`` and the packed ``[T]`` view of the same tokens."""

    lengths: Tensor  # int32 [B], on the CPU
    length: int

    @staticmethod
    def draw(sequences: int, length: int) -> Ragged:
        return Ragged(ragged_lengths(sequences, length), length)

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0)).int().to(device.TENSORS)

    @property
    def mask(self) -> Tensor:
        """bool ``[B, L]``, true at real tokens."""
        return (torch.arange(self.length) < self.lengths[:, None]).to(device.TENSORS)

    @property
    def max_seqlen(self) -> int:
        return int(self.lengths.max())

    @property
    def tokens(self) -> float:
        """Share of the padded batch's tokens that are real."""
        return float(self.lengths.float().mean()) / self.length

    @property
    def pairs(self) -> float:
        """Share of the padded batch's ``B * L * L`` pairs that are between real tokens of one sequence."""
        return float(self.lengths.double().square().mean()) / self.length**2

    def pack(self, padded: Tensor) -> Tensor:
        """``[B, L, ...]`` -> ``[T, ...]``, a leaf of its own that asks for a gradient as ``padded`` does."""
        return padded.detach()[self.mask].requires_grad_(padded.requires_grad)


def attention_inputs(
    shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(q, k) of the student, which want gradients, and of the teacher: ``[B, L, H, D]``, as linear layers make them."""
    sequences, length, heads, ds, dt = shape
    student = [random(sequences, length, heads, ds, dtype=dtype, grad=True) for _ in range(2)]
    teacher = [random(sequences, length, heads, dt, dtype=dtype) for _ in range(2)]
    return (student[0], student[1]), (teacher[0], teacher[1])


def in_float32(x: Tensor) -> Tensor:
    return x.detach().float().requires_grad_(x.requires_grad)


def heads_first(x: Tensor) -> Tensor:
    """``[B, L, H, D]`` -> contiguous ``[B * H, L, D]`` for bare products."""
    return x.detach().transpose(1, 2).flatten(0, 1).contiguous()


def map_products(pairs: list[tuple[Tensor, Tensor]], outs: list[Tensor]) -> Callable[[], None]:
    """Bare products of the size that losses on attention maps need, on maps that stay in the cache.

    For each ``(a, b)`` the product ``a @ b.T`` (``[B * H, L, D]`` both), and for each ``x`` of ``outs`` a product of a
    map with ``x``; a few heads at a time, the maps always written to the same buffer.
    """
    total, length, _ = pairs[0][0].shape
    group = max(1, min(total, _BLOCK // length**2))
    buffer = pairs[0][0].new_zeros(group, length, length)
    results = [x.new_empty(group, length, x.shape[-1]) for x in outs]

    def call() -> None:
        for start in range(0, total, group):
            part = slice(start, min(start + group, total))
            maps = buffer[: part.stop - part.start]
            for a, b in pairs:
                torch.bmm(a[part], b[part].mT, out=maps)
            for x, result in zip(outs, results, strict=True):
                torch.bmm(maps, x[part], out=result[: len(maps)])

    return call
