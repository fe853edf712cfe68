"""Readable reference and fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_grad(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (grad.float() * scale).to(dtype)


def scale_grad_(grads: list[Tensor], grad_scale: Tensor, upstream: Tensor) -> None:
    for grad in grads:
        grad.copy_(grad.float() * (grad_scale * upstream))
