"""``grad * factor``: the whole backward pass of an operator whose forward already computed its gradient.

A forward operator stores its gradient divided by a length that keeps it inside half precision's range, and
returns the float32 ``factor`` that is still missing (the length over the number of terms of the mean). The
backward pass multiplies that by the upstream gradient, a loss scale included, and rounds once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backend, _library
from .eager import scale_grad as _eager


def scale_grad(grad: Tensor, factor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``(grad * factor).to(dtype)`` in one pass, the product in float32.

    Args:
        grad: any shape; float32, bfloat16 or float16.
        factor: float32, 0-dim, on the device of ``grad``.
        dtype: of the result, by default that of ``grad``.
    """
    backend = _backend.pick("scale_grad", grad.device.type)
    return _library.overload("scale_grad", backend)(grad, factor, grad.dtype if dtype is None else dtype)


def _fake(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(grad.shape, dtype=dtype, device=grad.device)


def _backward(ctx: Any, grad: Tensor) -> Any:
    raise RuntimeError(
        "bertxfer_fast computes gradients in its forward pass, so they cannot be differentiated again "
        "(double backward). Write the loss in plain PyTorch where second derivatives are needed."
    )


_library.register("scale_grad", eager=_eager, fake=_fake, backward=_backward)
