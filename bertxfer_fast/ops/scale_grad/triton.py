"""Triton kernels of scale_grad: a gradient times a number that is on the device.

Bytes: the gradient read once and written once; 32768 x 312 in bf16 are 41 MB, floor on an H100 at 3.0 TB/s: 14 us. In
place and with a product of 1 only the two numbers are read: what is left is the launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.launching import kernel, launch

# Sixteen bytes and more for each thread at once; compiled without spills, not yet timed.
BLOCK = 4096
#: Gradients of one launch: no loss has more.
TOGETHER = 3


@triton.jit
def _scale(grad_ptr, out_ptr, block, size, product, BLOCK: tl.constexpr):
    first = block.to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    if first + BLOCK <= size:  # without a mask, so as vectors
        tl.store(out_ptr + i, (tl.load(grad_ptr + i).to(tl.float32) * product).to(out_ptr.dtype.element_ty))
    else:
        values = tl.load(grad_ptr + i, mask=i < size, other=0.0).to(tl.float32) * product
        tl.store(out_ptr + i, values.to(out_ptr.dtype.element_ty), mask=i < size)


@kernel
def scale_kernel(
    grad_ptr,  # [size]
    factor_ptr,  # scalar
    out_ptr,  # [size]
    size,
    BLOCK: tl.constexpr,
):
    _scale(grad_ptr, out_ptr, tl.program_id(0), size, tl.load(factor_ptr), BLOCK)


@kernel
def scale_in_place_kernel(
    first_ptr,  # [first_size]
    second_ptr,  # [second_size], or None
    third_ptr,  # [third_size], or None
    first_size,
    second_size,
    third_size,
    factor_ptr,  # scalar
    upstream_ptr,  # scalar
    BLOCK: tl.constexpr,
):
    """Blocks of the first gradient, then of the second, then of the third."""
    product = tl.load(factor_ptr) * tl.load(upstream_ptr)
    if product != 1.0:
        block = tl.program_id(0)
        blocks = tl.cdiv(first_size, BLOCK)
        if block < blocks:
            _scale(first_ptr, first_ptr, block, first_size, product, BLOCK)
        if second_ptr is not None:
            block -= blocks
            blocks = tl.cdiv(second_size, BLOCK)
            if (block >= 0) & (block < blocks):
                _scale(second_ptr, second_ptr, block, second_size, product, BLOCK)
        if third_ptr is not None:
            block -= blocks
            if block >= 0:
                _scale(third_ptr, third_ptr, block, third_size, product, BLOCK)


def scale_grad(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    grad = grad.contiguous()
    out = torch.empty(grad.shape, dtype=dtype, device=grad.device)
    launch(scale_kernel, -(-grad.numel() // BLOCK), grad, factor, out, grad.numel(), BLOCK=BLOCK)
    return out


def scale_grad_(grads: list[Tensor], factor: Tensor, upstream: Tensor) -> None:
    for start in range(0, len(grads), TOGETHER):
        targets = grads[start : start + TOGETHER]
        dense = [
            x.contiguous() for x in targets
        ]  # the same tensor, unless a caller of torch.ops hands over a view
        sizes = [x.numel() for x in dense]
        missing = TOGETHER - len(dense)
        blocks = sum(-(-size // BLOCK) for size in sizes)
        launch(
            scale_in_place_kernel,
            blocks,
            *dense,
            *(None for _ in range(missing)),
            *sizes,
            *(0 for _ in range(missing)),
            factor,
            upstream,
            BLOCK=BLOCK,
        )
        for target, scaled in zip(targets, dense, strict=True):
            if scaled is not target:
                target.copy_(scaled)
