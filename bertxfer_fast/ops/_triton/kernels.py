"""What the Triton kernels of all operators share: tiles of packed sequences, launching, sums in a fixed order.

Imported by the ``triton_.py`` of an operator, which is imported when the operator first runs on that backend.
Launchers never read a value back from the device, so every operator can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Meta = dict[str, Any]


def launch(
    kernel: Any, programs: int, *args: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any
) -> None:
    """Every kernel of the package starts here, on a one-dimensional grid."""
    if programs > 0:
        meta = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
        kernel[(programs,)](*args, **meta, **constants)


def dot_precision(*tensors: Tensor) -> str:
    """``"ieee"``, or ``"tf32"`` where the user allowed it for float32 products (torch.set_float32_matmul_precision)."""
    allowed = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed and any(t.dtype == torch.float32 for t in tensors) else "ieee"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once at least; in the interpreter 1."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


#: What `capability` tells where there is no GPU: kernels that are only compiled set it.
compiled_for = 90


def capability(device: torch.device) -> int:
    """Compute capability, 80 for sm_80: a size that tables of configurations may ask for."""
    if device.type != "cuda":
        return compiled_for
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def block_dim(dim: int) -> int:
    """The power of two a head dim is padded to in a tile, at least what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(dim))


def contiguous_rows(x: Tensor) -> Tensor:
    """The same tensor, copied only if its innermost dimension is strided."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def many(sequences: int) -> int:
    """How many entries of ``cu_seqlens`` `find_tile` reads at a time."""
    return min(1024, triton.next_power_of_2(max(sequences, 16)))


def tile_slots(tokens: int, sequences: int, block: int) -> int:
    """How many programs cover the tiles of ``block`` rows of all sequences, whatever their lengths: see `find_tile`."""
    return tokens // block + sequences if sequences else 0


@triton.jit
def find_tile(cu_seqlens, seqused, tokens, sequences, slot, BLOCK: tl.constexpr, MANY: tl.constexpr):
    """The tile that program ``slot`` works on: its sequence, that one's first token and used length, the tile's row.

    Sequence n owns the slots from ``cu_seqlens[n] // BLOCK + n`` on. That is room enough for each of its tiles, since
    ``ceil(len / BLOCK) <= (start + len) // BLOCK - start // BLOCK + 1``, leaves at most one slot a sequence idle, and
    is found by counting: no prefix sum over lengths, no table, no word from the host.
    """
    owners = 0
    for base in range(0, sequences, MANY):
        n = base + tl.arange(0, MANY)
        first = tl.load(cu_seqlens + n, mask=n < sequences, other=0)
        owners += tl.sum(((first // BLOCK + n <= slot) & (n < sequences)).to(tl.int32))
    n = tl.maximum(owners - 1, 0)
    start, length = sequence_of(cu_seqlens, seqused, tokens, n)
    return n, start, length, (slot - start // BLOCK - n) * BLOCK


@triton.jit
def sequence_of(cu_seqlens, seqused, tokens, n):
    """First token and used length of sequence ``n``, kept inside ``tokens`` whatever the values are."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + n), 0), tokens)
    stop = tl.minimum(tl.load(cu_seqlens + n + 1), tokens)
    length = tl.maximum(stop - start, 0)
    if seqused is not None:
        length = tl.minimum(tl.maximum(tl.load(seqused + n), 0), length)
    return start, length


