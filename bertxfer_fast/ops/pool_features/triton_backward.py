"""Triton kernels of pool_features' backward pass: every layer's gradient in one pass.

Bytes at 32768 tokens, 768 wide, bf16: one layer's gradient 50 MB, four layers' 201 MB written; as much is read where
the weights want gradients (``max`` and ``cls`` then read no more than a row a sequence). Floor on an H100 at 3.0 TB/s:
17 us a layer, twice that with gradients of the weights.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .._triton.launching import kernel, launch
from .._triton.packing import Packing, find_tile, tile_slots, whole_length
from .triton import TOGETHER, WIDEST, WIDEST_ROW, alike, column_block, scale

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled; not yet timed.
SPREAD = {"BLOCK_T": 32, "num_warps": 4}


@kernel
def project_kernel(
    grad_ptr,  # [N, WIDTH]
    pooled_ptr,  # [N, WIDTH]
    norms_ptr,  # [N]
    projected_ptr,  # [N, WIDTH]
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of a row before it was normalised: ``(g - u <u, g>) / norm``."""
    n = tl.program_id(0).to(tl.int64)
    products = tl.zeros((BLOCK_D,), tl.float32)
    for base in range(0, WIDTH, BLOCK_D):
        cols = base + tl.arange(0, BLOCK_D)
        g = tl.load(grad_ptr + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        u = tl.load(pooled_ptr + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        products += g * u
    projection = tl.sum(products)
    norm = tl.load(norms_ptr + n)
    for base in range(0, WIDTH, BLOCK_D):
        cols = base + tl.arange(0, BLOCK_D)
        g = tl.load(grad_ptr + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        u = tl.load(pooled_ptr + n * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
        tl.store(projected_ptr + n * WIDTH + cols, (g - u * projection) / norm, mask=cols < WIDTH)


@kernel
def spread_kernel(
    hidden,  # LAYERS of [T, WIDTH]
    grads,  # LAYERS of [T, WIDTH]
    weights_ptr,  # [LAYERS]
    cu_seqlens_ptr,  # int32 [N + 1]
    seqused_ptr,  # int32 [N], or None
    tokens,
    sequences,
    grad_ptr,  # [N, WIDTH]
    argmax_ptr,  # int32 [N, WIDTH], for MODE "max"
    products_ptr,  # [LAYERS, programs], for NEED_WEIGHTS
    programs,
    MODE: tl.constexpr,
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    NEED_WEIGHTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_T tokens of every layer's gradient in a block of columns; their share of the weights' gradients."""
    across: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    n, start, length, row = find_tile(packing, program // across, BLOCK_T)
    cols = (program % across) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = row + tl.arange(0, BLOCK_T)
    within = cols < WIDTH
    g = tl.load(grad_ptr + n.to(tl.int64) * WIDTH + cols, mask=within, other=0.0).to(tl.float32)
    counts = (rows < length)[:, None] & within[None, :]
    if MODE == "cls":
        counts = counts & (rows == 0)[:, None]
    elif MODE == "max":
        token = tl.load(argmax_ptr + n.to(tl.int64) * WIDTH + cols, mask=within, other=0)
        counts = counts & ((start + rows)[:, None] == token[None, :])
    else:
        g *= scale(length, MODE)
    mixed = tl.where(counts, g[None, :], 0.0)
    rest = (rows < whole_length(packing, n))[:, None] & within[None, :]
    tokens_of = (start + rows).to(tl.int64)[:, None]
    for i in tl.static_range(LAYERS):
        target = grads[i]
        values = tl.where(counts, tl.load(weights_ptr + i) * mixed, 0.0).to(target.dtype.element_ty)
        tl.store(target + tokens_of * WIDTH + cols[None, :], values, mask=rest)
        if NEED_WEIGHTS:
            x = tl.load(hidden[i] + tokens_of * STRIDE + cols[None, :], mask=counts, other=0.0).to(tl.float32)
            tl.store(products_ptr + i * programs + program, tl.sum(mixed * x))


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
            tuple(layers[part]),
            tuple(grads[part]),
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
            BLOCK_D=block,
            **SPREAD,
        )
    if need_weights:
        return grads, products.sum(1, dtype=torch.float64).float()
    return grads, torch.zeros(len(hidden), dtype=torch.float32, device=device)
