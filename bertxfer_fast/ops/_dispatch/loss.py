"""What all losses share: their forward operator returns ``(loss, *gradients, grad_scale)``.

Kernels store each gradient in `stored_dtype`; ``grad_scale``, a float32 scalar, is what is left to multiply it by to
get the gradient of the returned loss. The backward pass is that product, in :mod:`bertxfer_fast.ops.scale_grad`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..scale_grad import scale_grads


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the gradient of a tensor of ``dtype`` waits for the backward pass.

    float16's range is too small to wait in: what a loss scale is still to multiply may be beyond 65504, or below its
    last digit, where the product is neither. So float16 gradients wait in float32 and are rounded once.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def fake_loss(
    student: Tensor, differentiable: Iterable[tuple[Tensor | None, torch.dtype]], need_grad: bool
) -> tuple[Tensor, ...]:
    """Results without values: the loss, a gradient of each dtype (empty when not needed), ``grad_scale``."""
    scalar = student.new_empty((), dtype=torch.float32)
    gradients = (
        student.new_empty(x.shape if need_grad and x is not None else (0,), dtype=dtype)
        for x, dtype in differentiable
    )
    return scalar, *gradients, torch.empty_like(scalar)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients, grad_scale = output
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*gradients, grad_scale)


def backward(ctx: Any, grad_loss: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    *gradients, grad_scale = ctx.saved_tensors
    return scale_grads(gradients, needed, grad_scale, grad_loss, ctx.dtype)
