"""From the sums of a loss's programs to the loss: in float64 and in a fixed order, so the same bits every time.

A loss is its sum times ``loss_scale``, which for a mean is known on the device only. Kernels store the gradient of the
loss itself, so that the factor with which backward multiplies it is 1; logits_kl's is another in float16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import kernel, launch
from .packing import CHUNK, Packing


@triton.jit
def mean_scale(packing, heads, MEAN: tl.constexpr, PAIRS: tl.constexpr):
    """One over the number of a loss's terms, rows or with PAIRS pairs of tokens; 0 of none. Without MEAN 1."""
    result = 1.0
    if MEAN:
        terms = tl.zeros((), tl.int64)
        for base in range(0, packing.sequences, CHUNK):
            n = base + tl.arange(0, CHUNK)
            inside = n < packing.sequences
            start = tl.load(packing.cu_seqlens + n, mask=inside, other=0)
            used = tl.load(packing.cu_seqlens + n + 1, mask=inside, other=0) - start
            if packing.seqused is not None:
                used = tl.minimum(used, tl.load(packing.seqused + n, mask=inside, other=0))
            used = tl.minimum(tl.maximum(used, 0), packing.tokens).to(tl.int64)
            terms += tl.sum(used * used if PAIRS else used)
        terms *= heads
        result = tl.where(terms > 0, 1.0 / tl.maximum(terms, 1).to(tl.float32), 0.0)
    return result


@triton.jit
def store_loss(losses_ptr, count, loss_scale, factor, loss_ptr, factor_ptr):
    """The loss from its ``count`` sums, and the factor that stored gradients lack."""
    sums = tl.zeros((1024,), tl.float64)
    for base in range(0, count, 1024):
        i = base + tl.arange(0, 1024)
        sums += tl.load(losses_ptr + i, mask=i < count, other=0.0).to(tl.float64)
    tl.store(loss_ptr, (tl.sum(sums) * loss_scale).to(tl.float32))
    tl.store(factor_ptr, factor)


@kernel
def total_kernel(
    cu_seqlens_ptr,  # int32 [N + 1]
    seqused_ptr,  # int32 [N], or None
    tokens,
    sequences,
    heads,
    losses_ptr,  # [count]
    count,
    loss_ptr,  # scalar
    factor_ptr,  # scalar
    MEAN: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """The loss of a pack, where no kernel that follows its sums could do that on the side."""
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    loss_scale = mean_scale(packing, heads, MEAN, PAIRS)
    store_loss(losses_ptr, count, loss_scale, 1.0, loss_ptr, factor_ptr)


@kernel
def scaled_total_kernel(
    losses_ptr,  # [count]
    count,
    loss_scale,
    missing_factor,
    loss_ptr,  # scalar
    factor_ptr,  # scalar
):
    store_loss(losses_ptr, count, loss_scale, missing_factor, loss_ptr, factor_ptr)


def scalars(device: torch.device) -> tuple[Tensor, Tensor]:
    """Where a kernel writes the loss, and the factor of its gradients."""
    loss, factor = (torch.empty((), dtype=torch.float32, device=device) for _ in range(2))
    return loss, factor


def scaled_total(losses: Tensor, loss_scale: float, missing_factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """The loss where the host knows its scale, and the factor that stored gradients lack."""
    loss, factor = scalars(losses.device)
    launch(
        scaled_total_kernel,
        1,
        losses,
        losses.numel(),
        loss_scale,
        missing_factor,
        loss,
        factor,
        num_warps=8,
    )
    return loss, factor


def stored_scale(dtype: torch.dtype, whole: float, safe: float) -> tuple[float, float]:
    """What a difference of probabilities is multiplied by before it is stored, and the factor that is then missing.

    ``whole`` makes it the gradient. float16, which is out of digits below 6e-5, takes ``safe``.
    """
    scale = safe if dtype == torch.float16 else whole
    return scale, 1.0 if scale == whole else whole / scale
