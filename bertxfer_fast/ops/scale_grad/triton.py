"""Triton kernels of scale_grad: a gradient times a number that is on the device.

Bytes: the gradient read once and written once; 32768 x 312 in bf16 are 41 MB, floor on an H100 at 3.0 TB/s: 14 us. In
place and with a product of 1 only the two numbers are read: what is left is the launch. Last measured: not yet
measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.kernels import launch

# Sixteen bytes and more for each thread at once; compiled without spills, not yet timed.
BLOCK = 4096
#: Gradients of one launch: no loss has more.
TOGETHER = 3


@triton.jit
def _scale(grad, out, block, size, product, BLOCK: tl.constexpr):
    first = block.to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    if first + BLOCK <= size:  # without a mask, so as vectors
        tl.store(out + i, (tl.load(grad + i).to(tl.float32) * product).to(out.dtype.element_ty))
    else:
        values = tl.load(grad + i, mask=i < size, other=0.0).to(tl.float32) * product
        tl.store(out + i, values.to(out.dtype.element_ty), mask=i < size)


@triton.jit
def scale_kernel(grad, factor, out, size, BLOCK: tl.constexpr):
    _scale(grad, out, tl.program_id(0), size, tl.load(factor), BLOCK)


@triton.jit
def scale_in_place_kernel(
    first, second, third, first_size, second_size, third_size, factor, upstream, BLOCK: tl.constexpr
):
    """Blocks of the first gradient, then of the second, then of the third; one that is not there is None."""
    product = tl.load(factor) * tl.load(upstream)
    if product != 1.0:
        block = tl.program_id(0)
        blocks = tl.cdiv(first_size, BLOCK)
        if block < blocks:
            _scale(first, first, block, first_size, product, BLOCK)
        if second is not None:
            block -= blocks
            blocks = tl.cdiv(second_size, BLOCK)
            if (block >= 0) & (block < blocks):
                _scale(second, second, block, second_size, product, BLOCK)
        if third is not None:
            block -= blocks
            if block >= 0:
                _scale(third, third, block, third_size, product, BLOCK)


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