@triton.jit
def load_rows(x, stride, first, rows, length, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """``[rows, BLOCK_DIM]`` of a sequence that starts at token ``first``; zeros beyond its length and beyond DIM."""
    d = tl.arange(0, BLOCK_DIM)
    offsets = (first + rows).to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(x + offsets, mask=(rows < length)[:, None] & (d < DIM)[None, :], other=0.0)


@triton.jit
def store_rows(x, stride, first, rows, length, values, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    d = tl.arange(0, BLOCK_DIM)
    offsets = (first + rows).to(tl.int64)[:, None] * stride + d[None, :]
    mask = (rows < length)[:, None] & (d < DIM)[None, :]
    tl.store(x + offsets, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def whole_length(cu_seqlens, tokens, n):
    """Length of sequence ``n`` with the tokens that do not count: their gradients are zero, and written."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + n), 0), tokens)
    return tl.maximum(tl.minimum(tl.load(cu_seqlens + n + 1), tokens) - start, 0)


@triton.jit
def _normaliser_kernel(
    cu_seqlens,
    seqused,
    tokens,
    sequences,
    heads,
    numbers,
    factor,
    stored,
    MEAN: tl.constexpr,
    PAIRS: tl.constexpr,
    WHOLE: tl.constexpr,
    MANY: tl.constexpr,
):
    normaliser = 1.0
    if MEAN:
        terms = tl.zeros((), tl.int64)
        for base in range(0, sequences, MANY):
            n = base + tl.arange(0, MANY)
            inside = n < sequences
            start = tl.load(cu_seqlens + n, mask=inside, other=0)
            used = tl.load(cu_seqlens + n + 1, mask=inside, other=0) - start
            if seqused is not None:
                used = tl.minimum(used, tl.load(seqused + n, mask=inside, other=0))
            used = tl.minimum(tl.maximum(used, 0), tokens).to(tl.int64)
            terms += tl.sum(used * used if PAIRS else used)
        terms *= heads
        normaliser = tl.where(terms > 0, 1.0 / tl.maximum(terms, 1).to(tl.float32), 0.0)
    tl.store(numbers, normaliser)
    if WHOLE:
        tl.store(numbers + 1, normaliser)
        tl.store(factor, 1.0)
    else:
        tl.store(numbers + 1, stored)
        tl.store(factor, normaliser / stored)


def normaliser(
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    tokens: int,
    heads: int,
    dtype: torch.dtype,
    *,
    mean: bool,
    pairs: bool,
    stored: float,
) -> tuple[Tensor, Tensor]:
    """What a loss and its stored gradient are multiplied by, on the device: float32 ``[2]``, and the missing factor.

    Where ``dtype`` has float32's range the gradient is stored whole and the factor is 1. float16 gradients are stored
    at ``stored`` times the gradient of the sum, and the factor is the rest.
    """
    sequences = cu_seqlens.shape[0] - 1
    numbers = torch.empty(2, dtype=torch.float32, device=cu_seqlens.device)
    factor = torch.empty((), dtype=torch.float32, device=cu_seqlens.device)
    launch(
        _normaliser_kernel,
        1,
        cu_seqlens,
        seqused,
        tokens,
        sequences,
        heads,
        numbers,
        factor,
        stored,
        MEAN=mean,
        PAIRS=pairs,
        WHOLE=dtype != torch.float16,
        MANY=many(sequences),
    )
    return numbers, factor


@triton.jit
def _total_kernel(partials, count, multiplier, total, BLOCK: tl.constexpr):
    sums = tl.zeros((BLOCK,), tl.float64)
    for base in range(0, count, BLOCK):
        i = base + tl.arange(0, BLOCK)
        sums += tl.load(partials + i, mask=i < count, other=0.0).to(tl.float64)
    tl.store(total, (tl.sum(sums) * tl.load(multiplier)).to(tl.float32))


def total(partials: Tensor, multiplier: Tensor) -> Tensor:
    """float32 scalar: the sum of float32 ``partials`` in float64 and in a fixed order, times ``multiplier``'s first."""
    result = torch.empty((), dtype=torch.float32, device=partials.device)
    launch(_total_kernel, 1, partials, partials.numel(), multiplier, result, BLOCK=1024, num_warps=8)
    return result


#: How a table of configurations is asked: its first row whose bounds hold all.
Row = tuple[tuple[int, ...], Meta]


def configuration(rows: list[Row], *sizes: int) -> Meta:
    """The first row whose every bound is at least the size; a table's last row has to hold everything."""
    for bounds, meta in rows:
        if all(size <= bound for size, bound in zip(sizes, bounds, strict=True)):
            return meta
    raise AssertionError(f"no configuration for {sizes}")


@triton.jit
def _scaled_total_kernel(partials, count, multiplier, missing, total, factor, BLOCK: tl.constexpr):
    sums = tl.zeros((BLOCK,), tl.float64)
    for base in range(0, count, BLOCK):
        i = base + tl.arange(0, BLOCK)
        sums += tl.load(partials + i, mask=i < count, other=0.0).to(tl.float64)
    tl.store(total, (tl.sum(sums) * multiplier).to(tl.float32))
    tl.store(factor, missing)


def scaled_total(partials: Tensor, multiplier: float, missing: float) -> tuple[Tensor, Tensor]:
    """`total` where the host knows the multiplier, and the factor that stored gradients lack: both in one launch."""
    result, factor = (torch.empty((), dtype=torch.float32, device=partials.device) for _ in range(2))
    count = partials.numel()
    launch(
        _scaled_total_kernel, 1, partials, count, multiplier, missing, result, factor, BLOCK=1024, num_warps=8
    )
    return result, factor


def stored_size(dtype: torch.dtype, whole: float, safe: float) -> tuple[float, float]:
    """What a direction is multiplied by before it is stored, and the factor that is then missing.

    ``whole`` makes it the gradient. float16, which is out of digits below 6e-5, takes ``safe`` where that is more.
    """
    size = max(whole, safe) if dtype == torch.float16 else whole
    return size, 1.0 if size == whole else whole / size


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, summed and returned in float32 whatever the operands' dtype."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.is_cuda and a.numel() and b.numel():
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())  # the CPU, where kernels are interpreted, has no such product


def operand(x: Tensor) -> Tensor:
    """``x`` as the library's products take it: as it is, but dense on the CPU, where kernels are interpreted.

    There oneDNN's bfloat16 products read past the rows of a strided matrix, and what they find may be NaN.
    """
    return x if x.is_cuda else x.contiguous()
