"""Packed sequences in Triton kernels: which tile a program works on, and rows of tensors in and out of registers."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

#: Entries of ``cu_seqlens`` that `find_tile` reads at a time: about two for each thread, whatever their number.
CHUNK = tl.constexpr(256)


class Rows(NamedTuple):
    """A ``[T, H, D]`` tensor as kernels take it: its last dimension is contiguous."""

    ptr: Any  # [T, H, D]
    token_stride: Any
    head_stride: Any


class Packing(NamedTuple):
    """Where the sequences of a pack start, and how many of their tokens count.

    Kernels take the four one by one and put them together: of a tuple's numbers Triton would ask whether 16 divides
    them, and compile again when that changes.
    """

    cu_seqlens: Any  # int32 [N + 1]
    seqused: Any  # int32 [N], or None
    tokens: Any
    sequences: Any


def rows_of(x: Tensor) -> Rows:
    """``x`` as the kernels take it. Strides are constants, which tells the compiler how rows are aligned.

    They are properties of a model, but for the stride between heads of a tensor that has heads before tokens. That one
    grows with the number of tokens, and stays a number at run time.
    """
    token_stride, head_stride = x.stride()[:2]
    if head_stride <= token_stride:
        head_stride = tl.constexpr(head_stride)
    return Rows(x, tl.constexpr(token_stride), head_stride)


def block_dim(dim: int) -> int:
    """The power of two a head dim is padded to in a tile, at least what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(dim))


def contiguous_rows(x: Tensor) -> Tensor:
    """The same tensor, copied only if its innermost dimension is strided."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def tile_slots(tokens: int, sequences: int, block: int) -> int:
    """How many programs cover the tiles of ``block`` rows of all sequences, whatever their lengths: see `find_tile`."""
    return tokens // block + sequences if sequences else 0


@triton.jit
def find_tile(packing, slot, BLOCK: tl.constexpr):
    """The tile that program ``slot`` works on: its sequence, that one's first token and used length, the tile's row.

    Sequence n owns the slots from ``cu_seqlens[n] // BLOCK + n`` on. That is room enough for each of its tiles, since
    ``ceil(len / BLOCK) <= (start + len) // BLOCK - start // BLOCK + 1``, leaves at most one slot a sequence idle, and
    is found by counting: no prefix sum over lengths, no table, no word from the host.
    """
    owners = 0
    for base in range(0, packing.sequences, CHUNK):
        n = base + tl.arange(0, CHUNK)
        first = tl.load(packing.cu_seqlens + n, mask=n < packing.sequences, other=0)
        owners += tl.sum(((first // BLOCK + n <= slot) & (n < packing.sequences)).to(tl.int32))
    n = tl.maximum(owners - 1, 0)
    start, length = sequence_of(packing, n)
    return n, start, length, (slot - start // BLOCK - n) * BLOCK


@triton.jit
def sequence_of(packing, n):
    """First token and used length of sequence ``n``, kept inside ``tokens`` whatever the values are."""
    start = tl.minimum(tl.maximum(tl.load(packing.cu_seqlens + n), 0), packing.tokens)
    stop = tl.minimum(tl.load(packing.cu_seqlens + n + 1), packing.tokens)
    length = tl.maximum(stop - start, 0)
    if packing.seqused is not None:
        length = tl.minimum(tl.maximum(tl.load(packing.seqused + n), 0), length)
    return start, length


@triton.jit
def whole_length(packing, n):
    """Length of sequence ``n`` with the tokens that do not count: their gradients are zero, and written."""
    start = tl.minimum(tl.maximum(tl.load(packing.cu_seqlens + n), 0), packing.tokens)
    return tl.maximum(tl.minimum(tl.load(packing.cu_seqlens + n + 1), packing.tokens) - start, 0)


@triton.jit
def _places(x, head, start, rows, BLOCK_DIM: tl.constexpr):
    d = tl.arange(0, BLOCK_DIM)
    offsets = (start + rows).to(tl.int64)[:, None] * x.token_stride + d[None, :]
    return x.ptr + head * x.head_stride + offsets


@triton.jit
def load_rows(
    x, head, start, rows, length, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, WHOLE: tl.constexpr = False
):
    """``[rows, BLOCK_DIM]`` of a sequence that starts at token ``start``; zeros beyond its length and beyond DIM.

    With WHOLE the caller knows that all rows are inside the sequence, and none is asked.
    """
    places = _places(x, head, start, rows, BLOCK_DIM)
    within = (tl.arange(0, BLOCK_DIM) < DIM)[None, :]
    if WHOLE and DIM == BLOCK_DIM:
        return tl.load(places)
    elif WHOLE:
        return tl.load(places, mask=within, other=0.0)
    else:
        return tl.load(places, mask=(rows < length)[:, None] & within, other=0.0)


@triton.jit
def store_rows(x, head, start, rows, length, values, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Writes the rows inside ``length``, in the dtype of ``x``."""
    mask = (rows < length)[:, None] & (tl.arange(0, BLOCK_DIM) < DIM)[None, :]
    places = _places(x, head, start, rows, BLOCK_DIM)
    tl.store(places, values.to(x.ptr.dtype.element_ty), mask=mask)
