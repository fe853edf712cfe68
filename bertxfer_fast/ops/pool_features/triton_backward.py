"""Triton kernels of pool_features' backward pass: every layer's gradient in one pass.

Bytes at 32768 tokens, 768 wide, bf16: one layer's gradient 50 MB, four layers' 201 MB written; as much is read where
the weights want gradients (``max`` and ``cls`` then read no more than a row a sequence). Floor on an H100 at 3.0 TB/s:
17 us a layer, twice that with gradients of the weights. Last measured: not yet measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.kernels import find_tile, launch, many, tile_slots, whole_length
from .triton import TOGETHER, WIDEST, WIDEST_ROW, alike, arguments, column_block, scale

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled; not yet timed.
SPREAD = {"BLOCK_T": 32, "num_warps": 4}


@triton.jit
def project_kernel(grad, pooled, norms, projected, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The gradient of a row before it was normalised: ``(g - u <u, g>) / norm``."""
    n = tl.program_id(0).to(tl.int64)
    along = tl.zeros((BLOCK_D,), tl.float32)
    for base in range(0, WIDTH, BLOCK_D):
        cols = base + tl.arange(0, BLOCK_D)
        g = tl.load(grad + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        u = tl.load(pooled + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        along += g * u
    projection = tl.sum(along)
    norm = tl.load(norms + n)
    for base in range(0, WIDTH, BLOCK_D):
        cols = base + tl.arange(0, BLOCK_D)
        g = tl.load(grad + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        u = tl.load(pooled + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        tl.store(projected + n * WIDTH + cols, (g - u * projection) / norm, mask=cols < WIDTH)


@triton.jit
def spread_kernel(
    h0, h1, h2, h3, h4, h5, h6, h7, g0, g1, g2, g3, g4, g5, g6, g7,
    weights,
    cu_seqlens,
    seqused,
    tokens,
    sequences,
    grad,
    argmax,
    products,
    programs,
    MODE: tl.constexpr,
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    NEED_WEIGHTS: tl.constexpr,
    MANY: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens of every layer's gradient in a block of columns; their share of the weights' gradients."""
    across: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    n, start, length, row = find_tile(
        cu_seqlens, seqused, tokens, sequences, program // across, BLOCK_T, MANY
    )
    cols = (program % across) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = row + tl.arange(0, BLOCK_T)
    within = cols < WIDTH
    g = tl.load(grad + n.to(tl.int64) * WIDTH + cols, mask=within, other=0.0).to(tl.float32)
    counts = (rows < length)[:, None] & within[None, :]
    if MODE == "cls":
        counts = counts & (rows == 0)[:, None]
    elif MODE == "max":
        token = tl.load(argmax + n.to(tl.int64) * WIDTH + cols, mask=within, other=0)
        counts = counts & ((start + rows)[:, None] == token[None, :])
    else:
        g *= scale(length, MODE)
    mixed = tl.where(counts, g[None, :], 0.0)
    rest = (rows < whole_length(cu_seqlens, tokens, n))[:, None] & within[None, :]
    tokens_of = (start + rows).to(tl.int64)[:, None]
    hidden = (h0, h1, h2, h3, h4, h5, h6, h7)
    grads = (g0, g1, g2, g3, g4, g5, g6, g7)
    for i in tl.static_range(LAYERS):
        target = grads[i]
        values = tl.where(counts, tl.load(weights + i) * mixed, 0.0).to(target.dtype.element_ty)
        tl.store(target + tokens_of * WIDTH + cols[None, :], values, mask=rest)
        if NEED_WEIGHTS:
            x = tl.load(hidden[i] + tokens_of * STRIDE + cols[None, :], mask=counts, other=0.0).to(tl.float32)
            tl.store(products + i * programs + program, tl.sum(mixed * x))


def pool_features_backward(
    grad: Tensor,
    hidden: list[Tensor],
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    layer_weights: Tensor,
    mode: str,
    normalize: bool,
    pooled: Tensor,
    argmax: Tensor,
    norm: Tensor,
    need_weights: bool,
) -> tuple[list[Tensor], Tensor]:
    tokens, width = hidden[0].shape
    sequences = cu_seqlens.shape[0] - 1
    device = hidden[0].device
    grad, weights = grad.contiguous(), layer_weights.contiguous()
    if normalize:
        projected = torch.empty((sequences, width), dtype=torch.float32, device=device)
        launch(
            project_kernel,
            sequences,
            grad,
            pooled,
            norm,
            projected,
            WIDTH=width,
            BLOCK_D=column_block(width, WIDEST_ROW),
        )
        grad = projected
    grads = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in hidden]
    layers = alike(hidden) if need_weights else hidden
    block = column_block(width, WIDEST)
    programs = tile_slots(tokens, sequences, SPREAD["BLOCK_T"]) * -(-width // block)
    products = torch.empty(
        (len(hidden), programs) if need_weights else (0, 0), dtype=torch.float32, device=device
    )
    for i in range(0, len(hidden), TOGETHER):
        part = slice(i, i + TOGETHER)
        launch(
            spread_kernel,
            programs,
            *arguments(layers[part]),
            *arguments(grads[part]),
            weights[part],
            cu_seqlens,
            seqused,
            tokens,
            sequences,
            grad,
            argmax,
            products[part],
            programs,
            MODE=mode,
            LAYERS=len(grads[part]),
            WIDTH=width,
            STRIDE=layers[0].stride(0) if need_weights else 0,
            NEED_WEIGHTS=need_weights,
            MANY=many(sequences),
            BLOCK_D=block,
            **SPREAD,
        )
    if need_weights:
        return grads, products.sum(1, dtype=torch.float64).float()
    return grads, torch.zeros(len(hidden), dtype=torch.float32, device=device)
