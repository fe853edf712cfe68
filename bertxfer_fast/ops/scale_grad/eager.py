from __future__ import annotations

import torch
from torch import Tensor


def scale_grad(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return (grad.float() * factor).to(dtype)


def scale_grad_(grads: list[Tensor], factor: Tensor, upstream: Tensor) -> None:
    for grad in grads:
        grad.copy_(grad.float() * (factor * upstream))
